"""The command `verl-cast` and its subcommands (COMMANDS). Only the chosen one is imported.

Each subcommand is a module with `add_arguments(parser)` and `main(args) -> int`. A subcommand raises UserError for a
problem that the user can fix, which is printed as one sentence. Every other exception is a bug and keeps its traceback.
"""

import argparse
import importlib
import sys

import verl_cast

COMMANDS = {
    "report": ("verl_cast.tools.report.command", "one self-contained HTML page about one or several runs"),
    "doctor": ("verl_cast.tools.doctor.command", "check this installation and a verl command, without training"),
    "diagnose": (
        "verl_cast.tools.diagnose.command",
        "measure whether the teacher's context is fit, and how gaps behave (no training)",
    ),
}


class UserError(Exception):
    """A sentence for the user: what is wrong, and the remedy."""


def first_line(problem: BaseException) -> str:
    """An exception's message on one line, ending in a full stop."""
    rows = [row.strip() for row in str(problem).splitlines() if row.strip()]
    text = rows[0] if rows else type(problem).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


def cause_of(problem: BaseException) -> BaseException:
    """The original exception if verl or hydra wrapped it, else the exception itself."""
    return problem.__cause__ or problem


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="verl-cast", description="Tools before, during and after a CAST run.")
    parser.add_argument("--version", action="version", version=f"verl-cast {verl_cast.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar=f"{{{','.join(COMMANDS)}}}")
    chosen = next((argument for argument in argv if argument in COMMANDS), None)
    module = None
    for name, (module_name, help_text) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_text, description=help_text)
        if name == chosen:
            module = importlib.import_module(module_name)
            module.add_arguments(subparser)
    try:
        args = parser.parse_args(argv)
        return module.main(args)
    except UserError as error:
        print(f"verl-cast {chosen}: {error}", file=sys.stderr)
        return 1
