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
from typing import Any

from omegaconf import DictConfig, OmegaConf

import verl_cast
from verl_cast.platform import is_cpu
from verl_cast.tools import run_config
from verl_cast.tools.cli import UserError, first_line
from verl_cast.tools.doctor import lines as report
from verl_cast.tools.doctor import registration, versions
from verl_cast.tools.doctor.lines import Line, Section, cause_of, error, note

_NO_PLATFORM = "the plugin provides VERL_PLATFORM=cpu, and verl fails without it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit status: 1 when there is an error, else 0. Without overrides, only the installation is checked."
    )
    run_config.add_arguments(parser)
    parser.add_argument("--no-ray", action="store_true", help="do not start Ray; skip the check of its workers")


def main(args: argparse.Namespace) -> int:
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(f"verl-cast doctor {verl_cast.__version__}")
    with _quiet():
        config, refusal = _composed(args)
    marks, sections = [], _sections(args, config, refusal)
    while True:
        with _quiet():
            title, found = next(sections, (None, []))
        if title is None:
            break
        print(report.heading(title, colours))
        print(report.formatted(found, colours), flush=True)
        marks += [line.mark for line in found]
    num_errors, num_warnings = marks.count("error"), marks.count("warning")
    verdict = f"Not ready: {_count(num_errors, 'error')}" if num_errors else f"Ready: {_subject(config)}"
    print(f"{report.heading(verdict, colours)}, {_count(num_warnings, 'warning')}.")
    if not args.overrides:
        print("To check a run too, pass verl's command or its overrides: verl-cast doctor key=value ...")
    return 1 if num_errors else 0


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _subject(config: DictConfig | None) -> str:
    if config is None:
        return "this installation can train CAST"
    from verl_cast.tools.doctor import run

    return f"this command can train {run.subject(config)}"


def _composed(args: argparse.Namespace) -> tuple[DictConfig | None, str | None]:
    """The command's config, or why there is none. It needs a verl that can be imported."""
    if not args.overrides or versions.verl_is_unusable() is not None:
        return None, None
    try:
        return run_config.compose(args.overrides, args.config_name, args.config_path), None
    except UserError as problem:
        return None, str(problem)


def _sections(args: argparse.Namespace, config: DictConfig | None, refusal: str | None) -> Iterator[Section]:
    asked_for = _asked_for(config)
    unusable = versions.verl_is_unusable()
    yield "Versions", versions.check(asked_for) + (unusable or [])
    if unusable is not None:
        yield "Everything else", [note("", "skipped: these checks need a supported verl that can be imported")]
        return
    from verl_cast.tools.doctor import seams

    with contextlib.ExitStack() as stack:
        workers = None if args.no_ray else _start_workers(config, stack)  # they import verl while this process does
        here = registration.probe()
        yield "Plugin", registration.check_entry_point() + registration.check_here(here)
        fits = here["loaded"] or not is_cpu()
        found = seams.check("megatron" in asked_for) if fits else [note("", f"skipped: {_NO_PLATFORM}")]
        yield "Seams", found
        yield "Ray workers", _workers(workers, here)
    if not fits or any(line.mark == "error" for line in found):
        yield "Command", [note("", "skipped: these checks need every function that verl_cast relies on")]
        return
    if refusal is not None:
        yield "Command", [error("settings", refusal)]
    elif config is not None:
        from verl_cast.tools.doctor import run

        yield from run.sections(config)


def _asked_for(config: DictConfig | None) -> set[str]:
    """The engine and the rollout that the run names."""
    if config is None:
        return set()
    keys = ("actor_rollout_ref.actor.strategy", "actor_rollout_ref.rollout.name")
    return {str(OmegaConf.select(config, key)) for key in keys}


def _start_workers(config: DictConfig | None, stack: contextlib.ExitStack) -> list[tuple[str, Any]] | Line:
    """Workers that run the probe, in the cluster and the environment of the run; or the error that there are none."""
    settings = OmegaConf.select(config, "ray_kwargs.ray_init") if config is not None else None
    settings = OmegaConf.to_container(settings, resolve=True) if settings is not None else {}
    address = settings.get("address") or os.environ.get("RAY_ADDRESS") or None
    try:
        return stack.enter_context(registration.ray_workers(address, settings.get("runtime_env") or {}))
    except Exception as problem:  # Ray's failures have many types; all mean the same here
        verb = "joined" if address else "started"
        return error("Ray", f"the cluster cannot be {verb}: {first_line(cause_of(problem))}")


def _workers(workers: list[tuple[str, Any]] | Line | None, here: dict[str, Any]) -> list[Line]:
    if workers is None:
        return [note("Ray", "skipped (--no-ray)")]
    return [workers] if isinstance(workers, Line) else registration.check_workers(workers, here)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the output of libraries off the screen; if one crashes, show it before the traceback.

    The file descriptors are redirected, because some output bypasses Python. A log handler that is made here keeps
    the sys.stderr of that moment, so sys.stderr itself must not change.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", errors="replace") as noise:
        try:
            with contextlib.ExitStack() as redirected:
                for descriptor in (1, 2):
                    saved = os.dup(descriptor)
                    os.dup2(noise.fileno(), descriptor)
                    redirected.callback(os.close, saved)
                    redirected.callback(os.dup2, saved, descriptor)
                redirected.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                try:
                    yield
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
        except BaseException:
            noise.seek(0)
            sys.stderr.write(noise.read()[-20000:])
            raise
