"""Runs `--help` of many commands, each in a fork of one process that has imported what they import.

    echo '[["python", "examples/prepare_data.py"], ["verl-cast", "doctor"]]' | python tests/support/say_help.py

Imports take most of such a command's time. A fork has the script's directory on sys.path and nothing of this one, so a
script that cannot find its modules fails here as it does on a command line. Prints a list of [status, output].
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.pop(0)  # tests/support
import verl  # noqa: E402, F401  and with it torch, pandas, ray, hydra


def say_help(command: list[str]) -> None:
    """Ends the process as the command with --help does."""
    if command[0] == "verl-cast":
        sys.argv = [*command, "--help"]
        runpy.run_module("verl_cast", run_name="__main__")
    else:
        script = command[1]
        sys.argv = [script, "--help"]
        sys.path.insert(0, str(Path(script).parent.resolve()))
        runpy.run_path(script, run_name="__main__")


def main() -> None:
    answers = []
    for command in json.load(sys.stdin):
        with tempfile.TemporaryFile("w+") as output:
            pid = os.fork()
            if pid == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                status = 0
                try:
                    say_help(command)
                except SystemExit as ended:
                    status = ended.code or 0
                except BaseException:
                    traceback.print_exc()
                    status = 1
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status if isinstance(status, int) else 1)
            _, status = os.waitpid(pid, 0)
            output.seek(0)
            answers.append([os.waitstatus_to_exitcode(status), output.read()])
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
