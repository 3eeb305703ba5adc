"""One rank of a run that saves a checkpoint with verl's own checkpoint manager, on gloo, outside Ray.

verl's real actor worker takes one optimizer step and saves to a directory. Rank 0 also saves the unsharded parameters
to `expected.pt` in that directory. These are gathered independently of the checkpoint.
"""

from pathlib import Path

import torch
from worker_rank import Rank, full_model


def main(directory: str, engine: str, target: str, *overrides: str) -> None:
    this = Rank(Path(directory), engine, list(overrides), with_teacher=False)
    this.update()
    this.worker.save_checkpoint(target, None, 1, None)
    parameters = full_model(this, lora=any("lora_rank" in override for override in overrides)).state_dict()
    if this.rank == 0:
        torch.save(parameters, Path(target) / "expected.pt")
    torch.distributed.barrier()
