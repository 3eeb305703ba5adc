"""The self-teacher's part of a checkpoint: one file for every distinct shard, beside the ranks' actor shards.

The file is `cast_self_teacher_world_size_{n}_rank_{r}.pt`, r being the lowest rank that holds the shard. Its
data-parallel replicas write none, unless they cannot see that file (disks of their own). Older checkpoints have a file
of every rank; they are read alike. Where a resumed run takes a new snapshot at once, one small marker stands in their
place, which any number of ranks can read.
"""

import glob
import logging
import os
from pathlib import Path
from typing import Any

import torch

from verl_cast.files import whole_file
from verl_cast.teacher.weights import STATE_VERSION, SelfTeacher

logger = logging.getLogger(__name__)
MARKER = "cast_self_teacher_renewed.pt"


def path_of(directory: str | Path, rank: int | str | None = None, world_size: int | str | None = None) -> Path:
    """Of this rank, unless another one is named."""
    rank = torch.distributed.get_rank() if rank is None else rank
    world_size = torch.distributed.get_world_size() if world_size is None else world_size
    return Path(directory) / f"cast_self_teacher_world_size_{world_size}_rank_{rank}.pt"


def save(teacher: SelfTeacher, directory: str, first_with_shard: int, completed_steps: int) -> None:
    """Write the shard, on one of the ranks that hold it. All ranks have to call this; all files are there afterwards.

    A file that is not whole never bears its name.

    Args:
        first_with_shard: the lowest rank that holds the same shard.
        completed_steps: training steps that the checkpoint has behind it.

    Raises:
        RuntimeError: another rank could not write its file. On that rank the error is its own.
    """
    os.makedirs(directory, exist_ok=True)
    own, shared, marker = path_of(directory), path_of(directory, rank=first_with_shard), Path(directory) / MARKER
    is_first, stale = own == shared, marker
    if teacher.needs_marker_only(completed_steps):
        is_first, own, shared, stale = torch.distributed.get_rank() == 0, marker, marker, own
    _write_where(is_first, teacher, own, completed_steps)
    _write_where(not shared.exists(), teacher, own, completed_steps)
    stale.unlink(missing_ok=True)  # of an earlier run that came to this step


def _write_where(writes: bool, teacher: SelfTeacher, path: Path, completed_steps: int) -> None:
    """The ranks that write, and then all ranks: one that failed is an error on every rank."""
    problem = None
    try:
        if writes:
            with whole_file(path) as scratch:
                torch.save(teacher.state_dict(completed_steps), scratch)
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
    candidates = (Path(directory) / MARKER, shared)
    path = next((path for path in candidates if path.exists()), path_of(directory))
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
            _check_kind(teacher, state)
            teacher.load_state_dict(state)
    except Exception as error:
        raise RuntimeError(
            f"CAST: the self-teacher in {path} cannot be restored: {error}. Resume with the model, teacher.weights "
            "and number of ranks that saved it, or move all cast_self_teacher_* files of the checkpoint away and "
            f"set ++{config.KEY}.missing_state=snapshot to start the teacher anew."
        ) from error
    teacher.noise_floor = state.get("noise_floor")  # older files have neither
    context = state.get("context", teacher.context)
    if context != teacher.context and torch.distributed.get_rank() == 0:
        logger.warning(
            "CAST: the checkpoint's teacher read another context (%s, now %s): gaps before and after differ for that "
            "reason too. To go on as before, restore the file that %s.context named.",
            context,
            teacher.context,
            config.KEY,
        )
    return teacher.holds_copy


def _check_kind(teacher: SelfTeacher, state: dict[str, Any]) -> None:
    for key, expected in (("version", STATE_VERSION), ("weights", teacher.config.weights)):
        if state.get(key) != expected:
            raise ValueError(f"its {key} is {state.get(key)!r}, this run's is {expected!r}")
