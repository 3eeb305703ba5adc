"""Composes verl's config of a run from a command line's overrides, as verl's own command does; starts nothing.

A whole command is as good as its overrides: what follows `verl.trainer.main_ppo`, whatever launches it (nohup, uv run,
torchrun, `ray job submit ... --`), or `bash SCRIPT ...`, where the script prints its command with DRY_RUN=1
(examples/run_*.sh do).
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
from verl_cast.checks.spelling import setting_of
from verl_cast.config.methods import METHODS
from verl_cast.tools.cli import UserError

VERL_CONFIG_MODULE = "verl.trainer.config"
VERL_MAIN = "verl.trainer.main_ppo"
_MAIN = re.compile(r"verl\.trainer\.main_ppo|(.*/)?verl/trainer/main_ppo\.py")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_PYTHON = re.compile(r"(.*/)?python[\d.]*")
_SHELL = re.compile(r"(.*/)?(bash|sh)")
_SCRIPT_SECONDS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every subcommand that reads a verl command line."""
    _add_hydra_options(parser)
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        action=_Command,
        help="after all options: the overrides of your verl command, key=value +key=value ...; or the whole command; "
        "or `bash SCRIPT`, which asks the script for its command (DRY_RUN=1)",
    )


def _add_hydra_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-name", "-cn", default="ppo_trainer", help="as in verl's command (default: ppo_trainer)"
    )
    parser.add_argument(
        "--config-path",
        "-cp",
        help="directory of that config, as in verl's command: absolute, or relative to verl/trainer",
    )


class _Command(argparse.Action):
    """Sets `overrides`, `config_name` and `config_path` from the words of a command."""

    def __call__(self, parser, namespace, words, option_string=None):
        hydra = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # hydra takes its options anywhere
        _add_hydra_options(hydra)
        _, namespace.overrides = hydra.parse_known_args(_without_program(words), namespace)
        unknown = [word for word in namespace.overrides if word.startswith("-")]
        if unknown:
            raise UserError(f"{unknown[0]}: verl's command has no such option; those of verl-cast come before it.")


def _without_program(words: Sequence[str]) -> list[str]:
    """The words of a command behind verl's main. Words without a program stay as they are.

    The environment variables that the command sets are set in this process.

    Raises:
        UserError: the program is neither verl's main nor a script that prints such a command.
    """
    command = _unquoted([word for word in words if word != "--"])
    if not any(map(_MAIN.fullmatch, command)):
        program = next((i for i in range(len(command)) if _is_program(command[i:])), None)
        if program is None:
            return command
        _set_environment(command[:program])
        command = _printed_by(command[program:])
    main = next(i for i, word in enumerate(command) if _MAIN.fullmatch(word))
    _set_environment(command[:main])
    return command[main + 1 :]


def _set_environment(words: list[str]) -> None:
    """The assignments before a program: the checks see the run's environment."""
    os.environ.update(word.split("=", 1) for word in words if _ASSIGNMENT.match(word))


def _is_program(words: Sequence[str]) -> bool:
    """Whether a Python, a shell or a script is called here. `key=file.sh` is an override."""
    is_script = words[0].endswith(".sh") and "=" not in words[0].split("/")[0]
    return bool(_PYTHON.fullmatch(words[0]) or _SHELL.fullmatch(words[0])) or is_script


def _unquoted(words: list[str]) -> list[str]:
    """The words of a command; $(...) splits a printed command at blanks and leaves its quotes, which start words."""
    return shlex.split(" ".join(words)) if any(word.startswith("'") for word in words) else words


def _printed_by(command: list[str]) -> list[str]:
    """The words of the command that a script prints with DRY_RUN=1."""
    if _PYTHON.fullmatch(command[0]):
        raise UserError(f"{shlex.join(command[:3])}: only commands of `python -m {VERL_MAIN}` can be checked.")
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
            reason = _explained(error, config_name, overrides)
            raise UserError(f"hydra cannot compose this command: {reason}") from error
    apply_method_defaults(config, overrides)
    return config


def _explained(error: Exception, config_name: str, overrides: Sequence[str]) -> str:
    """hydra's message on one line, with the word that it stopped at and a remedy."""
    import hydra
    from hydra.errors import OverrideParseException

    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    cause = error.__cause__
    if not isinstance(cause, OmegaConfBaseException) or not cause.full_key:
        return " ".join(str(cause or error).split())
    words = (override.lstrip("+~") for override in overrides)
    word = next((word for word in words if re.match(rf"{re.escape(cause.full_key)}[.=]", word)), "")
    key, _, value = word.partition("=")
    if cause.full_key in [method.key() for method in METHODS.values()]:
        return f"verl's config has no key {cause.full_key}; write ++{word}, or use --config-name=cast_trainer"
    if setting_of(key) is not None:
        return f"verl's config has no key {key}; for CAST's setting write ++algorithm.cast.{setting_of(key)}={value}"
    keys = list(_keys(OmegaConf.to_container(hydra.compose(config_name)), ""))
    near = difflib.get_close_matches(cause.full_key, keys, n=1, cutoff=0.8)
    hint = f"did you mean {near[0]}?" if near else f"to add it as a new key, write +{cause.full_key}=..."
    return f"verl's config has no key {cause.full_key}; {hint}"


def _unreadable(word: str) -> str:
    key, has_value, value = word.partition("=")
    if not has_value:
        return f"the word {word} has no =; a setting is one word, key=value, without blanks around the ="
    quoted = shlex.quote(f'"{value}"')
    return f"it stops at the word {word}; such a value needs quotes, {key}={quoted}"


def _keys(group: dict, prefix: str) -> Iterator[str]:
    """Every key of a config, by its full name."""
    for key, value in group.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
