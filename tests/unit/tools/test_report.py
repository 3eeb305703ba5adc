"""`verl-cast report`: its readers, its notes, and its page in a real headless browser without network."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from verl_cast import trajectories
from verl_cast.tools import cli
from verl_cast.tools.report import findings, metrics_file, notes, runs

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'></script>"
KINDS = {0: "mixed", 1: "all_correct", 2: "all_wrong"}
NAMES = ("Mia", "Ravi", "Lena", "Omar", "Ada", "Noah")


# ---- realistic runs: the method's own code computes the advantages, so all numbers agree ----


def response_tokens(rng, a, b, answer):
    text = rng.choice(
        [
            f"First, {a} + {b} means adding {b} to {a}.\nWe count on from {a}:\n{a} + {b} = {answer}.\n\n"
            f"The answer is \\boxed{{{answer}}}.",
            f"Let's think step by step.\nThere are {a} apples, then {b} more.\nSo the total is {a} + {b} = {answer}.\n"
            f"\\boxed{{{answer}}}",
            f"We need {a} + {b}.\n\nSplit it: {a} + {b} = {answer - 1} + 1 = {answer}.\n"
            f"Therefore the answer is \\boxed{{{answer}}}.",
        ]
    )
    return re.findall(r"\n+| ?\w+| ?[^\w\s]|\s", text)


def dump_rows(step, rng, num_groups=3, size=8, teacher_prompt="worked examples: 1 + 1 = 2\n\n", deadzone=0.0):
    """Rows of one dumped step: random gaps, and advantages from verl_cast.advantage."""
    import torch

    from verl_cast.advantage.compute import compute_advantage
    from verl_cast.config import CastConfig

    rows, index, rewards = [], [], []
    for g in range(num_groups):
        a, b = (int(n) for n in rng.integers(11, 60, 2))
        share = [0.5, 0.0, 1.0, 0.7][g % 4]
        for i in range(size):
            correct = bool(rng.random() < share) if 0 < share < 1 else share == 1.0
            if share == 0.5 and i < 2:
                correct = i == 0
            text = response_tokens(rng, a, b, a + b + (0 if correct else int(rng.integers(1, 9))))
            mask = [True] * len(text)
            if i == size - 1:
                mask[-3:] = [False] * 3
            prompt = f"{rng.choice(NAMES)} has {a} apples and gets {b} more. How many apples are there now?"
            rows.append(
                {
                    "step": step,
                    "group": f"uid-{step}-{g}",
                    "row": f"uid-{step}-{g}_{i}_0",
                    "messages": json.dumps(
                        [
                            {"role": "system", "content": "You are a careful assistant."},
                            {"role": "user", "content": prompt},
                        ]
                    ),
                    "reference": str(a + b),
                    "prompt_ids": [1, 2, 3],
                    "teacher_prompt": None if teacher_prompt is None else f"{teacher_prompt}{prompt}\n",
                    "response_ids": list(range(len(text))),
                    "response_text": text,
                    "response_mask": mask,
                    "reward": float(correct),
                    "correct": correct,
                    "teacher_age": step % 10,
                }
            )
            index.append(f"uid-{step}-{g}")
            rewards.append(float(correct))
    length = max(len(row["response_text"]) for row in rows)
    mask, old, gap, reward = (torch.zeros(len(rows), length) for _ in range(4))
    for i, row in enumerate(rows):
        n = len(row["response_text"])
        mask[i, :n] = torch.tensor(row["response_mask"]).float()
        old[i, :n] = torch.tensor(-rng.exponential(0.5, n))
        gap[i, :n] = torch.tensor(rng.normal(0.06 if row["correct"] else -0.15, 0.35, n) * (rng.random(n) < 0.8))
        reward[i, 0] = rewards[i]
    teacher = (old + gap).clamp_max(-1e-4)
    result = compute_advantage(
        reward, mask, np.array(index, dtype=object), old, teacher, CastConfig(gap_deadzone=deadzone)
    )
    for i, row in enumerate(rows):
        n = len(row["response_text"])
        row.update(
            old_log_probs=old[i, :n].tolist(),
            teacher_log_probs=teacher[i, :n].tolist(),
            gap=result.gap[i, :n].tolist(),
            advantages=result.advantages[i, :n].tolist(),
            flipped=result.flipped[i, :n].tolist(),
            kind=KINDS[int(result.base.kind[i])],
            base_advantage=float(result.base.value[i]),
        )
    return rows


def write_dump(directory, steps=(10, 20), seed=0, cast=None, **kwargs):
    rng = np.random.default_rng(seed)
    written = {}
    for step in steps:
        written[step] = dump_rows(step, rng, **kwargs)
        settings = {
            "flip": "both",
            "gap_deadzone": 0.0,
            "teacher": {"weights": "snapshot", "context": "teacher.jinja"},
            **(cast or {}),
        }
        trajectories.write(directory, step, written[step], model="/models/SmolLM2-135M-Instruct", cast=settings)
    return written


def metrics_of_a_run(steps=24, cast=True, seed=0, agreement=0.3):
    """{step: {name: value}} with the names and scales of a small real run."""
    rng = np.random.default_rng(seed)
    found = {}
    for step in range(1, steps + 1):
        t = (step - 1) / max(1, steps - 1)

        def noisy(value, by, rng=rng):
            return float(value + rng.normal(0, by))

        right = min(1.0, max(0.0, noisy(0.25 + (0.65 if cast else 0.5) * t**0.8, 0.04)))
        generation, old_log_prob, update = noisy(9, 0.3), noisy(6.5, 0.2), noisy(19, 0.5)
        teacher = noisy(9.4, 0.3) if cast else 0.0
        values = {
            "training/global_step": step,
            "critic/score/mean": right,
            "critic/rewards/mean": right,
            "response_length/mean": noisy(61 - 14 * t, 1.5),
            "response_length/clip_ratio": max(0.0, noisy(0.05 - 0.04 * t, 0.01)),
            "actor/entropy": noisy(0.62 - 0.3 * t, 0.02),
            "actor/pg_loss": noisy(0, 0.02),
            "actor/pg_clipfrac": 0.0,
            "actor/ppo_kl": 0.0,
            "actor/grad_norm": noisy(1.4, 0.15),
            "actor/lr": 1e-5 * (1 - 0.5 * t),
            "training/rollout_actor_probs_pearson_corr": noisy(0.9993, 1e-4),
            "perf/throughput": noisy(140, 5),
            "perf/total_num_tokens": 20000 - 100 * step,
            "actor/perf/max_memory_allocated_gb": 0.0,
            "actor/perf/cpu_memory_used_gb": noisy(13.2, 0.1),
            "timing_s/gen": generation,
            "timing_s/old_log_prob": old_log_prob,
            "timing_s/adv": 0.05,
            "timing_s/update_actor": update,
            "timing_s/update_weights": 1.2,
            "timing_s/step": generation + old_log_prob + update + teacher + 1.4,
        }
        if step % 5 == 0:
            values["val-core/chain_sum/acc/mean@4"] = noisy(0.2 + 0.6 * t, 0.03)
            values["timing_s/testing"] = 3.0
        if cast:
            mixed, all_wrong = 0.75 - 0.45 * t, 0.2 * (1 - t) ** 2
            mean, width = noisy(-0.16 + 0.1 * t, 0.01), 0.5 - 0.2 * t
            values.update(
                {
                    "cast/group/mixed_share": mixed,
                    "cast/group/all_wrong_share": all_wrong,
                    "cast/group/all_correct_share": 1 - mixed - all_wrong,
                    "cast/correct_share": right,
                    "cast/base/abs_mean": noisy(0.93, 0.02),
                    "cast/gap/mean": mean,
                    "cast/gap/abs_mean": noisy(0.34 - 0.15 * t, 0.01),
                    **{
                        f"cast/gap/p{q:02d}": mean + width * z
                        for q, z in ((5, -1.9), (25, -0.4), (50, 0.05), (75, 0.3), (95, 0.9))
                    },
                    "cast/gap/positive_share": noisy(0.42, 0.02),
                    "cast/gap/zero_share": 0.0,
                    "cast/gap/deadzone_share": 0.0,
                    "cast/gap/correct_mean": mean + 0.05,
                    "cast/gap/wrong_mean": mean - 0.08,
                    "cast/gap/correctness_corr": noisy(agreement + 0.1, 0.1),
                    "cast/gap/correctness_corr_in_group": noisy(agreement, 0.1),
                    "cast/weight/clipped_share": noisy(0.7, 0.02),
                    "cast/flip/share": noisy(0.45, 0.02),
                    "cast/flip/correct_share": noisy(0.5 - 0.1 * t, 0.02),
                    "cast/flip/wrong_share": noisy(0.38, 0.02),
                    "cast/advantage/mean": noisy(-0.1, 0.02),
                    "cast/advantage/abs_mean": noisy(0.95, 0.01),
                    "cast/advantage/clipped_share": noisy(0.12, 0.01),
                    "cast/advantage/zero_variance_mass": 1 - mixed,
                    "cast/length/correct_mean": noisy(52 - 8 * t, 1.5),
                    "cast/length/wrong_mean": noisy(65 - 10 * t, 2),
                    "cast/entropy/correct_mean": noisy(0.5 - 0.25 * t, 0.02),
                    "cast/entropy/wrong_mean": noisy(0.7 - 0.25 * t, 0.02),
                    "cast/teacher/age": float((step - 1) % 10),
                    "cast/teacher/forward": 1.0,
                    "cast/teacher/peak_memory_gib": 0.0,
                    "cast/teacher/host_gib": 0.5,
                    "timing_s/cast_teacher": teacher,
                }
            )
            if step % 8 == 1:
                values.update(
                    {"cast/noise/abs_mean": 1.1e-5, "cast/noise/p99": noisy(6e-5, 4e-6), "cast/noise/gap_share": 0.001}
                )
        found[step] = values
    return found


def write_jsonl(path, metrics):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": step, "data": values}) + "\n" for step, values in metrics.items()))
    return path


def write_console(path, metrics, start_line=lambda step: ""):
    """A log as verl's console logger writes it, among the other output of a run."""
    from verl.utils.logger.aggregate_logger import concat_dict_to_str

    lines = [
        "Some warning: step:0 is not a metric",
        "\x1b[36m(TaskRunnerV1 pid=7)\x1b[0m Initial validation metrics: {}",
    ]
    for step, values in metrics.items():
        numpy_values = {name: np.float64(v) if i % 2 else v for i, (name, v) in enumerate(values.items())}
        lines.append(f"{start_line(step)}{concat_dict_to_str(numpy_values, step=step)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def report(*args):
    return cli.main(["report", *map(str, args)])


# ---- reading ----


def test_console_and_file_logger_give_the_same_numbers(tmp_path, monkeypatch):
    from verl.utils.tracking import FileLogger

    metrics = metrics_of_a_run(4)
    metrics[2]["actor/grad_norm"] = math.nan
    metrics[3]["perf/throughput"] = math.inf
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    logger = FileLogger("project", "experiment")
    for step, values in metrics.items():
        logger.log({name: np.float64(value) for name, value in values.items()}, step)
    logger.finish()
    prefix = "\x1b[36m(TaskRunnerV1 pid=1234, ip=10.0.0.1)\x1b[0m "
    console = write_console(tmp_path / "train.log", metrics, lambda step: "\rTraining: 25%|##| 1/4\r" + prefix)
    from_json, from_console = metrics_file.read(tmp_path / "metrics.jsonl"), metrics_file.read(console)
    np.testing.assert_equal(from_console.steps, from_json.steps)
    assert math.isnan(from_json.steps[2]["actor/grad_norm"]) and math.isnan(from_json.steps[3]["perf/throughput"])
    assert {s: {n: v for n, v in values.items() if math.isfinite(v)} for s, values in metrics.items()} == {
        s: {n: v for n, v in values.items() if math.isfinite(v)} for s, values in from_json.steps.items()
    }
    for read in (from_json, from_console):
        assert ["actor/grad_norm (1)" in r and "perf/throughput (1)" in r for r in read.remarks] == [True]


def test_a_half_written_last_line_is_skipped_and_said(tmp_path):
    metrics = metrics_of_a_run(3)
    for path in (write_jsonl(tmp_path / "metrics.jsonl", metrics), write_console(tmp_path / "train.log", metrics)):
        whole = metrics_file.read(path)
        text = path.read_text()
        path.write_text(text[:-9])
        read = metrics_file.read(path)
        assert whole.remarks == [] and list(whole.steps) == [1, 2, 3] and list(read.steps) == [1, 2]
        last = len(text.splitlines())
        assert read.remarks == [
            f"{path}, line {last}: the last line is incomplete and is skipped "
            "(the run is still writing it, or was killed)."
        ]


def test_garbled_lines_are_skipped_and_named(tmp_path):
    path = write_jsonl(tmp_path / "metrics.jsonl", metrics_of_a_run(5))
    lines = path.read_text().splitlines()
    lines[1], lines[3] = lines[1][:70], '{"step": "x", "data": 3}'
    path.write_bytes(("\n".join(lines) + "\n").encode() + b"\xff\xfe\n")
    read = metrics_file.read(path)
    assert list(read.steps) == [1, 3, 5] and len(read.remarks) == 1
    assert "lines 2, 4, 6 (3) are not" in read.remarks[0] and str(path) in read.remarks[0]

    console = write_console(tmp_path / "train.log", metrics_of_a_run(3))
    console.write_text(console.read_text().replace("actor/lr:", "actor/lr: (pid=3) hello ", 1))
    read = metrics_file.read(console)
    assert [("actor/lr" in values) for values in read.steps.values()] == [False, True, True]
    assert read.remarks == [f"{console}: line 3 is only partly readable; the unreadable values are left out."]


def test_steps_that_come_again_after_a_resume_count_once(tmp_path):
    first, second = metrics_of_a_run(10, seed=1), metrics_of_a_run(7, seed=2)
    path = write_jsonl(tmp_path / "metrics.jsonl", first)
    with path.open("a") as file:
        file.writelines(json.dumps({"step": s, "data": second[s]}) + "\n" for s in (6, 7))
    read = metrics_file.read(path)
    assert list(read.steps) == [1, 2, 3, 4, 5, 6, 7]
    assert read.steps[5] == first[5] and read.steps[6] == second[6] and read.steps[7] == second[7]
    assert len(read.remarks) == 1 and "went back to step 6 " in read.remarks[0] and "steps 8, 9, 10" in read.remarks[0]


def test_validation_logged_apart_from_training_joins_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    entries = [
        (0, {"val-core/a/acc/mean@1": 0.1}),
        (1, {"critic/score/mean": 0.5}),
        (1, {"val-core/a/acc/mean@1": 0.2}),
    ]
    path.write_text("".join(json.dumps({"step": s, "data": d}) + "\n" for s, d in entries))
    read = metrics_file.read(path)
    assert read.steps == {0: entries[0][1], 1: {**entries[1][1], **entries[2][1]}} and read.remarks == []


# ---- which runs ----


def test_a_report_needs_neither_verl_nor_torch():
    code = (
        "import sys, verl_cast.tools.report.page, verl_cast.tools.report.command; "
        "print({'verl', 'torch'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_runs_their_names_and_their_dumps(tmp_path):
    metrics = metrics_of_a_run(2)
    for parent in ("a", "b"):
        write_jsonl(tmp_path / parent / "cast" / "metrics.jsonl", metrics)
    write_dump(tmp_path / "b" / "cast" / "checkpoints" / "cast_trajectories", steps=(1,), num_groups=1, size=2)
    (tmp_path / "b" / "cast" / "train.log").write_text("step:9 - critic/score/mean:0.5\n")  # JSON lines have priority
    (tmp_path / "b" / "cast" / "0.jsonl").write_text('{"input": "x", "output": "y", "step": 1}\n')  # verl's rollouts
    write_jsonl(tmp_path / "b" / "cast" / "ray" / "session_1" / "metrics.jsonl", metrics)
    found = runs.find([tmp_path / "a" / "cast", tmp_path / "b" / "cast", tmp_path / "b" / "cast" / "metrics.jsonl"])
    assert [(run.name, list(run.dump_files)) for run in found] == [("a/cast", []), ("b/cast", [1])]

    project = tmp_path / "project"
    write_jsonl(project / "one.jsonl", metrics)
    write_jsonl(project / "two.jsonl", metrics_of_a_run(2, seed=1))
    write_dump(project / "checkpoints" / "two" / "cast_trajectories", steps=(2,), num_groups=1, size=2)
    found = runs.find([project])
    assert [(run.name, list(run.dump_files), run.is_cast) for run in found] == [("one", [], True), ("two", [2], True)]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda d: None, "does not exist; name a run's directory"),
        (lambda d: d.mkdir(), "holds no metrics: looked for JSON lines"),
        (lambda d: (d.mkdir(), (d / "metrics.jsonl").write_text("")), "metrics.jsonl holds no complete line"),
        (lambda d: (d.mkdir(), (d / "train.log").write_text("nothing here\n")), "holds no metrics: looked for JSON"),
    ],
)
def test_nothing_to_report_is_an_error_with_a_remedy(tmp_path, capsys, make, sentence):
    run = tmp_path / "run"
    make(run)
    assert report(run) == 1
    assert re.fullmatch(rf"verl-cast report: {re.escape(str(run))} .*\n", capsys.readouterr().err)
    with pytest.raises(cli.UserError, match=re.escape(sentence)):
        runs.find([run])


def test_an_output_that_cannot_be_written_is_said(tmp_path, capsys):
    write_jsonl(tmp_path / "run" / "metrics.jsonl", metrics_of_a_run(2))
    (tmp_path / "file").write_text("")
    assert report(tmp_path / "run", "-o", tmp_path / "file" / "report.html") == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_dump_belongs_to_a_run_that_logs_cast_metrics(tmp_path):
    """A GRPO twin in the same directory does not get it."""
    grpo = tmp_path / "alone" / "run" / "grpo.jsonl"
    write_jsonl(grpo, metrics_of_a_run(2, cast=False))
    write_dump(grpo.parent / "cast_trajectories", steps=(1,), num_groups=1, size=2)
    twin, dumped = runs.find([tmp_path / "alone"])
    assert (twin.metrics_path, twin.dump_files, twin.kind) == (grpo, {}, "not CAST")
    assert (dumped.metrics_path, list(dumped.dump_files), dumped.kind) == (None, [1], "CAST")
    assert len(dumped.remarks) == 1 and "a CAST run whose metrics are not here" in dumped.remarks[0]

    write_jsonl(tmp_path / "alone" / "cast.jsonl", metrics_of_a_run(2))
    found = runs.find([tmp_path / "alone"])
    assert {run.kind: list(run.dump_files) for run in found} == {"CAST": [1], "not CAST": []} and len(found) == 2


def test_a_junk_parquet_file_makes_no_run_and_is_named(tmp_path, capsys):
    """Beside a run without CAST, and in a directory of its own. A dump with one readable file stays a dump."""
    write_jsonl(tmp_path / "run" / "metrics.jsonl", metrics_of_a_run(2, cast=False))
    junk = tmp_path / "run" / "cast_trajectories" / "step_00000001.parquet"
    junk.parent.mkdir()
    junk.write_bytes(b"junk")
    assert report(tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert f"note: {junk} is no whole Parquet file" in said and len(runs.find([tmp_path / "run"])) == 1
    with pytest.raises(cli.UserError, match=f"holds no metrics.*{re.escape(str(junk))} is no whole Parquet file"):
        runs.find([junk.parent])

    write_jsonl(tmp_path / "run" / "metrics.jsonl", metrics_of_a_run(2))
    write_dump(junk.parent, steps=(2,), num_groups=1, size=2)
    other = junk.parent / "other.parquet"
    other.write_bytes(b"junk")
    assert report(tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert f"note: {junk} is no whole Parquet file" in said and f"note: {other} is not named like a file" in said
    assert [list(run.dump_files) for run in runs.find([tmp_path / "run"])] == [[1, 2]]


def test_a_run_before_its_first_step_is_called_neither(tmp_path, capsys):
    write_jsonl(tmp_path / "run" / "metrics.jsonl", {0: {"val-core/a/acc/mean@1": 0.1, "val-aux/num_turns/min": 2}})
    write_jsonl(tmp_path / "cast" / "metrics.jsonl", metrics_of_a_run(2))
    assert report(tmp_path / "run", tmp_path / "cast") == 0
    said = capsys.readouterr().out
    assert "run: not trained yet, 0 steps" in said and "No training step was logged" in said and "GRPO" not in said
    before, cast = runs.find([tmp_path / "run", tmp_path / "cast"])
    assert [note.level for note in findings.notes(before)] == [notes.LOOK]
    assert findings.comparison([cast, before]) == []


def test_a_baseline_is_called_by_its_name_and_drawn_where_casts_numbers_stand():
    cast = runs.Run("cast", metrics_of_a_run(), None)
    baseline = runs.Run(
        "rlsd",
        {step: {n.replace("cast/", "rlsd/"): v for n, v in values.items()} for step, values in cast.steps.items()},
        None,
    )
    assert (cast.kind, baseline.kind) == ("CAST", "RLSD, not CAST") and not baseline.is_cast
    assert baseline.series("{method}/gap/mean") == cast.series("cast/gap/mean") and cast.has("{method}/gap/mean")
    titles = {run.name: [note.title for note in findings.notes(run)] for run in (cast, baseline)}
    assert "Not a CAST run: RLSD" in titles["rlsd"] and "Not a CAST run: RLSD" not in titles["cast"]
    of_cast = set(titles["cast"]) - set(titles["rlsd"])
    assert of_cast, "what is healthy for CAST is said of CAST alone"


def test_a_twin_that_has_only_a_console_log_is_there_and_the_log_of_a_json_run_is_not(tmp_path):
    metrics = metrics_of_a_run(3)
    write_jsonl(tmp_path / "cast" / "project" / "experiment.jsonl", metrics)
    write_console(tmp_path / "cast" / "train.log", metrics)  # the same run, at verl's default paths
    write_console(tmp_path / "grpo" / "train.log", metrics_of_a_run(3, cast=False))
    assert [(run.metrics_path.name, run.kind) for run in runs.find([tmp_path])] == [
        ("experiment.jsonl", "CAST"),
        ("train.log", "not CAST"),
    ]


def test_an_integer_too_large_for_a_float_is_a_garbled_line(tmp_path):
    path = write_jsonl(tmp_path / "metrics.jsonl", metrics_of_a_run(2))
    path.write_text('{"step": 1, "data": {"critic/score/mean": 1' + 400 * "0" + "}}\n" + path.read_text())
    read = metrics_file.read(path)
    assert list(read.steps) == [1, 2] and ["line 1 is not" in remark for remark in read.remarks] == [True]


# ---- notes ----


def a_run(metrics):
    return runs.Run("run", metrics, Path("metrics.jsonl"))


def levels(metrics):
    return {note.title: note.level for note in findings.notes(a_run(metrics))}


def test_a_healthy_run_has_nothing_to_look_at():
    assert set(levels(metrics_of_a_run(30)).values()) == {notes.OK}


@pytest.mark.parametrize(
    ("change", "title"),
    [
        (lambda t, v: v.update({"cast/gap/correctness_corr_in_group": -0.3}), "The teacher prefers wrong responses"),
        (lambda t, v: v.update({"critic/score/mean": 0.8 - 0.5 * t}), "The reward fell"),
        (lambda t, v: v.update({"cast/flip/correct_share": 0.85}), "Most tokens of correct responses are flipped"),
        (lambda t, v: v.update({"cast/noise/gap_share": 0.5, "cast/noise/p99": 0.1}), "Gaps near the engine's noise"),
        (lambda t, v: v.update({"actor/entropy": 0.6 * (1 - t), "critic/score/mean": 0.3}), "Entropy collapses"),
        (lambda t, v: v.update({"actor/pg_loss": math.nan}), "Values that are not finite numbers"),
        (lambda t, v: v.update({"cast/group/all_wrong_share": 0.9}), "The task is too hard"),
        (lambda t, v: v.update({"cast/teacher/forward": 0.0}), "The teacher never ran a forward"),
        (
            lambda t, v: v.update({"response_length/mean": 60 + 90 * t, "critic/score/mean": 0.5 - 0.3 * t}),
            "Response length changes strongly as the reward falls",
        ),
    ],
)
def test_what_ruins_a_run_is_a_warning(change, title):
    metrics = metrics_of_a_run(30)
    for step, values in metrics.items():
        change((step - 1) / 29, values)
    assert levels(metrics)[title] == notes.WARNING


@pytest.mark.parametrize(("steps", "level"), [(1, notes.LOOK), (4, notes.LOOK), (5, notes.WARNING), (9, notes.WARNING)])
def test_few_steps_are_no_ground_for_a_warning(steps, level):
    metrics = metrics_of_a_run(steps)
    for values in metrics.values():
        values.update({"cast/gap/correctness_corr_in_group": -0.9, "cast/group/mixed_share": 0.2})
        values.update({"cast/group/all_wrong_share": 0.85, "cast/flip/correct_share": 0.9})
        values["cast/teacher/forward"] = 0.0  # as with context=same right after a snapshot
    found = levels(metrics)
    few = level == notes.LOOK
    assert (notes.WARNING in found.values()) != few
    teacher = "Too few steps to compare teacher and verifier" if few else "The teacher prefers wrong responses"
    assert found[teacher] == found["The task is too hard"] == level
    assert found["Most tokens of correct responses are flipped"] == level
    assert found["The teacher has run no forward yet" if few else "The teacher never ran a forward"] == level


def test_steps_that_one_outweighs_are_few():
    metrics = metrics_of_a_run(6)
    for step, values in metrics.items():
        values["cast/gap/correctness_corr_in_group"] = -0.9 if step == 3 else -0.8
        values["cast/group/mixed_share"] = 0.9 if step == 3 else 0.02
    assert levels(metrics)["Too few steps to compare teacher and verifier"] == notes.LOOK


def test_gaps_that_the_dead_zone_silences_ask_for_no_dead_zone():
    """Gap metrics use the raw gap. cast/noise/gap_share counts gaps after the dead zone."""
    metrics = metrics_of_a_run(12)
    for values in metrics.values():
        values.update({"cast/gap/abs_mean": 1e-5, "cast/noise/p99": 1e-4, "cast/noise/gap_share": 0.0})
    assert levels(metrics)["Gaps outside the dead zone exceed the engine's noise"] == notes.OK


@pytest.mark.parametrize(("last", "title"), [(0.5, "The mean gap is above 0"), (0.0, "Policy and teacher")])
def test_a_gap_above_zero_is_not_as_it_should_be(last, title):
    metrics = metrics_of_a_run(12)
    for step, values in metrics.items():
        values["cast/gap/mean"] = -0.2 + (last + 0.2) * step / 12
    assert levels(metrics)[title] == (notes.LOOK if last else notes.OK)


def test_a_step_without_a_number_has_no_share_in_the_teachers_cost():
    metrics = metrics_of_a_run(12)
    metrics[3]["timing_s/step"] = metrics[4]["timing_s/old_log_prob"] = math.nan
    cost = next(note for note in findings.notes(a_run(metrics)) if note.title.startswith("The teacher's"))
    assert "nan" not in cost.seen and re.search(r"takes \d+ % of a step, \d\.\d+ ×", cost.seen)


def test_a_step_with_one_mixed_group_does_not_speak_for_the_teacher():
    metrics = metrics_of_a_run(12, agreement=0.5)
    metrics[12].update({"cast/gap/correctness_corr_in_group": -1.0, "cast/group/mixed_share": 0.02})
    assert levels(metrics)["The teacher agrees with the verifier"] == notes.OK


def test_only_a_batch_that_reaches_the_limit_has_cut_off_responses():
    """verl's clip_ratio counts the responses that are as long as the longest of their batch."""
    metrics = metrics_of_a_run(12)
    for step, values in metrics.items():
        values.update({"response_length/max": 64.0 if step < 3 else 40.0, "response_length/clip_ratio": 0.6})
    assert "Many responses are cut off" not in levels(metrics)
    for values in metrics.values():
        values["response_length/max"] = 64.0
    assert levels(metrics)["Many responses are cut off"] == notes.LOOK


def test_a_dead_zone_that_swallows_the_gaps_is_said():
    metrics = metrics_of_a_run(12)
    for values in metrics.values():
        values["cast/gap/deadzone_share"] = 0.97
    assert levels(metrics)["The dead zone removes most gaps"] == notes.LOOK


def test_twins_are_compared_on_the_steps_that_both_have():
    cast, twin = a_run(metrics_of_a_run(20)), a_run(metrics_of_a_run(10, cast=False))
    cost, reward = findings.comparison([twin, cast])
    last = [np.mean([run.steps[s]["critic/score/mean"] for s in (9, 10)]) for run in (cast, twin)]
    assert reward.seen.startswith(f"{last[0]:.3f} against {last[1]:.3f} in the last fifth of the 10 steps")
    seconds = [sorted(run.steps[s]["timing_s/step"] for s in range(1, 11))[5] for run in (cast, twin)]
    assert f"{seconds[0] / seconds[1]:.2f} ×. The paper" in cost.seen
    assert findings.comparison([cast, cast]) == [] == findings.comparison([twin])


def test_a_correlation_within_few_mixed_groups_is_not_drawn():
    """From one mixed group it is +1 or -1 by chance. Where their number was not logged, every step is drawn."""
    from verl_cast.tools.report import figures, summary
    from verl_cast.tools.report.figure_table import SECTIONS

    figure = next(figure for section in SECTIONS for figure in section.figures if figure.key == "agreement")
    metrics = metrics_of_a_run(4)
    assert [line.series(a_run(metrics))[0] for line in figure.lines] == [[1, 2, 3, 4], [1, 2, 3, 4]]
    for step, count in {1: 3, 2: 4, 3: 0, 4: 1}.items():
        metrics[step]["cast/group/mixed_count"] = float(count)
    in_group = metrics[2]["cast/gap/correctness_corr_in_group"]
    run = a_run(metrics)
    assert [line.series(run) for line in figure.lines] == [([2], [in_group]), figure.lines[1].logged(run)]
    assert f"fewer than {figures.FEW_MIXED_GROUPS} mixed groups are not drawn" in figure.caption
    tile = next(tile for tile in summary.tiles([run]) if tile.label == "Gap–correctness correlation")
    assert tile.rows[0][2] == tile.rows[0][3] == f"{in_group:+.3f}".replace("-", "−")
    for values in metrics.values():
        values["cast/group/mixed_count"] = 1.0
    assert figures.has_data(figure, a_run(metrics)), "the correlation over all responses is still drawn"


def test_a_small_constant_is_not_drawn_as_zero():
    from verl_cast.tools.report import drawing
    from verl_cast.tools.report.figure_table import SECTIONS

    figure = next(figure for section in SECTIONS for figure in section.figures if figure.key == "lr")
    run = a_run({step: {"actor/lr": 1e-6} for step in range(1, 9)})
    assert drawing.draw(figure, [run], (0, 9)).layout.yaxis.range == (0, 2e-6)


def test_a_run_without_cast_is_said_to_be_one_and_is_in_no_figure_about_cast():
    from verl_cast.tools.report import figures
    from verl_cast.tools.report.figure_table import SECTIONS

    twin = a_run(metrics_of_a_run(12, cast=False))
    assert not twin.is_cast and levels(twin.steps)["Not a CAST run"] == notes.OK
    drawn = [
        line.metric for _, chosen in figures.with_data(SECTIONS, [twin]) for figure in chosen for line in figure.lines
    ]
    about_cast = {m for m in drawn if m.startswith("{method}/")}
    assert "critic/score/mean" in drawn
    assert about_cast <= {
        "{method}/teacher/host_gib",
        "{method}/teacher/peak_memory_gib",
    }  # second lines in figures of verl's own metrics


def test_every_metric_in_a_figure_is_one_that_verl_or_cast_logs():
    """A figure of a metric that is never logged would never be drawn, and no other test would fail."""
    import torch

    from verl_cast.advantage.compute import compute_advantage
    from verl_cast.advantage.metrics import Noise, advantage_metrics, noise_metrics
    from verl_cast.config import CastConfig
    from verl_cast.tools.report.figure_table import SECTIONS

    reward, mask, log_probs = torch.tensor([[1.0], [0.0]]), torch.ones(2, 1), torch.zeros(2, 1)
    result = compute_advantage(reward, mask, np.array(["a", "a"]), log_probs, -0.5 * reward, CastConfig())
    logged = advantage_metrics(result, entropy=log_probs) | noise_metrics(Noise(0.0, 0.0), result)
    logged = {f"{{method}}/{name}" for name in (*logged, "gap/deadzone")}
    named = {line.metric for section in SECTIONS for figure in section.figures for line in figure.lines}
    of_the_advantage = {
        name for name in named if name.startswith("{method}/") and not name.startswith("{method}/teacher/")
    }
    assert of_the_advantage <= logged
    # Metrics that the trainer, the worker and verl log (seen in a real run).
    known = {name for values in metrics_of_a_run(10).values() for name in values}
    known |= {
        "timing_s/reward",
        "timing_s/ref",
        "timing_s/cast_noise",
        "timing_s/cast_dump",
        "timing_s/cast_after_update",
        "timing_s/save_checkpoint",
    }
    others = {name.replace("{method}", "cast") for name in named - of_the_advantage}
    assert others <= known | {"actor/kl_loss"}


def test_captions_have_the_metric_tables_words():
    from verl_cast.tools.report import explained
    from verl_cast.tools.report.figure_table import SECTIONS

    figures = [figure for section in SECTIONS for figure in section.figures]
    by_key = {figure.key: figure.explained() for figure in figures}
    name, row = by_key["noise"][1]
    assert name == "noise, p99 (dashed)" and row == explained.metrics()["cast/noise/p99"]
    assert [name for name, _ in by_key["gap"]] == ["mean", "median"] and by_key["stages"] == []
    assert all(figure.caption or figure.explained() for figure in figures)


# ---- the page, in a browser ----


def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROME") or next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    if path is None:
        reason = "no Chromium: install it, or name it with CHROME=/path/to/chromium"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium cannot use its sandbox as root, the user in most containers. The pages are our own.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(page, rows by step, metrics) of a CAST run and its GRPO twin. The last dump's first response is hostile."""
    root = tmp_path_factory.mktemp("pair")
    metrics = {name: metrics_of_a_run(12, cast=name == "cast", seed=i) for i, name in enumerate(("cast", "grpo"))}
    for name, values in metrics.items():
        write_jsonl(root / name / "metrics.jsonl", values)
    directory = root / "cast" / "cast_trajectories"
    written = write_dump(directory, steps=(5, 10), size=4)
    row = written[10][0]
    row["response_text"][0], row["response_text"][1] = HOSTILE, "\n\n"
    row["messages"] = json.dumps([{"role": "user", "content": f"{HOSTILE} {{{{ 7 * 7 }}}}"}])
    row["teacher_prompt"] = HOSTILE
    trajectories.write(directory, 10, written[10], model=f"/models/{HOSTILE}", cast={"flip": "correct", "x": HOSTILE})
    assert report(root / "cast", root / "grpo") == 0
    return root / "cast" / "report.html", written, metrics


@pytest.fixture
def open_page(browser):
    """open_page(path) -> a page in a browser without network. A request, or a line on the console, fails the test."""
    contexts, wrong = [], []

    def open_(path, drawn=False, fragment="", clock=False, **kwargs):
        contexts.append(browser.new_context(offline=True, viewport={"width": 1280, "height": 900}, **kwargs))
        page = contexts[-1].new_page()
        if clock:
            page.clock.install()
        page.on(
            "request",
            lambda request: (
                request.url.split("#")[0] == path.as_uri()
                or request.url.startswith("blob:")
                or wrong.append(request.url)
            ),
        )
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(path.as_uri() + fragment)
        if drawn:
            page.wait_for_selector("html[data-figures=drawn]")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


def test_figures_are_drawn_with_every_point_and_no_request(pair, open_page):
    path, _, metrics = pair
    page = open_page(path, drawn=True)
    keys = page.eval_on_selector_all(".plot", "nodes => nodes.map(n => n.dataset.figure)")
    assert {"reward", "agreement", "gap", "groups", "flips", "stages", "noise", "teacher_age"} <= set(keys)
    assert page.locator(".plot svg.main-svg").count() >= len(keys)
    points = "n => [...n.querySelectorAll('.scatterlayer .trace')].map(t => t.querySelectorAll('path.point').length)"
    assert page.eval_on_selector("[data-figure=reward]", points) == [12, 12]
    assert page.eval_on_selector("[data-figure=flips]", points) == [12, 12]  # correct and wrong, only for CAST
    assert page.eval_on_selector("[data-figure=groups]", "n => n.querySelectorAll('.barlayer path').length") == 36
    drawn = page.eval_on_selector("[data-figure=reward]", "n => n.data.map(t => t.y)")
    for trace, name in zip(drawn, ("cast", "grpo"), strict=True):
        np.testing.assert_allclose(trace, [v["critic/score/mean"] for v in metrics[name].values()], rtol=1e-5)
    colours = {
        key: page.eval_on_selector(f"[data-figure={key}]", "n => n.data.map(t => t.line.color)")
        for key in ("reward", "seconds")
    }
    assert colours["reward"] == colours["seconds"] and len(set(colours["reward"])) == 2
    ranges = {
        json.dumps(page.eval_on_selector(f"[data-figure={key}]", "n => n._fullLayout.xaxis.range"))
        for key in keys
        if key != "stages"
    }
    assert len(ranges) == 1
    fourth = page.locator("[data-figure=reward] .scatterlayer path.point").nth(3)
    fourth.scroll_into_view_if_needed()
    box = fourth.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # step 4; dumps are of steps 5 and 10
    page.wait_for_function("document.getElementById('choose-step').selectedOptions[0].text === '5'")


@pytest.mark.parametrize("touch", [False, True])
def test_no_button_lies_on_a_figure(pair, open_page, touch):
    """Plotly's own toolbar covers data wherever nothing hovers. The page's buttons stand above the figure."""
    page = open_page(pair[0], drawn=True, has_touch=touch)
    assert page.locator(".modebar-btn").count() == 0
    covered = """node => {
        const plot = node.querySelector(".plot").getBoundingClientRect();
        return [...node.querySelectorAll("button")].filter(b => b.getBoundingClientRect().bottom > plot.top).length;
    }"""
    figure = page.locator("figure").first
    assert figure.locator("button").all_inner_texts() == ["PNG", "CSV"] and figure.evaluate(covered) == 0
    with page.expect_download() as download:
        figure.get_by_text("PNG").click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")


def luminance(rgb):
    parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# [text, its colour, the colour behind it] of all text on the page. Text in a bar stands on the bar.
TEXTS = """() => {
    const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const behind = (node) => {
        if (node.matches?.(".bartext")) return rgb(getComputedStyle(node.parentNode.querySelector("path")).fill);
        for (; node; node = node.parentElement) {
            const colour = rgb(getComputedStyle(node).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || node.matches("script, style, noscript, option, :disabled")) continue;
        if (!node.checkVisibility({ visibilityProperty: true })) continue;
        const style = getComputedStyle(node), svg = node.closest("svg");
        const text = svg ? node.closest("text") : node;
        found.push([walker.currentNode.data, rgb(svg ? getComputedStyle(text).fill : style.color), behind(text)]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_a_contrast_of_at_least_4_5(pair, open_page, scheme):
    page = open_page(pair[0], drawn=True, color_scheme=scheme)
    page.locator(".response .tok").first.hover()  # the tooltip's text too
    texts = page.evaluate(TEXTS)
    assert len(texts) > 500
    low = {(text, tuple(ink), tuple(ground)) for text, ink, ground in texts if contrast(ink[:3], ground[:3]) < 4.5}
    assert low == set()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance([int(part) for part in re.findall(r"\d+", ground)]) < 0.1) == (scheme == "dark")


def test_the_palette_has_contrast_also_where_the_example_shows_no_such_text():
    from verl_cast.tools.report import drawing, palette

    def rgb(colour):
        return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]

    page = palette.PAGE
    on_grounds = [(ink, ground) for ink in ("ink", "soft", "accent") for ground in ("ground", "card")]
    on_grounds += [(level, "card") for level in ("look", "ok")] + [("warning", "warning-ground")]
    on_grounds += [(ink, "warning-ground") for ink in ("ink", "soft")] + [("blue-ink", "blue-chip")]
    on_grounds += [("ink", ground) for ground in ("chip", "blue-chip", "orange-chip", "hover", "chosen")]
    for fill in drawing.STAGE_COLOURS:
        assert contrast(rgb(drawing._text_on(fill)), rgb(fill)) >= 4.5, fill
    for mode in (palette.LIGHT, palette.DARK):
        for ink, ground in [*on_grounds, ("on-accent", "accent")]:
            assert contrast(rgb(page[ink][mode]), rgb(page[ground][mode])) >= 4.5, (ink, ground, mode)
        for name, colours in palette.TOKENS.items():
            assert contrast(rgb(page["ink"][mode]), colours[mode]) >= 4.5, (name, mode)
        for pair in palette.RUNS[:5]:
            assert contrast(rgb(pair[mode]), rgb(page["card"][mode])) >= 2.8, (pair, mode)


def test_dark_mode_follows_the_system_until_the_reader_chooses(pair, open_page):
    def shown(page):
        page.wait_for_selector("html[data-figures=drawn]")
        lines = page.eval_on_selector("[data-figure=reward]", "n => n.data.map(t => t.line.color)")
        token = page.locator(".response .tok[style*=background]").first.evaluate("t => t.style.background")
        return page.evaluate("getComputedStyle(document.body).backgroundColor"), *lines, token

    light = shown(open_page(pair[0], color_scheme="light"))
    page = open_page(pair[0], color_scheme="dark")
    dark = shown(page)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    button = page.get_by_role("button", name="dark")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert shown(page) == light and button.get_attribute("aria-pressed") == "false"
    page.reload()
    assert shown(page) == light
    page.get_by_role("button", name="dark").click()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_paper_shows_everything_in_the_light_mode(pair, open_page):
    page = open_page(pair[0], drawn=True, color_scheme="dark")
    page.get_by_role("button", name="Fold all").click()
    page.wait_for_timeout(100)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    lines = page.eval_on_selector("[data-figure=seconds]", "n => n.data.map(t => t.line.color)")
    shown = page.locator(".plot").evaluate_all("nodes => nodes.map(n => n.checkVisibility() && n.layout !== undefined)")
    assert lines == ["#0072b2", "#d55e00"] and all(shown)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.locator(".plot").first.is_visible()
    assert page.locator("html").get_attribute("data-theme") == "dark"


@pytest.mark.parametrize("width", [1280, 390])
def test_sections_fold_and_the_page_is_not_endless(pair, open_page, width):
    page = open_page(pair[0], drawn=True)
    page.set_viewport_size({"width": width, "height": 900})
    page.reload()
    page.wait_for_selector("html[data-figures=drawn]")
    height, wide = page.evaluate("[document.documentElement.scrollHeight, document.documentElement.scrollWidth]")
    assert height < 20_000 and wide == width
    folds = page.locator("#figures details.fold details.fold")
    assert folds.evaluate_all("nodes => nodes.every(n => n.open)") == (width == 1280)  # a phone opens with the first
    page.get_by_role("button", name="Fold all").click()
    assert page.locator(".plot").evaluate_all("nodes => nodes.filter(n => n.checkVisibility()).length") == 0
    folds.nth(7).locator("summary").click()
    stages = page.locator("[data-figure=stages]")
    stages.locator(".barlayer path").first.wait_for()
    plot, figure = (page.locator(s).bounding_box() for s in ("[data-figure=stages] .main-svg >> nth=0", "figure.wide"))
    assert plot["width"] <= figure["width"]
    page.locator("#fold-groups > summary").click()
    assert page.locator("#group-table").is_hidden()
    page.locator("nav a", has_text="Groups").click()
    assert page.locator("#group-table").is_visible()


def test_a_running_mean_has_every_step_behind_it(tmp_path, open_page):
    metrics = metrics_of_a_run(100, cast=False)
    metrics[50]["critic/score/mean"] = math.nan
    write_jsonl(tmp_path / "run" / "metrics.jsonl", metrics)
    assert report(tmp_path / "run") == 0
    page = open_page(tmp_path / "run" / "report.html", drawn=True)
    values = np.array([v["critic/score/mean"] for v in metrics.values()])

    def traces(key="reward"):
        page.wait_for_selector("html[data-figures=drawn]")
        return page.eval_on_selector(f"[data-figure={key}]", "n => n.data.map(t => [t.y, t.opacity ?? 1])")

    def mean(width):
        windows = [values[max(0, i - width // 2) : i + width // 2 + 1] for i in range(100)]
        return [math.nan if math.isnan(v) else np.nanmean(w) for v, w in zip(values, windows, strict=True)]

    choice = page.get_by_label("running mean")
    assert choice.locator("option").all_inner_texts() == ["none", "3 steps", "5 steps", "11 steps", "25 steps"]
    for width in (5, 25):  # a run of more than 80 steps opens with a mean
        assert choice.input_value() == str(width)
        (raw, faint), (smooth, full) = traces()
        np.testing.assert_allclose(np.array(raw, dtype=float), values, rtol=1e-5)
        np.testing.assert_allclose(np.array(smooth, dtype=float), mean(width), rtol=1e-5)
        assert faint < 0.5 < full
        choice.select_option("25")
    validation = traces("validation_0")[1][0]
    assert len(validation) == 20, "five steps apart, averaged over steps and not over points"
    choice.select_option("1")
    assert len(traces()) == 1


def test_figures_along_steps_tokens_and_hours(pair, tmp_path, open_page):
    path, _, metrics = pair
    page = open_page(path, drawn=True)
    names = {"tokens": ("perf/total_num_tokens", 1), "hours": ("timing_s/step", 3600)}
    for key, (metric, unit) in names.items():
        page.locator(".controls label", has_text=key).click()
        page.wait_for_selector("html[data-figures=drawn]")
        drawn = page.eval_on_selector("[data-figure=reward]", "n => n.data.map(t => t.x)")
        sums = [np.cumsum([v[metric] for v in metrics[name].values()]) / unit for name in ("cast", "grpo")]
        np.testing.assert_allclose(drawn, sums, rtol=1e-5)
        title = page.eval_on_selector("[data-figure=reward]", "n => n.layout.xaxis.title.text")
        bars = page.eval_on_selector("[data-figure=groups]", "n => n.data[0].width")
        assert title == key and sum(bars) == pytest.approx(sums[0][-1], rel=1e-4)
    fourth = page.locator("[data-figure=reward] .scatterlayer path.point").nth(3)
    fourth.scroll_into_view_if_needed()
    box = fourth.bounding_box()
    page.mouse.click(
        box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    )  # along hours, a click still means a step
    page.wait_for_function("document.getElementById('choose-step').selectedOptions[0].text === '5'")

    lacking = metrics_of_a_run(6)
    del lacking[3]["perf/total_num_tokens"]
    write_jsonl(tmp_path / "run" / "metrics.jsonl", lacking)
    assert report(tmp_path / "run") == 0
    page = open_page(tmp_path / "run" / "report.html", drawn=True)
    assert page.locator("input[name=axis]").evaluate_all("n => n.map(i => i.value)") == ["step", "hours"]


def test_csv_of_what_is_drawn(pair, open_page):
    path, _, metrics = pair
    page = open_page(path, drawn=True)
    page.get_by_label("running mean").select_option("3")

    def rows(button):
        with page.expect_download() as download:
            button.click()
        with open(download.value.path(), newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    found = rows(page.get_by_role("button", name="Mean reward as CSV"))
    values = metrics["cast"]
    cast = [row for row in found if row["run"] == "cast"]
    assert {row["metric"] for row in found} == {"critic/score/mean"} and len(found) == 24
    assert [int(row["step"]) for row in cast] == list(values)
    rewards = [v["critic/score/mean"] for v in values.values()]
    np.testing.assert_allclose([float(row["value"]) for row in cast], rewards, rtol=1e-5)
    assert float(cast[1]["mean over 3 steps"]) == pytest.approx(np.mean(rewards[:3]), rel=1e-5)
    np.testing.assert_allclose(
        [float(row["tokens"]) for row in cast], np.cumsum([v["perf/total_num_tokens"] for v in values.values()])
    )
    everything = rows(page.get_by_role("button", name="All figures as CSV"))
    titles = page.locator("figure h4").all_inner_texts()
    assert list(dict.fromkeys(row["figure"] for row in everything)) == titles
    generation = [v["timing_s/gen"] for v in values.values()]
    stage = next(row for row in everything if row["metric"] == "timing_s/gen" and row["run"] == "cast")
    assert float(stage["value"]) == pytest.approx(np.mean(generation), rel=1e-5) and stage["step"] == ""


def test_the_first_tab_stop_skips_to_the_findings(pair, open_page):
    page = open_page(pair[0])
    link = page.locator("a.skip")
    assert link.bounding_box()["x"] < 0
    page.keyboard.press("Tab")
    assert link.evaluate("n => n === document.activeElement") and link.bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_watch_makes_the_page_again_only_after_changes_and_ends_with_ctrl_c(tmp_path, monkeypatch, capsys, open_page):
    from verl_cast.tools.report import watch

    metrics = metrics_of_a_run(3)
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    html = tmp_path / "run" / "report.html"
    seen = []

    def sleep(seconds):
        seen.append((capsys.readouterr().out, html.read_text() if html.exists() else ""))
        if len(seen) == 1:
            write_jsonl(path, {1: metrics[1]})
        elif len(seen) == 3:
            write_jsonl(path, metrics)
        elif len(seen) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", sleep)
    assert report(tmp_path / "run", "--watch") == 0
    said = [out for out, _ in seen]
    assert said[0].startswith("waiting: ") and "holds no metrics" in said[0]  # the run has just started
    assert "1 steps" in said[1] and said[2] == "" and "3 steps" in said[3] and said[4] == ""
    assert 'id="reload"' in seen[3][1] and 'id="reload"' not in html.read_text()

    html.write_text(seen[3][1])
    page = open_page(html, clock=True)
    page.get_by_role("button", name="dark").click()
    for watched, made_again in ((True, True), (False, False)):
        page.get_by_label("reload every 30 s").set_checked(watched)
        page.evaluate("window.before = true")
        page.clock.run_for(31_000)
        page.wait_for_timeout(300)
        page.wait_for_selector("html[data-theme=dark]")
        assert (page.evaluate("window.before") is None) == made_again


def chosen_rows(written, step, group):
    names = list(dict.fromkeys(row["group"] for row in written[step]))
    return [row for row in written[step] if row["group"] == names[group]]


def test_trajectory_view_shows_the_dump_and_nothing_of_it_runs(pair, open_page):
    path, written, _ = pair
    page = open_page(path)
    rows = chosen_rows(written, 10, 0)  # the page opens with the newest step and its mixed group
    assert page.locator("#choose-step").evaluate("s => s.selectedOptions[0].text") == "10"
    assert page.locator(".response").count() == len(rows)
    for i, row in enumerate(rows):
        tokens = page.locator(".response").nth(i).locator(".tok")
        assert tokens.count() == len(row["response_text"])
        assert page.locator(".response").nth(i).locator(".tok.flip").count() == sum(row["flipped"])
        assert page.locator(".response").nth(i).locator(".tok.masked").count() == row["response_mask"].count(False)
        header = page.locator(".response").nth(i).locator("summary").inner_text()
        assert ("✓ correct" if row["correct"] else "✗ wrong") in header and f"{sum(row['flipped'])} flipped" in header
    first = page.locator(".response").first.locator(".tok")
    assert first.nth(0).text_content() == HOSTILE and first.nth(1).text_content() == "↵\n↵\n"
    assert page.evaluate("window.hacked") is None and page.locator("main img").count() == 0
    assert page.locator("#prompt pre").first.text_content() == f"{HOSTILE} {{{{ 7 * 7 }}}}"
    below = page.evaluate(
        "[...document.querySelectorAll('.response .tok')].slice(0, 3).map(t => t.getClientRects()[0].top)"
    )
    assert below[2] > below[0]  # the newline breaks the line

    # Colours show the sign of the value.
    def colours(values):
        for i, value in enumerate(values):
            style = first.nth(i).evaluate("t => t.style.background")
            red, blue = (int(style[4:-1].split(",")[k]) for k in (0, 2)) if style else (0, 0)
            yield np.sign(blue - red), np.sign(value)

    for shown, wanted in colours(rows[0]["advantages"]):
        assert shown == wanted
    page.locator(".toggle label", has_text="gap g").click()
    for shown, wanted in colours(rows[0]["gap"]):
        assert shown == wanted


def tooltip(page):
    names, values = (page.locator(f"#tooltip {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return {name: float(value.replace("−", "-")) for name, value in zip(names, values, strict=True)}


def of_token(row, i):
    return {
        "gap g": row["gap"][i],
        "p policy": math.exp(row["old_log_probs"][i]),
        "p teacher": math.exp(row["teacher_log_probs"][i]),
        "base B": row["base_advantage"],
        "advantage Â": row["advantages"][i],
    }


def test_tooltip_has_the_tokens_numbers_by_mouse_and_by_keyboard(pair, open_page):
    path, written, _ = pair
    page = open_page(path)
    row = chosen_rows(written, 10, 0)[1]
    tokens = page.locator(".response").nth(1).locator(".tok")
    tokens.nth(4).hover()
    assert tooltip(page) == pytest.approx(of_token(row, 4), abs=6e-4)
    assert json.dumps(row["response_text"][4]) in page.locator("#tooltip").inner_text()
    page.mouse.move(1, 1)
    assert page.locator("#tooltip").is_hidden()

    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert tooltip(page) == pytest.approx(of_token(row, 2), abs=6e-4)
    page.keyboard.press("f")
    flip = row["flipped"].index(True, 3)
    assert tooltip(page) == pytest.approx(of_token(row, flip), abs=6e-4)
    assert "flipped" in page.locator("#tooltip").inner_text()
    page.keyboard.press("End")
    assert tooltip(page) == pytest.approx(of_token(row, len(row["gap"]) - 1), abs=6e-4)
    page.keyboard.press("Escape")
    assert page.locator("#tooltip").is_hidden()
    page.keyboard.press("Tab")  # one stop per response
    assert page.evaluate("document.activeElement.closest('.response') !== null")


def test_choosing_step_and_group(pair, open_page):
    path, written, _ = pair
    page = open_page(path)
    page.locator("#choose-step").select_option(label="5")
    table = [
        [cell.strip() for cell in row.split("\t")]
        for row in page.locator("#group-table tbody").inner_text().split("\n")
    ]
    groups = [chosen_rows(written, 5, g) for g in range(3)]
    assert [row[1] for row in table] == [g[0]["kind"].replace("_", " ") for g in groups]
    assert [row[2] for row in table] == [f"{sum(r['correct'] for r in g)} / {len(g)}" for g in groups]
    for cells, rows in zip(table, groups, strict=True):
        tokens = sum(sum(r["response_mask"]) for r in rows)
        assert float(cells[3]) == pytest.approx(sum(abs(a) for r in rows for a in r["advantages"]) / tokens, abs=0.006)
        assert float(cells[4].rstrip(" %")) == pytest.approx(
            100 * sum(sum(r["flipped"]) for r in rows) / tokens, abs=0.51
        )
    page.locator("#group-table tbody tr").nth(2).locator("button").press("Enter")
    shown = page.locator(".response").first.locator(".tok .mark").count()
    text = groups[2][0]["response_text"]
    assert page.locator(".response").first.locator(".tok").count() == len(text)
    assert shown == sum(t.count("\n") for t in text)
    assert page.url.endswith("#group=0,5,2")
    again = open_page(path, fragment="#group=0,5,2")  # a link to a group opens there
    assert again.locator("#choose-step").evaluate("s => s.selectedOptions[0].text") == "5"
    assert again.locator("#group-table tr.chosen").evaluate("r => r.rowIndex") == 3


def test_the_text_is_there_without_javascript(pair, open_page):
    page = open_page(pair[0], java_script_enabled=False)
    text = page.locator("body").inner_text()
    for expected in (
        "Not a CAST run",
        "The reward rose",
        "not CAST",
        "cast compared with grpo",
        "Flipped tokens",
        "flip=correct",
    ):
        assert expected in text


def test_what_had_no_room_and_what_could_not_be_read_is_said(tmp_path, capsys, open_page):
    write_jsonl(tmp_path / "cast" / "metrics.jsonl", metrics_of_a_run(4))
    directory = tmp_path / "cast" / "cast_trajectories"
    written = write_dump(directory, steps=(1, 2, 3, 4, 5), size=2, num_groups=1)
    tokens = {step: sum(len(row["response_ids"]) for row in rows) for step, rows in written.items()}
    trajectories.write(directory, 3, written[3], model="m", cast={"flip": "none"})
    cut, other = directory / "step_00000002.parquet", directory / "step_00000004.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    import pyarrow.parquet as pq

    table = pq.read_table(other)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"verl_cast_dump": b"99"}), other)
    assert report(tmp_path / "cast", "--max-tokens", tokens[1] + tokens[5]) == 0
    said = capsys.readouterr().out
    assert "algorithm.cast at step 3 differs from the newest dump" in said
    assert f"{cut} is no whole Parquet file" in said and f"{other} is a trajectory dump of version 99" in said
    assert "omits the tokens of 1 of the dumped groups" in said
    page = open_page(tmp_path / "cast" / "report.html")
    assert page.locator(".remarks li").count() == 4
    assert page.locator("#choose-step option").all_inner_texts() == ["1", "3", "5"]
    shown = []
    for i in range(3):
        page.locator("#choose-step").select_option(index=i)
        shown.append(page.locator(".response").count() > 0)
    assert shown == [True, False, True]  # the newest and the first


def test_small_gaps_keep_their_sign_and_the_dead_zone_is_named(tmp_path, open_page):
    directory = tmp_path / "cast" / "cast_trajectories"
    rows = dump_rows(1, np.random.default_rng(0), num_groups=1, size=2, deadzone=0.2)
    rows[0]["gap"][0], rows[0]["old_log_probs"][0], rows[0]["teacher_log_probs"][0] = -3e-6, -0.1, -0.100003
    trajectories.write(directory, 1, rows, model="m", cast={})
    assert report(tmp_path / "cast") == 0
    page = open_page(tmp_path / "cast" / "report.html")
    page.locator(".toggle label", has_text="gap g").click()
    tokens = page.locator(".response").first.locator(".tok")
    tokens.nth(0).hover()
    assert tooltip(page)["gap g"] == pytest.approx(-3e-6) and tokens.nth(0).evaluate("t => t.style.background") != ""
    exact = [
        old == teacher for old, teacher in zip(rows[0]["old_log_probs"], rows[0]["teacher_log_probs"], strict=True)
    ]
    within = next(i for i, gap in enumerate(rows[0]["gap"]) if gap == 0 and not exact[i])
    for i, named in ((within, True), (exact.index(True), False)):
        tokens.nth(i).hover()
        assert ("dead zone" in page.locator("#tooltip").inner_text()) == named
        assert tooltip(page)["gap g"] == 0 and tokens.nth(i).evaluate("t => t.style.background") == ""


def test_dumps_without_metrics_and_metrics_without_dumps(tmp_path, open_page):
    write_dump(tmp_path / "dump" / "cast_trajectories", steps=(1,), size=2, num_groups=1, teacher_prompt=None)
    assert report(tmp_path / "dump") == 0
    page = open_page(tmp_path / "dump" / "report.html")
    assert page.locator(".plot").count() == 0 and page.locator(".response").count() == 2
    assert "The teacher saw the student's own prompt." in page.locator("#prompt").inner_text()

    write_jsonl(tmp_path / "grpo" / "metrics.jsonl", metrics_of_a_run(90, cast=False))
    assert report(tmp_path / "grpo") == 0
    page = open_page(tmp_path / "grpo" / "report.html", drawn=True)
    assert page.locator("#groups").count() == 0 and page.locator("[data-figure=reward] .trace").count() == 2
