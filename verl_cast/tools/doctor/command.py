"""`verl-cast doctor [COMMAND]`: checks in seconds whether an installation and a command of verl can train CAST.

It starts no training. COMMAND is verl's, or its overrides alone (run_config.py). The output of verl and other
libraries stays off the screen, unless one of them crashes. The exit status is 1 when there is an error, else 0.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import TextIO

from omegaconf import DictConfig, OmegaConf

import verl_cast
from verl_cast.tools import run_config
from verl_cast.tools.cli import UserError
from verl_cast.tools.doctor import installation, registration
from verl_cast.tools.doctor.lines import Line, Section, error, note


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit status: 1 when there is an error, else 0. Without overrides, only the installation is checked."
    )
    run_config.add_arguments(parser)
    parser.add_argument("--no-ray", action="store_true", help="do not start Ray; skip the check of its workers")


def main(args: argparse.Namespace) -> int:
    with _without_noise() as screen:
        print(f"verl-cast doctor {verl_cast.__version__}", file=screen, flush=True)
        verl, config, refusal = installation.check_verl(), None, None
        if args.overrides and verl.mark != "error":  # the config needs verl
            try:
                config = run_config.compose(args.overrides, args.config_name, args.config_path)
            except UserError as problem:
                refusal = str(problem)
        marks = []
        for title, lines in _sections(verl, config, refusal, args.no_ray):
            print(f"\n{title}", *lines, sep="\n", file=screen, flush=True)
            marks += [line.mark for line in lines]
    errors = marks.count("error")
    verdict = f"Not ready: {_count(errors, 'error')}" if errors else f"Ready: {_subject(config)}"
    print(f"\n{verdict}, {_count(marks.count('warning'), 'warning')}.")
    if not args.overrides:
        print("To check a run too, pass verl's command or its overrides: verl-cast doctor key=value ...")
    return 1 if errors else 0


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _subject(config: DictConfig | None) -> str:
    if config is None:
        return "this installation can train CAST"
    from verl_cast.tools.doctor import run

    return f"this command can train {run.subject(config)}"


def _sections(verl: Line, config: DictConfig | None, refusal: str | None, no_ray: bool) -> Iterator[Section]:
    """What needs a part that an earlier section refuses is left out."""
    keys = ("actor_rollout_ref.actor.strategy", "actor_rollout_ref.rollout.name")
    asked_for = set() if config is None else {str(OmegaConf.select(config, key)) for key in keys}
    yield "Versions", [verl, *installation.check_packages(asked_for)]
    lines = [verl]
    if not _has_errors(lines):
        here = registration.probe()
        lines = registration.check_here(here)
        yield "Plugin", lines
    if not _has_errors(lines):
        lines = installation.check_seams("megatron" in asked_for)
        yield "Seams", lines
    if _has_errors(lines):
        yield "Everything else", [note("", "skipped: these checks need a verl and a plugin that work together")]
        return
    yield "Ray workers", [note("Ray", "skipped (--no-ray)")] if no_ray else registration.check_workers(config, here)
    if refusal is not None:
        yield "Command", [error("settings", refusal)]
    elif config is not None:
        from verl_cast.tools.doctor import run

        yield from run.sections(config)


def _has_errors(lines: list[Line]) -> bool:
    return any(line.mark == "error" for line in lines)


@contextlib.contextmanager
def _without_noise() -> Iterator[TextIO]:
    """Keep the output of libraries off the screen; if one crashes, show it before the traceback.

    The file descriptors are redirected, because some output bypasses Python. A log handler that is made here keeps
    the sys.stderr of that moment, so sys.stderr itself must not change.

    Yields:
        the screen, for what is to be seen.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as noise, contextlib.ExitStack() as redirected:
        screen = redirected.enter_context(open(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors))
        for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
            saved = os.dup(descriptor)
            stream.flush()
            os.dup2(noise.fileno(), descriptor)
            redirected.callback(os.close, saved)
            redirected.callback(os.dup2, saved, descriptor)
            redirected.callback(stream.flush)
        redirected.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        try:
            yield screen
        except BaseException:
            redirected.close()
            noise.seek(0)
            sys.stderr.write(noise.read()[-20000:])
            raise
