"""CAST's metrics in verl's trackers: every name is kept, and every value arrives.

TensorBoard runs for real, and is read back from its files. Of MLflow, verl's own rule for names is tested. verl hands
wandb and SwanLab the metrics as they are.
"""

import metric_table
import pytest
from metric_batches import hand_made

NAMES = sorted(metric_table.rows())


def test_tensorboard_shows_every_metric_under_its_name(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from verl.utils.tracking import Tracking

    logged = {1: hand_made(), 2: hand_made(flip="none"), 3: {name: i / 8 - 2 for i, name in enumerate(NAMES)}}
    assert len(NAMES) > 40
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path))
    tracking = Tracking("cast", "run", ["tensorboard"], config={})
    for step, metrics in logged.items():
        tracking.log(metrics, step)
    tracking.logger["tensorboard"].finish()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == NAMES
    for name in NAMES:
        expected = {step: metrics[name] for step, metrics in logged.items() if name in metrics}
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(expected), name


def test_mlflow_keeps_every_name():
    from verl.utils.tracking import _MlflowLoggingAdapter

    adapter = _MlflowLoggingAdapter()
    assert [adapter._sanitize_key(name) for name in NAMES] == NAMES
