"""The privileged context of the diagnosis: a prompt that contains the reference answer, as in OPSD (arXiv 2601.18734).

CAST's teacher is answer-free (method section 8). The diagnosis compares its gaps with those of a privileged teacher
(section 10). The reference is the data's `reward_model.ground_truth`: an answer, not a worked solution as in OPSD.
"""

from collections.abc import Mapping
from typing import Any

from verl_cast.teacher.privileged import reference_messages
from verl_cast.tools.cli import UserError

_WITHOUT = "leave the privileged teacher out with --no-gaps."


def privileged_messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chat of a row of the data, with the row's reference in its last user message.

    Raises:
        UserError: there is no reference or no user message, or the message holds more than text.
    """
    reference = (row.get("reward_model") or {}).get("ground_truth")
    if reference in (None, ""):
        raise UserError(f"a problem has no reference answer (reward_model.ground_truth); {_WITHOUT}")
    try:
        return reference_messages(row["raw_prompt"], str(reference))
    except ValueError as error:
        raise UserError(f"{error}; {_WITHOUT}") from error
