"""Every command on a page runs as it stands there, from the repository's root.

A command is a line of a ```bash block, or inline code that begins with a program. It is started as a dry run, with
--help, or as far as it can be without training, sampling or a download. `...` stands for the reader's own settings.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from verl_cast.config.cast import CastConfig
from verl_cast.config.methods import method_class, method_config
from verl_cast.tools import run_config
from verl_cast.tools.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "examples").rglob("README.md")),
    *sorted((ROOT / "verl_cast").rglob("README.md")),
    ROOT / "tests" / "README.md",
    ROOT / "patches" / "README.md",
]
PROGRAMS = ("bash", "cp", "hf", "pip", "pytest", "python", "ray", "ruff", "sbatch", "source", "torchrun", "verl-cast")
VERL = "verl.trainer.main_ppo"
MAKES_ITS_OWN = {"verl-patched": "patches/apply.sh"}  # a directory on a page, and the command that makes it


def words_of(text: str) -> list[str]:
    return [word for word in shlex.split(text, comments=True) if word != "..."]


def program_of(words: list[str]) -> str:
    return next((word for word in words if not re.match(r"[A-Z_]+=", word)), "")


def commands_in(text: str) -> list[list[str]]:
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    lines = [
        line for kind, block in fence.findall(text) if kind == "bash" for line in block.replace("\\\n", "").split("\n")
    ]
    inline = [span for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", fence.sub("", text)) if "\n\n" not in span]
    called = [words for words in map(words_of, lines) if words]
    for span in inline:
        if span.split()[0].split("=")[0].isupper() or span.split()[0] in PROGRAMS:
            words = words_of(span)
            if program_of(words) in PROGRAMS and len(words) > 1:
                called.append(words)
    return called


def kind_of(words: list[str]) -> str:
    """How a test starts this command. "" is none of the ways below."""
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program, *rest = words
    if program in ("bash", "sbatch") and rest:
        script = ROOT / rest[0]
        reads = script.is_file() and "DRY_RUN=${DRY_RUN:-0}" in script.read_text()
        return "dry_run" if script.match("examples/*.sh") and (reads or script.name.startswith("run_")) else "shell"
    if program == "python" and rest:
        if rest[0] == "-m":
            return "verl" if VERL in rest else "module"
        return "help" if rest[0].endswith(".py") else ""
    if program == "verl-cast" and rest:
        return "verl_cast"
    if program == "pytest":
        return "tests"
    return {"pip": "pip", "hf": "hf", "ruff": "ruff", "cp": "cp", "source": "source"}.get(program, "")


BY_KIND: dict[str, dict[str, list[str]]] = defaultdict(dict)
for _page in PAGES:
    for _words in commands_in(_page.read_text()):
        BY_KIND[kind_of(_words)].setdefault(shlex.join(_words), _words)


def of_kind(kind: str):
    return pytest.mark.parametrize("words", BY_KIND[kind].values(), ids=BY_KIND[kind].keys())


def run(words: list[str], **environment: str) -> str:
    """What the command prints.

    Raises:
        AssertionError: it fails.
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = {**os.environ, "PATH": path, "VERL_PLATFORM": "cpu", **environment}
    done = subprocess.run(["env", *words], cwd=ROOT, env=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def compose(words: list[str]) -> None:
    """What follows verl's main composes, and a method's settings are accepted."""
    rest = words[words.index(VERL) + 1 :] if VERL in words else words
    name = next((word.split("=")[1] for word in rest if word.startswith("--config-name=")), "ppo_trainer")
    settings = [word for word in rest if re.match(r"[+~]*[\w.@/]+=", word)]
    config = run_config.compose(settings, name)
    if method_class(config):
        method_config(config)


def test_every_command_is_of_a_known_kind():
    assert not BY_KIND[""], (
        f"{', '.join(BY_KIND[''])}: no test here knows how to start it. Write it as one of the other commands on the "
        "pages, or add its kind."
    )
    assert {"dry_run", "help", "verl", "verl_cast", "tests"} <= BY_KIND.keys()


@of_kind("dry_run")
def test_a_script_prints_commands_that_compose(words):
    for line in run(words, DRY_RUN="1").splitlines():
        if VERL in line and not line.startswith("+"):
            compose(shlex.split(line))


@of_kind("shell")
def test_a_script_is_bash(words):
    run(["bash", "-n", words[words.index(program_of(words)) + 1]])


@of_kind("verl")
def test_verls_command_composes(words):
    compose(words)


@pytest.fixture(scope="module")
def help_of():
    """help_of(words): what the command prints with --help."""
    asked = {}
    for words in (*BY_KIND["help"].values(), *BY_KIND["verl_cast"].values()):
        program = words.index(program_of(words))
        asked[shlex.join(words[program : program + 2])] = words[program : program + 2]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "say_help.py"],
        cwd=ROOT,
        env={**os.environ, "VERL_PLATFORM": "cpu"},
        input=json.dumps(list(asked.values())),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answers = dict(zip(asked, json.loads(done.stdout), strict=True))

    def look_up(words: list[str]) -> str:
        status, output = answers[shlex.join(words[:2])]
        assert status == 0, output
        return output

    return look_up


def options_are_known(words: list[str], text: str) -> None:
    for option in (word.split("=")[0] for word in words if re.match(r"--?\w", word)):
        assert option in re.findall(r"(?<!\w)--?[\w-]+", text), f"{option}\n{text}"


@of_kind("help")
def test_a_python_script_says_help_and_has_the_options(words, help_of):
    words = words[words.index("python") :]
    options_are_known(words[2:], help_of(words))


@of_kind("verl_cast")
def test_a_subcommand_exists_and_its_command_composes(words, help_of):
    words = words[words.index("verl-cast") :]
    assert words[1] in COMMANDS or words[1].startswith("-")
    starts = [i for i, word in enumerate(words) if word in ("--", "bash", "python", "nohup", "ray")]
    own, command = (words[2 : starts[0]], words[starts[0] :]) if starts else (words[2:], [])
    options_are_known(own, help_of(words))
    if VERL in command:
        compose(command)
    elif "bash" in command:
        test_a_script_prints_commands_that_compose(command[command.index("bash") :])
    elif settings := [word for word in own if re.match(r"[+~]*[\w.]+=", word)]:
        compose(settings)


@pytest.fixture(scope="module")
def collected():
    """File -> names of its tests, collected once for all pages."""
    files = sorted({word for words in BY_KIND["tests"].values() for word in words if word.startswith("tests/")})
    for file in files:
        assert (ROOT / file).is_file(), file
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    names = defaultdict(list)
    for line in done.stdout.splitlines():
        file, found, name = line.partition("::")
        if found:
            names[file].append(name.lower())
    return names


@of_kind("tests")
def test_a_selection_of_tests_is_not_empty(words, collected):
    files = [word for word in words if word.startswith("tests/")]
    selected = words[words.index("-k") + 1] if "-k" in words else ""
    assert re.fullmatch(r"\w*", selected), f"-k {selected}: one word, please"
    assert any(selected.lower() in name for file in files for name in collected[file])


@of_kind("hf")
def test_hugging_faces_command_has_the_options(words):
    options_are_known(words, run(["hf", words[1], "--help"]))


def can_be_installed(words: list[str]) -> bool:
    """This repository, or a directory that a command of the page makes."""
    (target,) = [word for word in words[2:] if not word.startswith("-")]
    made_by = MAKES_ITS_OWN.get(target, " ")
    return target == "." or any(made_by in command for command in BY_KIND["shell"])


# Kind -> whether what a command names is there.
IS_THERE = {
    "cp": lambda words: (ROOT / words[1]).is_file(),
    "module": lambda words: find_spec(words[words.index("-m") + 1]) is not None,
    "pip": can_be_installed,
    "ruff": lambda words: find_spec("ruff") is not None,
    "source": lambda words: words[1] == ".venv/bin/activate",  # setup_cpu.sh makes it
}


@pytest.mark.parametrize(
    ("kind", "words"), [pytest.param(kind, words, id=id_) for kind in IS_THERE for id_, words in BY_KIND[kind].items()]
)
def test_what_a_command_names_is_there(kind, words):
    assert IS_THERE[kind](words)


def test_settings_on_the_pages_are_whole_words_that_compose():
    """Every `algorithm.cast.KEY=VALUE`, with verl's own config: it needs the plus, and CastConfig accepts it."""
    found = {
        word
        for page in PAGES
        for word in re.findall(r"[+\w.]*\balgorithm\.cast(?:\.\w+)+=[^\s`'|,;)]+", page.read_text())
    }
    assert found
    left = sorted(found)
    while left:  # a key once in a command
        batch = {word.lstrip("+").split("=")[0]: word for word in reversed(left)}
        left = [word for word in left if word not in batch.values()]
        config = run_config.compose(["algorithm.adv_estimator=cast", *batch.values()])
        for key in batch:
            of_cast = key.removeprefix("algorithm.cast.")
            values = OmegaConf.create()
            OmegaConf.update(values, of_cast, OmegaConf.select(config, key))
            CastConfig.from_dict(OmegaConf.to_container(values))
