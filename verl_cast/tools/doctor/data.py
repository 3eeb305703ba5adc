"""The run's data and verifier: are the files there, do their rows hold what verl needs, does the reward function load?

Only the first rows are read. The reward function is loaded, never called. Left out: remote files, and the needs of a
user's own dataset class or reward manager.
"""

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig

from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor.lines import Line, cause_of, error, note, ok, warning

ROWS = 64


@dataclass
class Data:
    """The part of the training data that was read, and the lines about data and verifier."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # the first rows of the first file
    total: int | None = 0  # rows of all training files; None: not known
    lines: list[Line] = field(default_factory=list)


def check(config: DictConfig) -> Data:
    """Check the training and validation files, and the reward function."""
    found = Data()
    for key in ("train_files", "val_files"):
        names = config.data[key]
        for name in [names] if isinstance(names, str) else list(names or []):
            line, rows, count = _file(f"data.{key}", name)
            found.lines.append(line)
            if key == "train_files":
                found.rows = found.rows or rows
                found.total = None if count is None or found.total is None else found.total + count
    if not config.data.train_files:
        found.lines.append(error("data", "data.train_files names no file."))
    if found.rows and config.data.custom_cls.path is None:
        found.lines += _columns(config, found.rows)
    found.lines += _reward(config, found.rows)
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


def _reward(config: DictConfig, rows: Sequence[dict[str, Any]]) -> list[Line]:
    key, custom = "reward.custom_reward_function", config.reward.custom_reward_function
    lines = []
    if config.custom_reward_function.path is not None and custom.path is None:
        lines.append(
            warning(
                "verifier", f"custom_reward_function.path is verl's old key, which its V1 trainer ignores; use {key}."
            )
        )
    if custom.path is None:
        sources = ", ".join(sorted({str(row.get("data_source")) for row in rows})) or "not known"
        return lines + [note("verifier", f"verl's own for data_source {sources}; its rewards must be binary")]
    from verl.utils.import_utils import load_extern_object

    try:
        function = load_extern_object(custom.path, custom.name)
    except Exception as problem:  # the user's file may raise anything
        return lines + [
            error("verifier", f"{key}: {custom.name} of {custom.path} does not load: {first_line(cause_of(problem))}")
        ]
    arguments = dict.fromkeys(("data_source", "solution_str", "ground_truth", "extra_info"))
    try:
        inspect.signature(function).bind(**{**arguments, **(custom.get("reward_kwargs") or {})})
    except TypeError as problem:
        return lines + [
            error("verifier", f"{key}: verl calls {custom.name}({', '.join(arguments)}), but {first_line(problem)}")
        ]
    return lines + [ok("verifier", f"{custom.name} of {custom.path} loads (not called); it must give binary rewards")]
