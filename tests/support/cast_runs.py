"""The real run `cast`, which several test files read, and what it means that two runs are the same."""

import torch
from queue_of_runs import job
from torch.distributed.tensor import DTensor
from verl_run import run_verl

CAST = "algorithm.adv_estimator=cast"
# The save after step 3 falls between two snapshots: one before step 1, the next before step 5.
CAST_SIX_STEPS = (
    CAST,
    "+algorithm.cast.teacher.refresh_interval=4",
    "trainer.total_training_steps=6",
    "trainer.save_freq=3",
    "+algorithm.cast.gap_deadzone=noise",
    "+algorithm.cast.noise_floor_interval=3",
    "+algorithm.cast.dump.interval=1",
    "+algorithm.cast.dump.groups=2",
)


@job("cast", after=("tiny",))
def cast(directory, runs):
    """Killed with SIGKILL between two saves, right after the update of step 5."""
    return run_verl(directory, runs("tiny"), *CAST_SIX_STEPS, timeout=900, kill_when="dump/step_5.pt")


def assert_same_batches(run, other, step, other_step=None, fields=None, size=16):
    rows, other_rows = run.batch(step)["rows"], other.batch(other_step or step)["rows"]
    assert len(rows) == len(other_rows) == size
    for row, other_row in zip(rows, other_rows, strict=True):
        for name in fields or row:
            assert torch.equal(row[name], other_row[name]), f"step {step}: {name} differs"


def assert_same_parameters(run, other, step):
    parameters, others = run.parameters(step), other.parameters(step)
    assert parameters.keys() == others.keys()
    for name, tensor in parameters.items():
        tensors = [t.to_local() if isinstance(t, DTensor) else t for t in (tensor, others[name])]
        assert torch.equal(*tensors), f"{name} differs after step {step}"
