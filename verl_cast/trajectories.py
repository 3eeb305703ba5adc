"""The trajectory dump: what CAST did to single tokens, one Parquet file a step (`algorithm.cast.dump`).

A file `step_00000010.parquet` has one row per trajectory, whole groups only, and these columns (T: response tokens):

    step               int64           training step
    group              string          verl's uid of the prompt; the rows of a group stand together
    row                string          verl's key of the row: {uid}_{session}_{output}
    messages           string          the prompt's chat messages, JSON
    reference          string or null  the data's reference answer (`reward_model.ground_truth`); CAST never uses it
    prompt_ids         list<int32>     the student's prompt
    teacher_prompt     string or null  the text that stands before the response for the teacher; null: the student's own
    response_ids       list<int32>  T
    response_text      list<string> T  the text of every token; joined, the response
    response_mask      list<bool>   T  tokens that the policy wrote and that count
    old_log_probs      list<float>  T  log π_old at the sampling temperature
    teacher_log_probs  list<float>  T  log π_φ, likewise; NaN in a response that the teacher did not score (gap 0)
    gap                list<float>  T  as the advantage used it: 0 inside the dead zone and where the mask is 0
    advantages         list<float>  T  Â, 0 where the mask is 0
    flipped            list<bool>   T  Â has the opposite sign of the base advantage
    reward             double          of the verifier
    correct            bool            reward > correct_threshold
    kind               string          of the group: mixed, all_correct, all_wrong; excluded for rows that do not count
    base_advantage     double          B
    teacher_age        int64 or null   training steps since the teacher's weights were the policy's

The file's metadata hold `verl_cast_dump` (version of this format), `verl_cast` (of the package) and `run`, as JSON:
model (path), cast (`algorithm.cast`), temperature (of sampling) and norm_adv_by_std_in_grpo. The trainer alone writes,
whatever the number of ranks. A file gets its name when it is whole. This module imports neither verl nor torch, so that
a report can be made anywhere.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import verl_cast
from verl_cast.files import whole_file

DUMP_VERSION = 1
DIRECTORY = "cast_trajectories"  # below the run's checkpoints, unless algorithm.cast.dump.directory says otherwise

SCHEMA = pa.schema(
    {
        "step": pa.int64(),
        "group": pa.string(),
        "row": pa.string(),
        "messages": pa.string(),
        "reference": pa.string(),
        "prompt_ids": pa.list_(pa.int32()),
        "teacher_prompt": pa.string(),
        "response_ids": pa.list_(pa.int32()),
        "response_text": pa.list_(pa.string()),
        "response_mask": pa.list_(pa.bool_()),
        "old_log_probs": pa.list_(pa.float32()),
        "teacher_log_probs": pa.list_(pa.float32()),
        "gap": pa.list_(pa.float32()),
        "advantages": pa.list_(pa.float32()),
        "flipped": pa.list_(pa.bool_()),
        "reward": pa.float64(),
        "correct": pa.bool_(),
        "kind": pa.string(),
        "base_advantage": pa.float64(),
        "teacher_age": pa.int64(),
    }
)


class DumpError(ValueError):
    """A file that is not a whole trajectory dump of this version. The message names it."""


def write(
    directory: Path,
    step: int,
    rows: Sequence[Mapping[str, Any]],
    model: str,
    cast: Mapping[str, Any],
    temperature: float = 1.0,
    norm_adv_by_std_in_grpo: bool = True,
) -> Path:
    """Write the trajectories of one step. A file of the same step (of a run that was resumed) is replaced.

    Args:
        rows: one mapping per trajectory with the columns above.
        model: path of the run's model.
        cast: `algorithm.cast` of the run.
        temperature, norm_adv_by_std_in_grpo: the run's; the defaults are verl's.
    """
    run = {
        "model": model,
        "cast": cast,
        "temperature": temperature,
        "norm_adv_by_std_in_grpo": norm_adv_by_std_in_grpo,
    }
    metadata = {
        "verl_cast_dump": str(DUMP_VERSION),
        "verl_cast": verl_cast.__version__,
        "run": json.dumps(run),
    }
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA.with_metadata(metadata))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step_{step:08d}.parquet"
    with whole_file(path) as scratch:
        pq.write_table(table, scratch, compression="zstd")
    return path


def files(directory: Path) -> dict[int, Path]:
    """The dump's files by step, in order. Other files there are ignored, half-written ones too."""
    found = ((re.fullmatch(r"step_(\d+)\.parquet", path.name), path) for path in directory.glob("step_*.parquet"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of one file, and what it says of its run: model, cast, temperature, norm_adv_by_std_in_grpo, verl_cast.

    Raises:
        DumpError: no Parquet file, a truncated one, one that is no dump, or of another version of the format.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DumpError(f"{path} is no whole Parquet file ({str(error).splitlines()[0]}).") from error
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    version = metadata.get("verl_cast_dump")
    if version is None:
        raise DumpError(f"{path} is no trajectory dump of verl_cast.")
    if version != str(DUMP_VERSION):
        raise DumpError(
            f"{path} is a trajectory dump of version {version} (verl_cast {metadata.get('verl_cast')}); this verl_cast "
            f"{verl_cast.__version__} reads version {DUMP_VERSION}. Use the verl_cast that wrote it."
        )
    return table.to_pylist(), {**json.loads(metadata["run"]), "verl_cast": metadata["verl_cast"]}
