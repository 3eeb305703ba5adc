"""One rank of a run that saves a checkpoint by verl's own checkpoint manager, on gloo, outside Ray.

`RANK=r WORLD_SIZE=w python tests/save_checkpoint.py DIR ENGINE TARGET [OVERRIDE ...]`: verl's real actor worker takes
one optimizer step and saves to TARGET; rank 0 also saves the unsharded parameters, gathered independently of the
checkpoint, to TARGET/expected.pt.
"""

import sys
from pathlib import Path

import torch
from engine_laws import Rank, full_model


def main(directory: Path, engine: str, target: Path, overrides: list[str]) -> None:
    this = Rank(directory, engine, overrides, with_teacher=False)
    this.update()
    this.worker.save_checkpoint(str(target), None, 1, None)
    parameters = full_model(this, lora=any("lora_rank" in override for override in overrides)).state_dict()
    if this.rank == 0:
        torch.save(parameters, target / "expected.pt")
    torch.distributed.barrier()


if __name__ == "__main__":
    import verl  # noqa: F401  (loads the plugin and, with VERL_PLATFORM=cpu, the platform)

    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
