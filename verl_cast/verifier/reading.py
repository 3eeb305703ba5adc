r"""Reads an answer whole: as one value, or as the list, set, tuple, region or text that it is. Needs no sympy.

`read` takes wrappers off both ends by the rules of README.md (`The answer is`, `x =`, units, currency, delimiters). It
never searches: if anything is left that is not mathematics, the answer is a text, and only the same text equals it.

Its mathematics is one dialect of LaTeX: unicode signs, plain text (`sqrt(2)`, `<=`), fonts and spacing are rewritten.
What math-verify would misread is rewritten or refused here: mixed numbers, number bases, repeating decimals, `\pm`,
a number before a bracket, numbers next to each other.

All functions take time linear in the text's length, up to a small power for texts of at most 1000 characters.
"""

import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction

from verl_cast.verifier import words


@dataclass(frozen=True)
class Answer:
    """An answer as it was read.

    kind: value, relation, choice, text; list, set, or the brackets of a tuple or interval: (), [], [), (].
    text: of a value or relation its LaTeX, of a choice its letter, of a text its words.
    items: elements of a list, set or tuple; a choice's content, if any.
    joint: what joins a list: "," or "or" or "and".
    name, equation: left-hand side of `x = 5`; the whole equation where that side is more than a name.
    same: what the answer itself states as equal to its value, as in `2 + 3 = 5`.
    """

    kind: str
    text: str
    items: tuple["Answer", ...] = ()
    joint: str = ""
    unit: str = ""
    base: str = ""
    name: str = ""
    equation: str = ""
    same: tuple["Answer", ...] = ()


# Brackets in brackets beyond this are no answer.
MAX_DEPTH = 30

# ---- one dialect ----

_SIGNS = {
    "−": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/",
    "∞": r"\infty ", "≤": r"\le ", "≦": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "≧": r"\ge ", "⩾": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "≃": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∅": r"\emptyset ", "∖": r"\setminus ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "°": r"^\circ ", "º": r"^\circ ", "℃": r"^\circ C",
    "…": r"\ldots ", "⟨": r"\langle ", "⟩": r"\rangle ", "√": r"\root ", "∛": r"\cuberoot ", "、": ",", "。": ".",
    "’": "'", "‘": "'", "“": '"', "”": '"', "′": "'", "∣": "|", "\u200b": "", "\ufeff": "", "\u2061": "", "\u2062": "",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n")
_SPACE = r"(?:\s|~|(?<!\\)\\[,;:! ])"
_GROUP = r"(?:\\[a-zA-Z]+\s*\{[^{}]*\}|\{[^{}]*\})"
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_FONT = r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|operatorname\*?|boldsymbol|bm|emph|underline)"
_SAME = [
    (r"\\(?:displaystyle|textstyle|limits|left|right|[bB]igg?[lr]?|hfill|hspace\{[^{}]*\})(?![a-zA-Z])\.?", ""),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:leqslant|leqq|leq)(?![a-zA-Z])", r"\\le "),
    (r"\\(?:geqslant|geqq|geq)(?![a-zA-Z])", r"\\ge "),
    (r"\\(?:neq|not\s*=)", r"\\ne "),
    (r"<=|=<", r"\\le "), (r">=", r"\\ge "), (r"!=|<>", r"\\ne "),
    (r"\\lt(?![a-zA-Z])", "<"), (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"), (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\lbrack(?![a-zA-Z])", "["), (r"\\rbrack(?![a-zA-Z])", "]"),
    (r"\\[lr]?vert(?![a-zA-Z])|\\mid(?![a-zA-Z])", "|"),
    (r"\\langle(?![a-zA-Z])", "("), (r"\\rangle(?![a-zA-Z])", ")"),
    (r"\\(?:dots|cdots|dotsc|dotsb)(?![a-zA-Z])|\.{3,}", r"\\ldots "),
    (r"\\backslash(?![a-zA-Z])", r"\\setminus "), (r"\\varnothing(?![a-zA-Z])", r"\\emptyset "),
    (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"), (r"\\imath(?![a-zA-Z])", "i"), (r"\\infin(?![a-zA-Z])", r"\\infty"),
    (r"\^\s*(?:\{\s*)?\\(?:circ|degree)(?![a-zA-Z])(?:\s*\})?|\\degree(?![a-zA-Z])", r"^\\circ "),
    (r"\\operatorname\s*\{(arc(?:sin|cos|tan)|sin|cos|tan|cot|sec|csc|ln|log|exp|gcd|lcm)\}", r"\\\1 "),
    (r"\\(?:quad|qquad)(?![a-zA-Z])", " "),
    (r"(?<![\\a-zA-Z])(sqrt|cbrt|pi|infinity|infty|theta|alpha|beta|arcsin|arccos|arctan|sin|cos|tan|cot|ln|log|exp)(?![a-z])", r"\\\1 "),
    (r"\\infinity", r"\\infty "), (r"\\cbrt", r"\\cuberoot "),
    (r"(?<=[\w)}])\*\*(?=[\w(\\{-])", "^"),
]  # fmt: skip
_SAME = [(re.compile(pattern), replacement) for pattern, replacement in _SAME]
# Commands that math-verify reads as what they mean.
_COMMANDS = set(
    "frac sqrt pi infty cdot times div pm mp sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp "
    "binom sum prod int lim to le ge ne in cup cap setminus mathbb emptyset lfloor rfloor lceil rceil gcd lcm max min "
    "begin end alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega approx".split()
)
_ENVIRONMENTS = {"pmatrix", "bmatrix", "matrix", "vmatrix", "array", "Bmatrix"}


def _one_dialect(text: str) -> str:
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉₊₋ₙ]+", lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}", text)
    text = re.sub("[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0]).replace("⁄", "/"), text)
    text = re.sub(r"(^|[(\[{,=]\s*)–", r"\1-", text)  # an en dash is a minus only where no range can be meant
    text = "".join(_SIGNS.get(character, character) for character in text)
    text = re.sub(r"[α-ωΓΔΘΛΞΠΣΦΨΩϕ]", _greek, unicodedata.normalize("NFKC", text))
    text = re.sub(r"\\\\\[[^\]]{0,9}\]", r"\\\\", text)
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z({\[])", r"\\", text)  # as after a JSON round trip
    text = re.sub(rf"(?<!\d)(\d{{1,3}})((?:{_SPACE}+\d{{3}})+)(?![\d/])(?!{_SPACE}+\d)", _joined, text)
    for pattern, replacement in _SAME:
        text = pattern.sub(replacement, text)
    return re.sub(r"(?<!\\)\\[,;:! ]|~|\s", " ", text.replace("{,}", "").replace("\\!", ""))


def _greek(match: re.Match) -> str:
    name = unicodedata.name(match[0]).split()
    return "\\" + ("varphi" if match[0] == "ϕ" else name[-1].lower() if name[1] == "SMALL" else name[-1].title()) + " "


def _joined(match: re.Match) -> str:
    return match[1] + re.sub(r"\D", "", match[2])


# ---- wrappers ----

_LEAD = re.compile(
    rf"(?:(?:{words.LEAD}|#+|an?(?=\s+[a-z]{{2}})|I(?=\s+(?:get|got|have|find|found|obtain)\b))(?![a-zA-Z])[\s:,*_|]*)+"
    rf"|(?:{words.CHINESE_LEAD})+[:,\s]*",
    re.IGNORECASE,
)
_REMARK = re.compile(r"\(\s*(?:that is|i\.e\.|in words|namely)[,:\s]([^()\d]*)\)\s*$", re.IGNORECASE)
_CONCLUSION = re.compile(r"(.*[,;.])\s*(?:and so|so|that is|hence|thus|therefore|i\.e\.),?\s+(?:that is,? )?([^,;]*)$", re.IGNORECASE)
_IT_IS = re.compile(
    r"^(?:(?:so|thus|hence|therefore),?\s+)?(?:it|(?:the\s+)?(?:final\s+|correct\s+)?answer|最终答案|答案)\s*(?:is\b|是|为|:)[\s:*]*",
    re.IGNORECASE,
)
_ENDS = "✅✔️☑🎉*_` \t\n\""


def _unwrapped(text: str) -> str:
    """The text without what can stand around an answer; anything else stays and makes it a text."""
    before = None
    while text != before:
        before = text
        text = text.strip(_ENDS)
        text = re.sub(r"(?:(?<!\\)\\|(?<!\.)[.。]|[;,])$", "", text).strip(_ENDS)
        if text[:1] == "{" and _closing(text, 0) == len(text) - 1:
            text = text[1:-1]
        if match := re.match(rf"(?:{_FONT}|\\boxed|\\fbox)\s*(?=\{{)", text):
            if _closing(text, match.end()) == len(text) - 1:
                text = text[match.end() + 1 : -1]
    return text


def _closing(text: str, opening: int) -> int:
    """Where the brace at `opening` is closed; -1 if nowhere."""
    depth = 0
    for match in re.compile(r"\\.|[{}]").finditer(text, opening):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and match[0] == "}":
            return match.start()
    return -1


def _split(text: str, separator: re.Pattern) -> tuple[list[str], list[str]]:
    """(parts, separators) at the top level: outside of braces and brackets."""
    parts, joints, depth, start, position = [], [], 0, 0, 0
    token = re.compile(r"\\[{}]|\\begin|\\end|[(\[{)\]}]")
    while position < len(text):
        if depth == 0 and (match := separator.match(text, position)):
            parts.append(text[start:position])
            joints.append(match[0].strip())
            start = position = match.end()
        elif match := token.match(text, position):
            depth += 1 if match[0] in ("\\{", "\\begin", "(", "[", "{") else -1
            position = match.end()
        else:
            position += 2 if text[position] == "\\" else 1
    return [*parts, text[start:]], joints


# ---- reading ----

_OR = re.compile(r"\s*[,;]?\s*(?:\\(?:text|mbox|mathrm)\s*\{[\s~]*(or|and)[\s~]*\}|(?<![a-zA-Z\\])(or|and)(?![a-zA-Z])|(或者?|和|及|与))\s*")
_COMMA = re.compile(r"\s*[,;]\s*(?:\\(?:text|mbox|mathrm)\s*\{[\s~]*(?:or|and)[\s~]*\}|(?:or|and)(?![a-zA-Z]))?\s*|" + _OR.pattern)
_EQUALS = re.compile(r"\s*(?:=|\\equiv)\s*")
_APPROX = re.compile(r"\s*(?:\\approx|\\simeq|\\doteq)\s*")
_RELATION = re.compile(r"<|>|\\(?:le|ge|ne)(?![a-zA-Z])")
_THOUSANDS = re.compile(r"(?<![\d.,(\[{])\d{1,3}(?:,\d{3})+(?![\d,]|\s*[\])])")
_CHOICE = re.compile(r"\(\s*([A-Ja-j])\s*\)(.*)|([A-J])\s*(?:[):、]|\.(?!\d))(.*)|([A-J])", re.DOTALL)
_NAME = re.compile(
    rf"\\?[a-zA-Z]+'*(?:_(?:\{{[^{{}}]*\}}|\w+))?(?:\^\{{?[*'+-]\}}?)?\s*(?:\([^()=]*\))?"  # x, f(x), a_n, \theta, P(A)
    rf"|\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])+\s*\)|\|[^|=]+\||(?:m\s*)?\\(?:angle|triangle)\s*[A-Z]+|\\(?:overline|vec|hat|bar)\s*\{{[^{{}}]*\}}"
)
_BASES = {name: str(number) for number, name in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())}
_BASES |= {"sixteen": "16", "hex": "16", "binary": "2", "octal": "8"}
_BASED = re.compile(r"\(?\s*([0-9A-F]+)\s*\)?\s*(?:_\s*(?:\{\s*\(?\s*(\w+)\s*\)?\s*\}|(\d))|\(?\s*(?:in\s+)?base[\s-](\w+)\s*\)?)")
_PERCENT = re.compile(r"(.*?)\s*(?:\\?%|(?<![a-zA-Z])(?:percent|per cent|pct))$", re.IGNORECASE)
_UNIT = re.compile(
    rf"(.*?[\d)}}]|.*?\\pi|.*?\\infty)(\s*)((?:{_FONT}\s*\{{[^{{}}]*\}}|\^\\circ\s*(?:{_FONT}\s*\{{)?[CF]?\}}?|[€£¥$]|\(?[A-Za-z\u3400-\u9fff][A-Za-z\u3400-\u9fff /-]*\)?)"
    r"(?:\s*\^\s*\{?\d\}?)?)$",
    re.DOTALL,
)


def read(text: str) -> Answer:
    """The answer as one value, list, set, tuple, relation, choice or, if it is none of them, as a text."""
    if _depth(text) > MAX_DEPTH:
        return Answer("text", text)
    text = re.sub(r"^~\s*(?=\d)", "≈", text.strip())
    text = _unwrapped(text)
    text = _REMARK.sub(lambda m: m[0] if words.DOUBT.search(m[1]) else "", text)
    text = re.sub(r"(?<=\w)\*\*(?=[\s.,])|(?<!\S)\*\*(?=\S)|`", " ", text) if "*" in text or "`" in text else text
    latex = _one_dialect(text)
    latex = re.sub(r"^\s*=|\\checkmark|\s+in (?:total|all)\s*\.?$", " ", _without_dollars(latex))
    before = None
    while latex != before:
        before = latex
        latex = _unwrapped(latex)
        latex = re.sub(rf"^{_FONT}\s*\{{({_LEAD.pattern})\}}", r"\1 ", latex, flags=re.IGNORECASE)
        latex = _LEAD.sub("", latex, count=1) if (m := _LEAD.match(latex)) and _leads(latex, m.end()) else latex
    conclusion = _CONCLUSION.fullmatch(latex)
    if conclusion and not words.DOUBT.search(conclusion[1]):
        latex = conclusion[2]
    answer = _choice(latex) or _list(latex)
    return answer or Answer("text", _words(text))


def _leads(text: str, end: int) -> bool:
    """Whether what stands after the leading words is an answer by itself: `a` and `A = 5` are no articles."""
    return bool(text[end:].strip()) and not re.match(r"[=_^(+*/<>\-\\]", text[end:]) or bool(re.match(r".*[\s:,]$", text[:end], re.DOTALL) and text[end:].strip() and not re.match(r"\s*[=^_+*/<>]", text[end:]))


def _without_dollars(text: str) -> str:
    """Dollars, and the other delimiters, are blanks; a currency before a number is a unit behind it."""
    unescaped = re.sub(r"\\\$", "", text).count("$")
    dollar = r"\\?\$" if unescaped % 2 else r"\\\$"
    for sign, unit in ((rf"(?:US)?(?:{dollar}|{_FONT}\s*\{{\s*\\?\$\s*\}})", "dollars"), ("€", "euros"), ("£", "£"), ("¥", "¥"), ("USD", "dollars")):
        text = re.sub(rf"(-?)\s*{sign}\s*(-?)\s*({_NUMBER}(?:,\d{{3}})*(?:\.\d+)?)(?!\w|\s*[\^/\\])", rf"\1\2\3 {unit}", text)
    return re.sub(r"\\?\$|\\[()\[\]]", " ", text).strip()


def _words(text: str) -> str:
    """A text without fonts, quotes and final period, in lower case. Blanks stay: `1 1/2` is not `11/2`."""
    text = unicodedata.normalize("NFKC", text)
    for _ in range(2):
        text = re.sub(rf"{_FONT}\s*\{{([^{{}}]*)\}}", r" \1 ", text)
    text = _IT_IS.sub("", text.strip(" *$"))
    return re.sub(r"\s+", " ", re.sub(r"\\[()\[\],;:! ]|[$~\"]", " ", text)).strip(" .!").lower()


def _choice(text: str) -> Answer | None:
    """A letter with what it marks: `C`, `(C)`, `C) 12`, `\textbf{(C) } 12`, `C: the third option`."""
    text = re.sub(rf"{_FONT}\s*\{{([^{{}}]*)\}}", r"\1 ", text).strip()
    match = _CHOICE.fullmatch(text)
    if not match:
        return None
    letter = match[1] or match[3] or match[5]
    content = (match[2] or match[4] or "").strip(" .:,")
    if re.search(r"(?<![A-Za-z\\])[B-J](?![A-Za-z])", content) and re.search(r"[,;()]|\b(?:or|and)\b", content):
        return None
    if words.DOUBT.search(content):
        return None
    items = (_list(content) or Answer("text", _words(content)),) if content else ()
    return Answer("choice", letter.upper(), items)


def _list(text: str) -> Answer | None:
    text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    parts, joints = _split(text, _COMMA)
    if len(parts) == 1:
        return _item(text)
    if not parts[-1].strip():
        return None
    items = [_item(part.strip()) for part in parts]
    if None in items:
        return None
    spread = tuple(one for item in items for one in (item.items if item.joint == "pm" else (item,)))
    kinds = {re.sub(r".*(or|或).*", "or", re.sub(r".*(and|和|及|与).*", "and", joint)) for joint in joints}
    joint = "or" if "or" in kinds else "and" if "and" in kinds else ","
    return Answer("list", "", spread, joint)


def _item(text: str, name: str = "", equation: str = "") -> Answer | None:
    r"""One element: `\pm`, equation, label, tuple, set, base, unit, and then a value or nothing."""
    text = _unwrapped(text)
    if not text:
        return None
    if text == r"\ldots":
        return Answer("value", text)
    if re.search(r"\\[pm][pm](?![a-zA-Z])", text) and text[:2] != r"\{":
        both = [re.sub(r"\\([pm])[pm](?![a-zA-Z])", lambda m, s=sign: "+-"[(m[1] == "m") != s], text) for sign in (0, 1)]
        items = tuple(_item(re.sub(r"(^|[({\[,=])\s*\+", r"\1", one), name, equation) for one in both)
        return None if None in items else Answer("list", "", items, "pm")
    parts, _ = _split(text, _APPROX)
    if len(parts) == 2:
        exact, rounded = parts
        if not _NAME.fullmatch(exact.strip()) and not re.fullmatch(rf"-?{_NUMBER}", rounded.strip()):
            return None
        if not _NAME.fullmatch(exact.strip()):
            answer = _item(exact, name, equation)
            return answer and replace(answer, same=(*answer.same, Answer("rounded", rounded.strip())))
        text = text.replace("\\approx", "=")
    sides, _ = _split(text, _EQUALS)
    if len(sides) > 1 and not _RELATION.search(re.sub(r"\([^()]*\)", "", text)):
        return _equation([side.strip() for side in sides], text)
    if match := re.fullmatch(rf"(?:{_NAME.pattern})\s*\\in(?![a-zA-Z])(.*)", text, re.DOTALL):
        return _item(match[match.lastindex], text[: match.start(match.lastindex)].removesuffix("\\in").strip(), equation)
    return _bracketed(text, name, equation) or _based(text) or _measured(text, name, equation)


def _equation(sides: list[str], text: str) -> Answer | None:
    """`x = 2 + 3 = 5` has the name x and the value 5, to which 2 + 3 must be equal; `6 = 5` is no value."""
    if "" in sides:
        return None
    numbers = [side for side in sides if not _has_unknown(side)]
    value = sides[-1] if _has_unknown(sides[0]) or not _NAME.fullmatch(sides[-1]) else sides[-2]
    if _has_unknown(value) and numbers and _has_unknown(sides[0]):
        value = numbers[-1] if _NAME.fullmatch(value) else value
    name = next((side for side in sides if side is not value and _has_unknown(side)), "")
    answer = _item(value, name, text)
    same = tuple(_item(side) for side in numbers if side is not value)
    if answer is None or None in same:
        return None
    simple = _NAME.fullmatch(name) is not None
    return replace(answer, name=_compact(name), equation="" if simple or not name else _value(text) or "", same=same)


def _has_unknown(side: str) -> bool:
    side = re.sub(rf"{_FONT}\s*\{{[^{{}}]*\}}$", "", side)
    return bool(re.search(r"[A-Za-df-hj-z]", re.sub(r"\\(?!alpha|beta|gamma|delta|theta|phi|omega|lambda|mu|angle)[a-zA-Z]+", "", side)))


def _compact(text: str) -> str:
    """Without blanks, where these separate nothing."""
    return re.sub(r"\s+(?![a-zA-Z\d])|(?<![a-zA-Z\d])\s+", "", text.strip())


def _bracketed(text: str, name: str, equation: str) -> Answer | None:
    if text.startswith(r"\{") and text.endswith(r"\}") and _is_one_group(text):
        inner = text[2:-2].strip()
        if not inner:
            return Answer("value", r"\emptyset", name=name)
        if builder := re.fullmatch(r"([a-zA-Z])(?:\s*\\in\s*(?:\\mathbb\{R\}|R))?\s*[|:](.*)", inner, re.DOTALL):
            return _list(builder[2])
        parts, _ = _split(inner, _COMMA)
        kind = "set"
    elif text[0] in "([" and text[-1] in ")]" and _is_one_group(text):
        parts, _ = _split(text[1:-1].strip(), _COMMA)
        kind = text[0] + text[-1]
        if len(parts) == 1:
            return _item(text[1:-1], name, equation) if kind == "()" else None
    else:
        return None
    items = [_item(part.strip()) for part in parts]
    if None in items:
        return None
    if kind != "set" and any(item.joint == "pm" for item in items):
        return None
    items = [one for item in items for one in (item.items if item.joint == "pm" else (item,))]
    return Answer(kind, "", tuple(items), name=_compact(name), equation=equation)


def _depth(text: str) -> int:
    depth = deepest = 0
    for match in re.finditer(r"[(\[{)\]}]", text):
        depth += 1 if match[0] in "([{" else -1
        deepest = max(deepest, depth)
    return deepest


def _is_one_group(text: str) -> bool:
    depth = 0
    for match in re.finditer(r"\\[{}]|[(\[{)\]}]", text):
        depth += 1 if match[0][-1] in "([{" else -1
        if depth == 0:
            return match.end() == len(text)
    return False


def _based(text: str) -> Answer | None:
    r"""A numeral with its base: `4210_5`, `1\text{A}_{16}`, `1011 (base 2)`."""
    match = _BASED.fullmatch(re.sub(rf"{_FONT}\s*\{{([^{{}}]*)\}}", r"\1", text).strip())
    if not match:
        return None
    named = match[2] or match[3] or match[4]
    base = _BASES.get(named.lower(), named)
    if not base.isdecimal() or not 2 <= int(base) <= 36 or any(int(digit, 36) >= int(base) for digit in match[1]):
        return None
    return Answer("value", match[1].lstrip("0") or "0", base=base)


def _measured(text: str, name: str, equation: str) -> Answer | None:
    """A value with a percent sign or a unit behind it, or none."""
    name = _compact(name)
    if match := _PERCENT.fullmatch(re.sub(rf"{_FONT}\s*\{{\s*(\\?%|percent)\s*\}}", r" \1", text)):
        value = _value(match[1])
        return value and Answer("value", value, unit="%", name=name)
    match = _UNIT.fullmatch(text)
    if match:
        plain = re.sub(rf"{_FONT}\s*\{{([^{{}}]*)\}}", r"\1", match[3]).strip()
        is_letters = re.fullmatch(r"[A-Za-z]+", match[3]) is not None
        unit = words.unit(re.sub(r"\\circ\s+", r"\\circ", plain))
        attached = not match[2] and is_letters
        if unit == "degree" and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", match[1]):
            unit = None  # the argument of a function
        if unit and not (is_letters and len(plain) == 1) and not (attached and unit == "?"):
            value = _value(match[1])
            if value:
                return Answer("value", value, unit=unit, name=name)
    value = _value(text)
    return value and Answer("relation" if _RELATION.search(value) else "value", value, name=name, equation=equation)


def _value(text: str) -> str | None:
    """The LaTeX that math-verify reads as what it means; None if it is anything else."""
    text = re.sub(rf"{_FONT}\s*\{{\s*([A-Za-z])\s*\}}", r" \1", text)
    text = _rewritten(text)
    if not text or _UNREADABLE.search(text):
        return None
    for command in re.findall(r"\\([a-zA-Z]+)", text):
        if command not in _COMMANDS:
            return None
    if any(name not in _ENVIRONMENTS for name in re.findall(r"\\(?:begin|end)\s*\{([^{}]*)\}", text)):
        return None
    plain = re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}(?:\s*\{[clr|]*\})?|\\mathbb\{[A-Z]\}|\\[a-zA-Z]+", " ", text)
    runs = re.findall(r"[A-Za-z]{2,}", plain)
    if any(len(run) > 3 or run.lower() in ("or", "and", "not", "no", "is", "if", "to", "but", "yes") for run in runs):
        return None
    if runs and not re.search(r"[\d+*/^=<>_|(-]|\\", text):
        return None  # letters only: a word, of which the order of letters counts
    return _compact(text)


_UNREADABLE = re.compile(
    r"[^\w\s+\-*/^(){}\[\]|=<>!.,:&\\]|[^\x00-\x7f]|\d\s+[\d.]|\d\s*_|\.\d*\.|\.(?!\d)|\\sqrt\s*\d\d|\\frac\s*\d\s*\d\d|'|\"|[-+*/^]\s*$|"
    r"\b\d{1,2}:\d\d\b|^\s*[*/^=]|\\ldots|[A-Za-z]\s*\.\s*\d"
)


def _rewritten(text: str) -> str:
    """Numbers and operators as LaTeX that has one meaning."""
    text = re.sub(r"(\d*\.\d*)\\overline\s*\{(\d+)\}|(\d*\.\d*)\((\d+)\)(?!\s*[\w(])", _repeating, text)
    text = re.sub(r"(\d*\.\d*?)\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?", _repeating_dots, text)
    text = re.sub(r"(?<=\d)\s*(?:[xX]|\\times|\\cdot|\*)\s*10\s*(?=\^)", r"\\times 10", text)
    text = re.sub(r"(?<=\d)[eE]([+-]?\d+)(?![\w.])", r"\\times 10^{\1}", text)
    text = re.sub(r"([_^])\s*([+-]?\d+|[+-]\w)", r"\1{\2}", text)
    text = re.sub(r"\\root\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\cuberoot\s*(\d+|[a-z])", r"\\sqrt[3]{\1}", text)
    text = re.sub(r"\\root", r"\\sqrt", text).replace("\\cuberoot", "\\sqrt[3]")
    text = _braced(text, re.compile(r"(\\sqrt(?:\[\d+\])?|\^)\s*\("))
    text = re.sub(r"\\(frac|binom)\s*([\dA-Za-z])\s*([\dA-Za-z])(?!\d)", r"\\\1{\2}{\3}", text)
    text = re.sub(r"\\(frac|binom)\s*([\dA-Za-z])\s*\{", r"\\\1{\2}{", text)
    text = re.sub(r"(\\(?:frac|binom)\s*\{[^{}]*\})\s*([\dA-Za-z])(?!\d)", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*([\dA-Za-z])(?!\d)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\d.}A-Za-z)_^])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", _mixed, text)
    text = re.sub(r"(?<![\d.}A-Za-z)_^{])(\d+)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", _mixed, text)
    text = re.sub(r"(\d+)\s*\^\\circ", r"(\\frac{\1\\pi}{180})", text)
    return _products(text.replace("\\{\\}", "\\emptyset"))


def _mixed(match: re.Match) -> str:
    whole, top, bottom = match.groups()
    return rf"({whole}+\frac{{{top}}}{{{bottom}}})" if int(top) < int(bottom) else "?"


def _repeating(match: re.Match) -> str:
    return _repeated(match[1] or match[3], match[2] or match[4])


def _repeating_dots(match: re.Match) -> str:
    return _repeated(match[1], match[2] + (match[3] or "") + (match[4] or ""))


def _repeated(start: str, period: str) -> str:
    """`0.1` and `6` make 0.1666... = 15/90."""
    whole, _, digits = start.partition(".")
    top = int((whole + digits or "0") + period) - int(whole + digits or "0")
    return rf"\frac{{{top}}}{{{(10 ** len(period) - 1) * 10 ** len(digits)}}}"


def _braced(text: str, opening: re.Pattern) -> str:
    """`^(...)` and `\\sqrt(...)` with braces in place of the balanced brackets."""
    position = 0
    while match := opening.search(text, position):
        depth, end = 0, len(text)
        for index in range(match.end() - 1, len(text)):
            depth += {"(": 1, ")": -1}.get(text[index], 0)
            if depth == 0:
                end = index
                break
        text = text[: match.start()] + match[1] + "{" + text[match.end() : end] + "}" + text[end + 1 :]
        position = match.start() + len(match[1])
    return text


def _products(text: str) -> str:
    """Products in words: math-verify takes `2(1/2)` and `\\binom{4}{2}\\frac{1}{2}` for mixed numbers."""
    text = re.sub(r"(?<=[\d)])\s*(?=\\(?:frac|sqrt|binom|lfloor|lceil|pi)(?![a-zA-Z]))", r"\\cdot ", text)
    text = re.sub(r"(?<=\d)\s*(?=\()|(?<=[!)])\s*(?=[\d(])", r"\\cdot ", text)
    inserts = []
    for match in re.finditer(r"\\(?:frac|binom)\s*(?=\{)", text):
        end = _closing(text, _closing(text, match.end()) + 1) if _closing(text, match.end()) > 0 else -1
        if end > 0 and re.match(r"\s*(?:\d|\(|\\(?:frac|binom|lfloor|lceil))", text[end + 1 :]):
            inserts.append(end + 1)
    for end in sorted(set(inserts), reverse=True):
        text = text[:end] + r"\cdot " + text[end:]
    return text


_RATIONAL = re.compile(
    rf"([+-]?)\(?(?:(\d+)\+)?(?:\\frac\{{(-?{_NUMBER})\}}\{{(-?{_NUMBER})\}}|({_NUMBER})(?:/({_NUMBER}))?)\)?"
    r"(?:\\(?:times|cdot)\s*10\^\{([+-]?\d{1,3})\})?"
)


def rational(latex: str) -> Fraction | None:
    """The number that an integer, decimal, fraction or mixed number is; None for all else."""
    match = _RATIONAL.fullmatch(latex)
    if not match or len(latex) > 400:
        return None
    sign, whole, top, bottom, number, divisor, exponent = match.groups()
    bottom = Fraction(bottom or divisor or 1)
    if bottom == 0 or latex.count("(") != latex.count(")"):
        return None
    value = Fraction(top or number) / bottom + int(whole or 0)
    return (-value if sign == "-" else value) * Fraction(10) ** int(exponent or 0)
