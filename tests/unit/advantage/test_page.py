"""The method's page has every section that a docstring cites."""

import re
from pathlib import Path

import pytest

import verl_cast

ROOT = Path(verl_cast.__file__).parent
PAGE = (ROOT / "advantage" / "README.md").read_text()
SECTIONS = [int(number) for number in re.findall(r"^## (\d+)\. ", PAGE, re.MULTILINE)]


def test_the_sections_are_numbered_from_1_to_10():
    assert SECTIONS == list(range(1, 11))


@pytest.mark.parametrize("room", ["advantage", "config", "teacher", "training"])
def test_every_cited_section_is_there(room):
    text = "".join(path.read_text() for path in sorted((ROOT / room).rglob("*.py")))
    cited = re.findall(r"\bsections? (\d+)(?: (?:to|and) (\d+))?", text)
    numbers = {int(number) for pair in cited for number in pair if number}
    assert numbers and numbers <= set(SECTIONS)
