"""The mathematics of a comparison, by math-verify: run only in a process that can be killed (`processes`).

math-verify parses (its parser reads a text to its end or fails) and compares. Three things are kept from it:
* Decimals become fractions. It rounds decimals to six places; fractions it compares exactly.
* Numbers are compared by their ratio. It drops differences below a fixed bound, which tiny numbers fall under.
* Letters keep their case where an answer or its reference uses both cases of one letter (`R - r` is not 0).
"""

import re

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from math_verify.grader import unwrap_fcs

from verl_cast.verifier import equivalence
from verl_cast.verifier.equivalence import TUPLES, is_region
from verl_cast.verifier.reading import Answer, read

_NORMALIZATION = NormalizationConfig(units=False, malformed_operators=True, nits=False, boxed="none")
_DIGITS = 100
_DECIMAL = re.compile(r"(?<![\w.])(\d*)\.(\d+)")


def judge(answer: str, reference: str) -> bool:
    """Whether two answers are equal."""
    return equivalence.same(read(answer), read(reference), same)


def same(answer: Answer, reference: Answer) -> bool:
    """Whether two values, or two regions (relations, intervals, sets), or two equations are equal."""
    try:
        parse = _parser(latex(answer), latex(reference))
        if answer.kind == "rounded":
            value = parse(latex(reference))
            places = len(answer.text.partition(".")[2])
            return bool(abs(value - sympy.Rational(answer.text)) < sympy.Rational(10) ** -places)
        if answer.kind == "equation":
            return _same_equations(parse(answer.text), parse(reference.text))
        if answer.kind == reference.kind == "value" and not (is_region(answer) or is_region(reference)):
            return _same_values(parse(answer.text), parse(reference.text))
        if answer.kind == reference.kind == "relation" and _verify(parse(reference.text), parse(answer.text)):
            return True
        (left, unknowns), (right, unknowns_of_reference) = _region(answer, parse), _region(reference, parse)
        if unknowns and unknowns_of_reference and unknowns != unknowns_of_reference:
            return False
        return left == right or left.symmetric_difference(right).is_empty is True
    except (MemoryError, RecursionError):
        raise
    except Exception:  # not readable, or sympy cannot decide: not equal
        return False


def latex(answer: Answer) -> str:
    if answer.kind in ("value", "relation", "equation", "rounded"):
        return answer.text
    opening, closing = (r"\{", r"\}") if answer.kind == "set" else answer.kind if len(answer.kind) == 2 else ("", "")
    return opening + ",".join(latex(item) for item in answer.items) + closing


def _parser(*texts: str):
    """A function from LaTeX to sympy, with one convention for both sides."""
    letters = [set(re.sub(r"\\[a-zA-Z]+|[^A-Za-z]", "", text)) for text in texts]
    both_cases = any(letter.islower() and letter.upper() in side for side in letters for letter in side)
    config = ConversionConfig(lowercase_symbols=not both_cases)
    # `i` is the imaginary unit, unless it counts in a sum.
    both = " ".join(texts)
    is_real = not re.search(r"(?<![A-Za-z\\])i(?![A-Za-z])", both) or "_{i" in both

    def parse(text: str):
        text = _DECIMAL.sub(lambda found: rf"(\frac{{{int(found[1] + found[2])}}}{{{10 ** len(found[2])}}})", text)
        text = normalize_latex(text, _NORMALIZATION)
        parsed = latex2sympy(text, is_real=is_real, normalization_config=None, conversion_config=config)
        return parsed if is_real else parsed.subs(sympy.Symbol("i", real=False), sympy.I)

    return parse


def _verify(reference, answer) -> bool:
    return verify(reference, answer, numeric_precision=_DIGITS, timeout_seconds=None)


def _same_values(answer, reference) -> bool:
    are_expressions = isinstance(answer, sympy.Expr) and isinstance(reference, sympy.Expr)
    if are_expressions and not (answer.free_symbols or reference.free_symbols):
        left, right = answer.doit(), reference.doit()
        if left.is_Rational and right.is_Rational:
            return left == right
        if left.is_finite is False or right.is_finite is False:
            return left == right and left not in (sympy.nan, sympy.zoo)
        if left.is_zero is False and right.is_zero is False:
            ratio = left / right
            if abs(sympy.N(ratio - 1, 15)) > 1e-9:  # clear without simplifying
                return False
            return _verify(sympy.Integer(1), ratio)
    return _verify(reference, answer)


def _same_equations(answer, reference) -> bool:
    ratio = sympy.simplify((answer.lhs - answer.rhs) / (reference.lhs - reference.rhs))
    if ratio.is_number:
        return ratio.is_zero is False and ratio.is_finite is True
    has_solutions = bool(sympy.solve(reference, reference.free_symbols))
    return has_solutions and _verify(reference, answer)


def _region(answer: Answer, parse) -> tuple[sympy.Set, set]:
    """(set, unknowns of the relations that mean it)"""
    if answer.kind == "list":
        parts = [_region(item, parse) for item in answer.items]
        if len({frozenset(part[1]) for part in parts}) > 1:
            raise ValueError("relations of different unknowns")
        join = sympy.Union if answer.joint == "or" else sympy.Intersection
        return join(*(part[0] for part in parts)), parts[0][1]
    expression = parse(latex(answer))
    if answer.kind == "relation":
        expression = unwrap_fcs(expression)
        return expression.as_set(), expression.free_symbols
    if answer.kind in TUPLES:
        start, end = (parse(latex(item)) for item in answer.items)
        return sympy.Interval(start, end, answer.kind[0] == "(", answer.kind[1] == ")"), set()
    if not isinstance(expression, sympy.Set):
        raise ValueError("no set")
    return expression.doit(), set()
