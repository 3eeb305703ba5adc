"""The baselines' privileged teachers: what they are shown of every row, and the prompt that shows it.

* `reference`       plain text without chat template, as CAST's `plain`, with the reference before the response. This is
                    the form of the author's public development code of CAST, which holds RLSD too.
* `reference_chat`  the student's chat with the reference in its last user message, through the model's own template:
                    OPSD's arrangement, in our words.
* `peer`            plain text with a correct response of the same group, RLRT's context. Where the group has no correct
                    response, only the plain text: RLRT's rule leaves such rows as GRPO has them.

CAST's teacher is answer-free (method section 8). No value of `algorithm.cast.teacher.context` selects one of these, and
a CAST run never imports this module. `verl-cast diagnose` shows the second one, for analysis only.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq
import transfer_queue as tq
from omegaconf import DictConfig, ListConfig
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu

from verl_cast import wire
from verl_cast.config.baselines import BaselineConfig
from verl_cast.config.cast import CastConfigError
from verl_cast.teacher.context import INSTRUCTION, RESPONSE_HEADER, problem_text, text_ids

_REFERENCE_NOTE = (
    "{message}\n\nFor your eyes only, the reference answer to this problem:\n{reference}\n\n"
    "Work towards it step by step as if you did not know it, in the form that the problem asks for."
)
_SECTIONS = {"reference": "[Reference solution]", "peer": "[Correct rollout]"}


def reference_messages(messages: Sequence[Mapping[str, Any]], reference: str) -> list[dict[str, Any]]:
    """The chat with the reference in its last user message.

    Raises:
        ValueError: there is no user message, or it holds something else than text.
    """
    messages = [dict(message) for message in messages]
    users = [message for message in messages if message["role"] == "user"]
    if not users or not isinstance(users[-1]["content"], str):
        raise ValueError("a prompt has no user message of text alone, so a privileged teacher cannot be shown more")
    users[-1]["content"] = _REFERENCE_NOTE.format(message=users[-1]["content"], reference=reference)
    return messages


class PrivilegedContext:
    """Builds a privileged teacher's prompt tokens; the worker uses it as it uses CAST's TeacherContext.

    Args:
        context: `reference`, `reference_chat` or `peer`.
        tokenizer: the policy's tokenizer.
        chat_template_kwargs: what verl passes to the chat template (`data.apply_chat_template_kwargs`).
    """

    is_same = False
    reads_field: str | None = wire.SHOWN_TO_TEACHER

    def __init__(self, context: str, tokenizer: Any, chat_template_kwargs: Mapping[str, Any]):
        self.name = self.identity = context
        self._tokenizer = tokenizer
        self._chat_template_kwargs = dict(chat_template_kwargs)

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], shown: str) -> list[int]:
        """Token ids of the teacher's prompt for one row; `shown` is the reference or the peer's response."""
        if self.name != "reference_chat":
            return text_ids(self._tokenizer, self._plain_text(messages, shown))
        text = self._tokenizer.apply_chat_template(
            reference_messages(messages, shown),
            tokenize=False,
            add_generation_prompt=True,
            **self._chat_template_kwargs,
        )
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _plain_text(self, messages: Sequence[Mapping[str, Any]], shown: str) -> str:
        parts = [problem_text(messages), INSTRUCTION]
        if shown:
            parts.append(f"{_SECTIONS[self.name]}\n{shown}")
        return "\n\n".join([*parts, f"{RESPONSE_HEADER}\n"])


def shown_to_teacher(batch: KVBatchMeta, method: BaselineConfig, tokenizer: Any) -> TensorDict:
    """The field SHOWN_TO_TEACHER of every row: its reference, or a correct response of its group (`peer`)."""

    def read(*names: str) -> TensorDict:
        return tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(names))

    if method.teacher.context == "peer":
        data = read("uid", "responses", "response_mask", "rm_scores")
        masks = data["response_mask"].unbind()
        written = [ids[mask.bool()] for ids, mask in zip(data["responses"].unbind(), masks, strict=True)]
        scores = [float(row.sum()) for row in data["rm_scores"].unbind()]
        threshold = method.correct_threshold
        correct = [len(ids) > 0 and score > threshold for ids, score in zip(written, scores, strict=True)]
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        shown = peers([str(uid) for uid in tu.get(data, "uid")], batch.keys, correct, texts)
    else:
        column = method.teacher.reference_key.split(".")[0]
        shown = references(list(tu.get(read(column), column)), method.teacher.reference_key, batch.keys)
    return tu.get_tensordict({wire.SHOWN_TO_TEACHER: shown})


def references(values: Sequence[Any], reference_key: str, keys: Sequence[str]) -> list[str]:
    """The reference of every row.

    Args:
        values: (B,) of the column that `reference_key` starts with.
        keys: (B,) names of the rows, for messages.

    Raises:
        ValueError: a row has none.
    """
    texts = [_reference(value, reference_key.split(".")[1:]) for value in values]
    for row, text in zip(keys, texts, strict=True):
        if not text.strip():
            raise ValueError(f"row {row} has no reference at {reference_key}, which a privileged teacher needs.")
    return texts


def _reference(value: Any, path: Sequence[str]) -> str:
    """The text below these keys, "" where there is none; several accepted answers stand on a line each."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, list | tuple):
        return "\n".join(map(str, value))
    return "" if value is None else str(value)


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


def check_references(config: DictConfig, method: BaselineConfig) -> None:
    """Every row of the training data has a reference, where the method's teacher reads one.

    Looks at local Parquet files, before the run starts. Every row is checked again in training.

    Raises:
        CastConfigError: a file has no such column, or rows have nothing there.
    """
    teacher = method.teacher
    if teacher.context == "peer":
        return
    column, *keys = teacher.reference_key.split(".")
    files = config.data.train_files
    for path in map(str, files if isinstance(files, list | ListConfig) else [files]):
        path = os.path.expanduser(path)
        if not path.endswith(".parquet") or not os.path.isfile(path):
            continue  # verl itself fetches it and reports what is missing
        columns = pq.read_schema(path).names
        problem = f"no column {column!r} (it has {', '.join(columns)})"
        if column in columns:
            values = pq.read_table(path, columns=[column])[column].to_pylist()
            empty = [value for value in values if not _reference(value, keys).strip()]
            if not empty:
                continue
            problem = f"none in {len(empty)} of {len(values)} rows; the first of them has {column}={empty[0]!r:.100}"
        raise CastConfigError(
            f"{teacher.KEY}.reference_key",
            teacher.reference_key,
            f"{method.TITLE}'s teacher is privileged and needs a reference in every row. {path} has {problem}. Name "
            "where it stands, fill it in, or choose a method without references (cast, grpo).",
        )
