"""Compares two answers that were read: their structure here, pairs of values by a function that the caller passes.

Only answers of one kind can be equal: lists and sets element by element in any order, tuples and intervals in order and
with the same brackets, texts by their words. `exactly` decides pairs of texts and of rational numbers at once.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from verl_cast.verifier.dialect import rational
from verl_cast.verifier.reading import Answer

TUPLES = ("()", "[]", "(]", "[)")


class Undecided(Exception):
    """Two values that are neither the same text nor both rational."""


def exactly(answer: Answer, reference: Answer) -> bool:
    """Whether two values are equal.

    Raises:
        Undecided: that needs math-verify.
    """
    if answer.text and answer.text == reference.text:
        return True
    if r"\ldots" in (answer.text, reference.text):
        return False
    left, right = rational(answer.text), rational(reference.text)
    if left is None or right is None:
        raise Undecided
    if answer.kind == "rounded":
        return abs(left - right) < Fraction(10) ** -len(answer.text.partition(".")[2])
    return left == right


def same(answer: Answer, reference: Answer, same_value: Callable[[Answer, Answer], bool]) -> bool:
    """Whether two answers are equal, where `same_value` decides pairs of values and pairs of regions."""
    if not all(same_value(stated, answer) for stated in answer.same):
        return False
    kinds = {answer.kind, reference.kind}
    if "text" in kinds:
        return len(kinds) == 1 and answer.text == reference.text != ""
    if "choice" in kinds:
        return _same_choice(answer, reference, same_value)
    if answer.equation and reference.equation:
        return answer.equation == reference.equation or same_value(_whole(answer), _whole(reference))
    if reference.equation or (answer.name and reference.name and answer.name != reference.name):
        return bool(answer.name) and same_value(_whole(answer), _whole(reference))
    if kinds <= {"list", "set"} and _same_elements(answer, reference, same_value):
        return True
    if len(kinds) == 1 and answer.kind in TUPLES:
        pairs = zip(answer.items, reference.items, strict=False)
        return len(answer.items) == len(reference.items) and all(same(a, r, same_value) for a, r in pairs)
    if kinds == {"value"}:
        return _same_measure(answer, reference, same_value)
    if is_region(answer) and is_region(reference) and kinds != {"set"}:
        return same_value(answer, reference)
    if kinds == {"set", "value"} and len(answer.items + reference.items) == 1:
        return same(*(one.items[0] if one.items else one for one in (answer, reference)), same_value)
    return False


def is_region(answer: Answer) -> bool:
    """A relation or several, an interval, a set, or an expression of sets."""
    if answer.kind == "list":
        return answer.joint in ("or", "and") and all(item.kind == "relation" for item in answer.items)
    if answer.kind == "value":
        return re.search(r"\\(?:cup|cap|setminus|mathbb|emptyset)", answer.text) is not None
    return answer.kind in ("relation", "set") or (answer.kind in TUPLES and len(answer.items) == 2)


def _whole(answer: Answer) -> Answer:
    return Answer("equation", answer.equation or f"{answer.name}={answer.text}")


def _same_choice(answer: Answer, reference: Answer, same_value: Callable) -> bool:
    if answer.kind == reference.kind:
        if answer.text != reference.text or not (answer.items and reference.items):
            return answer.text == reference.text
        return same(answer.items[0], reference.items[0], same_value)
    if answer.kind == "choice":  # `C. x = 42` where the reference is 42
        return bool(answer.items) and same(answer.items[0], reference, same_value)
    if answer.text.upper() == reference.text:  # `c` for C
        return True
    return bool(reference.items) and same(answer, reference.items[0], same_value)


def _same_elements(answer: Answer, reference: Answer, same_value: Callable) -> bool:
    if len(answer.items) != len(reference.items):
        return False
    if {answer.joint, reference.joint} == {"or", "and"} and is_region(answer):  # x < 1 or x > 4 is not x < 1 and x > 4
        return False
    if any(item.text == r"\ldots" for item in answer.items + reference.items):
        return all(same(a, r, same_value) for a, r in zip(answer.items, reference.items, strict=True))
    left = list(reference.items)
    for item in answer.items:
        found = next((one for one in left if same(item, one, same_value)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _same_measure(answer: Answer, reference: Answer, same_value: Callable) -> bool:
    """Values with units. A percent sign may be left out, or mean a hundredth; other units may be left out."""
    if answer.base or reference.base:
        return answer.text == reference.text and answer.base in (reference.base, "") and bool(reference.base)
    units = {answer.unit, reference.unit} - {"", "?"}
    if len(units) > 1:
        return False
    if answer.unit != reference.unit and "%" in units:
        return same_value(answer, reference) or same_value(_share(answer), _share(reference))
    return same_value(answer, reference)


def _share(answer: Answer) -> Answer:
    if answer.unit != "%":
        return answer
    number = rational(answer.text)
    if number is None:
        return Answer("value", rf"\frac{{{answer.text}}}{{100}}")
    return Answer("value", rf"\frac{{{number.numerator}}}{{{number.denominator * 100}}}")
