"""`verl-cast report --watch`: makes the page again whenever a file of its runs has changed."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from verl_cast.tools.cli import UserError
from verl_cast.tools.report import runs

POLL_SECONDS = 5
RELOAD_SECONDS = 30  # of the page in the browser


def watch(paths: list[Path], make: Callable[[], None]) -> None:
    """Call `make` now and after every change, until Ctrl-C.

    A run may have no metrics yet, or lose a file for a moment: what is wrong is printed once, and the watch goes on.
    """
    seen = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            files = _files(paths)
            if files != seen:
                seen = files
                try:
                    make()
                except UserError as error:
                    print(f"waiting: {error}", flush=True)
            time.sleep(POLL_SECONDS)


def _files(paths: list[Path]) -> dict[Path, tuple[int, int]]:
    """When each file of the runs was last changed, and its size."""
    found = {}
    for path in runs.files(paths):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found[path] = (stat.st_mtime_ns, stat.st_size)
    return found
