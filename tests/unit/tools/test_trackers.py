"""CAST's metrics in verl's trackers: written by verl's own `Tracking`, and read back from the trackers' files.

TensorBoard and wandb (offline) run for real. MLflow and SwanLab are not installed here: of MLflow, verl's own rule for
names is tested; verl hands SwanLab the metrics as they are.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from metric_batches import hand_made

README = Path(__file__).parents[3] / "verl_cast" / "advantage" / "README.md"
DOCUMENTED = re.findall(r"^\| `((?:cast|timing_s)/\S+)` \|", README.read_text(), re.MULTILINE)
STEPS = {1: hand_made(), 2: hand_made(flip="none"), 3: {name: i / 8 - 2 for i, name in enumerate(DOCUMENTED)}}

# verl's trainer logs a dict of floats a step. Trackers keep state in their process, so they get their own.
PROGRAM = """
import json, sys
from verl.utils.tracking import Tracking
tracking = Tracking("cast", "run", ["tensorboard", "wandb"], config={"trainer": {}})
for step, metrics in json.loads(sys.stdin.read()).items():
    tracking.log(metrics, int(step))
tracking.finish()
"""


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The directory in which verl's trackers wrote STEPS."""
    directory = tmp_path_factory.mktemp("trackers")
    environment = {"TENSORBOARD_DIR": str(directory / "tensorboard"), "WANDB_DIR": str(directory)}
    environment = {**os.environ, **environment, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, input=json.dumps(STEPS), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory


def test_the_metrics_are_many_and_documented():
    assert len(DOCUMENTED) > 40 and set(STEPS[1]) <= set(DOCUMENTED)


def test_tensorboard_shows_every_metric_under_its_name(logged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logged / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(DOCUMENTED)
    for name in DOCUMENTED:
        expected = {step: metrics[name] for step, metrics in STEPS.items() if name in metrics}
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(expected), name


def test_wandb_shows_every_metric_under_its_name(logged):
    (file,) = logged.glob("wandb/offline-run-*/*.wandb")
    content, found = file.read_bytes(), set()
    # A metric in wandb's file: the name, then a tag, the length of its value, and the value as JSON.
    for match in re.finditer(rb"((?:cast|timing_s)/\w[\w/]*)\x82\x01(.)", content, re.DOTALL):
        value = content[match.end() : match.end() + match[2][0]]
        found.add((match[1].decode(), json.loads(value)))
    assert {(name, value) for metrics in STEPS.values() for name, value in metrics.items()} <= found


def test_mlflow_keeps_every_name():
    from verl.utils.tracking import _MlflowLoggingAdapter

    adapter = _MlflowLoggingAdapter()
    assert [adapter._sanitize_key(name) for name in DOCUMENTED] == DOCUMENTED
