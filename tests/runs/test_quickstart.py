"""The README's first command, with two steps: it trains a real pretrained model and ends with one screen of results."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from queue_of_runs import job

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples" / "quickstart"))

import watch  # noqa: E402
from reward import compute_score  # noqa: E402


@job("quickstart", memory_gb=14)
def quickstart(directory, runs):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.run(
        ["bash", str(ROOT / "examples" / "quickstart.sh")],
        env={**environment, "VENV": sys.prefix, "OUT": str(directory), "STEPS": "2"},
        capture_output=True,
        text=True,
    ), directory


@pytest.mark.runs("quickstart")
def test_the_quick_start_trains_and_shows_one_screen(runs):
    done, out = runs("quickstart")
    log = out / "cast" / "train.log"
    assert done.returncode == 0, (
        done.stdout[-3000:] + done.stderr[-3000:] + (log.read_text()[-5000:] if log.exists() else "")
    )
    for words in (
        "[4/5] training (",
        "s/step  left",
        "teacher (teacher.jinja)",
        "CAST: 2 steps",
        "flipped, correct responses",
        "self-teacher",
        "checkpoint  " + str(out / "cast" / "checkpoints" / "global_step_2"),
        "teacher.jinja, this run's teacher: better than the student",
        "cast: CAST, 2 steps, trajectories of 2 steps",
        "Next:",
    ):
        assert words in done.stdout
    assert (out / "report.html").stat().st_size > 1_000_000
    assert (out / "cast" / "reward.png").stat().st_size > 10_000
    metrics = watch.read_metrics(out / "cast" / "metrics.jsonl")
    assert len(metrics) == 2
    # The difficulty suits the model: at least a third of the groups are mixed in the first steps.
    assert all(m["cast/group/mixed_share"] >= 1 / 3 for m in metrics)
    # the loss in use, its clip and the exact rule, as verl's own log shows them
    assert "flip=both gap_weight=1 gap_deadzone=0 base=+1/-1" in log.read_text()
    assert "loss=cast clip=[0.2, 0.28]" in log.read_text()
    measured = json.loads((out / "diagnosis_teacher" / "diagnosis.json").read_text())["accuracy"][1:]
    assert {Path(one["context"]).name: one["verdict"] for one in measured} == {
        "teacher.jinja": "better",
        "plain": "not better",
    }


@pytest.mark.parametrize(
    "response, truth, score",
    [
        ("3 + 4 = 7", "7", 1.0),
        ("The answer is 7.", "7", 1.0),
        ("7 + 3 = 10", "7", 0.0),
        ("none", "7", 0.0),
        ("-7", "7", 0.0),
    ],
)
def test_the_verifier(response, truth, score):
    assert compute_score("", response, truth)["score"] == score


def python_of_version(path, version):
    """A program that runs the script's own check as Python of this version would, and then can do nothing else."""
    path.parent.mkdir(exist_ok=True)
    code = f'exec {sys.executable} -c "import sys; sys.version_info = ({version}, 1)\n$2"'
    path.write_text(f'#!/bin/bash\n[ "$1" = -c ] || exit 7\n{code}\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version, fits", [("3, 10", False), ("3, 11", True), ("3, 12", True), ("3, 13", False)])
@pytest.mark.parametrize("named", [True, False])
def test_the_environment_takes_python_3_11_and_3_12(tmp_path, version, fits, named):
    """The environment itself is not made here: the program ends when it is asked for one."""
    python = python_of_version(tmp_path / "bin" / ("mine" if named else "python3"), version)
    for name in [] if named else ["python3.11", "python3.12", "python"]:
        python_of_version(tmp_path / "bin" / name, "3, 10")  # this machine's own must not be found
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "VENV": str(tmp_path / "venv")}
    environment |= {"PYTHON": str(python)} if named else {}
    command = ["bash", str(ROOT / "examples" / "setup_cpu.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if fits:
        assert done.returncode == 7 and f"making {tmp_path / 'venv'} with {python} (" in done.stdout
    else:
        assert done.returncode == 1 and "none is Python 3.11 or 3.12; install one, or name it: PYTHON=" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


def test_the_quick_start_says_first_what_it_needs(tmp_path):
    environment = {**os.environ, "PYTHON": "/no/python", "VENV": str(tmp_path / "venv"), "OUT": str(tmp_path / "out")}
    command = ["bash", str(ROOT / "examples" / "quickstart.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "none is Python 3.11 or 3.12" in done.stderr
    for words in (
        "2 cores, 16 GB of memory and 8 GB of disk",
        "11 to 20 minutes",
        "Runs differ from machine to machine",
    ):
        assert done.stdout.count(words) == 1, words
    here = re.search(r"Here: (\d+) cores, (\d+) GB of free memory, (\d+) GB of free disk", done.stdout)
    assert here and min(map(int, here.groups())) > 0
    assert "[1/5] environment (0 min " in done.stdout and not (tmp_path / "out").exists()


def test_a_step_says_about_how_long_the_rest_takes():
    metrics = [{"timing_s/step": seconds} for seconds in (60.0, 20.0, 10.0, 12.0)]
    assert watch.left(metrics, 12) == "2 min"  # 8 steps of 14 s
    assert watch.left(metrics, 6) == "28 s" and watch.left(metrics, 4) == "0 s" and watch.left(metrics[:1], 2) == "60 s"


def test_a_step_without_correct_responses_is_shown(tmp_path):
    """Metrics of an empty set are not logged; the quick start goes on, and its screen says CAST."""
    usual = {"critic/score/mean": 0.0, "response_length/mean": 12.0, "timing_s/step": 30.0}
    shares = {f"cast/group/{kind}_share": float(kind == "all_wrong") for kind in ("mixed", "all_correct", "all_wrong")}
    no_gap = usual | shares
    metrics = [no_gap, no_gap | {"cast/flip/wrong_share": 0.25, "cast/gap/mean": -0.5, "cast/gap/abs_mean": 0.5}]
    rows = [watch.row(step, m) for step, m in enumerate(metrics, start=1)]
    assert rows[0].split()[8:13] == ["–", "%", "/", "–", "%"] and rows[1].split()[8:13] == ["–", "%", "/", "25", "%"]
    assert len({len(text) for text in (*rows, watch.row(1, usual))}) == 1
    run = tmp_path / "cast"
    run.mkdir()
    assert "CAST: 2 steps" in watch.screen(run, metrics) and (run / "reward.png").stat().st_size > 1000


def test_a_half_written_line_of_metrics_waits(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "data": {"a": 1}}\n{"step": 2, "da')
    assert watch.read_metrics(path) == [{"a": 1}]
    assert watch.read_metrics(tmp_path / "missing.jsonl") == []


def test_the_reason_of_a_failed_run_is_the_drivers(tmp_path):
    (tmp_path / "train.log").write_text(
        "(Worker pid=1) ValueError: of a worker\nError executing job with overrides: []\nTraceback\n"
        "ray.exceptions.RayTaskError(KeyError): ray::run\nverl_cast.x.WeightTransferError: the reason\n"
        "BufferError: of the clean-up\n"
    )
    assert watch.failure(tmp_path) == "verl_cast.x.WeightTransferError: the reason"
