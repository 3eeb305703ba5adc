"""The doctor's lines (mark, label, sentence) and their layout in a terminal."""

import re
import textwrap
from dataclasses import dataclass
from functools import partial

WIDTH = 98
_WORDS = {"ok": "ok", "note": "", "warning": "warning", "error": "ERROR"}


@dataclass(frozen=True)
class Line:
    """One finding. `mark` is ok, note (a fact without a check), warning or error; `block` (a prompt) stands below."""

    mark: str
    label: str
    text: str
    block: str | None = None

    def __str__(self) -> str:
        """Folded to WIDTH columns. Long words (paths, keys) stay whole, so that they can be copied."""
        head = f"  {_WORDS[self.mark]:<8}{self.label:<20}  "
        indents = {"initial_indent": head, "subsequent_indent": 32 * " "}
        rows = [textwrap.fill(_harmless(self.text), WIDTH, **indents, break_long_words=False, break_on_hyphens=False)]
        for row in [] if self.block is None else _harmless(self.block).split("\n"):
            rows += [f"{10 * ' '}| {part}" for part in textwrap.wrap(row, WIDTH - 12, drop_whitespace=False) or [""]]
        return "\n".join(rows)


Section = tuple[str, list[Line]]  # heading and lines
ok, note, warning, error = (partial(Line, mark) for mark in _WORDS)


def _harmless(text: str) -> str:
    """Control characters are escaped, so that they cannot change the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], text.expandtabs(4))
