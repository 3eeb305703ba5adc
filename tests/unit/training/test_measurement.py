"""Laws of the measurement's rows: a measurement is whole, and of the snapshot's weights, or it is an error."""

import json

import pytest
from transfer_queue import KVBatchMeta

from verl_cast.training.measurement import STATE_FILE, _checked, _saved_state, answered_by_the_batch


def rows(count, first=10, last=10):
    return KVBatchMeta(
        partition_id="val",
        keys=[f"uid{number}_0_0" for number in range(count)],
        tags=[{"min_global_steps": first, "max_global_steps": last}] * count,
    )


def test_a_missing_response_is_an_error():
    with pytest.raises(RuntimeError, match="3 of the 128 responses that measure the teacher are missing"):
        _checked(rows(125), 128, version=10, threshold=0.5)


@pytest.mark.parametrize("first, last", [(9, 9), (9, 10), (10, 11), (None, None)])
def test_responses_of_other_weights_are_an_error(first, last):
    with pytest.raises(RuntimeError, match="the teacher's are those after 10"):
        _checked(rows(128, first, last), 128, version=10, threshold=0.5)


@pytest.mark.parametrize(
    "mode, batch_size, answered",
    [("sync", 32, True), ("sync", 31, False), ("colocate_async", 64, False), ("separate_async", 64, False)],
)
def test_where_the_training_batch_answers_for_the_policy(compose, mode, batch_size, answered):
    config = compose(f"trainer.v1.trainer_mode={mode}", f"data.train_batch_size={batch_size}")
    assert answered_by_the_batch(config) is answered


def test_the_state_is_that_of_the_checkpoint_that_the_run_goes_on_from(compose, tmp_path):
    directories = {"trainer.default_local_dir": tmp_path, "trainer.resume_from_path": tmp_path / "other/global_step_5"}
    for number, directory in enumerate((tmp_path / "global_step_5", tmp_path / "other" / "global_step_5")):
        directory.mkdir(parents=True)
        (directory / STATE_FILE).write_text(json.dumps({"number": number}))
    overrides = [f"{key}={value}" for key, value in directories.items()]
    config = compose(*overrides)
    assert _saved_state(config, 5) == {"number": 0} and _saved_state(config, 6) is None
    assert _saved_state(compose(*overrides, "trainer.resume_mode=resume_path"), 5) == {"number": 1}
