"""Laws of `verl-cast diagnose`: its statistics, its scoring, its page, and its privileged context."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from omegaconf import OmegaConf

import verl_cast
from verl_cast.advantage.compute import compute_advantage
from verl_cast.advantage.metrics import advantage_metrics, centred, correlation
from verl_cast.config.cast import CastConfig, CastConfigError
from verl_cast.teacher.context import load_template
from verl_cast.tools import cli, run_config, stats
from verl_cast.tools.cli import UserError
from verl_cast.tools.diagnose import contexts, gaps, page, privileged, summary

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
    "text, expected",
    [
        ("", "partial"),
        (" the", "word"),
        ("x2", "word"),
        ("42", "number"),
        (" 3.", "number"),
        (" +", "punctuation"),
        (").", "punctuation"),
        ("\n\n", "whitespace"),
        (" ", "whitespace"),
        ("\\frac", "latex"),
        (" \\(", "latex"),
        ("\\", "latex"),
        ("\N{REPLACEMENT CHARACTER}", "partial"),
        ("答", "word"),
    ],
)
def test_classes_of_tokens(text, expected):
    assert gaps.token_class(text) == expected


# ------------------------------------------------------------------------------------------------------------- gaps

GROUPS = ((1, 0, 0, 1), (1, 1, 1, 1), (0, 0, 0, 0))


def made_up(seed=0, names=("plain", gaps.PRIVILEGED)):
    """Responses with random gaps and lengths, in a mixed, an all-correct and an all-wrong group."""
    rng = np.random.default_rng(seed)
    rewards = np.array(GROUPS).ravel()
    ids = [[5] * int(n - 1) + [3] for n in rng.integers(1, 12, size=len(rewards))]
    old = [-rng.random(len(one)).astype(np.float32) for one in ids]
    teachers = {name: [o + rng.normal(-0.1, 0.3, len(o)).astype(np.float32) for o in old] for name in names}
    return gaps.Responses(
        context=names[0],
        questions=["1 + 1?"] * len(ids),
        groups=np.repeat(np.arange(3), 4),
        correct=rewards == 1,
        ids=ids,
        texts=[["a"] * (len(one) - 1) + ["<end>"] for one in ids],
        log_probs={contexts.STUDENT: old, **teachers},
    )


def test_every_token_is_counted_once_where_it_belongs():
    responses = made_up()
    result = gaps.analyse(responses, frozenset([3]), seed=0)
    everything = np.concatenate(responses.gaps("plain"))
    own = result["teachers"][0]["gap"]
    assert own["all"]["mean"] == pytest.approx(everything.mean()) and own["all"]["tokens"] == len(everything)
    assert own["correct"]["tokens"] + own["wrong"]["tokens"] == len(everything)
    compared = result["compared"]
    for key, parts in (("class", {"word", "special"}), ("position", {*gaps.FIFTHS, "last token"})):
        rows = [row for row in compared[key] if row["teacher"] == "plain"]
        assert {row["part"] for row in rows} <= parts
        assert sum(row["tokens"] for row in rows if row["part"] != "last token") == len(everything)
    for last in ([row for row in compared["class"] if row["part"] == "special"], compared["position"][-4:]):
        assert sum(row["tokens"] for row in last) == 2 * 12  # two teachers, the end of every response
    of_one = [r for r in compared["histogram"] if (r["teacher"], r["responses"]) == ("plain", "wrong")]
    assert sum(row["share"] for row in of_one) == pytest.approx(1)


def test_a_mean_by_part_is_that_of_its_tokens():
    responses = made_up()
    rows = gaps.analyse(responses, frozenset(), seed=0)["compared"]["position"]
    for name in responses.teachers:
        firsts = [gap[np.arange(len(gap)) * 5 // len(gap) == 0] for gap in responses.gaps(name)]
        expected = np.concatenate([one for one, correct in zip(firsts, responses.correct, strict=True) if correct])
        [row] = [r for r in rows if (r["part"], r["responses"], r["teacher"]) == ("first fifth", "correct", name)]
        assert row["mean"] == pytest.approx(expected.mean()) and row["tokens"] == len(expected)


def test_the_relation_sees_a_teacher_that_knows_and_one_that_is_wrong():
    responses = made_up()
    for sign, auc in ((1, 1), (-1, 0)):
        pairs = zip(responses.log_probs[contexts.STUDENT], responses.correct, strict=True)
        responses.log_probs["plain"] = [old + sign * (0.3 if correct else -0.3) for old, correct in pairs]
        relation = gaps.relation(responses, "plain", seed=0)
        assert relation["auc"]["value"] == auc
        assert relation["correlation"]["value"] == pytest.approx(sign)
        assert relation["correlation_in_group"]["value"] == pytest.approx(sign)


def test_the_relation_is_the_metric_of_a_run():
    """The diagnosis computes the same number as the training metric `cast/gap/correctness_corr`."""
    responses = made_up()

    def padded(rows):
        return torch.tensor(np.stack([np.pad(row, (0, 12 - len(row))) for row in rows]), dtype=torch.float32)

    mask = padded([np.ones(len(ids)) for ids in responses.ids])
    rewards = torch.zeros_like(mask)
    rewards[:, 0] = torch.tensor(responses.correct)
    old, teacher = (padded(responses.log_probs[name]) for name in (contexts.STUDENT, "plain"))
    metrics = advantage_metrics(compute_advantage(rewards, mask, responses.groups, old, teacher, CastConfig(), True))
    relation = gaps.relation(responses, "plain", seed=0)
    for ours, name in (("correlation", "correctness_corr"), ("correlation_in_group", "correctness_corr_in_group")):
        assert relation[ours]["value"] == pytest.approx(metrics[f"gap/{name}"], abs=1e-5)
    low, high = relation["correlation"]["interval"]
    assert low < relation["correlation"]["value"] < high


def test_the_token_view_shows_correct_and_wrong_responses_with_their_gaps(monkeypatch):
    monkeypatch.setattr(gaps, "SHOWN_TOKENS", 3)
    responses = made_up()
    shown = gaps.analyse(responses, frozenset(), seed=0)["tokens"]
    assert [one["responses"] for one in shown] == ["correct"] * 2 + ["wrong"] * 2
    for one in shown:
        assert len(one["tokens"]) == len(one["gaps"]["plain"]) == len(one["gaps"][gaps.PRIVILEGED]) <= 3
        candidates = [gap for gap in responses.gaps("plain") if gap[:3].tolist() == one["gaps"]["plain"]]
        assert [len(gap) for gap in candidates] == [len(one["tokens"]) + one["left_out"]]


# -------------------------------------------------------------------------------------------------------- the model


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

    return Scorer(str(tiny_directory / "model"), temperature=0.7)


@pytest.mark.parametrize("max_logits, max_rows", [(2**27, 16), (2000, 16), (1, 2)])
def test_scores_are_those_of_a_forward_of_each_row(scorer, monkeypatch, max_logits, max_rows):
    """Whatever shares a batch, and however wide a slice of it is."""
    from verl_cast.tools.diagnose import scoring

    monkeypatch.setattr(scoring, "MAX_LOGITS", max_logits)
    monkeypatch.setattr(scoring, "MAX_ROWS", max_rows)
    rng = np.random.default_rng(0)

    def ids(length):
        return rng.integers(4, 250, size=length).tolist()

    prompts = [ids(n) for n in (5, 1, 30)]
    responses = [[ids(n) for n in lengths] for lengths in ((1, 7, 40, 2), (3,), (12, 1, 1))]
    found = iter(scorer.log_probs(prompts, responses, "test"))
    for prompt, group in zip(prompts, responses, strict=True):
        for response in group:
            with torch.no_grad():
                logits = scorer.model(torch.tensor([[*prompt, *response]])).logits[0].double() / 0.7
            expected = torch.log_softmax(logits, dim=-1)[
                range(len(prompt) - 1, len(prompt) + len(response) - 1), response
            ]
            got = next(found)
            assert got.dtype == np.float32 and got.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert next(found, None) is None


def test_a_context_longer_than_the_model_is_refused(scorer):
    with pytest.raises(UserError, match="600 tokens long, but max_position_embeddings allows 512"):
        scorer.log_probs([[7] * 590], [[[7] * 10]], "test")


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
    for row in setup.problems("val", 3, seed=0):
        assert setup.prompt_ids(row["raw_prompt"]) == list(builder.build_initial_tokens(row["raw_prompt"]))


def test_problems_are_drawn_once_and_by_the_seed(setup):
    def questions(number, seed):
        return [row["raw_prompt"][0]["content"] for row in setup.problems("val", number, seed)]

    assert len(set(questions(64, 0))) == len(questions(1000, 0)) == 64
    assert questions(8, 1) == questions(8, 1) != questions(8, 2)


def test_the_verifier_is_the_runs_own(setup, tiny_directory):
    from verl_cast.tools.diagnose.setup import Verifier

    verifier, row = Verifier(setup), setup.problems("val", 1, 0)[0]
    namespace = {}
    exec((tiny_directory / "reward.py").read_text(), namespace)
    texts = ["one", "two", "three", "", "more"]
    ids = [[*setup.tokenizer(text)["input_ids"], setup.tokenizer.eos_token_id] for text in texts]
    expected = [namespace["compute_score"]("", text, "")["score"] for text in texts]
    assert [verifier.score(row, one) for one in ids] == expected and 0 < sum(expected) < len(texts)


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


def test_vllm_gets_the_settings_of_the_run(overrides, monkeypatch):
    from verl_cast.tools.diagnose.sampling import engine_arguments

    vllm = ["+actor_rollout_ref.rollout.engine_kwargs.vllm.block_size=32"]
    setup = changed(None, "actor_rollout_ref.rollout.max_model_len=100", *vllm, overrides=overrides)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    found = engine_arguments(setup, longest_prompt=64)
    assert (found["dtype"], found["enforce_eager"], found["block_size"]) == ("float32", True, 32)
    assert found["max_model_len"] == 100 and engine_arguments(setup, longest_prompt=200)["max_model_len"] == 212
    assert 2**30 <= found["kv_cache_memory_bytes"] < psutil.virtual_memory().total  # vLLM's CPU build
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert "kv_cache_memory_bytes" not in engine_arguments(setup, longest_prompt=64)


def test_a_model_that_transformers_cannot_load_is_named(tmp_path):
    from verl_cast.tools.diagnose.scoring import Scorer

    with pytest.raises(UserError, match=f"actor_rollout_ref.model.path={tmp_path} holds no causal language model"):
        Scorer(str(tmp_path), temperature=1)


@pytest.mark.parametrize(
    "extra, words",
    [
        (["--contexts", "/nowhere.jinja"], "/nowhere.jinja"),
        (
            ["data.train_files=no_reference.parquet", "--data", "train"],
            "no reference answer (reward_model.ground_truth)",
        ),
        (["--out", "/proc/none"], "--out /proc/none"),
        (["+algorithm.cast.flip=maybe"], "algorithm.cast.flip='maybe'"),
    ],
)
def test_a_bad_command_gets_one_sentence_before_anything_is_sampled(
    tmp_path, overrides, monkeypatch, capsys, extra, words
):
    import pandas

    monkeypatch.chdir(tmp_path)
    table = pandas.read_parquet(overrides[1].partition("=")[2])
    table["reward_model"] = [{"style": "rule", "ground_truth": ""}] * len(table)
    table.to_parquet(tmp_path / "no_reference.parquet")
    options = [word for word in extra if not word.startswith(("data.", "+"))]
    assert cli.main(["diagnose", *options, *overrides, *(word for word in extra if word not in options)]) == 1
    error = capsys.readouterr().err
    assert error.strip().splitlines()[-1].startswith("verl-cast diagnose: ") and words in error
    assert "sampling" not in error


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
    assert [one["verdict"] for one in (better, same, worse)] == ["better", "undecided", "not better"]
    assert same["difference"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert worse["difference"]["value"] == pytest.approx(-student["accuracy"])
    assert (student["truncated_share"], student["length_mean"]) == (pytest.approx(1 - student["accuracy"]), 4)
    # Comparing problem by problem cancels the differences between problems.
    # Every problem gains one sample of four here, so the interval has zero width.
    hard, easy = [[0, 0, 0, 0]] * 15, [[1, 1, 1, 0]] * 15
    gained = contexts.summarize("d", *samples_of([[1, 0, 0, 0]] * 15 + [[1, 1, 1, 1]] * 15), 0.5)
    paired = contexts.compare(contexts.summarize("student", *samples_of(hard + easy), 0.5), gained, 0)
    assert paired["difference"] == {"value": 0.25, "interval": [0.25, 0.25]} and paired["verdict"] == "better"


@pytest.mark.parametrize("problems, verdict", [(9, "undecided"), (10, "better")])
def test_few_problems_decide_nothing(problems, verdict):
    student = contexts.summarize("student", *samples_of([[0]] * problems), 0.5)
    assert (
        contexts.compare(student, contexts.summarize("a", *samples_of([[1]] * problems), 0.5), 0)["verdict"] == verdict
    )


def test_what_measures_it_in_the_run_can_be_pasted(overrides):
    words = contexts.IN_THE_RUN.split(" ")[0]
    config = run_config.compose([*overrides, words])
    assert OmegaConf.select(config, "algorithm.cast.trust") == "measured"


HOSTILE = "</script><script>document.title='broken'</script><b>x"


def result_of(responses, shares, context="plain"):
    """A result as `command.py` writes it."""
    rng = np.random.default_rng(0)
    student, *teachers = (
        contexts.summarize(name, *samples_of(rng.random((20, 4)) < share), 0.5) for name, share in shares.items()
    )
    return {
        "verl_cast": "0",
        "made_at": "2026-11-29T10:00:00+00:00",
        "versions": {"torch": "2"},
        "model": HOSTILE,
        "context": context,
        "temperature": 0.7,
        "seed": 0,
        "overrides": [f"trainer.experiment_name={HOSTILE}"],
        "data": "val",
        "problems": 20,
        "samples": 4,
        "correct": 6,
        "accuracy": [student, *(contexts.compare(student, teacher, 0) for teacher in teachers)],
        "gaps": gaps.analyse(responses, frozenset(), 0),
    }


@pytest.mark.parametrize("with_privileged", [True, False])
def test_the_page_in_a_browser_without_network(tmp_path, with_privileged):
    """The page draws every figure, makes no request, shows HTML in the data as text, and fits a phone's screen."""
    path = os.environ.get("CHROME") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        reason = "no Chromium: install it, or name it with CHROME=/path/to/chromium"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    names = ("plain", HOSTILE, gaps.PRIVILEGED) if with_privileged else ("plain", HOSTILE)
    responses = made_up(names=names)
    responses.texts[0][0] = responses.questions[0] = HOSTILE
    for texts in responses.texts:
        texts[-1] = HOSTILE
    result = json.loads(json.dumps(result_of(responses, {"student": 0.6, "plain": 0.1, HOSTILE: 0.9})))
    file = tmp_path / "diagnosis.html"
    file.write_text(page.render(result), encoding="utf-8")

    wrong = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for width in (1200, 360):
            opened = browser.new_page(viewport={"width": width, "height": 800})
            opened.on("request", lambda request: wrong.append(request.url) if request.url != file.as_uri() else None)
            opened.on("console", lambda message: wrong.append(message.text))
            opened.on("pageerror", lambda error: wrong.append(str(error)))
            opened.goto(file.as_uri())
            opened.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length > 0")
            drawn = opened.locator(".js-plotly-plot").count()
            text, title = opened.inner_text("main"), opened.title()
            assert opened.evaluate("document.documentElement.scrollWidth") == width
        browser.close()
    assert wrong == [] and drawn == (4 if with_privileged else 1)
    assert title == "CAST diagnosis: plain" and text.count(HOSTILE) >= 4
    assert "plain, this run's teacher: not better than the student" in text
    assert ("Agreement in sign" in text) == with_privileged


def test_the_text_names_every_context_with_its_verdict():
    result = result_of(made_up(), {"student": 0.5, "plain": 0.1, "/a/b/worked.jinja": 0.99})
    text = summary.text(result)
    assert "plain, this run's teacher: not better than the student" in text
    assert "worked.jinja: better than the student" in text and "/a/b" not in text
    assert re.search(r"agree in sign on \d+ % of the tokens", text) and max(map(len, text.splitlines())) <= 100


def test_the_same_context_has_nothing_to_compare():
    responses = made_up(names=("same", gaps.PRIVILEGED))
    responses.log_probs["same"] = responses.log_probs[contexts.STUDENT]
    result = result_of(responses, {"student": 0.5}, context="same")
    text = summary.text(result)
    assert "so nothing differs" in text and "agree in sign" not in text and "trust" not in text
    assert "Agreement in sign" not in page.render(result)
    assert result["gaps"]["teachers"][0]["gap"]["all"]["abs_mean"] == 0


# ------------------------------------------------------------------------------------------ the privileged context


def test_the_privileged_context_shows_the_answer_in_the_last_user_message():
    messages = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "a"}]
    messages.append({"role": "user", "content": "What is 1 + 1?"})
    before = copy.deepcopy(messages)
    shown = privileged.privileged_messages({"raw_prompt": messages, "reward_model": {"ground_truth": "{2}"}})
    assert messages == before and shown[:2] == before[:2]
    assert shown[2]["content"].startswith("What is 1 + 1?") and "\n{2}\n" in shown[2]["content"]
    image = [{"role": "user", "content": [{"type": "image"}]}]
    for bad, answer in (([{"role": "system", "content": "x"}], "2"), (image, "2"), (messages, ""), (messages, None)):
        with pytest.raises(UserError, match="--no-gaps"):
            privileged.privileged_messages({"raw_prompt": bad, "reward_model": {"ground_truth": answer}})


def test_no_module_that_trains_imports_the_privileged_context():
    """One process imports every module but the tools and the privileged contexts."""
    files = [
        path
        for path in ROOT.rglob("*.py")
        if "tools" not in path.parts
        and path.stem not in ("__init__", "__main__", "privileged")
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
