"""`verl-cast report RUN_DIR ... [-o report.html] [--watch]`: arguments and terminal output."""

import argparse
import contextlib
import time
from pathlib import Path

from verl_cast.tools.cli import UserError
from verl_cast.tools.report import findings, notes, runs

# Maximum number of response tokens on the page. Each takes about 50 bytes; plotly.js takes 5 MB.
MAX_TOKENS = 150_000
POLL_SECONDS = 5
RELOAD_SECONDS = 30  # of a watched page in the browser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN_DIR",
        help="a run's directory, or the .jsonl file of verl's file logger; several runs are compared (CAST and GRPO)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="the page (default: report.html in the first run's directory)"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=MAX_TOKENS,
        metavar="N",
        help=f"maximum number of response tokens from trajectory dumps on the page (default: {MAX_TOKENS:,})",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="make the page again whenever the runs' files change, until Ctrl-C; the open page reloads itself",
    )


def main(args: argparse.Namespace) -> int:
    if args.max_tokens < 1:
        raise UserError(f"--max-tokens {args.max_tokens}: must be at least 1.")
    if args.watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(args)
        print("\nThe watch ends; the page's last version follows, which reloads no more.")
    _make(args)
    return 0


def _watch(args: argparse.Namespace) -> None:
    """Make the page now and after every change. A run without metrics yet is waited for."""
    seen = None
    while True:
        stats = {}
        for path in runs.files(args.runs):
            with contextlib.suppress(FileNotFoundError):
                stats[path] = path.stat().st_mtime_ns, path.stat().st_size
        if stats != seen:
            seen = stats
            try:
                _make(args, RELOAD_SECONDS)
            except UserError as error:
                print(f"waiting: {error}", flush=True)
        time.sleep(POLL_SECONDS)


def _make(args: argparse.Namespace, reload_seconds: int | None = None) -> None:
    try:
        found = runs.find(args.runs)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}).") from error
    first = args.runs[0]
    output = args.output or (first if first.is_dir() else first.parent) / "report.html"

    from verl_cast.tools.report import page  # imports plotly, so only once there is something to draw

    try:
        page.write(found, output, args.max_tokens, reload_seconds)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}); name another file with -o.") from error
    for run in found:
        dumped = f", trajectories of {len(run.dump_files)} steps" if run.dump_files else ""
        print(f"{run.name}: {run.kind}, {run.num_steps} steps{dumped} ({run.metrics_path or 'no metrics'})")
        for remark in run.remarks:
            print(f"  note: {remark}")
        for note in findings.notes(run):
            if note.level != notes.OK:
                print(f"  {note.level}: {note.title}. {note.seen}")
    size = f"{output.stat().st_size / 2**20:.1f} MiB, opens without network"
    watching = f"; the page reloads every {reload_seconds} s, Ctrl-C ends the watch" if reload_seconds else ""
    print(f"report: {output} ({size}{watching})", flush=True)
