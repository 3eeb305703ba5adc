"""The run's data: are the files there, and do their rows hold what verl needs?

The first rows are read, and one row of every data source for the reward (rewards.py). Left out: remote files, and the
needs of a user's own dataset class or reward manager.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from omegaconf import DictConfig

from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor.lines import Line, error, note, ok, warning

ROWS = 64
REWARD_COLUMNS = ("data_source", "reward_model", "extra_info")


@dataclass
class Data:
    """The part of the data that was read, and the lines about it."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # the first rows of the first file
    total: int | None = 0  # rows of all training files; None: not known
    of_source: dict[str, dict[str, Any]] = field(default_factory=dict)  # a row of every data source, of all files
    lines: list[Line] = field(default_factory=list)


def check(config: DictConfig) -> Data:
    """Check the training and validation files."""
    found = Data()
    for key in ("train_files", "val_files"):
        names = config.data[key]
        for name in [names] if isinstance(names, str) else list(names or []):
            line, rows, count = _file(f"data.{key}", name)
            found.lines.append(line)
            if rows and config.data.custom_cls.path is None:  # another class may give other rows
                try:
                    _of_every_source(Path(name).expanduser(), found.of_source)
                except (OSError, ValueError, pa.ArrowException) as problem:  # behind the rows that were read
                    found.lines.append(error("data", f"data.{key}: {name} cannot be read: {first_line(problem)}"))
            if key == "train_files":
                found.rows = found.rows or rows
                found.total = None if count is None or found.total is None else found.total + count
    if not config.data.train_files:
        found.lines.append(error("data", "data.train_files names no file."))
    if found.rows and config.data.custom_cls.path is None:
        found.lines += _columns(config, found.rows)
    found.lines += _old_key(config)
    return found


def _file(key: str, name: str) -> tuple[Line, list[dict[str, Any]], int | None]:
    if "://" in name:
        return note("data", f"{key}: {name} is remote; skipped"), [], None
    path = Path(name).expanduser()
    if not path.exists():
        return error("data", f"{key}: {name} does not exist; verl reads it before the first step."), [], None
    try:
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            total = file.metadata.num_rows
            batches = file.iter_batches(batch_size=ROWS)
            rows = [row for batch in islice(batches, 1) for row in batch.to_pylist()]
        elif path.suffix in (".json", ".jsonl"):
            rows, total = [json.loads(line) for line in islice(_nonempty(path), ROWS)], sum(1 for _ in _nonempty(path))
        else:
            problem = f"{key}: {name} is neither .parquet nor .json/.jsonl; verl reads only these."
            return error("data", problem), [], None
    except (OSError, ValueError, pa.ArrowException) as problem:
        return error("data", f"{key}: {name} cannot be read: {first_line(problem)}"), [], None
    if total == 0:
        return error("data", f"{key}: {name} holds no row."), [], 0
    return ok("data", f"{key}: {total} rows in {name}"), rows, total


def _nonempty(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from (line for line in file if line.strip())


def _columns(config: DictConfig, rows: Sequence[dict[str, Any]]) -> list[Line]:
    """Check the columns that verl's dataset and reward managers read."""
    lines, key = [], config.data.prompt_key
    names = ", ".join(rows[0])
    if key not in rows[0]:
        return [error("data", f"data.prompt_key={key}: the training data have no such column; they have {names}.")]
    if not is_chat(rows[0][key]):
        lines.append(error("data", f"column {key} must hold chat messages in verl's form [{{role, content}}, ...]."))
    if config.reward.reward_manager.source == "register":
        if rows[0].get("data_source") is None:
            lines.append(error("data", f"verl's reward manager needs a column data_source; the columns are {names}."))
        reward_model = rows[0].get("reward_model")
        if not isinstance(reward_model, dict) or "ground_truth" not in reward_model:
            lines.append(
                error(
                    "data",
                    f"verl's reward manager needs a column reward_model with ground_truth; the columns are {names}.",
                )
            )
    return lines


def is_chat(messages: Any) -> bool:
    return isinstance(messages, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages)


def _old_key(config: DictConfig) -> list[Line]:
    if config.custom_reward_function.path is None or config.reward.custom_reward_function.path is not None:
        return []
    key = "reward.custom_reward_function"
    return [
        warning("verifier", f"custom_reward_function.path is verl's old key, which its V1 trainer ignores; use {key}.")
    ]


def _of_every_source(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Add the first row of every data source that is new, without rows whose reward verl could not compute."""
    if path.suffix != ".parquet":
        for line in _nonempty(path):
            _add(json.loads(line), found)
        return
    file = pq.ParquetFile(path)
    columns = [name for name in REWARD_COLUMNS if name in file.schema_arrow.names]
    if "data_source" not in columns:
        return
    # All names are read, but few rows: references may be large (test cases of code).
    names = file.read(columns=["data_source"]).column(0)
    first = sorted(pc.index(names, name).as_py() for name in pc.unique(names) if name.is_valid)
    if not first:
        return
    start = 0
    for batch in file.iter_batches(batch_size=1024, columns=columns):
        here = [row - start for row in first if start <= row < start + len(batch)]
        for row in batch.take(pa.array(here, pa.int64())).to_pylist():
            _add(row, found)
        start += len(batch)
        if start > first[-1]:
            return


def _add(row: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    reward_model = row.get("reward_model")
    if row.get("data_source") is not None and isinstance(reward_model, dict) and "ground_truth" in reward_model:
        found.setdefault(str(row["data_source"]), row)
