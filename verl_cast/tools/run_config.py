"""Composes verl's config of a run from a command line's overrides, as verl's own command does; starts nothing.

A whole command is as good as its overrides: `python -m verl.trainer.main_ppo ...` with environment variables before it,
or `bash SCRIPT ...`, where the script prints its command with DRY_RUN=1 (examples/run_*.sh do).
"""

import argparse
import difflib
import importlib.util
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_cast.checks.run import apply_method_defaults
from verl_cast.tools.cli import UserError

VERL_CONFIG_MODULE = "verl.trainer.config"
VERL_MAIN = "verl.trainer.main_ppo"
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_PYTHON = re.compile(r"(.*/)?python[\d.]*")
_SHELL = re.compile(r"(.*/)?(bash|sh)")
# hydra's spellings of the two options, and ours.
_OPTIONS = {"--config-name": "--config-name", "-cn": "--config-name", "--config-path": "--config-path"}
_OPTIONS |= {"-cp": "--config-path"}
_SCRIPT_SECONDS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every subcommand that reads a verl command line."""
    parser.add_argument("--config-name", default="ppo_trainer", help="as in verl's command (default: ppo_trainer)")
    parser.add_argument(
        "--config-path",
        default=None,
        help="directory of that config, as in verl's command: absolute, or relative to verl/trainer",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        help="the overrides of your verl command, key=value +key=value ...; or the whole command; or `-- bash SCRIPT`, "
        "which asks the script for its command (DRY_RUN=1)",
    )
    parser.set_defaults(rewrite=without_program)


def without_program(words: Sequence[str]) -> list[str]:
    """The words of `verl-cast doctor WORDS`, where a whole command of verl becomes its options and overrides.

    Its environment variables are set in this process. Words without a program stay as they are.

    Raises:
        UserError: the program is neither verl's main nor a script that prints such a command.
    """
    words = list(words)
    start = next((i for i, word in enumerate(words) if _PYTHON.fullmatch(word) or _is_script(words[i:])), None)
    if start is None:
        return words
    while start and (_ASSIGNMENT.match(words[start - 1]) or words[start - 1] == "env"):
        start -= 1
    before = words[: start - 1] if start and words[start - 1] == "--" else words[:start]
    command = _with_environment(_unquoted(words[start:]))
    if not _PYTHON.fullmatch(command[0]):
        command = _with_environment(_printed_by(command))
    return [*before, *_arguments_of_verl(command)]


def _with_environment(command: list[str]) -> list[str]:
    """The command without the assignments before it, which are made here: the checks see the run's environment."""
    program = next((i for i, word in enumerate(command) if word != "env" and not _ASSIGNMENT.match(word)), len(command))
    os.environ.update(word.split("=", 1) for word in command[:program] if word != "env")
    return command[program:]


def _is_script(words: Sequence[str]) -> bool:
    return bool(_SHELL.fullmatch(words[0])) or words[0].endswith(".sh")


def _unquoted(words: list[str]) -> list[str]:
    """The words of a command; $(...) splits a printed command at blanks and leaves its quotes, which start words."""
    return shlex.split(" ".join(words)) if any(word.startswith("'") for word in words) else words


def _arguments_of_verl(command: list[str]) -> list[str]:
    if command[1:3] != ["-m", VERL_MAIN]:
        raise UserError(f"{shlex.join(command[:3])}: only commands of `python -m {VERL_MAIN}` can be checked.")
    options, overrides, rest = [], [], iter(command[3:])
    for word in rest:
        name, has_value, value = word.partition("=")
        if name in _OPTIONS:  # hydra takes them anywhere, argparse before the overrides
            options.append(f"{_OPTIONS[name]}={value if has_value else next(rest, '')}")
        else:
            overrides.append(word)
    return [*options, *overrides]


def _printed_by(command: list[str]) -> list[str]:
    """The words of the command that a script prints with DRY_RUN=1."""
    words = [word for word in command if not _SHELL.fullmatch(word)]
    if not words or not Path(words[0]).is_file():
        raise UserError(f"{shlex.join(command)}: there is no such script.")
    if not _knows_dry_run(Path(words[0]), set()):
        raise UserError(
            f"{words[0]} does not mention DRY_RUN, so running it would start the training; print its command of verl "
            "and pass that."
        )
    try:
        done = subprocess.run(
            ["bash", *words],
            env={**os.environ, "DRY_RUN": "1"},
            capture_output=True,
            text=True,
            timeout=_SCRIPT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"DRY_RUN=1 {shlex.join(command)} does not end within {_SCRIPT_SECONDS} s.") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise UserError(f"DRY_RUN=1 {shlex.join(command)} fails (status {done.returncode}): {said}")
    if done.stdout.count(VERL_MAIN) != 1:
        raise UserError(f"DRY_RUN=1 {shlex.join(command)} does not print one command of `python -m {VERL_MAIN}`.")
    return shlex.split(done.stdout)


def _knows_dry_run(script: Path, seen: set[Path]) -> bool:
    """Whether the script, or one beside it that it names, mentions DRY_RUN."""
    seen.add(script)
    text = script.read_text(encoding="utf-8", errors="replace")
    return "DRY_RUN" in text or any(
        _knows_dry_run(other, seen) for other in script.parent.glob("*.sh") if other not in seen and other.name in text
    )


def compose(overrides: list[str], config_name: str = "ppo_trainer", config_path: str | None = None) -> DictConfig:
    """The composed config. A CAST run also gets the method's defaults for keys outside `algorithm.cast`.

    Raises:
        UserError: hydra cannot compose it (an unknown key, a missing file, ...).
    """
    import hydra
    import verl  # noqa: F401  its plugins add the config `cast_trainer`
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    GlobalHydra.instance().clear()
    if config_path is None:
        initialized = hydra.initialize_config_module(VERL_CONFIG_MODULE, version_base=None)
    else:
        # As in hydra.main: relative to the directory of verl's main; an absolute path stays as it is.
        trainer = Path(importlib.util.find_spec("verl.trainer").origin).parent
        initialized = hydra.initialize_config_dir(str((trainer / config_path).resolve()), version_base=None)
    with initialized:
        try:
            config = hydra.compose(config_name, overrides=overrides)
        except HydraException as error:
            raise UserError(f"hydra cannot compose this command: {_explained(error, config_name)}") from error
    apply_method_defaults(config, overrides)
    return config


def _explained(error: Exception, config_name: str) -> str:
    """hydra's message on one line; for an unknown key, with the config's nearest key."""
    import hydra

    cause = error.__cause__
    if not isinstance(cause, OmegaConfBaseException) or not cause.full_key:
        return " ".join(str(cause or error).split())
    if cause.full_key == "algorithm.cast":
        return (
            "CAST's keys are not in verl's config, so each needs a + before it, as in +algorithm.cast.flip=both; "
            "or use --config-name=cast_trainer, which has them all"
        )
    keys = list(_keys(OmegaConf.to_container(hydra.compose(config_name)), ""))
    near = difflib.get_close_matches(cause.full_key, keys, n=1, cutoff=0.8)
    hint = f"did you mean {near[0]}?" if near else f"to add it as a new key, write +{cause.full_key}=..."
    return f"verl's config has no key {cause.full_key}; {hint}"


def _keys(group: dict, prefix: str) -> Iterator[str]:
    """Every key of a config, by its full name."""
    for key, value in group.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
