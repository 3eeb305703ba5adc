"""`verl-cast report RUN_DIR ... [-o report.html]`: arguments and terminal output."""

import argparse
from pathlib import Path

from verl_cast.tools.cli import UserError
from verl_cast.tools.report import findings, notes, runs

# Maximum number of response tokens on the page. Each takes about 50 bytes; plotly.js takes 5 MB.
MAX_TOKENS = 150_000


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


def main(args: argparse.Namespace) -> int:
    if args.max_tokens < 1:
        raise UserError(f"--max-tokens {args.max_tokens}: must be at least 1.")
    try:
        found = runs.find(args.runs)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}).") from error
    first = args.runs[0]
    output = args.output or (first if first.is_dir() else first.parent) / "report.html"

    from verl_cast.tools.report import page  # imports plotly, so only once there is something to draw

    try:
        page.write(found, output, args.max_tokens)
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
    print(f"report: {output} ({output.stat().st_size / 2**20:.1f} MiB, opens without network)")
    return 0
