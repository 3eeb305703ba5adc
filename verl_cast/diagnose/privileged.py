"""The privileged context: the prompt with the reference answer in it, as in OPSD (arXiv 2601.18734).

CAST's teacher is answer-free (method section 8). This context exists to be compared with it (section 10), and only
here: it is no `TeacherContext`, no value of `algorithm.cast.teacher.context` selects it, and no module that trains
imports this package. The last user message becomes

    {the message}

    For your eyes only, the reference answer to this problem:
    {reference}

    Work towards it step by step as if you did not know it, in the form that the problem asks for.

and the chat goes through the model's own chat template, like the student's. The reference is the data's
`reward_model.ground_truth`: an answer, where OPSD has a worked solution.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from verl_cast.cli import UserError

PRIVILEGED_NOTE = (
    "{message}\n\nFor your eyes only, the reference answer to this problem:\n{reference}\n\n"
    "Work towards it step by step as if you did not know it, in the form that the problem asks for."
)


def privileged_messages(messages: Sequence[Mapping[str, Any]], reference: str) -> list[dict[str, Any]]:
    """The chat with the reference in its last user message.

    Raises:
        UserError: there is no user message, or it holds something else than text.
    """
    messages = [dict(message) for message in messages]
    users = [message for message in messages if message["role"] == "user"]
    if not users or not isinstance(users[-1]["content"], str):
        raise UserError(
            "a prompt has no user message of text alone, so the privileged teacher cannot be shown its answer; "
            "leave this part out with --no-gaps."
        )
    users[-1]["content"] = PRIVILEGED_NOTE.format(message=users[-1]["content"], reference=reference)
    return messages
