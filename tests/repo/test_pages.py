"""The pages: links lead somewhere, keys exist, and the README's settings have their defaults."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"] + [
    page for room in ("examples", "verl_cast", "tests", "patches") for page in sorted((ROOT / room).rglob("README.md"))
]
PACKAGED = yaml.safe_load((ROOT / "verl_cast" / "config" / "cast_trainer.yaml").read_text())["algorithm"]["cast"]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def value_of(key: str):
    value = PACKAGED
    for part in key.split("."):
        assert part in value, key
        value = value[part]
    return value


def anchors(text: str) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@every_page
def test_a_named_key_exists(page):
    for key in re.findall(r"algorithm\.cast\.((?:\w+\.)*\w+)", page.read_text()):
        value_of(key)


def test_the_readmes_settings_have_their_defaults():
    section = (ROOT / "README.md").read_text().split("## Settings")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|", section, re.MULTILINE)
    assert rows
    for keys, default in rows:
        for key in re.findall(r"`([\w.]+)`", keys):
            assert str(value_of(key)) == default, key


def test_the_quick_start_has_one_duration():
    """Minutes of the quick start, on every page and in its script."""
    files = [*PAGES, ROOT / "examples" / "quickstart.sh"]
    found = {said for file in files for said in re.findall(r"\d+ to \d+ minutes", file.read_text())}
    assert found == {"11 to 20 minutes"}
