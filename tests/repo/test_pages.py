"""The pages: links lead somewhere, named commands, tests and keys exist, and the README's defaults are right."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from verl_cast.tools import cli

ROOT = Path(__file__).parents[2]
# Page -> its maximum number of lines.
LENGTHS = {
    "README.md": 120,
    "examples/README.md": 132,
    "examples/study/README.md": 260,
    "verl_cast/advantage/README.md": 320,
    "verl_cast/training/README.md": 140,
    "verl_cast/tools/README.md": 70,
    "tests/README.md": 120,
}
PAGES = {name: (ROOT / name).read_text() for name in (*LENGTHS, "CHANGELOG.md")}
every_page = pytest.mark.parametrize("name", PAGES)


def anchors(text: str) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_link_leads_somewhere(name):
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[name])
    assert links or name == "CHANGELOG.md"
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            page = target / "README.md" if target.is_dir() else target
            assert anchor in anchors(page.read_text()), link


@pytest.mark.parametrize("name", LENGTHS)
def test_a_page_is_short(name):
    assert PAGES[name].count("\n") <= LENGTHS[name]


def names_in(path: Path) -> list[str]:
    return [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


@every_page
def test_a_named_selection_of_tests_is_not_empty(name):
    for path, _, words in re.findall(r"pytest (tests/\w+\.py)( -k (\w+))?", PAGES[name]):
        names = [test for test in names_in(ROOT / path) if test.startswith("test_")]
        assert any(words in test for test in names), (path, words)


@every_page
def test_a_named_script_exists(name):
    scripts = re.findall(r"\b(?:bash|python|sbatch) ((?:examples|tests)/[\w./]+)", PAGES[name])
    for script in scripts:
        assert (ROOT / script).is_file(), script


@every_page
def test_a_named_subcommand_exists(name):
    for command in re.findall(r"verl-cast ([a-z]+)\b", PAGES[name]):
        assert command in cli.COMMANDS, command


@every_page
def test_a_named_key_exists(name):
    packaged = yaml.safe_load((ROOT / "verl_cast" / "config" / "cast_trainer.yaml").read_text())["algorithm"]
    for key in re.findall(r"algorithm\.cast((?:\.\w+)+)", PAGES[name]):
        group = packaged["cast"]
        for part in key.removeprefix(".").split("."):
            assert part in group, key
            group = group[part]


def test_the_readmes_settings_have_their_defaults():
    packaged = yaml.safe_load((ROOT / "verl_cast" / "config" / "cast_trainer.yaml").read_text())["algorithm"]["cast"]
    section = PAGES["README.md"].split("## Six settings")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|", section, re.MULTILINE)
    assert len(rows) == 6
    for keys, default in rows:
        for key in re.findall(r"`([\w.]+)`", keys):
            value = packaged
            for part in key.split("."):
                value = value[part]
            assert str(value) == default, key
