"""The self-teacher's part of a checkpoint: one file for every distinct shard, beside the ranks' actor shards.

The file is `cast_self_teacher_world_size_{n}_rank_{r}.pt`, r being the lowest rank that holds the shard. Its
data-parallel replicas write none, unless they cannot see that file (disks of their own). Older checkpoints have a file
of every rank; they are read alike.
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


def save(teacher: SelfTeacher, directory: str, first_with_shard: int) -> None:
    """Write the shard, on one of the ranks that hold it. All ranks have to call this; all files are there afterwards.

    A file that is not whole never bears its name.

    Args:
        first_with_shard: the lowest rank that holds the same shard.

    Raises:
        RuntimeError: another rank could not write its file. On that rank the error is its own.
    """
    os.makedirs(directory, exist_ok=True)
    own, shared = path_of(directory), path_of(directory, rank=first_with_shard)
    _write_where(own == shared, teacher, own)
    _write_where(not shared.exists(), teacher, own)


def _write_where(writes: bool, teacher: SelfTeacher, path: Path) -> None:
    """The ranks that write, and then all ranks: one that failed is an error on every rank."""
    problem = None
    try:
        if writes:
            with whole_file(path) as scratch:
                torch.save(teacher.state_dict(), scratch)
    except Exception as error:
        problem = error
    problems: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(problems, None if problem is None else f"{type(problem).__name__}: {problem}")
    if problem is not None:
        raise problem
    for rank, said in enumerate(problems):
        if said is not None:
            raise RuntimeError(f"CAST: rank {rank} could not save its self-teacher. {said}")


def load(teacher: SelfTeacher, directory: str, first_with_shard: int) -> bool:
    """Restore the teacher. False where it needs no copy, or the checkpoint holds none and a new one may start.

    Raises:
        FileNotFoundError: the checkpoint holds none, and `missing_state` does not allow a new one.
        RuntimeError: the file is damaged, or of another model or layout of ranks.
    """
    shared, config = path_of(directory, rank=first_with_shard), teacher.config
    path = shared if shared.exists() else path_of(directory)
    if not path.exists():
        if not teacher.holds_copy:
            return False
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
        # Mapped, not read: the host holds no second copy of the teacher meanwhile.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if teacher.holds_copy:
            teacher.load_state_dict(state)
        teacher.noise_floor = state.get("noise_floor")  # older files have none
        return teacher.holds_copy
    except Exception as error:
        raise RuntimeError(
            f"CAST: the self-teacher in {path} cannot be restored: {error}. Resume with the model, teacher.weights "
            "and number of ranks that saved it, or move all cast_self_teacher_* files of the checkpoint away and "
            f"set ++{config.KEY}.missing_state=snapshot to start the teacher anew."
        ) from error
