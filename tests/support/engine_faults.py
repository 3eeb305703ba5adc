"""One rank of a teacher's pass, or of a save, in which the last rank fails. tests/engine/test_engine.py starts them."""

import os
from pathlib import Path

import torch
from worker_rank import Rank, fail_in_a_layer, new_directory, same_bits, teacher_file


def main(directory: str, engine: str, point: str, *overrides: str) -> None:
    """The last rank fails before, within or after the teacher's forward, or while saving, and exits.

    It reports its own error. The other ranks wait in a collective, which raises when their peer is gone. Every rank's
    policy stays bit-identical. Earlier checkpoints stay complete.
    """
    directory = Path(directory)
    this = Rank(directory, engine, list(overrides))
    this.init_teacher(context="plain")
    this.update()
    policy = this.parameters()
    live = this.live()
    fails_here = this.rank == this.world_size - 1
    saves = new_directory(directory)
    steps = [saves / f"global_step_{step}" / "actor" for step in (1, 2, 3)]
    is_save, last_step = point.startswith("saving"), 10 if point == "saving a marker" else 3
    if is_save:
        for step in steps[:2]:
            this.worker.save_checkpoint(str(step), None, 1, 2)
    if last_step == 10:
        fails_here = this.rank == 0  # the rank that writes a marker
    if fails_here:
        if is_save:
            torch.save = None
        elif point == "before":
            this.worker.teacher_pass.context.prompt_ids = None
        elif point == "within":
            fail_in_a_layer(this)
        else:
            stock = this.worker.actor._postprocess_output

            def fail_after(*args, **kwargs):
                stock(*args, **kwargs)
                raise RuntimeError("injected after the forward")

            this.worker.actor._postprocess_output = fail_after
    try:
        if is_save:
            this.worker.save_checkpoint(str(steps[2]), None, last_step, 2)
        else:
            this.teacher_log_probs()
        failed = None
        # A healthy rank enters the next collective, as its next pass would.
        torch.distributed.barrier()
    except Exception as error:
        failed = error
    assert failed is not None
    if is_save and not fails_here:
        failing = 0 if last_step == 10 else this.world_size - 1
        assert f"rank {failing} could not save its self-teacher" in str(failed), failed
    else:
        assert ("injected" in str(failed) or "NoneType" in str(failed)) == fails_here, failed
    assert same_bits(live, policy), f"rank {this.rank}: a fault {point} the forward changed the policy"
    if is_save:
        assert all(teacher_file(this, step).exists() and len(list(step.glob("model*"))) == 2 for step in steps[:2])
    print(f"rank {this.rank}: {type(failed).__name__} {str(failed)[:200]}; the policy is as it was", flush=True)
    os._exit(0)  # gloo's teardown after a dead peer must not decide the exit status
