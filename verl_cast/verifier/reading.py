r"""Reads an answer whole: as the value, list, set, tuple, relation, choice or text that it is. Needs no sympy.

`read` takes wrappers off both ends by the rules of README.md (`The answer is`, `x =`, units, currency, delimiters). It
never searches: if anything is left that is not mathematics, the answer is a text, and only the same text equals it.

Takes milliseconds for any text of at most 1000 characters. Left out: what is equal (`equivalence`).
"""

import re
import unicodedata
from dataclasses import dataclass, replace

from verl_cast.verifier import words
from verl_cast.verifier.dialect import FONT, NUMBER, closing, compact, depths, formula, one_dialect, without_fonts

# Brackets in brackets beyond this are no answer.
MAX_DEPTH = 30


@dataclass(frozen=True)
class Answer:
    """An answer as it was read.

    kind: value, relation, choice, text; list, set, or the brackets of a tuple or interval: (), [], [), (].
    text: of a value or relation its LaTeX, of a choice its letter, of a text its words.
    items: elements of a list, set or tuple; a choice's content, if it has one.
    joint: what joins a list: ",", "or", "and"; "pm" for the two values of a plus-minus sign.
    name, equation: left-hand side of `x = 5`; the whole equation where that side is more than a name.
    same: what the answer itself states as equal to its value, as in `2 + 3 = 5`.
    """

    kind: str
    text: str = ""
    items: tuple["Answer", ...] = ()
    joint: str = ""
    unit: str = ""
    base: str = ""
    name: str = ""
    equation: str = ""
    same: tuple["Answer", ...] = ()


def read(text: str) -> Answer:
    """The answer as one value, list, set, tuple, relation or choice; if it is none of them, as a text."""
    if max(depths(text)) > MAX_DEPTH:
        return Answer("text", text)
    plain = _unwrapped(re.sub(r"(?:^|(?<=[\s*]))~+\s*(?=[\d.])", "≈", text))
    plain = _REMARK.sub(lambda found: found[0] if words.DOUBT.search(found[1]) else "", plain)
    plain = re.sub(r"(?<=\w)\*\*(?=[\s.,])|(?<!\S)\*\*(?=\S)|`", " ", plain)  # Markdown
    latex = _without_dollars(one_dialect(plain))
    latex = re.sub(r"^\s*=|\\checkmark|\s+in (?:total|all)\s*\.?$", " ", latex)
    before = None
    while latex != before:
        before = latex
        latex = _without_lead(_unwrapped(latex))
    conclusion = _CONCLUSION.fullmatch(latex)
    if conclusion and not words.DOUBT.search(conclusion[1]):
        latex = conclusion[2]
    return _choice(latex) or _list(latex) or Answer("text", _words(plain))


# ---- wrappers ----

_LEAD = re.compile(
    rf"(?:(?:{words.LEAD}|#+|an?(?=\s+[a-z]{{2}})|I(?=\s+(?:get|got|have|find|found|obtain)\b))(?![a-zA-Z])[\s:,*_|]*)+"
    rf"|(?:{words.CHINESE_LEAD})+[:,\s]*",
    re.IGNORECASE,
)
_REMARK = re.compile(r"\(\s*(?:that is|i\.e\.|in words|namely)[,:\s]([^()\d]*)\)\s*$", re.IGNORECASE)
_CONCLUSION = re.compile(
    r"(.*[,;.])\s*(?:and so|so|that is|hence|thus|therefore|i\.e\.),?\s+(?:that is,? )?([^,;]*)", re.IGNORECASE
)
_IT_IS = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:it|(?:the\s+)?(?:final\s+|correct\s+)?answer|(?:最终)?答案)"
    r"\s*(?:is\b|是|为|:)[\s:*]*",
    re.IGNORECASE,
)
_ENDS = '✓✅✔️☑🎉*_` \t\n"'
_WRAPPER = re.compile(rf"(?:{FONT}|\\boxed|\\fbox)?\s*(?=\{{)")


def _unwrapped(text: str) -> str:
    """The text without what can stand around an answer: blanks, marks, final punctuation, braces, fonts, boxes."""
    before = None
    while text != before:
        before = text
        text = text.strip(_ENDS)
        text = re.sub(r"(?:(?<!\\)\\|(?<!\.)[.。]|[;,])$", "", text).strip(_ENDS)
        wrapper = _WRAPPER.match(text)
        if wrapper and closing(text, wrapper.end(), "{}") == len(text) - 1:
            text = text[wrapper.end() + 1 : -1]
    return text


def _without_lead(text: str) -> str:
    """The text without words that may lead to an answer, unless these are a part of it (`A = 5`, `a^2`)."""
    text = re.sub(rf"^{FONT}\s*\{{({_LEAD.pattern})\}}", r"\1 ", text, flags=re.IGNORECASE)
    lead = _LEAD.match(text)
    rest = text[lead.end() :] if lead else ""
    if not rest or re.match(r"[=_^+*/<>]", rest) or (rest[0] in "(-\\" and lead[0][-1].isalpha()):
        return text
    return rest


def _without_dollars(text: str) -> str:
    """Currency becomes a unit behind its number; dollars and other delimiters become blanks."""
    is_currency = text.replace(r"\$", "").count("$") % 2
    dollar = r"(?:US)?\\?\$" if is_currency else r"(?:US)?\\\$"
    for sign, unit in ((dollar, "dollars"), ("USD", "dollars"), ("€", "euros"), ("£", "£"), ("¥", "¥")):
        text = re.sub(rf"(?<![\d.,])(-?)\s*{sign}\s*(-?)\s*({NUMBER})(?!\w|\s*[\^/\\])", rf"\1\2\3 {unit}", text)
    return re.sub(r"\\?\$|\\[()\[\]]", " ", text).strip()


def _words(text: str) -> str:
    """A text in lower case, without fonts, quotes and final period. Blanks stay: `1 1/2` is not `11/2`."""
    text = unicodedata.normalize("NFKC", text)
    text = without_fonts(without_fonts(text))
    text = re.sub(r"\\[()\[\],;:! ]|[$~\"]", " ", _IT_IS.sub("", text.strip(" *$"), count=1))
    return re.sub(r"\s+", " ", text).strip(" .!").lower()


# ---- structure ----

_AND_OR = (
    r"(?:\\(?:text|mbox|mathrm)\s*\{[\s~]*(?:or|and)[\s~]*\}|(?<![a-zA-Z\\])(?:or|and)(?![a-zA-Z])|或者?|和|及|与)"
)
_SEPARATOR = re.compile(rf"\s*[,;]\s*{_AND_OR}?\s*|\s*{_AND_OR}\s*")
_EQUALS = re.compile(r"\s*(?:=|\\equiv)\s*")
_APPROX = re.compile(r"\s*\\(?:approx|simeq|doteq)(?![a-zA-Z])\s*")
_RELATION = re.compile(r"<|>|\\(?:le|ge|ne)(?![a-zA-Z])")
_PLUS_MINUS = re.compile(r"\\([pm])[pm](?![a-zA-Z])")
_CHOICE = re.compile(r"\(\s*([A-Ja-j])\s*\)(.*)|([A-J])\s*(?:[):、]|\.(?!\d))(.*)|([A-J])", re.DOTALL)
# x, f(x), a_n, \theta, P(A); (x, y); |AB|; \angle ABC; \overline{AB}
_NAME = re.compile(
    r"\\?[a-zA-Z]+'*(?:_(?:\{[^{}]*\}|\w+))?(?:\^\{?[*'+-]\}?)?\s*(?:\([^()=]*\))?"
    r"|\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])+\s*\)|\|[^|=]+\||(?:m\s*)?\\(?:angle|triangle)\s*[A-Z]+"
    r"|\\(?:overline|vec|hat|bar)\s*\{[^{}]*\}"
)
_IN = re.compile(rf"(?P<name>{_NAME.pattern})\s*\\in(?![a-zA-Z])(?P<set>.*)", re.DOTALL)
_BUILDER = re.compile(r"[a-zA-Z](?:\s*\\in\s*(?:\\mathbb\{R\}|R))?\s*[|:](.*)", re.DOTALL)
_BASED = re.compile(
    r"\(?\s*([0-9A-F]+)\s*\)?\s*"
    r"(?:_\s*(?:\{\s*\(?\s*(\w+)\s*\)?\s*\}|(\d))|\(?\s*(?:in\s+)?base[\s-](\w+)\s*\)?)"
)
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_BASES = {name: str(number) for number, name in enumerate(_NUMBERS)} | {"sixteen": "16"}
_PERCENT = re.compile(r"(.*?)\s*(?:\\?%|(?<![a-zA-Z])(?:percent|per cent|pct))", re.IGNORECASE | re.DOTALL)
_UNIT = re.compile(
    r"(.*?[\d)}]|.*?\\pi|.*?\\infty)(\s*)"
    rf"((?:{FONT}\s*\{{[^{{}}]*\}}|\^\\circ\s*(?:{FONT}\s*\{{)?[CF]?\}}?|[€£¥$]"
    r"|\(?[A-Za-z\u3400-\u9fff][A-Za-z\u3400-\u9fff /-]*\)?)(?:\s*\^\s*\{?\d\}?)?)",
    re.DOTALL,
)


def _split(text: str, separator: re.Pattern) -> tuple[list[str], list[str]]:
    """(parts, separators) outside of all brackets."""
    depth = depths(text)
    found = [one for one in separator.finditer(text) if depth[one.start()] == 0]
    starts, ends = [0, *(one.end() for one in found)], [*(one.start() for one in found), len(text)]
    parts = [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]
    return parts, [one[0] for one in found]


def _choice(text: str) -> Answer | None:
    r"""A letter with what it marks: `C`, `(C)`, `C) 12`, `\textbf{(C) } 12`, `C: the third option`."""
    found = _CHOICE.fullmatch(without_fonts(text))
    if not found:
        return None
    letter = found[1] or found[3] or found[5]
    content = (found[2] or found[4] or "").strip(" .:,")
    other_letter = re.search(r"(?<![A-Za-z\\])[B-J](?![A-Za-z])", content)
    if words.DOUBT.search(content) or (other_letter and re.search(r"[,;()]|\band\b", content)):
        return None
    items = (_list(content) or Answer("text", _words(content)),) if content else ()
    return Answer("choice", letter.upper(), items)


def _list(text: str) -> Answer | None:
    parts, separators = _split(text, _SEPARATOR)
    if len(parts) == 1:
        return _item(parts[0])
    items = _items(parts)
    joints = " ".join(separators)
    joint = "or" if re.search("or|或", joints) else "and" if re.search("and|和|及|与", joints) else ","
    return items and Answer("list", items=items, joint=joint)


def _items(parts: list[str]) -> tuple[Answer, ...] | None:
    """The elements, with both values of a plus-minus sign; None if one of them is no mathematics."""
    items = [_item(part) for part in parts]
    if None in items:
        return None
    return tuple(one for item in items for one in (item.items if item.joint == "pm" else (item,)))


def _item(text: str, name: str = "") -> Answer | None:
    """One element: plus-minus, equation, tuple, set, numeral with a base, measure; None if it is no mathematics."""
    text = _unwrapped(text)
    if text in ("", r"\ldots"):
        return Answer("value", text) if text else None
    if _PLUS_MINUS.search(text) and not text.startswith(r"\{"):
        return _plus_and_minus(text, name)
    exact, *rounded = _split(text, _APPROX)[0]
    if rounded and _NAME.fullmatch(exact):
        text = f"{exact}={rounded[-1]}"
    elif rounded:
        answer = _item(exact, name) if re.fullmatch(rf"-?{NUMBER}", rounded[-1]) and len(rounded) == 1 else None
        return answer and replace(answer, same=(*answer.same, Answer("rounded", rounded[-1])))
    sides = _split(text, _EQUALS)[0]
    if len(sides) > 1 and not _RELATION.search(re.sub(r"\([^()]*\)", "", text)):
        return _equation(sides, text)
    if found := _IN.fullmatch(text):
        return _item(found["set"], compact(found["name"]))
    return _bracketed(text, name) or _based(text) or _measured(text, name)


def _plus_and_minus(text: str, name: str) -> Answer | None:
    both = []
    for signs in ({"p": "+", "m": "-"}, {"p": "-", "m": "+"}):
        one = _PLUS_MINUS.sub(lambda found, signs=signs: signs[found[1]], text)
        both.append(_item(re.sub(r"(^|[({\[,=])\s*\+", r"\1", one), name))
    return None if None in both else Answer("list", items=tuple(both), joint="pm")


def _equation(sides: list[str], text: str) -> Answer | None:
    """`x = 2 + 3 = 5` has the name x and the value 5, to which 2 + 3 must be equal; `6 = 5` is no value."""
    if "" in sides:
        return None
    numbers = [side for side in sides if not _has_unknown(side)]
    value = sides[-1] if _has_unknown(sides[0]) or not _NAME.fullmatch(sides[-1]) else sides[-2]
    if numbers and _NAME.fullmatch(value):
        value = numbers[-1]
    if not all(side is value or _is_label(side) or not _has_unknown(side) or formula(side) for side in sides):
        return None
    name = next((side for side in sides if side is not value and _has_unknown(side)), "")
    answer = _item(value, compact(name))
    same = tuple(_item(side) for side in numbers if side is not value)
    if answer is None or None in same:
        return None
    if name and not _is_label(name):
        if re.search(r"\d|^-", re.sub(r"_\s*(?:\{[^{}]*\}|\w)|\([^()]*\)", "", name)):  # `2x = 10` has no value yet
            answer = replace(answer, kind="equation", text=formula(text) or "")
        return replace(answer, name=compact(name), equation=formula(text) or "", same=same)
    return replace(answer, name=compact(name), same=same)


def _is_label(side: str) -> bool:
    """Whether the side names a quantity: `x`, `f(x)`, `|AB|`, `Total area`."""
    plain = without_fonts(side)
    if words.DOUBT.search(plain) or words.CHANGING.search(plain):
        return False
    return (_NAME.fullmatch(side) or re.fullmatch(r"[A-Za-z][A-Za-z ]*", plain)) is not None


def _has_unknown(side: str) -> bool:
    side = re.sub(rf"{FONT}\s*\{{[^{{}}]*\}}$", "", side)  # a unit
    side = re.sub(r"\\(?!alpha|beta|gamma|delta|theta|phi|omega|lambda|mu|angle)[a-zA-Z]+", "", side)
    return re.search(r"[A-Za-df-hj-z]", side) is not None


def _bracketed(text: str, name: str) -> Answer | None:
    """A set, tuple or interval; one value in round brackets is that value."""
    if closing(text, 0) != len(text) - 1:
        return None
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner, kind = text[2:-2].strip(), "set"
        if not inner:
            return Answer("value", r"\emptyset", name=name)
        if found := _BUILDER.fullmatch(inner):
            return _list(found[1])
    elif text[0] in "([" and text[-1] in ")]":
        inner, kind = text[1:-1].strip(), text[0] + text[-1]
    else:
        return None
    parts, _ = _split(inner, _SEPARATOR)
    if len(parts) == 1 and kind != "set":
        return _item(inner, name) if kind == "()" else None
    items = _items(parts)
    return items and Answer(kind, items=items, name=name)


def _based(text: str) -> Answer | None:
    r"""A numeral with its base: `4210_5`, `1\text{A}_{16}`, `1011 (base 2)`."""
    found = _BASED.fullmatch(without_fonts(text))
    if not found:
        return None
    base = found[2] or found[3] or found[4]
    base = _BASES.get(base.lower(), base)
    if not base.isdecimal() or not 2 <= int(base) <= 36 or any(int(digit, 36) >= int(base) for digit in found[1]):
        return None
    return Answer("value", found[1].lstrip("0") or "0", base=base)


def _measured(text: str, name: str) -> Answer | None:
    """A value or relation, with the percent sign or unit behind it."""
    if found := _PERCENT.fullmatch(text):
        value = formula(found[1])
        return value and Answer("value", value, unit="%", name=name)
    if found := _UNIT.fullmatch(text):
        unit = words.unit(re.sub(r"\\circ\s+|\s+(?=\^)", lambda blank: blank[0].strip(), without_fonts(found[3])))
        is_bare = re.fullmatch(r"[A-Za-z]+", found[3]) is not None
        is_factor = is_bare and (len(found[3]) == 1 or (unit == "?" and not found[2]))  # `5m`, `2abcd`
        is_angle = unit == "degree" and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", found[1])
        value = formula(found[1]) if unit and not is_factor and not is_angle else None
        if value:
            return Answer("value", value, unit=unit, name=name)
    value = formula(text)
    return value and Answer("relation" if _RELATION.search(value) else "value", value, name=name)
