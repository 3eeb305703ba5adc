"""The privileged contexts of the baselines' teachers: the problem, and beside it what no student sees.

* `reference`       plain text without chat template, as CAST's `plain`, with the reference before the response. This is
                    the form of the author's public development code of CAST, which holds RLSD too.
* `reference_chat`  the student's chat with the reference in its last user message, through the model's own template:
                    OPSD's arrangement, in our words.
* `peer`            plain text with a correct response of the same group, RLRT's context. Where the group has no correct
                    response, the plain text alone: RLRT's rule leaves such rows as GRPO has them.

CAST's teacher is answer-free (method section 8). No value of `algorithm.cast.teacher.context` selects one of these, and
a CAST run never imports this module. `verl-cast diagnose` shows the second one, for analysis only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from verl_cast import wire
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
