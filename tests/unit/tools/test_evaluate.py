"""Laws of `verl-cast evaluate`: its numbers, its record, and its tables.

Bad input gets one sentence. Real checkpoints are loaded bit for bit. A killed evaluation resumes where it stopped.
"""

import hashlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import tiny
import torch
from queue_of_runs import job
from ranks import WarmProcess
from safetensors.torch import load_file
from test_engine import LORA, TENSOR_PARALLEL

from verl_cast.tools import cli, vllm_process
from verl_cast.tools.cli import UserError
from verl_cast.tools.evaluate import benchmarks, command, models, results, table
from verl_cast.tools.evaluate.record import Record

# ---------------------------------------------------------------------------------------------------------- numbers


def test_pass_at_k_is_the_share_of_draws_with_a_correct_sample():
    rng = np.random.default_rng(0)
    for samples in range(1, 8):
        correct = rng.random(samples) < 0.4
        for k in range(1, samples + 1):
            draws = [any(draw) for draw in itertools.combinations(correct, k)]
            assert results.pass_at_k(np.array([correct.sum()]), samples, k) == pytest.approx(np.mean(draws))


def test_pass_at_k_has_its_ends_and_the_closed_form():
    counts = np.arange(17)
    assert results.pass_at_k(counts, 16, 16) == pytest.approx((counts > 0).astype(float))  # any of them
    assert results.pass_at_k(counts, 16, 1) == pytest.approx(counts / 16)  # Avg
    closed = [1 - math.comb(16 - c, 5) / math.comb(16, 5) for c in counts]
    assert results.pass_at_k(counts, 16, 5) == pytest.approx(closed)


def lines(correct, **others):
    return [
        {"correct": bool(c), "tokens": 10 + 2 * k, "truncated": k == 0, "seconds": 0.5, **others}
        for k, c in enumerate(correct)
    ]


def test_a_summary_by_hand():
    found = results.summarise([lines([1, 0, 0, 1]), lines([0, 0, 0, 0]), lines([1, 1, 1, 1])], seed=0)
    assert found["problems"] == 3 and found["samples"] == 4
    assert found["avg"] == 0.5 and found["pass"] == pytest.approx(2 / 3)
    assert found["pass_at"][1] == found["avg"] and found["pass_at"][4] == found["pass"]
    assert found["pass_at"][2] == pytest.approx((5 / 6 + 0 + 1) / 3)
    assert (found["mean_tokens"], found["truncated_share"], found["seconds"]) == (13, 0.25, 6)
    assert found == results.summarise([lines([1, 0, 0, 1]), lines([0, 0, 0, 0]), lines([1, 1, 1, 1])], seed=0)


def test_intervals_cover_and_count_problems():
    """Samples of one problem are alike here, so 40 x 16 samples count as about 40."""
    rng, covered = np.random.default_rng(1), 0
    for i in range(200):
        chance = rng.choice([0.05, 0.95], size=40)
        found = results.summarise([lines(rng.random(16) < p) for p in chance], seed=i)
        low, high = found["avg_interval"]
        covered += low <= 0.5 <= high
    assert covered / 200 > 0.9
    assert high - low > 0.2  # the width for 40 samples; for 640 it would be 0.08


# ----------------------------------------------------------------------------------------------------------- record

SETTINGS = {"model": {"path": "/m", "files": {}}, "samples": 2, "temperature": 0.7}


def bench(name="a", sha256="1" * 64, problems=3):
    return {name: {"sha256": sha256, "problems": problems}}


def test_a_record_goes_on_where_it_was(tmp_path):
    record = Record(tmp_path, SETTINGS, bench(), overwrite=False)
    assert record.missing("a") == [0, 1, 2]
    record.add("a", 1, [{"correct": True, "response": "line\u2028one\n"}, {"correct": False, "response": ""}])
    again = Record(tmp_path, SETTINGS, bench(), overwrite=False)
    assert again.missing("a") == [0, 2] and again.lines == record.lines
    again.add("a", 0, [{"correct": False}] * 2)
    again.add("a", 2, [{"correct": True}] * 2)
    third = Record(tmp_path, SETTINGS, bench("b", problems=1), overwrite=False)
    assert list(third.finished()) == ["a"] and third.missing("b") == [0]  # a further benchmark; the first one stays
    assert [line["correct"] for samples in third.finished()["a"] for line in samples] == [0, 0, 1, 0, 1, 1]


@pytest.mark.parametrize("cut", range(1, 100, 7))
def test_a_line_torn_by_a_kill_costs_its_problem_alone(tmp_path, cut):
    record = Record(tmp_path, SETTINGS, bench(), overwrite=False)
    for problem in (2, 0):
        record.add("a", problem, [{"correct": True, "response": "é" * 20}] * 2)
    file = tmp_path / "samples" / "a.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    again = Record(tmp_path, SETTINGS, bench(), overwrite=False)
    assert again.missing("a") == [0, 1]
    again.add("a", 0, [{"correct": True, "response": "é" * 20}] * 2)
    assert file.read_bytes() == whole


def test_more_problems_of_the_same_file_are_no_other_evaluation(tmp_path):
    Record(tmp_path, SETTINGS, bench(problems=1), overwrite=False).add("a", 0, [{"correct": True}] * 2)
    record = Record(tmp_path, SETTINGS, bench(problems=3), overwrite=False)
    assert record.missing("a") == [1, 2] and not record.finished()


@pytest.mark.parametrize(
    "settings, of, words",
    [
        ({**SETTINGS, "temperature": 1.0}, bench(), ["temperature", "0.7", "1.0", "--overwrite"]),
        ({**SETTINGS, "model": {"path": "/n", "files": {}}}, bench(), ["model", "/m", "/n"]),
        ({**SETTINGS, "model": {"path": "/m", "files": {"x": [1, 2]}}}, bench(), ["model", "/m", "other files"]),
        (SETTINGS, bench(sha256="2" * 64), ["the file of a", "111111", "222222"]),
    ],
)
def test_changed_settings_are_refused_by_name_or_start_anew(tmp_path, settings, of, words):
    Record(tmp_path, SETTINGS, bench(), overwrite=False).add("a", 0, [{"correct": True}] * 2)
    with pytest.raises(UserError) as refused:
        Record(tmp_path, settings, of, overwrite=False)
    assert all(word in str(refused.value) for word in words), refused.value
    assert Record(tmp_path, SETTINGS, bench(), overwrite=False).missing("a") == [1, 2]  # nothing was touched
    assert Record(tmp_path, settings, of, overwrite=True).missing("a") == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------------ table


def result(name, samples=16, temperature=0.7, **columns):
    return {
        "name": name,
        "settings": {
            "model": {"path": name},
            "samples": samples,
            "temperature": temperature,
            "benchmarks": {column: {"sha256": "1", "problems": 30} for column in columns},
        },
        "benchmarks": {c: {"avg": avg, "pass": passed} for c, (avg, passed) in columns.items()},
    }


def test_the_table_has_the_papers_form():
    rows = [
        result("base", math500=(0.8391, 0.96), aime24=(0.2083, 0.4667), zeta=(0, 0)),
        result("CAST | 4B", aime24=(0.4125, 0.7667)),
    ]
    assert table.paper_table(rows) == (
        "| Avg@16 / Pass@16 | AIME24 | MATH-500 | zeta |\n|---|---|---|---|\n"
        "| base | 20.83 / 46.7 | 83.91 / 96.0 | 0.00 / 0.0 |\n| CAST \\| 4B | 41.25 / 76.7 | – | – |\n"
    )


def test_the_table_says_what_else_differs():
    rows = [result("a", aime24=(0, 0)), result("b", temperature=1.0, aime24=(0, 0))]
    rows[1]["settings"]["benchmarks"]["aime24"]["problems"] = 4
    text = table.paper_table(rows)
    assert "differ in temperature: 0.7, 1.0" in text and "differ in the problems of AIME24" in text
    assert "model" not in text


def test_evaluations_of_different_k_share_no_table(tmp_path, capsys):
    for name, samples in (("a", 4), ("b", 16)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(result(name, samples, aime24=(0.5, 1))))
    both = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert cli.main(["evaluate", "--table", *both]) == 1
    assert "4 in" in capsys.readouterr().err
    assert cli.main(["evaluate", "--table", both[1], both[1]]) == 0
    assert capsys.readouterr().out.count("| b | 50.00 / 100.0 |") == 2
    assert cli.main(["evaluate", "--table", str(tmp_path)]) == 1
    assert "results.json" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- bad input


def test_the_defaults_are_the_evaluation_of_the_papers_run():
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["m", "--data", "x"])
    expected = {"n": 16, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 0, "max_tokens": 32768}
    assert command._sampling(args) == expected
    assert not args.thinking and args.dtype == "bfloat16" and args.seed == 42


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature", "-1"], "--temperature -1.0: must be at least 0."),
        (["--temperature", "nan"], "--temperature nan: must be"),
        (["--temperature", "0"], "--temperature 0 with --samples 16: greedy samples are all alike; use --samples 1"),
        (["--top-p", "0"], "--top-p 0.0: must be above 0"),
        (["--top-k", "0"], "--top-k 0: must be at least 1, or -1"),
        (["--presence-penalty", "3"], "--presence-penalty 3.0: must be between -2 and 2."),
        (["--gpu-memory-utilization", "90"], "--gpu-memory-utilization 90.0: must be above 0"),
    ],
)
def test_impossible_sampling_is_refused_before_anything_is_read(tmp_path, capsys, options, words):
    arguments = ["evaluate", "/no/model", "--data", "/no/data.parquet", "--out", str(tmp_path / "o")]
    assert cli.main([*arguments, *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"verl-cast evaluate: {words}") and error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_the_kv_cache_on_a_cpu_fits_the_free_memory():
    free = psutil.virtual_memory().available
    [(name, size)] = vllm_process.kv_cache_on_a_cpu({"gpu_memory_utilization": 0.9}, {}).items()
    assert name == "kv_cache_memory_bytes" and 2**30 <= size < max(2**30 + 1, free / 2)
    assert vllm_process.kv_cache_on_a_cpu({"kv_cache_memory_bytes": 5}, {}) == {}
    assert vllm_process.kv_cache_on_a_cpu({}, {"VLLM_CPU_KVCACHE_SPACE": "1"}) == {}


def test_vllms_own_message_arrives_whole(tmp_path, tiny_directory):
    """The real process. vLLM's message says first that something is wrong, and what only in its further lines."""
    engine = {"model": str(tiny_directory / "model"), "dtype": "float32", "max_model_len": 10**6, "seed": 0}
    with pytest.raises(UserError) as refused:
        list(vllm_process.sample(engine, {"n": 1, "max_tokens": 4}, [[1]], [0], tmp_path / "vllm.log"))
    assert "max_model_len (1000000) is greater than the derived max_model_len" in str(refused.value), refused.value
    assert str(refused.value).endswith(f"(its log: {tmp_path / 'vllm.log'})") and "\n" not in str(refused.value)


def test_a_message_of_several_lines_is_relayed_whole_and_nothing_else():
    head = "(Worker pid=1) ERROR 11-23 00:53:12 [x.py:1055] "
    log = (
        "INFO 11-23 00:53:00 [core.py:1] fine\n"
        f"{head}    raise RuntimeError('Error(s) in loading')\n"
        f"{head}RuntimeError: Error(s) in loading state_dict for Net:\n"
        f"{head}\tMissing key: a.\n"
        f"{head}{'x' * 400}.\n"
        "(EngineCore pid=2) RuntimeError: Worker failed with error\n"
    )
    whole = f"RuntimeError: Error(s) in loading state_dict for Net: Missing key: a. {'x' * 400}."
    assert vllm_process.root_cause(log) == whole
    for after in ("Traceback (most recent call last):", "", "ValueError: other", "INFO 11-23 00:53:00 [core.py:1] x"):
        assert vllm_process.root_cause(f"ValueError: a\n  b\n{after}\nmore\n") == "ValueError: a b"


def test_a_reward_function_by_verls_loader(tmp_path):
    score, sha256 = command.reward_function("pkg://verl_cast.verifier", {"tail_fraction": 0, "extraction": "last_box"})
    arguments = {"data_source": "x", "ground_truth": "5", "extra_info": {}}
    assert score(solution_str=r"\boxed{5} " + "and so on " * 100, **arguments)["score"] == 1
    assert score(solution_str="Answer: 5", **arguments)["score"] == 0  # no box
    package = Path(command.verl_cast.__file__).parent / "verifier"
    parts = [package / f"{name}.py" for name in ("__init__", "answers", "equivalence")]
    assert sha256 == hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    (tmp_path / "mine.py").write_text("def own(solution_str, add=0, **_):\n    return len(solution_str) + add\n")
    own, other = command.reward_function(f"{tmp_path}/mine.py:own", {"add": 1})
    assert own(solution_str="abc") == 4 and sha256 != other
    for name in (f"{tmp_path}/mine.py", f"{tmp_path}/none.py", "pkg://no_such_package"):
        with pytest.raises(UserError, match="cannot be loaded"):
            command.reward_function(name, {})


def data(path, **changes):
    row = {
        "data_source": "t",
        "prompt": [{"role": "user", "content": "1 + 1?"}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        **changes,
    }
    pd.DataFrame([{key: value for key, value in row.items() if value is not None}]).to_parquet(path)
    return str(path)


def test_data_in_verls_format(tmp_path):
    [read] = benchmarks.read([data(tmp_path / "aime24.parquet")])
    assert read.name == "aime24" and read.problems[0].messages == [{"role": "user", "content": "1 + 1?"}]
    assert read.problems[0].fields == {"data_source": "t", "ground_truth": "2", "extra_info": {}}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"reward_model": None}, "no column reward_model"),
        ({"reward_model": {"style": "rule"}}, "row 0 has no reward_model.ground_truth"),
        ({"prompt": "1 + 1?"}, "prompt of row 0"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "prompt of row 0"),
    ],
)
def test_data_of_another_form_are_named(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        benchmarks.read([data(tmp_path / "a.parquet", **changes)])


def test_files_that_are_no_data_are_named(tmp_path):
    (tmp_path / "text.parquet").write_text("no")
    (tmp_path / "b").mkdir()
    for files, words in (
        ([str(tmp_path / "none.parquet")], "no such file"),
        ([str(tmp_path / "text.parquet")], "not a Parquet file"),
        ([data(tmp_path / "a.parquet"), data(tmp_path / "b" / "a.parquet")], "two files are called a"),
    ):
        with pytest.raises(UserError, match=words):
            benchmarks.read(files)


def test_what_is_no_model_is_named(tmp_path, tiny_directory):
    with pytest.raises(UserError, match="no such directory"):
        models.find(str(tmp_path / "none"))
    with pytest.raises(UserError, match="holds no model"):
        models.find(str(tmp_path))
    for step in (9, 10):
        (tmp_path / f"global_step_{step}").mkdir()
    with pytest.raises(UserError, match="global_step_10"):
        models.find(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="--base-model"):
        models.load(models.find(str(tmp_path)), tmp_path)
    base = tiny_directory / "model"
    source = models.find(str(tmp_path), str(base))
    assert models.load(source, tmp_path) == models.Loadable(base, base, tmp_path)
    assert models.load(models.find(str(base)), tmp_path) == models.Loadable(base, base)


def test_what_verls_merger_wrote_of_a_lora_run_keeps_its_adapter(tmp_path, tiny_directory):
    shutil.copytree(tiny_directory / "model", tmp_path / "merged")
    (tmp_path / "merged" / "lora_adapter").mkdir()
    loadable = models.load(models.find(str(tmp_path / "merged")), tmp_path)
    assert loadable.adapter == tmp_path / "merged" / "lora_adapter" and loadable.model == tmp_path / "merged"


def test_a_broken_checkpoint_ends_with_the_mergers_reason(tmp_path, tiny_directory):
    actor = tmp_path / "global_step_1" / "actor"
    actor.mkdir(parents=True)
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 2}')
    (actor / "huggingface").symlink_to(tiny_directory / "model")
    source = models.find(str(actor.parent))
    with pytest.raises(UserError, match="model_world_size_2_rank_0.pt"):
        models.load(source, tmp_path / "out")
    assert not (tmp_path / "out" / "model").exists()


# ------------------------------------------------------------------------------------------------- real checkpoints

OPTIONS = ("--max-tokens", "12", "--dtype", "float32", "--engine", "enforce_eager=true")
VLLM = {"VERL_PLATFORM": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "TOKENIZERS_PARALLELISM": "false"}


def evaluate(*arguments):
    """The command of an evaluation, for subprocess."""
    return {
        "args": [sys.executable, "-m", "verl_cast", "evaluate", *map(str, arguments), *OPTIONS],
        "env": {**os.environ, **VLLM},
        "stderr": subprocess.PIPE,
        "text": True,
    }


@pytest.fixture
def saved(tmp_path, warm_process):
    """saved(engine, world_size, *overrides): a checkpoint of verl's own manager, and the parameters in it."""

    def saved_(engine, world_size, *overrides):
        target = tmp_path / "global_step_1" / "actor"
        tiny.write(tmp_path)
        warm_process.run("save_checkpoint", world_size, [tmp_path, engine, target, *overrides], logs=tmp_path)
        return target, torch.load(target / "expected.pt")

    return saved_


def assert_same_bits(loaded, expected):
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        assert tensor.dtype == expected[name].dtype == torch.float32 and torch.equal(tensor, expected[name]), name


@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine, overrides", [("fsdp", []), ("megatron", TENSOR_PARALLEL)], ids=["fsdp", "megatron"])
def test_a_checkpoint_of_two_ranks_is_the_model_bit_for_bit(tmp_path, saved, engine, overrides):
    actor, expected = saved(engine, 2, *overrides)
    source = models.find(str(actor.parent))
    loadable = models.load(source, tmp_path / "out")
    assert_same_bits(load_file(loadable.model / "model.safetensors"), expected)
    assert loadable.adapter is None and (loadable.tokenizer / "tokenizer.json").exists()
    if engine == "megatron":  # verl saved the model in Hugging Face's format, so there is nothing to merge
        assert loadable.model == actor / "model" / "huggingface"
        return
    made = (loadable.model / "model.safetensors").stat().st_mtime_ns
    assert models.load(source, tmp_path / "out") == loadable
    assert (loadable.model / "model.safetensors").stat().st_mtime_ns == made, "merged again"


@job("evaluation_of_lora", memory_gb=8, after=["tiny"])
def evaluation_of_lora(directory, runs):
    """A checkpoint of two ranks, saved by verl's own manager, and its evaluation."""
    data, reward = runs("tiny") / "train.parquet", runs("tiny") / "reward.py"
    shutil.copytree(runs("tiny"), directory, dirs_exist_ok=True)
    actor = directory / "global_step_1" / "actor"
    with WarmProcess() as warm:
        warm.run("save_checkpoint", 2, [directory, "fsdp2", actor, *LORA], logs=directory)
    arguments = (actor.parent, "--data", data, "--reward-function", reward, "--out", directory / "out")
    command_ = evaluate(*arguments, "--problems", 8, "--samples", 1, "--temperature", 0)
    del command_["env"]["VLLM_CPU_KVCACHE_SPACE"]  # as in the README: the KV cache must fit what is free by itself
    return subprocess.run(**command_), directory


@pytest.mark.runs("evaluation_of_lora")
def test_a_lora_checkpoint_is_sampled_with_its_adapter(runs, tiny_directory):
    """vLLM's greedy responses equal those of base + adapter, which this test merges from separate parameters."""
    done, directory = runs("evaluation_of_lora")
    assert done.returncode == 0, done.stderr
    out, expected = directory / "out", torch.load(directory / "global_step_1" / "actor" / "expected.pt")

    def plain(name):
        return name.removeprefix("base_model.model.").replace(".base_layer", "")

    base = {plain(name): tensor for name, tensor in expected.items() if "lora_" not in name}
    assert_same_bits(load_file(out / "model" / "model.safetensors"), base)
    adapter = load_file(out / "model" / "lora_adapter" / "adapter_model.safetensors")
    lora = {name.replace(".default", ""): tensor for name, tensor in expected.items() if "lora_" in name}
    assert_same_bits(adapter, lora)

    scale = 8 / 4  # alpha / rank
    for name in [name for name in lora if "lora_A" in name]:
        weight = plain(name).replace(".lora_A", "")
        base[weight] = base[weight] + scale * lora[name.replace("lora_A", "lora_B")] @ lora[name]
    merged, untrained = tiny.model(), tiny.model()
    merged.load_state_dict(base)
    tokenizer = tiny.tokenizer()
    differ = 0
    for row in map(json.loads, (out / "samples" / "train.jsonl").read_text().split("\n")[:-1]):
        messages = pd.read_parquet(tiny_directory / "train.parquet")["prompt"][row["problem"]].tolist()
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        texts = [
            tokenizer.decode(
                model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True
            )
            for model in (merged, untrained)
        ]
        assert row["response"] == texts[0]
        differ += texts[0] != texts[1]
    assert differ, "the adapter changes nothing here, and the test shows nothing"


@job("evaluation_killed", after=["tiny"])
def evaluation_killed(directory, runs):
    """The evaluation is killed as soon as one problem has its samples, and then started again.

    The reward function is slow, so other problems are unfinished at the kill.
    """
    tiny_directory, out = runs("tiny"), directory / "out"
    reward = directory / "slow_reward.py"
    wait = "    time.sleep(0.02)\n    return "
    reward.write_text("import time\n" + (tiny_directory / "reward.py").read_text().replace("    return ", wait))
    command_ = evaluate(
        *(tiny_directory / "model", "--data", tiny_directory / "train.parquet", "--out", out, "--name", "tiny"),
        *("--reward-function", reward, "--engine", "max_num_seqs=8", "--samples", 4),
    )
    samples = out / "samples" / "train.jsonl"
    with subprocess.Popen(**command_) as process:
        while not (samples.exists() and samples.stat().st_size) and process.poll() is None:
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert gone and not alive, "vLLM outlives its reader"
    return samples.read_text(), subprocess.run(**command_), command_, out


@pytest.mark.runs("evaluation_killed")
def test_a_killed_evaluation_goes_on(runs, capsys):
    before, done, command_, out = runs("evaluation_killed")
    assert done.returncode == 0, done.stderr
    assert 0 < int(re.search(r"vLLM: (\d+) problems x 4", done.stderr).group(1)) < 64
    samples = out / "samples" / "train.jsonl"

    rows = [json.loads(row) for row in samples.read_text().split("\n")[:-1]]
    kept = before.split("\n")[: before.count("\n") // 4 * 4]  # a problem's lines are written at once
    assert kept and samples.read_text().startswith("\n".join(kept) + "\n")
    assert sorted((row["problem"], row["sample"]) for row in rows) == [(i, k) for i in range(64) for k in range(4)]
    found = json.loads((out / "results.json").read_text())["benchmarks"]["train"]
    assert found["avg"] == np.mean([row["correct"] for row in rows])
    texts = {}
    for row in rows:
        texts.setdefault(row["problem"], set()).add(row["response"])
    assert np.mean([len(set_) for set_ in texts.values()]) > 3.5, "samples of a problem are independent"
    assert cli.main(command_["args"][3:]) == 0  # run it again, in this process
    assert "nothing is left" in capsys.readouterr().err  # and vLLM is not started
    assert json.loads((out / "results.json").read_text())["benchmarks"]["train"] == found
    assert (out / "results.md").read_text().startswith("| Avg@4 / Pass@4 | train |\n|---|---|\n| tiny | ")
