"""Laws of examples/evaluate.sh and pass_at_k.py: the paper's evaluation by verl, and its numbers from verl's dump."""

import asyncio
import importlib.util
import json
import os
import re
import shlex
import sys
from pathlib import Path

import cast_runs  # noqa: F401 (it adds the run "trusted" to the queue)
import numpy as np
import pandas as pd
import pytest
import scripts
import tiny
import torch
from omegaconf import OmegaConf
from queue_of_runs import job
from torch.distributed.tensor import DTensor

from verl_cast.tools import run_config

SPEC = importlib.util.spec_from_file_location("pass_at_k", scripts.EXAMPLES / "pass_at_k.py")
pass_at_k = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pass_at_k)

# ---------------------------------------------------------------------------------------------------------- settings


def composed(*toggles):
    """The config of verl's command in evaluate.sh, after verl's validation."""
    from verl.utils.config import validate_config

    done = scripts.dry_run("evaluate.sh", "DATA_DIR=/data", "OUT_DIR=/out", *toggles)
    assert done.returncode == 0, done.stderr
    command, table = map(shlex.split, done.stdout.splitlines())
    config = run_config.compose(command[4:], "cast_trainer")
    validate_config(config, use_reference_policy=False, use_critic=False)
    return config, table


@pytest.mark.parametrize("script", scripts.ENGINES)
def test_the_evaluation_is_the_papers(script):
    config, table = composed(f"SCRIPT={script}", "MODEL_PATH=/m/Mine")
    sampling = OmegaConf.to_container(config.actor_rollout_ref.rollout.val_kwargs, resolve=True)
    expected = {"n": 16, "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    assert {name: sampling[name] for name in expected} == expected
    assert config.actor_rollout_ref.rollout.response_length == 32768
    assert config.data.apply_chat_template_kwargs == {"enable_thinking": False}
    names = ("aime24", "aime25", "aime26", "math500", "hmmt25")
    assert config.data.val_files == [f"/data/{name}.parquet" for name in names]
    kwargs = config.reward.custom_reward_function.reward_kwargs
    assert (kwargs.tail_fraction, kwargs.extraction) == (0, "last_box")
    trainer = config.trainer
    assert trainer.val_only and trainer.val_before_train and trainer.resume_mode == "disable"
    assert config.algorithm.adv_estimator == "grpo"  # nothing of CAST is built
    assert trainer.validation_data_dir == "/out/evaluation/Mine/validation"
    assert table[-1] == "Mine=/out/evaluation/Mine/validation/0.jsonl"
    # The dump and verl's metrics stand beside each other, away from those of any training.
    environment = config.ray_kwargs.ray_init.runtime_env.env_vars
    assert environment.VERL_FILE_LOGGER_PATH == "/out/evaluation/Mine/metrics.jsonl"


def test_a_checkpoint_is_resumed_and_named_after_its_run():
    config, table = composed("CHECKPOINT=/runs/mine/checkpoints/global_step_300/", "MODEL_PATH=/m/Base")
    assert config.trainer.resume_mode == "resume_path"
    assert config.trainer.resume_from_path == "/runs/mine/checkpoints/global_step_300"
    assert config.actor_rollout_ref.model.lora_rank == 64
    assert table[-1] == "mine=/out/evaluation/mine/validation/300.jsonl"


@pytest.mark.parametrize(
    ("toggles", "words"),
    [
        (["CHECKPOINT=/x/global_step_20_merged"], "CHECKPOINT=/x/global_step_20_merged is no checkpoint of verl; name"),
        (["CHECKPOINT=/x/mine"], "CHECKPOINT=/x/mine is no checkpoint of verl; name"),
        (["CHECKPOINT=/x/global_step_20", "DRY_RUN=0"], "is no checkpoint of verl; name a directory global_step_N"),
        (["DATA_DIR=/none", "DRY_RUN=0"], "/none/aime24.parquet is missing; python "),
        (["DRY_RUN=maybe"], "DRY_RUN=maybe is neither on nor off"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_sentence(toggles, words):
    done = scripts.dry_run("evaluate.sh", *toggles)
    assert done.returncode == 2 and done.stdout == "" and words in done.stderr and done.stderr.count("\n") == 1


# ----------------------------------------------------------------------------------------------------------- numbers


def dump(path, rows):
    """A dump of verl: rows of (uid of the problem, sample, turn, score, data source or None), in this order."""
    lines = []
    for uid, sample, turn, score, source in rows:
        row = {"input": "the same", "output": "\u2028", "gts": "1", "score": score, "uid": f"{uid}_{sample}_{turn}"}
        lines.append(json.dumps(row | ({"data_source": source} if source else {}), ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def data(path, *sources):
    pd.DataFrame({"data_source": sources}).to_parquet(path)
    return path


def test_a_table_by_hand(tmp_path):
    """Two data sources. All prompts are alike, and two problems have the same scores: uids tell them apart."""
    scores = {"a": [1, 0, 0, 1], "b": [0, 0, 0, 0], "c": [0, 0, 0, 0], "d": [1, 1, 1, 1]}
    sources = dict.fromkeys("abc", "math500") | {"d": "aime24"}
    rows = [(uid, i, 0, float(s), sources[uid]) for uid, of in scores.items() for i, s in enumerate(of)]
    file = dump(tmp_path / "0.jsonl", rows)
    files = [data(tmp_path / "m.parquet", *["math500"] * 3), data(tmp_path / "a.parquet", "aime24")]
    found = pass_at_k.tables({"base": file, "same | again": file}, 4, files)
    assert found.startswith(
        "| Avg@4 / Pass@4 | AIME24 | MATH-500 |\n|---|---|---|\n"
        "| base | 100.00 / 100.0 | 16.67 / 33.3 |\n| same \\| again | 100.00 / 100.0 | 16.67 / 33.3 |\n"
    )
    assert "| base | MATH-500 | 3 | 16.67 (0.00 to 50.00) | 33.3 (0.0 to 100.0) |" in found
    assert "missing" not in found


def test_pass_is_exact_where_verls_best_is_an_estimate(tmp_path):
    """verl's own function, on the same scores."""
    from verl.trainer.ppo.metric_utils import process_validation_metrics

    rng = np.random.default_rng(0)
    right = rng.random((50, 16)) < 0.1
    uids = [f"problem{i}" for i in range(50) for _ in range(16)]
    values = right.astype(float).reshape(-1).tolist()
    verls = process_validation_metrics(["aime24"] * 800, uids, {"acc": values})["aime24"]["acc"]
    file = dump(
        tmp_path / "0.jsonl", [(f"problem{i}", k, 0, float(right[i, k]), "aime24") for i, k in np.ndindex(50, 16)]
    )
    problems = pass_at_k.read(file)["aime24"]
    found, missing = pass_at_k.matrix(problems, 16, 50)
    assert not missing and np.array_equal(found, right)
    assert found.mean() == pytest.approx(verls["mean@16"])
    assert found.any(axis=1).mean() == right.any(axis=1).mean()
    assert abs(found.any(axis=1).mean() - verls["best@16/mean"]) > 0.05


def test_a_sample_of_several_turns_counts_once(tmp_path):
    rows = [("a", 0, 0, 1.0, "x"), ("a", 0, 1, 1.0, "x"), ("a", 1, 0, 0.0, "x")]
    assert pass_at_k.read(dump(tmp_path / "0.jsonl", rows)) == {"x": [[1.0, 0.0]]}


def test_what_is_missing_is_said_and_counts_as_wrong(tmp_path):
    rows = [("a", 0, 0, 1.0, "aime24"), ("b", 0, 0, 1.0, "aime24"), ("b", 1, 0, 1.0, "aime24")]
    files = [data(tmp_path / "d.parquet", "aime24", "aime24", "aime24", "hmmt25")]
    found = pass_at_k.tables({"base": dump(tmp_path / "0.jsonl", rows)}, 2, files)
    assert "| base | 50.00 / 66.7 | 0.00 / 0.0 |" in found
    assert found.endswith(
        "base, AIME24: 3 of 6 samples are missing (1 problems wholly): counted as wrong.\n"
        "base, HMMT25: 2 of 2 samples are missing (1 problems wholly): counted as wrong."
    )


def test_a_dump_of_another_reward_function_has_one_data_source(tmp_path):
    file = dump(tmp_path / "0.jsonl", [("a", 0, 0, 1.0, None), ("b", 0, 0, 0.0, None)])
    assert "| Avg@1 / Pass@1 | all |" in pass_at_k.tables({"base": file}, 1, [])
    one = data(tmp_path / "one.parquet", "aime24", "aime24")
    assert "| Avg@1 / Pass@1 | AIME24 |" in pass_at_k.tables({"base": file}, 1, [one])
    two = data(tmp_path / "two.parquet", "aime24", "hmmt25")
    assert "| base | all | 2 | 50.00 " in pass_at_k.tables({"base": file}, 1, [two])


@pytest.mark.parametrize(
    ("rows", "samples", "sources", "words"),
    [
        ([("a", 0, 0, 1.0, "x"), ("a", 1, 0, 1.0, "x")], 1, ["x"], "1 problems with up to 2 samples, but 1 x 1 were"),
        ([("a", 0, 0, 1.0, "x"), ("b", 0, 0, 1.0, "x")], 1, ["x"], "2 problems with up to 1 samples, but 1 x 1 were"),
        ([("a", 0, 0, 1.0, "y")], 1, ["x"], "has the data source y, which no file of --data has"),
    ],
)
def test_a_dump_of_other_data_is_refused(tmp_path, rows, samples, sources, words):
    with pytest.raises(SystemExit, match=words):
        pass_at_k.tables({"base": dump(tmp_path / "0.jsonl", rows)}, samples, [data(tmp_path / "d.parquet", *sources)])


@pytest.mark.parametrize("content", ['{"uid": "a_0_0", "score": 1.0}\n{"uid": "a_1', '{"score": 1.0}\n', ""])
def test_a_damaged_dump_is_named_with_its_line(tmp_path, content):
    (tmp_path / "0.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=r"0\.jsonl, line [12]: no sample of verl's validation"):
        pass_at_k.read(tmp_path / "0.jsonl")


def test_intervals_cover_and_count_problems():
    """Samples of one problem are alike here, so 40 x 16 samples count as about 40."""
    rng, covered = np.random.default_rng(1), 0
    for i in range(200):
        chance = rng.choice([0.05, 0.95], size=40)
        low, high = pass_at_k.interval((rng.random((40, 16)) < chance[:, None]).mean(axis=1), seed=i)
        covered += low <= 0.5 <= high
    assert covered / 200 > 0.9
    assert high - low > 0.2  # the width for 40 samples; for 640 it would be 0.08


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("result", ["0.5", '{"score": 0.5, "pred": "x"}'])
def test_the_reward_function_adds_the_data_source(tmp_path, kind, result):
    path = tmp_path / "mine.py"
    path.write_text(
        f"{kind} compute_score(data_source, solution_str, add=0, **_):\n    assert add == 3\n    return {result}\n"
    )
    found = asyncio.run(
        pass_at_k.compute_score("aime24", function=str(path), solution_str="s", ground_truth="1", add=3)
    )
    assert found.pop("data_source") == "aime24" and found.pop("score") == 0.5 and found in ({}, {"pred": "x"})
    graded = pass_at_k.compute_score("x", solution_str=r"\boxed{5}", ground_truth="5", extraction="last_box")
    assert asyncio.run(graded)["score"] == 1


def test_a_finished_evaluation_is_printed_and_not_repeated(tmp_path):
    (tmp_path / "evaluation" / "mine" / "validation").mkdir(parents=True)
    file = dump(tmp_path / "evaluation" / "mine" / "validation" / "0.jsonl", [("a", 0, 0, 1.0, "aime24")])
    data(tmp_path / "aime24.parquet", "aime24")
    toggles = (f"DATA_DIR={tmp_path}", f"OUT_DIR={tmp_path}", "EXPERIMENT=mine", "BENCHMARKS=aime24", "SAMPLES=1")
    path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
    done = scripts.dry_run("evaluate.sh", *toggles, path, "DRY_RUN=0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{file} is there, so nothing is sampled; remove it to evaluate again.\n| Avg@1 ")
    assert "| mine | 100.00 / 100.0 |" in done.stdout


# ---------------------------------------------------------------------------------------------------------- real run

SAMPLES = 4


@job("evaluation", after=["tiny", "trusted"])
def evaluation(directory, runs):
    """evaluate.sh with a checkpoint that a CAST run of all parameters saved."""
    checkpoint = runs("trusted").directory / "checkpoints" / "global_step_3"
    toggles = (f"CHECKPOINT={checkpoint}", "LORA=0", f"SAMPLES={SAMPLES}", "EXPERIMENT=trained")
    return scripts.evaluate_on_cpu(directory, runs("tiny"), *toggles)


@pytest.mark.runs("evaluation", "trusted")
def test_evaluate_reports_verls_own_mean_and_the_exact_pass(ended):
    run = ended("evaluation")
    directory = run.directory / "evaluation" / "trained"
    rows = pd.read_json(directory / "validation" / "3.jsonl", lines=True)
    assert len(rows) == 64 * SAMPLES and set(rows["data_source"]) == {"tiny"}
    problems = rows["uid"].str.rsplit("_", n=2).str[0]
    assert (rows.groupby(problems)["input"].nunique() == 1).all() and rows["input"].nunique() == 64
    avg, passed = rows["score"].mean(), rows["score"].groupby(problems).max().mean()
    assert 0 < avg < passed < 1
    assert f"| trained | {100 * avg:.2f} / {100 * passed:.1f} |" in run.output
    assert "missing" not in run.output.rpartition("| Avg@")[2]
    (metrics,) = [json.loads(line)["data"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert metrics[f"val-core/tiny/reward/mean@{SAMPLES}"] == pytest.approx(avg)


def _local(tensor):
    """The parameter of a run with one rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@pytest.mark.runs("evaluation", "trusted")
def test_evaluate_samples_the_checkpoints_weights(runs):
    """A sampled token is one of the 20 likeliest. The first characters are so under the trained weights only."""
    run, trained_by = runs("evaluation"), runs("trusted")
    rows = pd.read_json(run.directory / "evaluation" / "trained" / "validation" / "3.jsonl", lines=True)
    trained, untrained = tiny.model(), tiny.model()
    trained.load_state_dict({name: _local(tensor) for name, tensor in trained_by.parameters(3).items()})
    tokenizer, among = tiny.tokenizer(), []
    for text, output in zip(rows["input"], rows["output"], strict=True):
        if not output or output[0] == "\ufffd" or ord(output[0]) > 127:
            continue  # a special token, or bytes that are no character
        question = re.search(r"What is .*\?", text).group()
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        first = tokenizer.encode(output[0])[0]
        with torch.no_grad():
            logits = [model(ids).logits[0, -1] for model in (trained, untrained)]
        among.append([first in logit.topk(21).indices for logit in logits])  # one more, for a tie at the end
    of_trained, of_untrained = np.array(among).mean(axis=0)
    assert len(among) > 20 and of_trained == 1 and of_untrained < 0.9
