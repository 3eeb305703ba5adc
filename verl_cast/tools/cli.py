"""The command `verl-cast`: see COMMANDS. Only the chosen one is imported.

Every command is `add_arguments(parser)` and `main(args) -> int` of its own module. What a user can mend is a UserError
there and one sentence here; every other exception is a bug, and keeps its traceback.
"""

import argparse
import importlib
import sys

COMMANDS = {
    "report": ("verl_cast.tools.report.command", "one self-contained HTML page about one or several runs"),
    "doctor": ("verl_cast.tools.doctor.command", "check this installation and a verl command, without training"),
    "diagnose": (
        "verl_cast.tools.diagnose.command",
        "is the teacher's context fit, and how do gaps behave? (analysis only)",
    ),
    "data": (
        "verl_cast.tools.data.command",
        "DAPO-Math-17K and the paper's benchmarks as Parquet files in verl's format",
    ),
    "evaluate": ("verl_cast.tools.evaluate.command", "Avg@k and Pass@k of a model or checkpoint over benchmarks"),
}


class UserError(Exception):
    """A sentence for the user: what is wrong, and the remedy."""


def first_line(problem: BaseException) -> str:
    """An exception's message as one row, ending in a full stop."""
    rows = [row.strip() for row in str(problem).splitlines() if row.strip()]
    text = rows[0] if rows else type(problem).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="verl-cast", description="Around a run of CAST: before, during and after it.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar=f"{{{','.join(COMMANDS)}}}")
    chosen = next((argument for argument in argv if argument in COMMANDS), None)
    module = None
    for name, (module_name, help_text) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_text, description=help_text)
        if name == chosen:
            module = importlib.import_module(module_name)
            module.add_arguments(subparser)
    args = parser.parse_args(argv)
    try:
        return module.main(args)
    except UserError as error:
        print(f"verl-cast {args.command}: {error}", file=sys.stderr)
        return 1
