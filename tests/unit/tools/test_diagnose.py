"""Laws of `verl-cast diagnose`: its gaps, its scoring, its refusals, its page, and its privileged context."""

import copy
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas
import psutil
import pytest
import torch
from omegaconf import OmegaConf

import verl_cast
from verl_cast.advantage.compute import compute_advantage
from verl_cast.advantage.metrics import advantage_metrics
from verl_cast.config.cast import CastConfig, CastConfigError
from verl_cast.teacher.context import load_template
from verl_cast.tools import cli, run_config
from verl_cast.tools.cli import UserError
from verl_cast.tools.diagnose import contexts, gaps, page, privileged, summary

# ------------------------------------------------------------------------------------------------------------- gaps

GROUPS = ((1, 0, 0, 1), (1, 1, 1, 1), (0, 0, 0, 0))
CORRECT, PROBLEMS = np.array(GROUPS).ravel() == 1, np.repeat(np.arange(3), 4)
TEACHERS = ("plain", gaps.PRIVILEGED)


def made_up(names=TEACHERS):
    """Log-probs by teacher, with random gaps and lengths, in a mixed, an all-correct and an all-wrong group."""
    rng = np.random.default_rng(0)
    old = [-rng.random(n).astype(np.float32) for n in rng.integers(1, 12, size=len(CORRECT))]
    teachers = {name: [o + rng.normal(-0.1, 0.3, len(o)).astype(np.float32) for o in old] for name in names}
    return {contexts.STUDENT: old, **teachers}


def table_of(log_probs, text="a"):
    ids = [[5] * (len(one) - 1) + [3] for one in log_probs[contexts.STUDENT]]
    texts = [[text] * (len(one) - 1) + ["<end>"] for one in ids]
    return gaps.token_table(log_probs, ids, texts, CORRECT, PROBLEMS, frozenset([3]))


def analysed(log_probs, text="a", question="1 + 1?"):
    teachers = list(log_probs)[1:]
    return gaps.analyse(table_of(log_probs, text), teachers, teachers[0], [question] * 3, seed=0)


def gaps_of(log_probs, name):
    return [scored.astype(float) - old for scored, old in zip(log_probs[name], log_probs["student"], strict=True)]


def test_every_token_is_counted_once_where_it_belongs():
    log_probs = made_up()
    result, plain = analysed(log_probs), gaps_of(log_probs, "plain")
    everything, own = np.concatenate(plain), result["teachers"][0]["gap"]
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
    firsts = [gap[np.arange(len(gap)) * 5 // len(gap) == 0] for gap in plain]
    expected = np.concatenate([one for one, correct in zip(firsts, CORRECT, strict=True) if correct])
    [row] = [r for r in compared["position"] if (r["part"], r["responses"]) == ("first fifth", "correct")][:1]
    assert row["mean"] == pytest.approx(expected.mean()) and row["tokens"] == len(expected)


def test_classes_of_tokens():
    expected = {"word": (" the", "x2", "答"), "number": ("42", " 3."), "punctuation": (" +", ").")}
    expected |= {"whitespace": ("\n\n", " "), "latex": ("\\frac", " \\(", "\\"), "partial": ("", "\ufffd")}
    for name, texts in expected.items():
        assert [gaps.token_class(text) for text in texts] == [name] * len(texts)


def test_the_relation_sees_a_teacher_that_knows_and_one_that_is_wrong():
    log_probs = made_up()
    for sign, auc in ((1, 1), (-1, 0)):
        pairs = zip(log_probs[contexts.STUDENT], CORRECT, strict=True)
        log_probs["plain"] = [old + sign * (0.3 if correct else -0.3) for old, correct in pairs]
        relation = gaps.relation(table_of(log_probs), "plain", seed=0)
        assert relation["auc"]["value"] == auc
        assert relation["correlation"]["value"] == pytest.approx(sign)
        assert relation["correlation_in_group"]["value"] == pytest.approx(sign)


def test_the_relation_is_the_metric_of_a_run():
    """The diagnosis computes the same number as the training metric `cast/gap/correctness_corr`."""
    log_probs = made_up()

    def padded(rows):
        return torch.tensor(np.stack([np.pad(row, (0, 12 - len(row))) for row in rows]), dtype=torch.float32)

    old, teacher = (padded(log_probs[name]) for name in (contexts.STUDENT, "plain"))
    mask = padded([np.ones(len(one)) for one in log_probs["plain"]])
    rewards = torch.zeros_like(mask)
    rewards[:, 0] = torch.tensor(CORRECT)
    metrics = advantage_metrics(compute_advantage(rewards, mask, PROBLEMS, old, teacher, CastConfig(), True))
    relation = gaps.relation(table_of(log_probs), "plain", seed=0)
    for ours, name in (("correlation", "correctness_corr"), ("correlation_in_group", "correctness_corr_in_group")):
        assert relation[ours]["value"] == pytest.approx(metrics[f"gap/{name}"], abs=1e-5)
    low, high = relation["correlation"]["interval"]
    assert low < relation["correlation"]["value"] < high


def test_the_token_view_shows_correct_and_wrong_responses_with_their_gaps(monkeypatch):
    monkeypatch.setattr(gaps, "SHOWN_TOKENS", 3)
    log_probs = made_up()
    shown = analysed(log_probs)["tokens"]
    assert [one["responses"] for one in shown] == ["correct"] * 2 + ["wrong"] * 2
    for one in shown:
        assert len(one["tokens"]) == len(one["gaps"]["plain"]) == len(one["gaps"][gaps.PRIVILEGED]) <= 3
        candidates = [gap for gap in gaps_of(log_probs, "plain") if gap[:3].tolist() == one["gaps"]["plain"]]
        assert [len(gap) for gap in candidates] == [len(one["tokens"]) + one["left_out"]]


# ----------------------------------------------------------------------------------------- a command and its model


@pytest.fixture(scope="session")
def overrides(good_command):
    return [*good_command[0], "actor_rollout_ref.rollout.temperature=0.7"]


def setup_of(*overrides):
    from verl_cast.tools.diagnose.setup import Setup

    return Setup(run_config.compose(list(overrides)))


@pytest.fixture(scope="session")
def setup(overrides):
    return setup_of(*overrides)


@pytest.fixture(scope="session")
def scorer(setup):
    from verl_cast.tools.diagnose.scoring import Scorer

    return Scorer(setup)


@pytest.mark.parametrize("width", [1024, 3])
def test_scores_are_those_of_a_forward_of_each_row(scorer, monkeypatch, width):
    """However wide a slice of a response is."""
    from verl_cast.tools.diagnose import scoring

    monkeypatch.setattr(scoring, "SLICE", width)
    rng = np.random.default_rng(0)

    def ids(length):
        return rng.integers(4, 250, size=length).tolist()

    prompts = [ids(n) for n in (5, 1, 30)]
    responses = [[ids(n) for n in lengths] for lengths in ((1, 7, 40, 2), (3,), (12, 1, 1))]
    found = scorer.log_probs(prompts, responses, "test")
    pairs = [(prompt, response) for prompt, group in zip(prompts, responses, strict=True) for response in group]
    for (prompt, response), got in zip(pairs, found, strict=True):
        with torch.no_grad():
            logits = scorer.model(torch.tensor([[*prompt, *response]])).logits[0].double() / 0.7
        expected = torch.log_softmax(logits, dim=-1)[range(len(prompt) - 1, len(logits) - 1), response]
        assert got.dtype == np.float32 and got.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_context_longer_than_the_model_is_refused(scorer):
    with pytest.raises(UserError, match="600 tokens long, but max_position_embeddings allows 512"):
        scorer.log_probs([[7] * 590], [[[7] * 10]], "test")


def test_problems_are_drawn_once_and_by_the_seed(setup):
    def questions(number, seed):
        return [row["raw_prompt"][0]["content"] for row in setup.problems("val", number, seed)]

    assert len(set(questions(64, 0))) == len(questions(1000, 0)) == 64
    assert questions(8, 1) == questions(8, 1) != questions(8, 2)


def test_the_verifier_is_the_runs_own(setup, tiny_directory):
    [row], tokenizer = setup.problems("val", 1, 0), setup.model_config.tokenizer
    namespace = {}
    exec((tiny_directory / "reward.py").read_text(), namespace)
    texts = ["one", "two", "three", "", "more"]
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    expected = [namespace["compute_score"]("", text, "")["score"] for text in texts]
    assert [setup.reward_of(row, one) for one in ids] == expected and 0 < sum(expected) < len(texts)


def test_a_model_without_weights_is_named(overrides, tiny_directory, tmp_path):
    from verl_cast.tools.diagnose.scoring import Scorer

    shutil.copytree(tiny_directory / "model", tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    setup = setup_of(*overrides, f"actor_rollout_ref.model.path={tmp_path}/m")
    with pytest.raises(UserError, match=f"model.path={tmp_path}/m holds no causal language model"):
        Scorer(setup)


def test_vllm_gets_the_settings_of_the_run(overrides, monkeypatch):
    from verl_cast.tools.diagnose.sampling import engine_arguments

    vllm = "+actor_rollout_ref.rollout.engine_kwargs.vllm.block_size=32"
    setup = setup_of(*overrides, "actor_rollout_ref.rollout.max_model_len=100", vllm)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    found = engine_arguments(setup, longest_prompt=64)
    assert (found["dtype"], found["enforce_eager"], found["block_size"]) == ("float32", True, 32)
    assert found["max_model_len"] == 100 and engine_arguments(setup, longest_prompt=200)["max_model_len"] == 216
    assert 2**30 <= found["kv_cache_memory_bytes"] < psutil.virtual_memory().total  # vLLM's CPU build
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert "kv_cache_memory_bytes" not in engine_arguments(setup, longest_prompt=64)


MODEL, ROLLOUT = "actor_rollout_ref.model", "actor_rollout_ref.rollout"
REFUSED = {  # a word of the command, or an option before it -> of the sentence
    f"{ROLLOUT}.temperature=0": "temperature=0: without sampling",
    f"{ROLLOUT}.agent.default_agent_loop=tool_agent": "default_agent_loop=tool_agent: a prompt gets one response",
    f"{MODEL}.lora_adapter_path=/a": "lora_adapter_path=/a: adapters are not read",
    f"{MODEL}.path=/nowhere": f"{MODEL}.path=/nowhere: tokenizer or config",
    "+algorithm.cast.flip=maybe": "algorithm.cast.flip='maybe'",
    "reward.reward_manager.name=gdpo": "gdpo: set reward.reward_manager.name=naive or",
    "reward.custom_reward_function.path=/nowhere.py": "reward function cannot be loaded",
    "data.val_files=/nowhere.parquet": "data.val_files=/nowhere.parquet: Unable to find",
    "data.val_files=blank.parquet": "no reference answer (reward_model.ground_truth)",
    "--contexts=/nowhere.jinja": "/nowhere.jinja",
    "--contexts=/first.jinja --contexts=plain": "/first.jinja",  # both are read
    "--contexts=privileged": "the template cannot be read",
    "--out=/proc/none": "--out /proc/none",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_cannot_be_diagnosed_gets_one_sentence_before_anything_is_sampled(
    tmp_path, overrides, tiny_directory, monkeypatch, capsys, word
):
    monkeypatch.chdir(tmp_path)
    table = pandas.read_parquet(tiny_directory / "train.parquet")
    table["reward_model"] = [{"style": "rule", "ground_truth": ""}] * len(table)
    table.to_parquet("blank.parquet")
    words = [*word.split(), *overrides] if word.startswith("--") else [*overrides, word]
    assert cli.main(["diagnose", *words]) == 1
    error = capsys.readouterr().err
    assert error.strip().splitlines()[-1].startswith("verl-cast diagnose: ") and REFUSED[word] in error
    assert "[diagnose]" not in error


# ------------------------------------------------------------------------------------------- contexts and the page


def summary_of(name, correct):
    """Of samples of 4 tokens; wrong ones are cut off."""
    correct = np.array(correct) == 1
    return contexts.summarize(name, [[{"ids": [1] * 4, "truncated": not c} for c in row] for row in correct], correct)


def test_contexts_are_compared_problem_by_problem():
    rng = np.random.default_rng(0)
    student = summary_of("student", rng.random((40, 4)) < 0.3)
    better = contexts.compare(student, summary_of("a", rng.random((40, 4)) < 0.8), 0)
    same = contexts.compare(student, {**student, "context": "b"}, 0)
    worse = contexts.compare(student, summary_of("c", np.zeros((40, 4))), 0)
    assert [one["verdict"] for one in (better, same, worse)] == ["better", "undecided", "not better"]
    assert same["difference"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert worse["difference"]["value"] == pytest.approx(-student["accuracy"])
    assert (student["truncated_share"], student["length_mean"]) == (pytest.approx(1 - student["accuracy"]), 4)
    # Comparing problem by problem cancels the differences between problems.
    # Every problem gains one sample of four here, so the interval has zero width.
    gained = summary_of("d", [[1, 0, 0, 0]] * 15 + [[1, 1, 1, 1]] * 15)
    paired = contexts.compare(summary_of("student", [[0, 0, 0, 0]] * 15 + [[1, 1, 1, 0]] * 15), gained, 0)
    assert paired["difference"] == {"value": 0.25, "interval": [0.25, 0.25]} and paired["verdict"] == "better"
    for problems, verdict in ((9, "undecided"), (10, "better")):
        few = contexts.compare(summary_of("student", [[0]] * problems), summary_of("a", [[1]] * problems), 0)
        assert few["verdict"] == verdict, "few problems decide nothing"


def test_what_measures_it_in_the_run_can_be_pasted(overrides):
    config = run_config.compose([*overrides, contexts.IN_THE_RUN.split(" ")[0]])
    assert OmegaConf.select(config, "algorithm.cast.trust") == "measured"


HOSTILE = "</script><script>document.title='broken'</script><b>x"


def result_of(analysis, shares, context="plain"):
    """A result as `command.py` writes it."""
    rng = np.random.default_rng(0)
    student, *teachers = (summary_of(name, rng.random((20, 4)) < share) for name, share in shares.items())
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
        "gaps": analysis,
    }


def test_the_page_in_a_browser_without_network(tmp_path):
    """The page draws every figure, makes no request, shows HTML in the data as text, and fits a phone's screen."""
    path = os.environ.get("CHROME") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        reason = "no Chromium: install it, or name it with CHROME=/path/to/chromium"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    analysis = analysed(made_up(("plain", HOSTILE, gaps.PRIVILEGED)), text=HOSTILE, question=HOSTILE)
    result = json.loads(json.dumps(result_of(analysis, {"student": 0.6, "plain": 0.1, HOSTILE: 0.9})))
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
    assert wrong == [] and drawn == 3
    assert title == "CAST diagnosis: plain" and text.count(HOSTILE) >= 4 and "Agreement in sign" in text
    assert "plain, this run's teacher: not better than the student" in text


def test_the_text_names_every_context_with_its_verdict():
    text = summary.text(result_of(analysed(made_up()), {"student": 0.5, "plain": 0.1, "/a/b/worked.jinja": 0.99}))
    assert "plain, this run's teacher: not better than the student" in text
    assert "worked.jinja: better than the student" in text and "/a/b" not in text
    assert re.search(r"agree in sign on \d+ % of the tokens", text) and max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    "names, says", [(("same", gaps.PRIVILEGED), "so nothing differs"), (("plain",), "trust=measured")]
)
def test_without_two_different_teachers_there_is_nothing_to_compare(names, says):
    log_probs = made_up(names)
    if "same" in names:
        log_probs["same"] = log_probs[contexts.STUDENT]
    result = result_of(analysed(log_probs), {"student": 0.5}, context=names[0])
    text, written = summary.text(result), page.render(result)
    assert says in text and "agree in sign" not in text and "Agreement in sign" not in written
    assert len(written) < 100_000, "no figure, no plotly.js"
    assert (result["gaps"]["teachers"][0]["gap"]["all"]["abs_mean"] == 0) == ("same" in names)


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


def test_nothing_selects_the_privileged_context(tmp_path):
    """No value of the setting, and no template: those of the package that show the answer are refused, too.

    That no module that trains imports it is a law of tests/repo/test_rooms.py.
    """
    for context in ("privileged", "reference", "verl_cast.tools.diagnose.privileged"):
        with pytest.raises(CastConfigError, match="teacher.context"):
            CastConfig.from_dict({"teacher": {"context": context}})
    for path in (Path(verl_cast.__file__).parent / "tools" / "diagnose").rglob("*.jinja"):
        with pytest.raises(CastConfigError):
            load_template(str(path))
    (tmp_path / "leak.jinja").write_text("{{ problem }} {{ reference }}")
    with pytest.raises(CastConfigError, match="answer-free"):
        load_template(str(tmp_path / "leak.jinja"))
