"""The privileged context of the diagnosis: a prompt that contains the reference answer, as in OPSD (arXiv 2601.18734).

CAST's teacher is answer-free (method section 8). The diagnosis compares its gaps with those of a privileged teacher
(section 10). The reference is the data's `reward_model.ground_truth`: an answer, not a worked solution as in OPSD.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from verl_cast.teacher.privileged.context import reference_messages
from verl_cast.tools.cli import UserError

_WITHOUT = "leave the privileged teacher out with --no-gaps."


def privileged_messages(messages: Sequence[Mapping[str, Any]], reference: str | None) -> list[dict[str, Any]]:
    """The chat with the reference in its last user message.

    Raises:
        UserError: there is no reference or no user message, or the message holds more than text.
    """
    if reference is None:
        raise UserError(f"a problem has no reference answer (reward_model.ground_truth); {_WITHOUT}")
    try:
        return reference_messages(messages, reference)
    except ValueError as error:
        raise UserError(f"{error}; {_WITHOUT}") from error
