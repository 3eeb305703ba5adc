"""Laws of the teacher's file in a checkpoint, on one rank (on engines, and with faults: tests/engine)."""

import logging

import pytest
import torch

from verl_cast import TeacherConfig
from verl_cast.teacher import saved
from verl_cast.teacher.weights import build_teacher


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def teacher(refresh_interval=10, **config):
    return build_teacher(TeacherConfig(refresh_interval=refresh_interval, **config), torch.nn.Linear(64, 64))


def saved_at(directory, step, taken_at=0, **config):
    """A teacher with a snapshot of step `taken_at`, saved after `step` steps."""
    own = teacher(**config)
    own.refresh(taken_at)
    own.noise_floor = 0.125
    saved.save(own, str(directory), 0, step)
    return own


@pytest.mark.parametrize(
    "weights, step, is_marker", [("snapshot", 10, True), ("snapshot", 9, False), ("ema", 10, False)]
)
def test_a_snapshot_that_the_resumed_run_would_renew_is_not_saved(tmp_path, weights, step, is_marker):
    own = saved_at(tmp_path, step, weights=weights)
    (file,) = tmp_path.iterdir()
    assert file.name == (saved.MARKER if is_marker else saved.path_of(tmp_path).name)
    assert (file.stat().st_size < 8192) == is_marker and own.host_bytes > 2 * 8192
    resumed = teacher(weights=weights)
    assert saved.load(resumed, str(tmp_path), 0) and resumed.noise_floor == 0.125
    assert resumed.refresh_due(step) == (is_marker or weights == "ema")
    if is_marker:
        resumed.refresh(step)
    assert resumed.taken_at == (step if is_marker else 0)


def test_a_marker_serves_any_number_of_ranks_and_a_copy_only_its_own(tmp_path, monkeypatch):
    saved_at(tmp_path / "marker", 10)
    saved_at(tmp_path / "copy", 9)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert saved.load(teacher(), str(tmp_path / "marker"), 0)
    with pytest.raises(
        FileNotFoundError, match=r"another number of ranks \(cast_self_teacher_world_size_1_rank_0.pt\)"
    ):
        saved.load(teacher(), str(tmp_path / "copy"), 0)


def test_a_marker_is_refused_where_another_interval_would_keep_what_it_lacks(tmp_path):
    saved_at(tmp_path, 10)
    assert saved.load(teacher(refresh_interval=5), str(tmp_path), 0), "renewed at step 10, too"
    with pytest.raises(RuntimeError, match=r"step 10.*refresh_interval=30 would keep that of step 0.*interval=10"):
        saved.load(teacher(refresh_interval=30), str(tmp_path), 0)
    assert saved.load(teacher(refresh_interval=30, missing_state="snapshot"), str(tmp_path), 0)
    with pytest.raises(RuntimeError, match="its weights is 'snapshot', this run's is 'ema'"):
        saved.load(teacher(weights="ema"), str(tmp_path), 0)


def test_a_copy_goes_on_under_another_interval(tmp_path):
    saved_at(tmp_path, 9, taken_at=4)
    resumed = teacher(refresh_interval=3)
    assert saved.load(resumed, str(tmp_path), 0) and resumed.taken_at == 4 and resumed.refresh_due(9)
    resumed = teacher(refresh_interval=100)
    assert saved.load(resumed, str(tmp_path), 0) and not resumed.refresh_due(9)


@pytest.mark.parametrize("first, second", [(9, 10), (10, 9)])
def test_a_checkpoint_that_is_written_again_holds_one_kind_of_file(tmp_path, first, second):
    saved_at(tmp_path, first)
    saved_at(tmp_path, second)
    (file,) = tmp_path.iterdir()
    assert (file.name == saved.MARKER) == (second == 10)


def test_a_context_that_changed_since_the_checkpoint_is_named(tmp_path, caplog):
    own = teacher()
    own.refresh(0)
    own.context = "template 1"
    saved.save(own, str(tmp_path), 0, 3)
    for context, is_named in (("template 1", False), ("template 2", True)):
        caplog.clear()
        resumed = teacher()
        resumed.context = context
        with caplog.at_level(logging.WARNING):
            assert saved.load(resumed, str(tmp_path), 0)
        assert ("read another context (template 1, now template 2)" in caplog.text) == is_named


def test_no_checkpoint_runs_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return print, ("code of a checkpoint",)

    torch.save({"version": 2, "weights": "snapshot", "taken_at": Attack()}, saved.path_of(tmp_path))
    with pytest.raises(RuntimeError, match="cannot be restored: Weights only load failed"):
        saved.load(teacher(), str(tmp_path), 0)
