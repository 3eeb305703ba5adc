"""The metric table of verl_cast/advantage/README.md, which the pages show and the tests hold against the code."""

import re
from pathlib import Path
from typing import NamedTuple

import verl_cast.advantage

PAGE = Path(verl_cast.advantage.__file__).with_name("README.md")


class Row(NamedTuple):
    what: str
    healthy: str


def rows() -> dict[str, Row]:
    """Name of a metric, as CAST logs it -> its row, without markup."""
    lines = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| `\w+/", line))
    cells = ([_plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
    return {name: Row(what, healthy) for name, what, healthy in cells}


def _plain(cell: str) -> str:
    return cell.replace("`", "").replace("\\|", "|").strip()
