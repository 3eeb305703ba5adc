"""Laws of `verl-cast diagnose`: its statistics, its scoring, and its page.

The scores equal those of an independent forward. Bad input gets one sentence. One test runs the whole command.
"""

import argparse
import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import tiny
import torch
from queue_of_runs import job

import verl_cast
from verl_cast import trajectories
from verl_cast.advantage.metrics import centred, correlation
from verl_cast.config.cast import CastConfig, CastConfigError
from verl_cast.teacher.context import load_template
from verl_cast.tools import cli, run_config, stats
from verl_cast.tools.cli import UserError
from verl_cast.tools.diagnose import command, contexts, direction, gaps, page, privileged, tokens
from verl_cast.tools.diagnose.rollouts import Rollouts, Trajectory
from verl_cast.tools.vllm_process import root_cause

ROOT = Path(verl_cast.__file__).parent


# ------------------------------------------------------------------------------------------------------- statistics


def test_the_accuracy_interval_covers_where_samples_of_a_problem_hang_together():
    """Half of the problems are nearly always solved, half nearly never. So 64 x 4 samples count as about 64."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(400):
        chance = rng.choice([0.1, 0.9], size=64)
        accuracy = rng.binomial(4, chance) / 4
        low, high = stats.accuracy_interval(accuracy, 4)
        covered += low <= 0.5 <= high
        low, high = stats.wilson_interval(4 * accuracy.sum(), 256)
        naive += low <= 0.5 <= high
    assert covered / 400 > 0.92 and naive / 400 < 0.85


def test_the_accuracy_interval_between_its_ends():
    independent = np.array([0.25, 0.5, 0.75, 0.5] * 16)
    assert stats.accuracy_interval(independent, 4) == stats.wilson_interval(128, 256)  # not more trials than samples
    assert stats.accuracy_interval(np.ones(10), 4) == stats.wilson_interval(10, 10)  # not fewer than problems
    assert stats.accuracy_interval(np.zeros(1), 4) == stats.wilson_interval(0, 1)


@pytest.mark.parametrize(
    "successes, trials, low, high",  # Newcombe 1998, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_wilson_interval_has_the_published_values(successes, trials, low, high):
    assert stats.wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    mirrored = stats.wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 6, size=rng.integers(2, 30)).astype(float)  # many ties
        positive = rng.random(len(scores)) < 0.4
        pairs = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
        expected = None if not pairs else np.mean(pairs)
        assert stats.auc(scores, positive) == (None if expected is None else pytest.approx(expected))


def test_agreement_of_signs_and_what_chance_gives():
    a, b = np.array([1.0, 2.0, -1.0, -0.1, 5.0]), np.array([1.0, -2.0, -1.0, -3.0, 0.0])
    # The last pair has a zero and does not count. Of the other 4 pairs, 3 agree.
    # a is positive in 1/2 of them and b in 1/4, so chance gives 1/2·1/4 + 1/2·3/4 = 1/2.
    row = stats.sign_agreement(a, b)
    assert row == {"above": 0.0, "tokens": 4, "share": 0.75, "by_chance": 0.5, "kappa": 0.5}
    assert stats.sign_agreement(a, b, above=0.5)["tokens"] == 3  # |−0.1| is below
    assert stats.sign_agreement(a, b, above=9)["share"] is None
    rng = np.random.default_rng(1)
    row = stats.sign_agreement(rng.normal(0.3, 1, 50_000), rng.normal(-0.5, 1, 50_000))
    assert row["share"] == pytest.approx(row["by_chance"], abs=0.01) and abs(row["kappa"]) < 0.02


def test_correlation_and_centring():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=30), rng.normal(size=30)
    assert correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert correlation(x, np.ones(30)) is None
    groups = np.repeat([0, 1, 2], 10)
    own = centred(x, groups)
    assert [own[groups == g].mean() for g in range(3)] == pytest.approx([0, 0, 0], abs=1e-12)
    assert own[:10] == pytest.approx(x[:10] - x[:10].mean())


def test_intervals_resample_problems_not_samples():
    """Copies of a sample within its problem add no information, so the interval does not change."""
    values = np.random.default_rng(3).normal(size=12)

    def interval(copies):
        rows = np.repeat(values, copies)
        return stats.group_interval(np.repeat(np.arange(12), copies), lambda i: float(rows[i].mean()), seed=0)

    assert interval(1) == pytest.approx(interval(7))
    low, high = interval(1)
    assert low < values.mean() < high and high - low == pytest.approx(2 * 1.96 * values.std() / 12**0.5, rel=0.2)
    assert stats.group_interval(np.arange(12), lambda i: None, seed=0) is None


@pytest.mark.parametrize(
    "text, is_special, expected",
    [
        ("<|im_end|>", True, "special"),
        (" the", False, "word"),
        ("x2", False, "word"),
        ("42", False, "number"),
        (" 3.", False, "number"),
        (" +", False, "punctuation"),
        (").", False, "punctuation"),
        ("\n\n", False, "whitespace"),
        (" ", False, "whitespace"),
        ("\\frac", False, "latex"),
        (" \\(", False, "latex"),
        ("\\", False, "latex"),
        ("\N{REPLACEMENT CHARACTER}", False, "partial"),
        ("答", False, "word"),
    ],
)
def test_classes_of_tokens(text, is_special, expected):
    assert tokens.token_class(text, is_special) == expected


def test_fifths_cover_a_response_in_order():
    assert tokens.fifths(5).tolist() == [0, 1, 2, 3, 4] and tokens.fifths(1).tolist() == [0]
    assert np.bincount(tokens.fifths(100)).tolist() == [20] * 5 and (np.diff(tokens.fifths(13)) >= 0).all()


# ---------------------------------------------------------------------------------------------- direction and levers


def made_up(seed=0, **method):
    """Rollouts with random gaps, masks and lengths, in a mixed, an all-correct and an all-wrong group."""
    rng = np.random.default_rng(seed)
    rows = []
    for group, rewards in enumerate(((1, 0, 0, 1), (1, 1, 1, 1), (0, 0, 0, 0))):
        for reward in rewards:
            length = int(rng.integers(1, 12))
            mask = rng.random(length) < 0.8
            mask[0] = True
            rows.append(Trajectory(str(group), [], "1", [1], [5] * length, ["a"] * length, mask, float(reward)))
    rollouts = Rollouts("made up", rows, CastConfig(**method))
    rollouts.old = [-rng.random(len(t.response_ids)).astype(np.float32) for t in rows]
    for name in ("plain", "privileged"):
        teacher = [old + rng.normal(-0.1, 0.3, len(old)).astype(np.float32) for old in rollouts.old]
        rollouts.teachers[name] = teacher
    rollouts.privileged = rollouts.teachers.pop("privileged")
    return rollouts


@pytest.mark.parametrize(
    "method",
    # λ = 6 takes some advantages to 0, which has no sign. A base advantage of 0 has no sign to keep.
    [{}, {"gap_weight": 0.5, "advantage_clip": None}, {"gap_weight": 6.0}, {"base_wrong": 0.0}, {"base_correct": 0.0}],
)
def test_the_lever_table_is_the_method_token_by_token(method):
    """The reference is tests/support/reference.py, which shares no code with verl_cast.advantage.cast."""
    rollouts = made_up(**method)
    lam, clip = rollouts.method.gap_weight, rollouts.method.advantage_clip
    table = direction.lever_table(rollouts, rollouts.teachers["plain"])
    assert len(table) == 5 * 5
    b = {"b_correct": rollouts.method.base_correct, "b_wrong": rollouts.method.base_wrong}
    bases = [reference.base(rewards, **b) for rewards in ([1, 0, 0, 1], [1] * 4, [0] * 4)]
    for row in table:
        kept, advantages = {True: [], False: []}, {True: [], False: []}
        for i, t in enumerate(rollouts.trajectories):
            B, mixed = bases[i // 4][i % 4], i < 4
            flip = "none" if mixed and row["flip_groups"] == "zero_variance" else row["flip"]
            gap = rollouts.teachers["plain"][i].astype(float) - rollouts.old[i]
            for g in gap[t.mask] if B else ():
                a = reference.token(B, g, lam, flip=flip, advantage_clip=clip, deadzone=row["gap_deadzone"])
                advantages[t.reward == 1].append(a)
                kept[t.reward == 1].append(a > 0 if t.reward == 1 else a < 0)
        for side, name in ((True, "right"), (False, "wrong")):
            assert row[f"verifier_sign_{name}"] == pytest.approx(np.mean(kept[side]))
            assert row[f"advantage_{name}"] == pytest.approx(np.mean(advantages[side]), abs=1e-5)
        assert row["verifier_sign"] == pytest.approx(np.mean(kept[True] + kept[False]))


def test_what_the_levers_do():
    rollouts = made_up()
    table = direction.lever_table(rollouts, rollouts.teachers["plain"])
    everywhere = [row for row in table if row["flip_groups"] == "all"]
    by_flip = {flip: [r for r in everywhere if r["flip"] == flip] for flip in ("both", "correct", "wrong", "none")}
    for alone, row in zip([r for r in table if r["flip_groups"] != "all"], by_flip["both"], strict=True):
        assert alone["flip"] == "both" and alone["gap_deadzone"] == row["gap_deadzone"]
        assert row["verifier_sign"] <= alone["verifier_sign"] <= 1
    assert all(row["verifier_sign"] == 1 for row in by_flip["none"])
    assert all(row["verifier_sign_wrong"] == 1 for row in by_flip["correct"])
    assert all(row["verifier_sign_right"] == 1 for row in by_flip["wrong"])
    both = [row["verifier_sign"] for row in by_flip["both"]]
    assert both == sorted(both) and both[0] < 0.9  # a larger dead zone keeps more of the verifier's signs
    # with both flips and no dead zone, the sign is the gap's (section 7)
    gap = rollouts.gaps(rollouts.teachers["plain"])
    right = rollouts.right[rollouts.owner()]
    assert both[0] == pytest.approx(np.mean(np.where(right, gap > 0, gap < 0)))
    for weight in (0.0, 2.0):  # λ changes no sign
        other = made_up(gap_weight=weight)
        signs = [row["verifier_sign"] for row in direction.lever_table(other, other.teachers["plain"])]
        assert signs == [row["verifier_sign"] for row in table]
    zone = direction.recommended_deadzone(table)
    chosen = next(row for row in by_flip["both"] if row["gap_deadzone"] == zone)
    assert min(chosen["verifier_sign_right"], chosen["verifier_sign_wrong"]) >= 0.9


def test_the_recommended_dead_zone_is_the_smallest_that_serves_both_sides():
    def row(flip, zone, right, wrong):
        signs = {"verifier_sign_right": right, "verifier_sign_wrong": wrong}
        return {"flip": flip, "flip_groups": "all", "gap_deadzone": zone, **signs}

    table = [row("none", 0.0, 1.0, 1.0), row("both", 0.0, 0.3, 0.95), row("both", 0.5, 0.95, 0.5)]
    assert direction.recommended_deadzone(table) is None
    table += [row("both", 1.0, 0.9, 0.9), row("both", 2.0, 1.0, 1.0)]
    assert direction.recommended_deadzone(table) == 1.0
    assert direction.recommended_deadzone([row("both", 0.5, None, 0.99)]) == 0.5  # no correct response at all


@pytest.mark.parametrize(
    "zone, words",
    [(None, "no dead zone of the table is enough"), (0.0, "without a dead zone"), (0.5, "gap_deadzone=0.5 or more")],
)
def test_the_recommended_dead_zone_in_words(zone, words):
    rollouts = made_up()
    expected = direction.expect(rollouts, "plain", "worse", 0) | {"recommended_deadzone": zone}
    expected["levers"] = [row | {"gap_deadzone": 0.5} for row in expected["levers"]]
    assert words in direction.in_words(expected, "both")[-1]


def test_masked_tokens_enter_nothing():
    rollouts, other = made_up(), made_up()
    for values in (other.teachers["plain"], other.privileged):
        for t, row in zip(other.trajectories, values, strict=True):
            row[~t.mask] += 100
    one, two = (direction.expect(these, "plain", None, 0) for these in (rollouts, other))
    assert json.dumps(one) == json.dumps(two)
    assert json.dumps(gaps.analyse(rollouts, 0)) == json.dumps(gaps.analyse(other, 0))


def test_the_relation_sees_a_teacher_that_knows_and_one_that_is_wrong():
    rollouts = made_up()
    knows = [old + (0.3 if t.reward else -0.3) for t, old in zip(rollouts.trajectories, rollouts.old, strict=True)]
    relation = direction.relation(rollouts, knows, seed=0)
    assert relation["auc"]["value"] == 1 and relation["correlation"]["value"] == pytest.approx(1)
    assert relation["correlation_in_group"]["value"] == pytest.approx(1)
    wrong = [old - (0.3 if t.reward else -0.3) for t, old in zip(rollouts.trajectories, rollouts.old, strict=True)]
    relation = direction.relation(rollouts, wrong, seed=0)
    assert relation["auc"]["value"] == 0 and relation["correlation"]["value"] == pytest.approx(-1)


def test_the_relation_is_the_metric_of_a_run():
    """The diagnosis computes the same number as the training metric `cast/gap/correctness_corr`."""
    from verl_cast.advantage.metrics import advantage_metrics

    rollouts = made_up()
    result, _ = rollouts.advantage(rollouts.teachers["plain"], rollouts.method)
    metrics = advantage_metrics(result)
    relation = direction.relation(rollouts, rollouts.teachers["plain"], seed=0)
    for ours, name in (("correlation", "correctness_corr"), ("correlation_in_group", "correctness_corr_in_group")):
        assert relation[ours]["value"] == pytest.approx(metrics[f"gap/{name}"], abs=1e-5)
    low, high = relation["correlation"]["interval"]
    assert low < relation["correlation"]["value"] < high


def test_a_gap_of_zero_is_said():
    rollouts = made_up()
    rollouts.teachers["same"] = rollouts.old
    expected = direction.expect(rollouts, "same", None, 0)
    assert expected["levers"] == [] and "gap is 0 on every token" in direction.in_words(expected, "both")[0]


# ------------------------------------------------------------------------------------------------------- the model


@pytest.fixture(scope="session")
def overrides(tiny_directory):
    return overrides_of(tiny_directory)


def overrides_of(tiny_directory):
    """The tiny model's verl command."""
    return [
        "algorithm.adv_estimator=cast",
        f"data.train_files={tiny_directory}/train.parquet",
        f"data.val_files={tiny_directory}/train.parquet",
        "data.max_prompt_length=64",
        "data.max_response_length=12",
        f"actor_rollout_ref.model.path={tiny_directory}/model",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.temperature=0.7",
        "actor_rollout_ref.rollout.dtype=float32",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "actor_rollout_ref.rollout.enforce_eager=True",
        f"reward.custom_reward_function.path={tiny_directory}/reward.py",
    ]


@pytest.fixture(scope="session")
def scorer(tiny_directory):
    from verl_cast.tools.diagnose.scoring import Scorer

    return Scorer(str(tiny_directory / "model"), temperature=0.7, pad_token_id=3)


def alone(model, prompt, response, temperature=0.7):
    """log π of a response, from a forward of one row without padding or cache."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0].double() / temperature
    log_probs = torch.log_softmax(logits, dim=-1)
    return [float(log_probs[len(prompt) - 1 + i, token]) for i, token in enumerate(response)]


def test_scores_are_those_of_a_forward_without_padding(scorer, monkeypatch):
    from verl_cast.tools.diagnose import scoring

    rng = np.random.default_rng(0)

    def ids(length):
        return rng.integers(4, 250, size=length).tolist()

    shared = [ids(n) for n in (5, 1, 30)]  # prompts with several responses; one prompt has a single token
    rows = [(prompt, ids(n)) for prompt in shared for n in (1, 0, 7, 40)] + [(ids(9), ids(3))]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    prompts, responses = zip(*rows, strict=True)
    with torch.no_grad():
        expected = [alone(scorer.model, *row) for row in rows]
    for max_tokens in (10**6, 100, 1):
        monkeypatch.setattr(scoring, "MAX_BATCH_TOKENS", max_tokens)
        for got, one in zip(scorer.log_probs(prompts, responses, "test"), expected, strict=True):
            assert got.dtype == np.float32 and got.tolist() == pytest.approx(one, abs=1e-5)
    for got, one in zip(scorer.log_probs(prompts, responses, "test", alone=True), expected, strict=True):
        assert got.tolist() == pytest.approx(one, abs=1e-5)


def test_batches_keep_within_their_bounds(scorer, monkeypatch):
    from verl_cast.tools.diagnose import scoring

    rng = np.random.default_rng(1)
    prompts = [[7] * int(rng.integers(1, 50)) for _ in range(40)]
    responses = [[7] * int(rng.integers(1, 50)) for _ in range(40)]
    vocabulary = scorer.model.config.vocab_size
    monkeypatch.setattr(scoring, "MAX_BATCH_TOKENS", 400)
    monkeypatch.setattr(scoring, "MAX_LOGIT_BYTES", 4 * vocabulary * 100)
    batches = scorer._batches(prompts, responses)
    assert sorted(i for rows in batches for i in rows) == list(range(40)) and max(map(len, batches)) > 1
    for rows in batches:
        prompt, response = max(len(prompts[i]) for i in rows), max(len(responses[i]) for i in rows)
        assert len(rows) * (prompt + response) <= 400 and len(rows) * response <= 100


def test_a_context_longer_than_the_model_is_refused(scorer):
    with pytest.raises(UserError, match="600 tokens long, but max_position_embeddings allows 512"):
        scorer.log_probs([[7] * 590], [[7] * 10], "test")


# ----------------------------------------------------------------------------------- settings of the verl command


@pytest.fixture(scope="session")
def setup(overrides):
    from verl_cast.tools.diagnose.setup import Setup

    return Setup(run_config.compose(overrides), overrides)


def changed(setup, *extra, overrides):
    from verl_cast.tools.diagnose.setup import Setup

    return Setup(run_config.compose([*overrides, *extra]), [*overrides, *extra])


def test_prompts_are_those_of_verls_agent_loop(setup):
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    builder = create_continuous_token_builder(setup.tokenizer)
    for problem in setup.problems("val", 3, seed=0):
        assert setup.prompt_ids(problem.messages) == list(builder.build_initial_tokens(problem.messages))


def test_problems_are_drawn_once_and_by_the_seed(setup):
    def questions(number, seed):
        return [problem.messages[0]["content"] for problem in setup.problems("val", number, seed)]

    assert len(set(questions(64, 0))) == len(questions(1000, 0)) == 64
    assert questions(8, 1) == questions(8, 1) != questions(8, 2)
    assert setup.problems("val", 64, 0)[0].reference == "0"


def test_the_verifier_is_the_runs_own(setup, tiny_directory):
    from verl_cast.tools.diagnose.setup import Verifier

    verifier, problem = Verifier(setup), setup.problems("val", 1, 0)[0]
    namespace = {}
    exec((tiny_directory / "reward.py").read_text(), namespace)
    texts = ["one", "two", "three", "", "more"]
    ids = [[*setup.tokenizer(text)["input_ids"], setup.tokenizer.eos_token_id] for text in texts]
    expected = [namespace["compute_score"]("", text, "")["score"] for text in texts]
    assert [verifier.score(problem, one) for one in ids] == expected and 0 < sum(expected) < len(texts)


@pytest.mark.parametrize(
    "extra, words",
    [
        (["actor_rollout_ref.rollout.temperature=0"], "temperature=0"),
        (["+algorithm.cast.flip=maybe"], "algorithm.cast.flip"),
        (["reward.reward_manager.name=gdpo"], "reward_manager.name=gdpo"),
        (["reward.custom_reward_function.path=/nowhere.py"], "reward function cannot be loaded"),
        (["actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent"], "default_agent_loop=tool_agent"),
        (["data.val_files=/nowhere.parquet"], "data.val_files=/nowhere.parquet: no such file"),
        (["actor_rollout_ref.model.path=/nowhere"], "actor_rollout_ref.model.path=/nowhere"),
    ],
)
def test_a_command_that_cannot_be_diagnosed_is_refused(overrides, extra, words):
    from verl_cast.tools.diagnose.setup import Verifier

    with pytest.raises(UserError) as error:
        setup = changed(None, *extra, overrides=overrides)
        setup.check_sampling()
        Verifier(setup)
        setup.problems("val", 2, 0)
    assert words in str(error.value)


# ------------------------------------------------------------------------------------------- contexts and the page


def samples_of(right, length=4):
    """Outputs and rewards for `right`, the correctness of (problems, samples)."""
    right = np.array(right)
    outputs = [[{"ids": [1] * length, "truncated": not r} for r in row] for row in right]
    return outputs, right.astype(float)


def test_contexts_are_compared_problem_by_problem():
    rng = np.random.default_rng(0)
    student = contexts.summarize("student", *samples_of(rng.random((40, 4)) < 0.3), 0.5)
    better = contexts.compare(student, contexts.summarize("a", *samples_of(rng.random((40, 4)) < 0.8), 0.5), 0)
    same = contexts.compare(student, {**student, "context": "b"}, 0)
    worse = contexts.compare(student, contexts.summarize("c", *samples_of(np.zeros((40, 4), bool)), 0.5), 0)
    assert [one["verdict"] for one in (better, same, worse)] == ["better", "undecided", "worse"]
    assert same["difference"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert worse["difference"]["value"] == pytest.approx(-student["accuracy"])
    assert (student["truncated_share"], student["length_mean"]) == (pytest.approx(1 - student["accuracy"]), 4)
    assert worse["length_right"] is None and worse["length_wrong"] == 4
    # Comparing problem by problem cancels the differences between problems.
    # Every problem gains one sample of four here, so the interval has zero width.
    hard, easy = [[0, 0, 0, 0]] * 15, [[1, 1, 1, 0]] * 15
    gained = contexts.summarize("d", *samples_of([[1, 0, 0, 0]] * 15 + [[1, 1, 1, 1]] * 15), 0.5)
    paired = contexts.compare(contexts.summarize("student", *samples_of(hard + easy), 0.5), gained, 0)
    assert paired["difference"] == {"value": 0.25, "interval": [0.25, 0.25]} and paired["verdict"] == "better"


HOSTILE = "</script><script>document.title='broken'</script><b>x"


@pytest.mark.parametrize("with_contexts", [True, False])
def test_the_page_in_a_browser_without_network(tmp_path, setup, with_contexts):
    """The page draws every figure, makes no network request, and shows HTML in the data as plain text."""
    path = os.environ.get("CHROME") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        reason = "no Chromium: install it, or name it with CHROME=/path/to/chromium"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    rollouts = made_up()
    rollouts.noise, rollouts.about = 1e-5, HOSTILE
    measured = None
    if with_contexts:
        rng = np.random.default_rng(0)
        student = contexts.summarize("student", *samples_of(rng.random((20, 4)) < 0.6), 0.5)
        teachers = [
            contexts.compare(student, contexts.summarize(name, *samples_of(rng.random((20, 4)) < share), 0.5), 0)
            for name, share in (("plain", 0.1), (HOSTILE, 0.9))
        ]
        common = {"problems": 20, "samples": 4, "data": "val", "own_context": "plain", "same": False, "records": []}
        measured = {**common, "student": student, "teachers": teachers, "warning": None}
    arguments = argparse.Namespace(
        overrides=[f"trainer.experiment_name={HOSTILE}"], seed=0, problems=20, samples=4, data="val", rollouts=[]
    )
    result = command._results(arguments, setup, rollouts, measured)
    result["seconds"] = {"sampling": 1.5}
    file = tmp_path / "diagnosis.html"
    file.write_text(page.render(result), encoding="utf-8")

    wrong = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.on("request", lambda request: wrong.append(request.url) if request.url != file.as_uri() else None)
        opened.on("console", lambda message: wrong.append(message.text))
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.goto(file.as_uri())
        opened.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length > 0")
        drawn = opened.locator(".js-plotly-plot").count()
        text, title = opened.inner_text("main"), opened.title()
        overflow = opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        browser.close()
    assert wrong == [] and drawn == (6 if with_contexts else 5) and overflow == 0
    assert title == "CAST diagnosis: plain" and HOSTILE in text
    assert ("The teacher's context makes a worse policy" in text) == with_contexts
    assert "Two teachers" in text and "gap_deadzone" in text


# ------------------------------------------------------------------------------------------ the privileged context


def test_the_privileged_context_shows_the_answer_in_the_last_user_message():
    messages = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "a"}]
    messages.append({"role": "user", "content": "What is 1 + 1?"})
    before = copy.deepcopy(messages)
    shown = privileged.privileged_messages(messages, "{2}")
    assert messages == before and shown[:2] == before[:2]
    assert shown[2]["content"].startswith("What is 1 + 1?") and "\n{2}\n" in shown[2]["content"]
    for bad in ([{"role": "system", "content": "x"}], [{"role": "user", "content": [{"type": "image"}]}]):
        with pytest.raises(UserError, match="--no-gaps"):
            privileged.privileged_messages(bad, "2")


def test_no_module_that_trains_imports_the_privileged_context():
    """One process imports every module outside tools/ and privileged/."""
    files = [
        path
        for path in ROOT.rglob("*.py")
        if not {"tools", "privileged"} & set(path.parts)
        and path.stem not in ("__init__", "__main__")
        and path != ROOT / "training" / "classes.py"  # for a verl with the hooks
    ]
    names = [f"{path.relative_to(ROOT.parent).with_suffix('')}".replace("/", ".") for path in files]
    assert {
        "verl_cast.training.trainer",
        "verl_cast.training.worker",
        "verl_cast.teacher.context",
        "verl_cast.training.estimator",
    } <= set(names)
    code = (
        "import importlib, sys, verl\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print([name for name in sys.modules if name.startswith('verl_cast.tools.diagnose')])"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("context", ["privileged", "opsd", "reference", "verl_cast.tools.diagnose.privileged"])
def test_no_config_value_selects_the_privileged_context(context):
    with pytest.raises(CastConfigError, match="teacher.context"):
        CastConfig.from_dict({"teacher": {"context": context}})


def test_no_file_of_the_package_is_a_context_with_the_answer(tmp_path):
    for path in (ROOT / "tools" / "diagnose").rglob("*.jinja"):
        with pytest.raises(CastConfigError):
            load_template(str(path))
    (tmp_path / "leak.jinja").write_text("{{ problem }} {{ reference }}")
    with pytest.raises(CastConfigError, match="answer-free"):
        load_template(str(tmp_path / "leak.jinja"))


# ----------------------------------------------------------------------------------------------------- whole command


def dump(directory, tiny_directory, model=None, steps=(10,), context="plain", seed=0, unscored="", **changes):
    """A trajectory dump of the tiny model, with two groups of four responses in every step.

    The old log-probs are the tiny model's own at temperature 0.7. `unscored` names the groups ("a", "b") whose last
    response the teacher did not score.
    """
    rng = np.random.default_rng(seed)
    tokenizer, policy = tiny.tokenizer(), tiny.model()
    for step in steps:
        rows = []
        for group, kind in (("a", "mixed"), ("b", "all_wrong")):
            messages = [{"role": "user", "content": f"What is {step} + 1?"}]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            for i in range(4):
                response = [*rng.integers(4, 250, size=int(rng.integers(1, 9))).tolist(), tokenizer.eos_token_id]
                with torch.no_grad():
                    old = np.array(alone(policy, prompt, response))
                gap = rng.normal(0, 0.3, len(response))
                scored = not (group in unscored and i == 3)
                correct = kind == "mixed" and i < 2
                row = {
                    "step": step,
                    "group": group,
                    "row": f"{group}_{i}_0",
                    "messages": json.dumps(messages),
                    "reference": str(step + 1),
                    "prompt_ids": prompt,
                    "teacher_prompt": "x",
                    "response_ids": response,
                    "response_text": [tokenizer.decode([token]) for token in response],
                    "response_mask": [True] * len(response),
                    "old_log_probs": old,
                    "teacher_log_probs": old + gap if scored else np.full(len(response), np.nan),
                    "gap": gap,
                    "advantages": gap,
                    "flipped": [False] * len(response),
                    "reward": float(correct),
                    "correct": correct,
                    "kind": kind,
                    "base_advantage": 1.0,
                    "teacher_age": 0,
                }
                rows.append({**row, **changes})
        cast = {**dataclasses.asdict(CastConfig()), "teacher": {"context": context}}
        trajectories.write(directory, step, rows, model or str(tiny_directory / "model"), cast, temperature=0.7)
    return directory


def test_the_dump_knows_its_temperature_better(tmp_path, tiny_directory, capsys):
    command = ["diagnose", "--rollouts", str(dump(tmp_path / "dump", tiny_directory)), "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--no-fitness", "actor_rollout_ref.rollout.temperature=1.0"]) == 1
    assert "temperature=1: the dump's run sampled at 0.7; leave it out" in capsys.readouterr().err


TEMPERATURE = "actor_rollout_ref.rollout.temperature=0.7"


def test_rollouts_of_a_dump(tmp_path, tiny_directory, capsys):
    """vLLM is not used. Answer-free gaps come from the dump's log-probs, privileged gaps from a forward."""
    run = tmp_path / "run"
    dump(run / "checkpoints" / trajectories.DIRECTORY, tiny_directory, steps=(10, 20))
    out = tmp_path / "out"
    assert cli.main(["diagnose", "--rollouts", str(run), "--no-fitness", "--out", str(out), TEMPERATURE]) == 0
    result = json.loads((out / "diagnosis.json").read_text())
    assert result["contexts"] is None and result["settings"]["model"] == str(tiny_directory / "model")
    counts = result["rollouts"]
    assert (counts["trajectories"], counts["problems"], counts["right"]) == (16, 4, 4)
    assert counts["distance"] < 1e-4 and counts["noise_p99"] < 1e-4  # the scoring model is the dump's policy

    # answer-free gaps equal the dump's; privileged gaps equal those of an independent forward
    files = trajectories.files(run / "checkpoints" / trajectories.DIRECTORY).values()
    rows = [row for file in files for row in trajectories.read(file)[0]]
    free = np.concatenate([np.subtract(row["teacher_log_probs"], row["old_log_probs"]) for row in rows])
    assert result["gaps"]["gap"]["answer_free"]["all"]["mean"] == pytest.approx(free.mean(), abs=1e-5)
    assert result["gaps"]["gap"]["answer_free"]["all"]["tokens"] == len(free)
    tokenizer, model, shown = tiny.tokenizer(), tiny.model(), []
    for row in rows:
        messages = privileged.privileged_messages(json.loads(row["messages"]), row["reference"])
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            shown += list(np.array(alone(model, prompt, row["response_ids"])) - row["old_log_probs"])
    assert result["gaps"]["gap"]["privileged"]["all"]["mean"] == pytest.approx(np.mean(shown), abs=1e-4)
    final = next(row for row in result["gaps"]["positions"] if row["part"] == "final token")
    assert final["tokens"] == 16
    special = next(row for row in result["gaps"]["classes"] if row["part"] == "special")
    assert special["tokens"] == 16  # the end-of-sequence token of every response
    assert sum(row["tokens"] for row in result["gaps"]["classes"]) == len(free)

    html = (out / "diagnosis.html").read_text()
    assert html.count("<html") == 1 and html.count('class="plotly-graph-div"') == 5  # no accuracy without fitness
    printed = capsys.readouterr().out
    assert "Levers" in printed and "privileged" in printed and max(map(len, printed.splitlines()[:-3])) <= 100


def test_a_checkpoint_of_another_policy_is_noticed(tmp_path, tiny_directory):
    dump(tmp_path / "dump", tiny_directory)
    other = tmp_path / "other"
    tiny.model(seed=1).save_pretrained(other)
    tiny.tokenizer().save_pretrained(other)
    arguments = ["diagnose", "--rollouts", str(tmp_path / "dump"), "--no-fitness", "--no-gaps", "--out", str(tmp_path)]
    arguments += ["--contexts", "same"]
    assert cli.main([*arguments, TEMPERATURE, f"actor_rollout_ref.model.path={other}"]) == 0
    result = json.loads((tmp_path / "diagnosis.json").read_text())
    assert result["settings"]["model"] == str(other) and result["rollouts"]["distance"] > 0.01
    assert result["gaps"] is None
    same = next(one for one in result["direction"] if one["context"] == "same")
    assert same["gap"]["all"]["abs_mean"] == 0  # the policy's own log-probs, not the other model's


def test_groups_that_the_teacher_did_not_score_whole_are_left_out_and_said(tmp_path, tiny_directory, capsys):
    dump(tmp_path / "dump", tiny_directory, steps=(10, 20), unscored="b")
    arguments = ["diagnose", "--rollouts", str(tmp_path / "dump"), "--no-fitness", "--no-gaps", "--out", str(tmp_path)]
    assert cli.main([*arguments, TEMPERATURE]) == 0
    counts = json.loads((tmp_path / "diagnosis.json").read_text())["rollouts"]
    assert (counts["trajectories"], counts["problems"], counts["right"]) == (8, 2, 4)
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 dumped groups (2 more have responses that the teacher did not score)" in printed


def no_reference(path, tiny_directory):
    dump(path, tiny_directory, reference=None)


def excluded(path, tiny_directory):
    dump(path, tiny_directory, kind="excluded")


def truncated(path, tiny_directory):
    dump(path, tiny_directory)
    file = next(path.glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-100])


def other_version(path, tiny_directory):
    dump(path, tiny_directory)
    import pyarrow.parquet as pq

    file = next(path.glob("*.parquet"))
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"verl_cast_dump": b"99"}), file)


def mixed_models(path, tiny_directory):
    dump(path, tiny_directory, steps=(10,))
    dump(path, tiny_directory, steps=(20,), model="/another/model")


def mixed_settings(path, tiny_directory):
    dump(path, tiny_directory, steps=(10,))
    dump(path, tiny_directory, steps=(20,), context="same")


def missing_model(path, tiny_directory):
    dump(path, tiny_directory, model="/nowhere/model")


def unscored(path, tiny_directory):
    dump(path, tiny_directory, unscored="ab")


def empty(path, tiny_directory):
    path.mkdir()


def missing(path, tiny_directory):
    pass


@pytest.mark.parametrize(
    "make, words",
    [
        (no_reference, "no reference answer"),
        (excluded, "no trajectory that counts"),
        (truncated, "no whole Parquet file"),
        (other_version, "version 99"),
        (mixed_models, "/another/model"),
        (mixed_settings, "different settings"),
        (missing_model, "/nowhere/model"),
        (unscored, "the teacher scored no group"),
        (empty, "holds no trajectory dump"),
        (missing, "no such file or directory"),
    ],
)
def test_bad_rollouts_get_one_sentence(tmp_path, tiny_directory, capsys, make, words):
    make(tmp_path / "dump", tiny_directory)
    arguments = ["diagnose", "--rollouts", str(tmp_path / "dump"), "--no-fitness", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("verl-cast diagnose: ") and words in error


def test_the_reason_of_a_failed_sampling_is_the_first_exception():
    log = (
        "INFO 11-23 00:53:00 [core.py:1] fine\n"
        "(Worker pid=1) ERROR 11-23 00:53:12 [x.py:1055]     raise ValueError(f'No common block size for {size}.')\n"
        "(Worker pid=1) ERROR 11-23 00:53:12 [x.py:1055] ValueError: No common block size for 16.\n"
        "(EngineCore pid=2)     raise RuntimeError(\n"
        "(EngineCore pid=2) RuntimeError: Worker failed with error\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    assert root_cause(log) == "ValueError: No common block size for 16."
    assert root_cause("a\ntorch.OutOfMemoryError: CUDA out of memory\n") == "torch.OutOfMemoryError: CUDA out of memory"
    assert root_cause("killed\n\n") == "killed" and root_cause("") == "the log is empty"


def environment_of_diagnosis(directory):
    return {
        **os.environ,
        "VERL_CAST_CACHE": str(directory / "cache"),
        "VERL_PLATFORM": "cpu",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }


@job("diagnosis", after=["tiny"])
def diagnosis(directory, runs):
    """The real command."""
    template = directory / "shown.jinja"
    template.write_text("2 + 2 = 4\n{{ problem }}\n")
    command = [str(Path(sys.executable).with_name("verl-cast")), "diagnose", "--problems", "6", "--samples", "3"]
    command += ["--contexts", str(template), "--out", str(directory / "out"), *overrides_of(runs("tiny"))]
    done = subprocess.run(command, env=environment_of_diagnosis(directory), capture_output=True, text=True)
    return done, directory, template


@pytest.mark.runs("diagnosis")
def test_the_whole_diagnosis_through_vllm(runs):
    """The command samples, verifies and scores. The doctor and a run's start find the record that it saves."""
    done, directory, template = runs("diagnosis")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    cache, out = directory / "cache", directory / "out"
    result = json.loads((out / "diagnosis.json").read_text())
    measured = result["contexts"]
    assert [one["context"] for one in measured["teachers"]] == ["plain", str(template)]
    for one in [measured["student"], *measured["teachers"]]:
        assert one["samples"] == 18 and 0 <= one["accuracy"] <= 1 and 1 <= one["length_mean"] <= 12
        by_problem = np.array(one["accuracy_by_problem"])
        assert one["interval"] == list(stats.accuracy_interval(by_problem, 18 // len(by_problem)))
    assert result["rollouts"]["trajectories"] == 18 and result["rollouts"]["noise_p99"] < 1e-3
    assert [one["context"] for one in result["direction"]] == ["plain", str(template)]
    assert "teacher (shown.jinja)" in done.stdout and len(list((cache / "fitness").glob("*.json"))) == 2
    looked_up = (
        "import sys; from verl_cast.checks import fitness; from verl_cast.tools import run_config; "
        "print(fitness.find(run_config.compose(sys.argv[1:]))['context'])"
    )
    command = [sys.executable, "-c", looked_up, *overrides_of(runs("tiny"))]
    found = subprocess.run(command, env=environment_of_diagnosis(directory), capture_output=True, text=True)
    assert found.stdout.strip().splitlines()[-1] == "plain", found.stderr[-2000:]
