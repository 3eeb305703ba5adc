"""The doctor's lines (mark, label, sentence) and their layout in a terminal.

This module makes no checks and does not depend on verl.
"""

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

WIDTH = 98
_LABEL_WIDTH = 20
_WORDS = {"ok": "ok", "note": "", "warning": "warning", "error": "ERROR"}
_COLOURS = {"ok": "\033[32m", "warning": "\033[33m", "error": "\033[1;31m"}
_BOLD, _PLAIN = "\033[1m", "\033[0m"


@dataclass(frozen=True)
class Line:
    """One finding. `mark` is ok, note (a fact without a check), warning or error.

    `block` (a prompt) is shown below the sentence, line by line; long lines are folded.
    """

    mark: str
    label: str
    text: str
    block: str | None = None


# A section of the report: its heading and its lines.
Section = tuple[str, list[Line]]


def ok(label: str, text: str) -> Line:
    return Line("ok", label, text)


def note(label: str, text: str, block: str | None = None) -> Line:
    return Line("note", label, text, block)


def warning(label: str, text: str) -> Line:
    return Line("warning", label, text)


def error(label: str, text: str) -> Line:
    return Line("error", label, text)


def heading(title: str, colours: bool) -> str:
    return f"\n{_BOLD}{title}{_PLAIN}" if colours else f"\n{title}"


def formatted(lines: Iterable[Line], colours: bool) -> str:
    """The lines as text, aligned, folded to WIDTH columns."""
    return "\n".join(_formatted(line, colours) for line in lines)


def _formatted(line: Line, colours: bool) -> str:
    indent = 2 + 8 + _LABEL_WIDTH + 2
    # Long words (paths, keys) stay whole, so that they can be copied.
    text = textwrap.wrap(line.text, WIDTH - indent, break_long_words=False, break_on_hyphens=False) or [""]
    mark = f"{_WORDS[line.mark]:<8}"
    if colours and line.mark in _COLOURS:
        mark = f"{_COLOURS[line.mark]}{mark}{_PLAIN}"
    rows = [f"  {mark}{line.label:<{_LABEL_WIDTH}}  {text[0]}".rstrip()]
    if len(line.label) > _LABEL_WIDTH:  # a host's full name
        rows = [f"  {mark}{line.label}", " " * indent + text[0]]
    rows += [" " * indent + row for row in text[1:]]
    if line.block is not None:
        rows += [f"          | {row}".rstrip() for row in _folded(line.block, WIDTH - 12)]
    return "\n".join(rows)


def _folded(block: str, width: int) -> list[str]:
    """The rows of a text, folded. Control characters are escaped, so that they cannot change the terminal."""
    rows = []
    for row in block.split("\n"):
        row = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], row.expandtabs(4))
        rows += [row[start : start + width] for start in range(0, len(row), width)] or [""]
    return rows


def shortened(text: str, head: int = 900, tail: int = 300) -> str:
    """A long text without its middle."""
    if len(text) <= head + tail + 100:
        return text
    return f"{text[:head]}\n[... {len(text) - head - tail} characters ...]\n{text[-tail:]}"


def cause_of(problem: BaseException) -> BaseException:
    """The original exception if verl or hydra wrapped it, else the exception itself."""
    return problem.__cause__ or problem
