"""The self-teacher's part of a checkpoint: one file a rank, beside the rank's actor shard.

The file is `cast_self_teacher_world_size_{n}_rank_{r}.pt`. Every function here works on this rank's own file.
"""

import glob
import logging
import os
from pathlib import Path

import torch

from verl_cast.files import whole_file
from verl_cast.teacher.weights import SelfTeacher

logger = logging.getLogger(__name__)


def path_of(directory: str | Path, rank: int | str | None = None, world_size: int | str | None = None) -> Path:
    """Of this rank, unless another one is named."""
    rank = torch.distributed.get_rank() if rank is None else rank
    world_size = torch.distributed.get_world_size() if world_size is None else world_size
    return Path(directory) / f"cast_self_teacher_world_size_{world_size}_rank_{rank}.pt"


def save(teacher: SelfTeacher, directory: str) -> None:
    """Write the teacher; a file that is not whole never bears its name."""
    os.makedirs(directory, exist_ok=True)
    with whole_file(path_of(directory)) as scratch:
        torch.save(teacher.state_dict(), scratch)


def load(teacher: SelfTeacher, directory: str) -> bool:
    """Restore the teacher. False where the checkpoint holds none and a new one may start.

    Raises:
        FileNotFoundError: the checkpoint holds none, and `missing_state` does not allow a new one.
        RuntimeError: the file is damaged, or of another model or layout of ranks.
    """
    path, config = path_of(directory), teacher.config
    if not path.exists():
        if config.missing_state == "snapshot":
            logger.warning("CAST: %s is missing; the restored policy is the teacher's first copy.", path)
            return False
        others = sorted(glob.glob(str(path_of(directory, rank=0, world_size="*"))))
        found = f" It holds the teacher of another number of ranks ({os.path.basename(others[0])})." if others else ""
        raise FileNotFoundError(
            f"CAST: {path} is missing, so the run cannot go on with the teacher that it had.{found} Resume with "
            "the ranks that saved it. If the checkpoint is of a run without CAST, or the teacher may start anew "
            f"from the restored policy, set ++{config.KEY}.missing_state=snapshot."
        )
    try:
        teacher.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return True
    except Exception as error:
        raise RuntimeError(
            f"CAST: the self-teacher in {path} cannot be restored: {error}. Resume with the model, teacher.weights "
            "and number of ranks that saved it, or move all cast_self_teacher_* files of the checkpoint away and "
            f"set ++{config.KEY}.missing_state=snapshot to start the teacher anew."
        ) from error
