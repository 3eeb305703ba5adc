"""Decides whether two answers are the same.

Both sides are read in the same way (`reading`). Only answers of one kind can be equal: lists and sets element by
element in any order, tuples and intervals in order and with the same brackets, texts by their words. Pairs of equal
texts and of rational numbers are decided at once. All other pairs need math-verify, which the caller provides
(`mathematics`, `processes`). Left out: finding the answer in a response (`answers`).
"""

import re
from collections.abc import Callable
from fractions import Fraction

from verl_cast.verifier.dialect import rational
from verl_cast.verifier.reading import Answer, read

# Longer text is no final answer: it counts as wrong and is not parsed.
MAX_ANSWER_CHARACTERS = 1000
TUPLES = ("()", "[]", "(]", "[)")

_INTEGER = re.compile(r"[+-]?\d{1,300}", re.ASCII)
# math-verify's verdict on two values, regions or equations; None where it is not at hand.
Decide = Callable[[Answer, Answer], bool] | None


class Undecided(Exception):
    """Two values are neither the same text nor both rational."""


def is_equal(answer: str, reference: str, judge: Callable[[str, str], bool | None]) -> bool | None:
    """Whether the answer equals the reference; None where the comparison had to be stopped (time, memory, crash).

    Args:
        answer: extracted from a response.
        reference: extracted from the ground truth.
        judge: decides pairs that need math-verify.
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
        return same(read(answer), read(reference), None)
    except Undecided:
        return judge(answer, reference)


def same(answer: Answer, reference: Answer, decide: Decide) -> bool:
    """Whether two answers are equal.

    Raises:
        Undecided: a pair of values needs math-verify, and `decide` is None.
    """
    if not all(_same_value(stated, answer, decide) for stated in answer.same):
        return False
    kinds = {answer.kind, reference.kind}
    if "text" in kinds:
        return len(kinds) == 1 and answer.text == reference.text != ""
    if "choice" in kinds:
        return _same_choice(answer, reference, decide)
    if answer.equation and reference.equation:
        return answer.equation == reference.equation or _same_value(_whole(answer), _whole(reference), decide)
    if reference.equation or (answer.name and reference.name and answer.name != reference.name):
        return bool(answer.name) and _same_value(_whole(answer), _whole(reference), decide)
    if kinds <= {"list", "set"} and _same_elements(answer, reference, decide):
        return True
    if len(kinds) == 1 and answer.kind in TUPLES:
        pairs = zip(answer.items, reference.items, strict=False)
        return len(answer.items) == len(reference.items) and all(same(a, r, decide) for a, r in pairs)
    if kinds == {"value"}:
        return _same_measure(answer, reference, decide)
    if is_region(answer) and is_region(reference) and kinds != {"set"}:
        return _same_value(answer, reference, decide)
    if kinds == {"set", "value"} and len(answer.items + reference.items) == 1:
        return same(*(one.items[0] if one.items else one for one in (answer, reference)), decide)
    return False


def _same_value(answer: Answer, reference: Answer, decide: Decide) -> bool:
    """Whether two values, two regions (relations, intervals, sets) or two equations are equal."""
    if answer.text and answer.text == reference.text:
        return True
    if r"\ldots" in (answer.text, reference.text):
        return False
    left, right = rational(answer.text), rational(reference.text)
    if left is None or right is None:
        if decide is None:
            raise Undecided
        return decide(answer, reference)
    if answer.kind == "rounded":
        return abs(left - right) < Fraction(10) ** -len(answer.text.partition(".")[2])
    return left == right


def is_region(answer: Answer) -> bool:
    """A relation or several, an interval, a set, or an expression of sets."""
    if answer.kind == "list":
        return answer.joint in ("or", "and") and all(item.kind == "relation" for item in answer.items)
    if answer.kind == "value":
        return re.search(r"\\(?:cup|cap|setminus|mathbb|emptyset)", answer.text) is not None
    return answer.kind in ("relation", "set") or (answer.kind in TUPLES and len(answer.items) == 2)


def _whole(answer: Answer) -> Answer:
    return Answer("equation", answer.equation or f"{answer.name}={answer.text}")


def _same_choice(answer: Answer, reference: Answer, decide: Decide) -> bool:
    if answer.kind == reference.kind:
        if answer.text != reference.text or not (answer.items and reference.items):
            return answer.text == reference.text
        return same(answer.items[0], reference.items[0], decide)
    if answer.kind == "choice":  # `C. x = 42` where the reference is 42
        return bool(answer.items) and same(answer.items[0], reference, decide)
    if answer.text.upper() == reference.text:  # `c` for C
        return True
    return bool(reference.items) and same(answer, reference.items[0], decide)


def _same_elements(answer: Answer, reference: Answer, decide: Decide) -> bool:
    if len(answer.items) != len(reference.items):
        return False
    if {answer.joint, reference.joint} == {"or", "and"} and is_region(answer):  # x < 1 or x > 4 is not x < 1 and x > 4
        return False
    if any(item.text == r"\ldots" for item in answer.items + reference.items):
        return all(same(a, r, decide) for a, r in zip(answer.items, reference.items, strict=True))
    left = list(reference.items)
    for item in answer.items:
        found = next((one for one in left if same(item, one, decide)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _same_measure(answer: Answer, reference: Answer, decide: Decide) -> bool:
    """Values with units. A percent sign may be left out, or mean a hundredth; other units may be left out."""
    if answer.base or reference.base:
        return answer.text == reference.text and answer.base in (reference.base, "") and bool(reference.base)
    units = {answer.unit, reference.unit} - {"", "?"}
    if len(units) > 1:
        return False
    if answer.unit != reference.unit and "%" in units:
        return _same_value(answer, reference, decide) or _same_value(_share(answer), _share(reference), decide)
    return _same_value(answer, reference, decide)


def _share(answer: Answer) -> Answer:
    return Answer("value", rf"\frac{{{answer.text}}}{{100}}") if answer.unit == "%" else answer
