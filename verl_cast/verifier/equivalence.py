"""Decides whether two answers are the same; most pairs need no process.

Both sides are read in the same way (`reading`) and compared by their structure (`structure`). Equal texts and rational
numbers are decided at once. Every other pair needs math-verify, which can hang or crash, and so runs in a process
(`processes`, `mathematics`). Left out: finding the answer in a response (`answers`).
"""

import re

from verl_cast.verifier import processes, structure
from verl_cast.verifier.reading import read

# Longer text is no final answer: it counts as wrong and is not parsed.
MAX_ANSWER_CHARACTERS = 1000

_INTEGER = re.compile(r"[+-]?\d{1,300}", re.ASCII)


def is_equal(answer: str, reference: str, timeout: float) -> bool | None:
    """Whether the answer equals the reference; None where the comparison had to be stopped (time, memory, crash).

    Args:
        answer: extracted from a response.
        reference: extracted from the ground truth.
        timeout: seconds for the comparison itself; waiting for a free process comes on top.
    """
    if not answer or not reference:
        return False
    if len(answer) > MAX_ANSWER_CHARACTERS or len(reference) > MAX_ANSWER_CHARACTERS:
        return answer == reference
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(reference):
        return int(answer) == int(reference)
    if answer == reference:
        return True
    try:
        return structure.same(read(answer), read(reference), structure.exactly)
    except structure.Undecided:
        return processes.judge(answer, reference, timeout)
