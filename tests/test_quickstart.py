"""The README's first command, with two steps: it trains a real pretrained model and ends with one screen of results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from queue_of_runs import job

from verl_cast.launch import fitness

ROOT = Path(__file__).parent.parent
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
    # Measurements of the contexts are kept. The context in use gives no warning.
    assert "measured worse" not in log.read_text()
    records = [json.loads(path.read_text()) for path in (out / "cache" / "fitness").glob("*.json")]
    assert {Path(r["context"]).name: fitness.verdict(r) for r in records} == {
        "teacher.jinja": "better",
        "plain": "worse",
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
