"""How long a teacher's prompt plus a response may be, and how long the prompts of a data set are."""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from verl_cast.teacher.context import TeacherContext

Messages = Sequence[Mapping[str, Any]]


def max_positions(text_config: Any) -> int | None:
    """Tokens that a Hugging Face text config allows; None where it names no limit."""
    limit = getattr(text_config, "max_position_embeddings", None)
    # The rotary settings, under the names of old and new transformers. YaRN and its like stretch the positions.
    settings = (getattr(text_config, name, None) for name in ("rope_parameters", "rope_scaling"))
    factors = [rope.get("factor") or 1.0 for rope in settings if isinstance(rope, dict)]
    return None if limit is None else int(limit * max([1.0, *factors]))


def longest_prompt(
    context: TeacherContext,
    prompts: Iterable[Messages],
    student_prompt_ids: Callable[[Messages], Sequence[int]],
    num_measured: int = 64,
) -> int:
    """Tokens of the teacher's longest prompt. Only the prompts with the most characters are tokenized.

    Args:
        context: the teacher's.
        prompts: the chat messages of every row, text only.
        student_prompt_ids: messages -> the student's prompt tokens.
        num_measured: how many of the longest are tokenized.
    """
    longest = heapq.nlargest(num_measured, prompts, key=_num_characters)
    return max((len(context.prompt_ids(messages, student_prompt_ids(messages))) for messages in longest), default=0)


def _num_characters(messages: Messages) -> int:
    return sum(len(message["content"]) for message in messages)
