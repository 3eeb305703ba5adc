"""What a privileged teacher is shown of every row: the data's reference, or a correct response of the same group.

Local Parquet files are checked before the run starts; every row is checked again in training.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from omegaconf import DictConfig, ListConfig

from verl_cast.config.baselines import BaselineConfig
from verl_cast.config.cast import CastConfigError


def check_references(config: DictConfig, method: BaselineConfig) -> None:
    """Every row of the training data has a reference, where the method's teacher reads one.

    Raises:
        CastConfigError: a file's column or key is missing, or rows have nothing there.
    """
    teacher = method.teacher
    if teacher.context == "peer":
        return
    key = f"{teacher.KEY}.reference_key"
    files = config.data.train_files
    for path in map(str, files if isinstance(files, list | ListConfig) else [files]):
        path = os.path.expanduser(path)
        if not path.endswith(".parquet") or not os.path.isfile(path):
            continue  # verl itself fetches it and reports what is missing; its rows are checked in training
        try:
            values = _column(path, teacher.reference_key)
        except KeyError as error:
            raise CastConfigError(
                key,
                teacher.reference_key,
                f"{path} has no {error.args[0]}. {method.TITLE}'s teacher is privileged: it needs a reference in every "
                "row. Name where it stands, or choose a method without one (cast, grpo).",
            ) from error
        missing = sum(not text.strip() for text in map(_text, values))
        if missing:
            raise CastConfigError(
                key,
                teacher.reference_key,
                f"{missing} of {len(values)} rows of {path} have no reference, which {method.TITLE}'s privileged "
                "teacher needs. Fill them, leave the rows out, or choose a method without references (cast, grpo).",
            )


def _column(path: str, reference_key: str) -> list[Any]:
    """The values below a dotted key; KeyError says what is missing, and what is there."""
    name, *keys = reference_key.split(".")
    names = pq.read_schema(path).names
    if name not in names:
        raise KeyError(f"column {name!r} (it has {', '.join(names)})")
    values = pq.read_table(path, columns=[name])[name]
    for part in keys:
        inner = [f.name for f in values.type] if pa.types.is_struct(values.type) else []
        if part not in inner:
            raise KeyError(f"key {part!r} in {name!r} (it has {', '.join(inner) or 'no keys'})")
        values, name = pc.struct_field(values, part), f"{name}.{part}"
    return values.to_pylist()


def _text(value: Any) -> str:
    """A reference as text; several accepted answers are alternatives on lines of their own."""
    if isinstance(value, list | tuple):
        return "\n".join(map(str, value))
    return "" if value is None else str(value)


def references(rows: Mapping[str, Sequence[Any]], reference_key: str, keys: Sequence[str]) -> list[str]:
    """The reference of every row.

    Args:
        rows: column -> (B,) values, the column that `reference_key` starts with among them.
        keys: (B,) names of the rows, for messages.

    Raises:
        ValueError: a row has none.
    """
    name, *parts = reference_key.split(".")
    texts = []
    for row, value in zip(keys, rows[name], strict=True):
        for part in parts:
            value = value.get(part) if isinstance(value, Mapping) else None
        texts.append(_text(value))
        if not texts[-1].strip():
            raise ValueError(f"row {row} has no reference at {reference_key}, which a privileged teacher needs.")
    return texts


def peers(uids: Sequence[str], keys: Sequence[str], correct: Sequence[bool], texts: Sequence[str]) -> list[str]:
    """RLRT's context: for every row a correct response of its group, another one than itself where there is one.

    A response that alone is correct is shown to itself, as in the author's public development code of CAST, which holds
    RLRT too. Of several peers the first by its key is taken, whatever the order of the batch; "" where there is none.
    """
    of_group: dict[str, list[int]] = {}
    for row in sorted(range(len(keys)), key=lambda row: keys[row]):
        if correct[row]:
            of_group.setdefault(uids[row], []).append(row)
    shown = []
    for row, uid in enumerate(uids):
        members = of_group.get(uid, [])
        others = [member for member in members if member != row]
        shown.append(texts[(others or members)[0]] if members else "")
    return shown
