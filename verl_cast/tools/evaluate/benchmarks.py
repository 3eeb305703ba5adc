"""Problems from Parquet files in verl's format (`verl-cast data` makes the paper's)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from verl_cast.tools.cli import UserError

COLUMNS = ("data_source", "prompt", "reward_model")


@dataclass(frozen=True)
class Problem:
    """One row: what the model reads, and what the verifier gets besides the response.

    Attributes:
        messages: chat messages of the prompt.
        fields: data_source, ground_truth and extra_info.
    """

    messages: list[dict[str, str]]
    fields: dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """All problems of one file; `name` is the file's name without its suffix."""

    name: str
    sha256: str
    problems: list[Problem]


def read(files: Sequence[str], limit: int | None = None) -> list[Benchmark]:
    """The benchmarks of these files.

    Args:
        limit: at most this many problems of each, the first ones.

    Raises:
        UserError: a file is missing, of another format, empty, or of the same name as another.
    """
    benchmarks = [_read(Path(file).expanduser(), limit) for file in files]
    names = [benchmark.name for benchmark in benchmarks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--data: two files are called {name}; results are kept by that name, so rename one.")
    return benchmarks


def _read(path: Path, limit: int | None) -> Benchmark:
    if not path.is_file():
        raise UserError(f"--data {path}: no such file; `verl-cast data` makes the benchmarks of the paper.")
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"--data {path}: not a Parquet file.") from error
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise UserError(
            f"--data {path}: it has no column {', '.join(missing)}, so it is not in verl's format "
            f"({', '.join(COLUMNS)}); `verl-cast data` converts benchmarks to that format."
        )
    problems = [_problem(path, i, row) for i, row in enumerate(table.slice(0, limit).to_pylist())]
    if not problems:
        raise UserError(f"--data {path}: it holds no problem.")
    return Benchmark(path.stem, hashlib.sha256(path.read_bytes()).hexdigest(), problems)


def _problem(path: Path, i: int, row: dict[str, Any]) -> Problem:
    messages, answer = row["prompt"], (row["reward_model"] or {}).get("ground_truth")
    if not isinstance(messages, list) or not all(isinstance((m or {}).get("content"), str) for m in messages):
        raise UserError(f"--data {path}: prompt of row {i} must be a list of chat messages with text only.")
    if answer is None:
        raise UserError(f"--data {path}: row {i} has no reward_model.ground_truth to verify against.")
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    fields = {"data_source": row["data_source"], "ground_truth": answer, "extra_info": row.get("extra_info") or {}}
    return Problem(messages, fields)
