"""Laws of the study's loops and of its results: examples/study."""

import copy
import dataclasses
import importlib
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from verl_cast.advantage import compute_cast_advantage
from verl_cast.config import CastConfig
from verl_cast.config.words import narration

STUDY = Path(__file__).parents[2] / "examples" / "study"
sys.path.insert(0, str(STUDY))

import arithmetic  # noqa: E402
import course as loop  # noqa: E402
import knows  # noqa: E402
import results  # noqa: E402
import through_verl  # noqa: E402

PLAN = loop.Plan(steps=4, problems=4, n=4, learning_rate=2e-4, evaluate_every=2, block=2)


@pytest.fixture(scope="module")
def tiny():
    """An untrained model, small enough for courses of a second. Its answers' first digit is always right."""
    torch.manual_seed(0)
    return knows.Gpt()


def cell(**changes):
    found = knows.cells()["medium_fit"]
    return dataclasses.replace(found, held_out=found.held_out[:20], **changes)


class Seen(knows.Knows):
    """Notes the problems of training; responses to half of the sums are called correct."""

    def sample(self, problems, n, context, generator):
        responses = super().sample(problems, n, context, generator)
        if n == PLAN.n:
            self.problems = [*getattr(self, "problems", []), *problems]
        responses.rewards = (responses.tokens.sum(dim=-1) % 2).float()
        return responses


def run(model, arm, seed=3, batches=None):
    policy = Seen(copy.deepcopy(model))
    found = loop.course(policy, cell(), loop.ARMS[arm], PLAN, seed, batches)
    found.pop("seconds")
    return policy, found


@pytest.mark.parametrize("arm", ["zero_variance_small", "small_trusted"])
def test_a_course_is_reproducible(tiny, arm):
    (one, first), (two, second) = run(tiny, arm), run(tiny, arm)
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert run(tiny, arm, seed=4)[1] != first


def test_arms_of_a_seed_see_the_same_problems(tiny):
    seen = {arm: run(tiny, arm)[0].problems for arm in ("grpo", "exact", "small_trusted")}
    assert len(seen["grpo"]) == PLAN.steps * PLAN.problems
    assert seen["grpo"] == seen["exact"] == seen["small_trusted"]


def test_a_course_takes_the_problems_that_another_program_drew(tiny):
    policy, found = run(tiny, "exact")
    drawn = [policy.problems[first : first + PLAN.problems] for first in range(0, len(policy.problems), PLAN.problems)]
    assert run(tiny, "exact", batches=drawn)[1] == found
    policy, other = run(tiny, "exact", batches=drawn[::-1])
    assert policy.problems == [problem for batch in drawn[::-1] for problem in batch] and other != found


def test_the_loop_sees_what_verls_data_loader_yields():
    from omegaconf import OmegaConf
    from torchdata.stateful_dataloader import StatefulDataLoader
    from verl.trainer.ppo.utils import create_rl_sampler

    found = arithmetic.cells()["sparse_fit"]
    sampler = create_rl_sampler(OmegaConf.create({"shuffle": True, "seed": 7}), found.train)
    loader = StatefulDataLoader(found.train, batch_size=arithmetic.PLAN.problems, sampler=sampler, collate_fn=list)
    steps = through_verl.drawn(found, 7)
    assert steps == [batch for batch, _ in zip(loader, steps, strict=False)] and len(steps) == through_verl.STEPS
    assert steps != through_verl.drawn(found, 8)


def test_what_trust_samples_leaves_the_course_alone(tiny):
    """A teacher that is never better: the course is GRPO's, bit for bit."""
    settings = loop.ARMS["exact"].settings | {"trust_standard_errors": 1e9}
    policy = Seen(copy.deepcopy(tiny))
    found = loop.course(policy, cell(), loop.Arm(settings, trust=True), PLAN, 3)
    grpo, _ = run(tiny, "grpo")
    assert found["trusted"] == [0] and len(found["measured"]) == 1
    assert all(torch.equal(a, b) for a, b in zip(policy.model.parameters(), grpo.model.parameters(), strict=True))


def test_a_contrastive_gap_is_the_difference_of_two_contexts(tiny):
    """At a snapshot the student's own context as the careless one gives `exact`; the teacher's gives no gap at all."""
    once = dataclasses.replace(PLAN, steps=1, evaluate_every=1)
    weights = {}
    for name, arm, careless in (
        ("exact", "exact", None),
        ("student's", "contrast", cell().student),
        ("teacher's", "contrast", cell().teacher),
    ):
        policy = Seen(copy.deepcopy(tiny))
        found = loop.course(policy, cell(careless=careless), loop.ARMS[arm], once, 3)
        weights[name] = torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])
        assert (found["flips"] == [0]) == (name == "teacher's")
    torch.testing.assert_close(weights["student's"], weights["exact"], atol=1e-6, rtol=0)
    assert not torch.allclose(weights["teacher's"], weights["exact"], atol=1e-6, rtol=0)


def drawn(policy, problems, n=4):
    responses = policy.sample(problems, n, "p08", torch.Generator().manual_seed(1))
    responses.rewards = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0])
    return responses


def test_the_grpo_arm_is_plain_grpo(tiny):
    """The gradient of the group-relative advantage times the log-probability, written out."""
    problems = cell().train[:3]
    ours, plain = knows.Knows(copy.deepcopy(tiny)), knows.Knows(copy.deepcopy(tiny))
    with torch.no_grad():
        responses = drawn(ours, problems)
    optimizers = [torch.optim.SGD(policy.model.parameters(), lr=1.0) for policy in (ours, plain)]
    config = CastConfig.from_dict(loop.GRPO)
    loop.update(ours, None, optimizers[0], problems, responses, PLAN, cell(), config)

    rewards = responses.rewards.view(3, 4)
    advantages = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + 1e-6)
    log_probs = plain.log_probs(problems, responses, 4, "p08")
    (-(advantages.view(-1, 1) * log_probs).mean(dim=1).mean()).backward()
    torch.nn.utils.clip_grad_norm_(plain.model.parameters(), loop.MAX_GRAD_NORM)
    optimizers[1].step()
    for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_an_update_in_parts_is_one_update(tiny):
    """And the advantages are verl_cast's, whatever the parts."""
    problems, parts = cell().train[:3], knows.Knows(copy.deepcopy(tiny))
    parts.group_batch = 2
    whole = knows.Knows(copy.deepcopy(tiny))
    teacher, config = knows.Knows(copy.deepcopy(tiny)), CastConfig()
    with torch.no_grad():
        responses = drawn(whole, problems)
        old = whole.log_probs(problems, responses, 4, "p08")
        scored = teacher.log_probs(problems, responses, 4, "p70")
    for policy in (parts, whole):
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
        found = loop.update(policy, teacher, optimizer, problems, responses, PLAN, cell(), config)
    for a, b in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    rewards = torch.zeros(responses.tokens.shape)
    rewards[:, -1] = responses.rewards
    expected, _ = compute_cast_advantage(rewards, responses.mask, np.repeat([0, 1, 2], 4), old, scored, config)
    torch.testing.assert_close(torch.cat([part.advantages for part in found]), expected)
    assert loop.statistics(found)["reward"] == pytest.approx(5 / 12)
    assert loop.statistics(found)["mixed"] == pytest.approx(1 / 3)


@torch.no_grad()
def test_the_tiny_models_cache_changes_no_log_prob(tiny):
    policy, problems = knows.Knows(tiny), cell().train[:3]
    responses = drawn(policy, problems)
    rows = torch.tensor(problems).repeat_interleave(4, dim=0)
    ids = torch.cat([knows.prompts(rows, torch.full((12,), knows.CONTEXTS.index("p08"))), responses.tokens], dim=1)
    logits = torch.cat([tiny(ids[:, :end], last=1)[0] for end in range(knows.PROMPT, ids.shape[1])], dim=1)
    expected = logits.log_softmax(dim=-1).gather(-1, responses.tokens[..., None])[..., 0]
    torch.testing.assert_close(policy.log_probs(problems, responses, 4, "p08"), expected, atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------- the small pretrained model


class Prompts(arithmetic.SmolLM):
    """A random Llama; its prompts are random tokens of different lengths, after the same `beginning`."""

    LENGTHS = (5, 9, 7)

    def __init__(self, model, tokenizer, beginning):
        super().__init__(model, tokenizer)
        self.beginning = beginning

    def prompts(self, problems, context):
        rng = random.Random(0)
        return [self.beginning + [rng.randrange(3, 60) for _ in range(length)] for length in self.LENGTHS]


@pytest.fixture(scope="module", params=[[], [11, 12, 13, 14]], ids=["nothing_shared", "same_beginning"])
def llama(request):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.4,
    )  # fmt: skip
    return Prompts(LlamaForCausalLM(config).eval(), None, request.param)


def full_log_probs(policy, problems, responses, n):
    """A plain forward of every prompt with its response."""
    prompts, found = policy.prompts(problems, "same"), []
    for row, tokens in enumerate(responses.tokens):
        prompt = torch.tensor(prompts[row // n])
        logits = policy.model(torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1]
        logits = logits / arithmetic.TEMPERATURE
        found.append(logits.log_softmax(dim=-1).gather(-1, tokens[:, None])[:, 0])
    return torch.stack(found)


def test_log_probs_with_the_prompts_cache_are_those_of_a_plain_forward(llama):
    """And so are their gradients. Some responses of a group are equal: they are computed once."""
    n, generator = 4, torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 60, (3 * n, 6), generator=generator)
    tokens[1], tokens[5] = tokens[0], tokens[6]
    tokens[4] = tokens[0]  # equal to that of another group
    mask = (torch.arange(6) < torch.randint(1, 7, (3 * n, 1), generator=generator)).long()
    responses = loop.Responses(tokens, mask, torch.zeros(3 * n))
    weights = torch.randn(3 * n, 6, generator=generator) * mask
    gradients, values = [], []
    for log_probs in (llama.log_probs([0, 1, 2], responses, n, "same"), full_log_probs(llama, [0, 1, 2], responses, n)):
        llama.model.zero_grad()
        (log_probs * weights).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in llama.model.parameters()])
        values.append(log_probs.detach())
    torch.testing.assert_close(*values, atol=1e-4, rtol=0)
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-3)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])


@torch.no_grad()
def test_sampling_follows_the_policy(llama):
    """Top-k of 1 gives the greedy response of a plain forward, up to the end token."""

    class Words:
        eos_token_id = 7

        def decode(self, ids, skip_special_tokens):
            return " ".join(map(str, ids.tolist()))

    policy = Prompts(llama.model, Words(), llama.beginning)
    problems = [("a", 1), ("b", 2), ("c", 3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "TOP_K", 1)
        responses = policy.sample(problems, 2, "same", torch.Generator().manual_seed(0))
    prompts = policy.prompts(problems, "same")
    for row, (tokens, kept) in enumerate(zip(responses.tokens, responses.mask, strict=True)):
        sequence = torch.tensor(prompts[row // 2])
        for token in tokens[kept.bool()]:
            assert token == policy.model(sequence[None]).logits[0, -1].argmax()
            sequence = torch.cat([sequence, token[None]])
        assert kept.sum() == len(tokens) or tokens[kept.sum() - 1] == Words.eos_token_id


def test_no_problem_stands_in_its_context_or_in_both_sets():
    for density, template in arithmetic.CONTEXTS.items():
        found = arithmetic.cells()[f"{density}_fit"]
        assert not set(found.train) & set(found.held_out)
        questions = {question for question, _ in [*found.train, *found.held_out]}
        for line in template.read_text().splitlines():
            if line.strip().startswith('"'):
                terms = line.split('"')[1].split("=")[0].strip()
                assert arithmetic.QUESTION.format(terms) not in questions
        assert all(answer == eval(question.split(":")[1].strip(" =")) for question, answer in found.train[:50])


# ------------------------------------------------------------------------------------------------------- the results


def test_finished_runs_are_skipped_and_only_those(tmp_path):
    raw, wanted = tmp_path / "raw" / "knows.jsonl", ([7, 8], ["rare_fit", "rare_unfit"], ["grpo", "exact"])
    every = loop.pending(raw, *wanted, True)
    assert len(every) == 6  # GRPO once for both cells
    for job in every[1::2]:
        loop.append(raw, dict(zip(("cell", "arm", "seed"), job, strict=True)))
    assert loop.pending(raw, *wanted, True) == every[::2]
    assert every == sorted(every, key=lambda job: job[0]), "by cell"


def line(cell, arm, seed, course, end):
    found = {"cell": cell, "arm": arm, "seed": seed, "course": course, "held_out": [[0, 0.1], [9, end]], "seconds": 1}
    return json.dumps(found)


def test_a_difference_is_paired_by_seed():
    runs = results.Runs(
        [
            line("rare_fit", "grpo", 1, 0.2, 0.5),
            line("rare_fit", "grpo", 2, 0.6, 0.5),
            line("rare_unfit", "exact", 2, 0.5, 0.1),
            line("rare_unfit", "exact", 1, 0.1, 0.2),
            line("rare_unfit", "exact", 3, 0.9, 0.9),  # has no GRPO to be compared with
        ]
    )
    assert runs.differences("rare_unfit", "exact", results.OUTCOMES["course"]) == pytest.approx([-10, -10])
    assert (
        results.table(runs, "end", ["exact"]).splitlines()[-1] == "| rare_unfit | 2 | 50.0 | **-35.0** (-40.0, -30.0) |"
    )


def test_the_committed_page_holds_the_tables_of_the_raw_files():
    page = results.PAGE.read_text()
    assert all(f"<!-- {name} -->" in page for name in results.TABLES)
    assert results.written(page) == page


# `off` as the careless context of a contrastive gap, and other measures of trust.
CONTRAST_OFF = {f"{name}contrast_off{trusted}" for name in ("", "tenth_") for trusted in ("", "_trusted")}
DROPPED = {"small_trust", "small_sampled"} | CONTRAST_OFF


def test_each_run_is_in_the_raw_results_once():
    for path in (STUDY / "raw").glob("*.jsonl"):
        runs = [json.loads(text) for text in path.read_text().splitlines()]
        keys = [(found["cell"], found["arm"], found["seed"]) for found in runs]
        assert keys and len(set(keys)) == len(keys)
        assert {arm for _, arm, _ in keys} <= {*loop.ARMS, *DROPPED}, "arms, also dropped ones"


# ------------------------------------------------------------------------------------------------------- through verl


def test_a_run_through_verl_has_the_arms_settings():
    environment, words = through_verl.command("sparse_fit", "tenth_deadzone", 7)
    assert (environment["ADV"], environment["TEACHER"]) == ("cast", str(arithmetic.CONTEXTS["sparse"]))
    for word in ("data.seed=7", "++algorithm.cast.flip_groups=zero_variance", "++algorithm.cast.base_wrong=0.1"):
        assert word in words
    assert "++algorithm.cast.trust=always" in words
    assert "++algorithm.cast.trust=measured" in through_verl.command("sparse_fit", "tenth_deadzone_trusted", 7)[1]
    environment, words = through_verl.command("sparse_unfit", "exact", 7)
    assert environment["TEACHER"] == "plain"
    environment, words = through_verl.command("dense_fit", "grpo", 7)
    assert environment["ADV"] == "grpo" and not any("algorithm.cast" in word for word in words)


def test_the_outcome_of_a_run_is_verls_own(tmp_path):
    steps = [{"critic/score/mean": reward} for reward in (0.25, 0.5)]
    steps[-1]["val-core/study/sparse_fit/acc/mean@1"] = 0.375
    lines = [json.dumps({"step": number, "data": step}) for number, step in enumerate(steps, start=1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = through_verl.outcome(tmp_path / "metrics.jsonl")
    assert found == {"course": 0.375, "held_out": [[2, 0.375]], "reward": [25, 50]}
    shares = {"cast/trust/teacher_share": 0.9, "cast/trust/policy_share": 0.25, "cast/trust/standard_errors": 7.0}
    steps[0] |= {"cast/trust/trusted": 1.0} | shares
    steps[1]["cast/trust/trusted"] = 0.0
    lines = [json.dumps({"step": number, "data": step}) for number, step in enumerate(steps, start=1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    trust = {"trusted": [100, 0], "measured": [[0, 0.9, 0.25, 7.0]]}
    assert through_verl.outcome(tmp_path / "metrics.jsonl") == found | trust


def test_the_quick_start_takes_the_studys_problems(monkeypatch, tmp_path):
    """Its own data are not made over them."""
    monkeypatch.setattr(through_verl, "WORK", tmp_path)
    monkeypatch.syspath_prepend(through_verl.QUICKSTART)
    prepare = importlib.import_module("prepare")
    through_verl.prepare("sparse_fit")
    monkeypatch.setattr(sys, "argv", ["prepare.py", "data", str(tmp_path / "sparse_fit" / "data")])
    monkeypatch.setattr(prepare, "make_data", lambda directory: pytest.fail("made again"))
    prepare.main()
    rows = pandas.read_parquet(tmp_path / "sparse_fit" / "data" / "val.parquet")
    assert len(rows) == arithmetic.HELD_OUT
    question, answer = arithmetic.cells()["sparse_fit"].held_out[0]
    assert rows["prompt"][0][0]["content"] == question and rows["reward_model"][0]["ground_truth"] == str(answer)


# (claim, raw file, cell, arm, outcome, verdict). The file is `knows` (the tiny model) or `arithmetic` (SmolLM2). The
# verdict is the arm against GRPO: ahead, level (less than 3 points away) or behind. Pages make these claims.
FIT = "With a fit context the recommended setting is ahead of GRPO where few groups are mixed, and level elsewhere."
TRUST = "With trust the lead is kept and the end is level; a teacher that is not better leaves GRPO as it is."
THE_TEACHERS = "A constant in all-wrong groups, without a teacher, does not lead."
NOT_BETTER = "With a context that is not better only flip=none with both bases 0 ends level with GRPO."
CAUGHT_UP = "Flips in mixed groups cost accuracy once the policy has caught up with its teacher."
CHANCE = "A dead zone gives the verifier's sign back where gaps are chance."
CLAIMS = [
    *(
        (TRUST, "knows", f"{density}_fit", arm, "course", "ahead" if density in ("rare", "sparse") else "level")
        for density in ("rare", "sparse", "medium", "dense")
        for arm in ("exact_trusted", "tenth_trusted")
    ),
    *(
        (TRUST, "knows", f"{density}_fit", arm, "end", "level")
        for density in ("rare", "sparse", "medium", "dense")
        for arm in ("exact_trusted", "tenth_trusted")
    ),
    *(
        (TRUST, "arithmetic", f"{density}_fit", "tenth_deadzone_trusted", outcome, "level")
        for density in ("sparse", "medium", "dense")
        for outcome in ("course", "end")
        if (density, outcome) != ("sparse", "end")  # ahead, but not surely
    ),
    (THE_TEACHERS, "knows", "rare_fit", "wrong_third", "course", "behind"),
    (THE_TEACHERS, "knows", "rare_fit", "wrong_tenth", "course", "level"),
    (FIT, "knows", "rare_fit", "tenth_deadzone", "course", "ahead"),
    (FIT, "knows", "sparse_fit", "tenth_deadzone", "course", "ahead"),
    (FIT, "knows", "medium_fit", "tenth_deadzone", "course", "level"),
    (FIT, "knows", "dense_fit", "tenth_deadzone", "course", "level"),
    (FIT, "arithmetic", "sparse_fit", "tenth_deadzone", "course", "level"),
    (FIT, "arithmetic", "medium_fit", "tenth_deadzone", "course", "level"),
    (FIT, "arithmetic", "dense_fit", "tenth_deadzone", "course", "level"),
    (NOT_BETTER, "knows", "sparse_equal", "exact", "end", "behind"),
    (NOT_BETTER, "knows", "sparse_equal", "zero_variance", "end", "behind"),
    (NOT_BETTER, "knows", "medium_unfit", "exact", "end", "behind"),
    (NOT_BETTER, "knows", "medium_unfit", "zero_variance", "end", "behind"),
    (NOT_BETTER, "knows", "rare_equal", "no_flip", "end", "behind"),
    *(
        (NOT_BETTER, "knows", f"{density}_{context}", "weights_only", "end", "level")
        for density in ("rare", "sparse", "medium", "dense")
        for context in ("equal", "unfit")
    ),
    (NOT_BETTER, "arithmetic", "sparse_unfit", "weights_only", "end", "level"),
    (NOT_BETTER, "arithmetic", "sparse_unfit", "tenth_deadzone", "course", "behind"),
    (NOT_BETTER, "arithmetic", "medium_unfit", "tenth_deadzone", "course", "behind"),
    (NOT_BETTER, "arithmetic", "medium_equal", "tenth_deadzone", "course", "behind"),
    (CAUGHT_UP, "knows", "rare_fit", "exact", "end", "behind"),
    (CAUGHT_UP, "knows", "sparse_fit", "exact", "end", "behind"),
    (CAUGHT_UP, "arithmetic", "sparse_fit", "exact", "end", "behind"),
    (CAUGHT_UP, "knows", "rare_fit", "zero_variance", "end", "level"),
    (CAUGHT_UP, "knows", "sparse_fit", "zero_variance", "end", "level"),
    (CHANCE, "knows", "medium_equal", "exact", "end", "behind"),
    (CHANCE, "knows", "medium_equal", "exact_deadzone", "end", "level"),
    (CHANCE, "knows", "dense_equal", "exact", "end", "behind"),
    (CHANCE, "knows", "dense_equal", "exact_deadzone", "end", "level"),
]


@pytest.mark.parametrize("claim, file, cell, arm, outcome, verdict", CLAIMS)
def test_a_claim_is_what_the_raw_results_show(claim, file, cell, arm, outcome, verdict):
    differences = results.Runs.read(file).differences(cell, arm, results.OUTCOMES[outcome])
    low, high = results.interval(differences)
    assert len(differences) >= 5, claim
    if verdict == "ahead":
        assert low > 0, claim
    elif verdict == "behind":
        assert high < 0 and differences.mean() < -3, claim
    else:
        assert abs(differences.mean()) < 3, claim


@pytest.mark.parametrize("cell", [cell for cell in results.CELLS if not cell.endswith("_fit")])
def test_no_run_trusted_a_teacher_that_is_not_better_and_all_are_grpos(cell):
    runs = results.Runs.read("knows")
    grpo, ours = runs.of(cell, "grpo"), runs.of(cell, "exact_trusted")
    assert len(ours) == 20
    for seed, run in ours.items():
        assert not any(run["trusted"]) and len(run["measured"]) == knows.PLAN.steps // 10
        assert all(run[name] == grpo[seed][name] for name in ("course", "reward"))
        assert run["held_out"] == grpo[seed]["held_out"][-2:]  # GRPO's also has the start


def test_the_pages_row_of_the_recommended_setting_is_the_arm():
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    [words] = re.findall(r"\*\*`([^`]*)`\*\* with [^|]*\(`tenth_deadzone_trusted`\)", page)
    assert words == narration(CastConfig.from_dict(loop.ARMS["tenth_deadzone_trusted"].settings))
