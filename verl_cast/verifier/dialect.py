r"""One dialect of LaTeX for what people write: unicode signs, plain text (`sqrt(2)`, `<=`), fonts, spacing.

`one_dialect` rewrites any text. `formula` takes a single value and returns the LaTeX that math-verify reads as what it
means, or None: letters in words, unknown commands and half-written formulas are no value. What math-verify would
misread is rewritten here: mixed numbers, repeating decimals, products without a sign.

Left out: lists, labels and units (`reading`).
"""

import re
import unicodedata
from collections.abc import Container
from fractions import Fraction
from itertools import accumulate

_SIGNS = {
    "−": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/",
    "∞": r"\infty ", "≤": r"\le ", "≦": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "≧": r"\ge ", "⩾": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "≃": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∅": r"\emptyset ", "∖": r"\setminus ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "°": r"^\circ ", "º": r"^\circ ", "℃": r"^\circ C", "…": r"\ldots ",
    "⟨": r"\langle ", "⟩": r"\rangle ", "√": r"\root ", "∛": r"\cuberoot ", "、": ",", "。": ".", "∣": "|",
    "’": "'", "‘": "'", "“": '"', "”": '"', "′": "'", "˚": r"^\circ ", "\u200b": "", "\ufeff": "",
    "\u2061": "", "\u2062": "",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n")
_BLANK = r"(?:\s|~|(?<!\\)\\[,;:! ])"
_THOUSANDS = re.compile(
    r"(?<![\d.,(\[{])\d{1,3}(?:,\d{3})+(?![\d,]|\s*[\])])"
    rf"|(?<!\d)\d{{1,3}}(?:{_BLANK}+\d{{3}})+(?![\d/])(?!{_BLANK}+\d)"
)
_END = r"(?![a-zA-Z])"
FONT = (
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|operatorname\*?|boldsymbol|bm|emph"
    r"|underline)"
)
_FUNCTION = "arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|ln|log|exp"
_SYNONYMS = {
    r"\frac": "dfrac tfrac cfrac", r"\binom": "dbinom tbinom", r"\le ": "leqslant leqq leq",
    r"\ge ": "geqslant geqq geq", r"\ne ": "neq", "<": "lt", ">": "gt", r"\{": "lbrace", r"\}": "rbrace",
    "[": "lbrack", "]": "rbrack", "(": "langle", ")": "rangle", "|": "lvert rvert vert mid",
    r"\ldots ": "dots cdots dotsc dotsb", r"\setminus ": "backslash", r"\emptyset ": "varnothing", "i": "imath",
    r"\infty ": "infin infinity", " ": "quad qquad",
}  # fmt: skip
_SYNONYMS = {name: meaning for meaning, names in _SYNONYMS.items() for name in names.split()}
_REWRITES = [
    (rf"\\(?:displaystyle|textstyle|limits|left|right|[bB]igg?[lr]?|hfill|hspace\{{[^{{}}]*\}}){_END}\.?", ""),
    (r"<=|=<", r"\\le "),
    (r">=", r"\\ge "),
    (r"\\not\s*=|!=|<>", r"\\ne "),
    (r"\.{3,}", r"\\ldots "),
    (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
    (rf"\^\s*(?:\{{\s*)?\\(?:circ|degree){_END}(?:\s*\}})?|\\degree{_END}", r"^\\circ "),
    (rf"\\operatorname\s*\{{({_FUNCTION}|gcd|lcm)\}}", r"\\\1 "),
    (rf"{FONT}\s*\{{\s*(\\?[$€£¥%]|percent)\s*\}}", r" \1"),
    (rf"(?<![\\a-zA-Z])(sqrt|pi|infty|theta|alpha|beta|{_FUNCTION})(?![a-z])", r"\\\1 "),
    (r"(?<![\\a-zA-Z])infinity(?![a-z])", r"\\infty "),
    (r"(?<![\\a-zA-Z])cbrt(?![a-z])", r"\\cuberoot "),
    (r"(?<=[\w)}])\*\*(?=[\w(\\{-])", "^"),  # Python's power; other pairs of asterisks are Markdown's
]
_REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in _REWRITES]

# What math-verify's parser reads as what it means.
_COMMANDS = set(
    "frac sqrt pi infty cdot times div pm mp sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp "
    "binom sum prod int lim to le ge ne in cup cap setminus mathbb emptyset lfloor rfloor lceil rceil gcd lcm max min "
    "begin end alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split()
)
_ENVIRONMENTS = {"pmatrix", "bmatrix", "matrix", "vmatrix", "array", "Bmatrix"}
_NO_PRODUCT = {"or", "and", "not", "no", "is", "if", "to", "but", "yes"}
NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_UNREADABLE = re.compile(
    r"[^\w\s+\-*/^(){}\[\]|=<>!.,:&\\]|[^\x00-\x7f]"  # signs that are not known
    r"|\d\s+[\d.]|\.\d*\.|\.(?!\d)|[A-Za-z]\s*\.\s*\d|\b\d{1,2}:\d\d\b"  # two numbers, no number, a time
    r"|\d\s*_|\\sqrt\s*\d\d|\\frac\s*\d\s*\d\d"  # math-verify drops an index of a number; \sqrt12 has two meanings
    r"|^\s*[*/^=]|(?:[-+*/^]|\\cdot|\\times)\s*$|\\ldots"
)


def one_dialect(text: str) -> str:
    """The text with unicode, plain text and synonyms of LaTeX rewritten; it need not be mathematics."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+", lambda found: "^{" + found[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉₊₋ₙ]+", lambda found: "_{" + found[0].translate(_SUBSCRIPTS) + "}", text)
    text = re.sub("[¼-¾⅐-⅞]", lambda found: " " + unicodedata.normalize("NFKC", found[0]), text)
    text = re.sub(r"(^|[(\[{,=]\s*)–", r"\1-", text)  # an en dash is a minus only where it cannot mean a range
    text = "".join(_SIGNS.get(character, character) for character in text)
    text = re.sub(r"[α-ωΓΔΘΛΞΠΣΦΨΩ]", _greek, unicodedata.normalize("NFKC", text))
    text = re.sub(r"\\\\\[[^\]]{0,9}\]", r"\\\\", text)
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z({\[])", r"\\", text)  # doubled backslashes, as after a JSON round trip
    text = _THOUSANDS.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = re.sub(r"\\([a-zA-Z]+)", lambda found: _SYNONYMS.get(found[1], found[0]), text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return re.sub(r"(?<!\\)\\[,;:! ]|~|\s", " ", text.replace("{,}", "").replace("\\!", ""))


def _greek(found: re.Match) -> str:
    _, size, *_, name = unicodedata.name(found[0]).split()
    return "\\" + (name.lower() if size == "SMALL" else name.title()) + " "


def without_fonts(text: str) -> str:
    return re.sub(rf"{FONT}\s*\{{([^{{}}]*)\}}", r"\1 ", text).strip()


def formula(text: str) -> str | None:
    """The LaTeX of one value or relation, without blanks; None if the text is anything else."""
    text = re.sub(rf"{FONT}\s*\{{\s*([A-Za-z])\s*\}}", r" \1", text)
    text = _products(_fractions(_operators(_decimals(text)))).replace("\\{\\}", "\\emptyset")
    if not text or _UNREADABLE.search(text) or ("&" in text and "\\begin" not in text):
        return None
    if not _COMMANDS.issuperset(re.findall(r"\\([a-zA-Z]+)", text)):
        return None
    if not _ENVIRONMENTS.issuperset(re.findall(r"\\(?:begin|end)\s*\{([^{}]*)\}", text)):
        return None
    plain = re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}(?:\s*\{[clr|]*\})?|\\mathbb\{[A-Z]\}|\\[a-zA-Z]+", " ", text)
    runs = re.findall(r"[A-Za-z]{2,}", plain)
    if any(len(run) > 3 or run.lower() in _NO_PRODUCT for run in runs):
        return None
    if runs and not re.search(r"[\d+*/^=<>_|(\\-]", text):
        return None  # letters only are a word, in which their order counts
    return compact(text)


def compact(text: str) -> str:
    """Without the blanks that separate nothing."""
    return re.sub(r"\s+(?![a-zA-Z\d])|(?<![a-zA-Z\d])\s+", "", text.strip())


def _decimals(text: str) -> str:
    """Repeating decimals as fractions, `6.02e23` and `3x10^8` as products."""
    text = re.sub(r"\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?", r"\\overline{\1\2\3}", text)
    text = re.sub(r"(\.\d*)\((\d+)\)(?!\s*[\w(])", r"\1\\overline{\2}", text)
    text = re.sub(r"(\d*)\.(\d*)\\overline\s*\{(\d+)\}", _repeating, text)
    text = re.sub(r"(?<=\d)\s*(?:[xX]|\\times|\\cdot|\*)\s*10\s*(?=\^)", r"\\times 10", text)
    return re.sub(r"(?<=\d)[eE]([+-]?\d+)(?![\w.])", r"\\times 10^{\1}", text)


def _repeating(found: re.Match) -> str:
    """`0.1` and `6` make 0.1666... = (16 - 1) / 90."""
    whole, digits, period = found.groups()
    once = whole + digits or "0"
    return rf"\frac{{{int(once + period) - int(once)}}}{{{(10 ** len(period) - 1) * 10 ** len(digits)}}}"


def _operators(text: str) -> str:
    """Exponents, indices and roots with braces."""
    text = re.sub(rf"([_^])\s*([+-]?{NUMBER}|[+-]\w)", r"\1{\2}", text)
    text = re.sub(rf"\\root\s*({NUMBER})", r"\\sqrt{\1}", text).replace("\\root", "\\sqrt")
    text = re.sub(r"\\cuberoot\s*(\d+|[a-z])", r"\\sqrt[3]{\1}", text).replace("\\cuberoot", "\\sqrt[3]")
    text = re.sub(r"\\sqrt\s*([\dA-Za-z])(?!\d)", r"\\sqrt{\1}", text)
    for found in reversed([*re.finditer(r"(?:\\sqrt(?:\[\d+\])?|\^)\s*\(", text)]):
        start, end = found.end(), closing(text, found.end() - 1, "()")
        if end < 0:
            return "?"
        text = text[: start - 1] + "{" + text[start:end] + "}" + text[end + 1 :]
    return text


_BRACKETS = {"(": 1, "[": 1, "{": 1, r"\{": 1, r"\begin": 1, ")": -1, "]": -1, "}": -1, r"\}": -1, r"\end": -1}
_BRACKET = re.compile(r"\\begin|\\end|\\.|[(\[{)\]}]", re.DOTALL)


def depths(text: str, brackets: Container[str] = _BRACKETS) -> list[int]:
    """How many of the brackets are open at each position of the text, and at its end."""
    changes = [0] * (len(text) + 1)
    for found in _BRACKET.finditer(text):
        if found[0] in brackets:
            change = _BRACKETS[found[0]]
            changes[found.start() + 1 if change > 0 else found.end()] = change
    return list(accumulate(changes))


def closing(text: str, start: int, brackets: Container[str] = _BRACKETS) -> int:
    """Where the bracket at `start` is closed; -1 if nowhere."""
    depth = depths(text[start:], brackets)
    return start + depth.index(0, 1) - 1 if 0 in depth[1:] else -1


def _fractions(text: str) -> str:
    """Fractions with braces; mixed numbers as sums (`1 1/2` and `1\\frac{1}{2}` are 3/2)."""
    text = re.sub(r"\\(frac|binom)\s*([\dA-Za-z])\s*([\dA-Za-z])(?!\d)", r"\\\1{\2}{\3}", text)
    text = re.sub(r"\\(frac|binom)\s*([\dA-Za-z])\s*\{", r"\\\1{\2}{", text)
    text = re.sub(r"(\\(?:frac|binom)\s*\{[^{}]*\})\s*([\dA-Za-z])(?!\d)", r"\1{\2}", text)
    text = re.sub(r"(?<![\d.}A-Za-z)_^])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\s*[\d.])", _mixed, text)
    text = re.sub(r"(?<![\d.}A-Za-z)_^{])(\d+)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", _mixed, text)
    return re.sub(r"(\d+)\s*\^\\circ", r"(\\frac{\1\\pi}{180})", text)  # inside a formula degrees are angles


def _mixed(found: re.Match) -> str:
    whole, top, bottom = found.groups()
    return rf"({whole}+\frac{{{top}}}{{{bottom}}})" if int(top) < int(bottom) else "?"


def _products(text: str) -> str:
    r"""Products with a sign: math-verify takes `2(1/2)` and `\binom{4}{2}\frac{1}{2}` for mixed numbers."""
    text = re.sub(rf"(?<=[\d)])\s*(?=\\(?:frac|sqrt|binom|lfloor|lceil|pi){_END})", r"\\cdot ", text)
    text = re.sub(r"(?<=\d)\s*(?=\()|(?<=[!)])\s*(?=[\d(])", r"\\cdot ", text)
    for found in reversed([*re.finditer(r"\\(?:frac|binom)\s*(?=\{)", text)]):
        top = closing(text, found.end(), "{}")
        end = closing(text, top + 1, "{}") if text[top + 1 : top + 2] == "{" else -1
        if end > 0 and re.match(r"\s*(?:\d|\(|\\(?:frac|binom|lfloor|lceil))", text[end + 1 :]):
            text = text[: end + 1] + r"\cdot " + text[end + 1 :]
    return text


_FRACTION = rf"\\frac\{{(-?{NUMBER})\}}\{{(-?{NUMBER})\}}"
_RATIONAL = re.compile(
    rf"([+-]?)(?:\((\d+)\+{_FRACTION}\)|\(?(?:{_FRACTION}|({NUMBER})(?:/({NUMBER}))?)\)?)"
    r"(?:\\(?:times|cdot)\s*10\^\{([+-]?\d{1,3})\})?"
)


def rational(latex: str) -> Fraction | None:
    """The number that an integer, decimal, fraction or mixed number is; None for all else."""
    found = _RATIONAL.fullmatch(latex) if len(latex) <= 400 else None
    if not found or latex.count("(") != latex.count(")"):
        return None
    sign, whole, part, parts, top, bottom, number, divisor, exponent = found.groups()
    denominator = Fraction(parts or bottom or divisor or 1)
    if denominator == 0:
        return None
    value = Fraction(part or top or number) / denominator + int(whole or 0)
    return (-value if sign == "-" else value) * Fraction(10) ** int(exponent or 0)
