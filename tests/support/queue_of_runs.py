"""One queue for the tests' real runs (Ray, vLLM): two at a time, within the memory limit.

A test module names its runs when it is imported. A test names the runs that it reads:

    @job("quickstart", seconds=400, memory_gb=14)
    def quickstart(directory, runs): ...          # returns a result for the tests

    @pytest.mark.runs("quickstart")
    def test_...(runs):
        result = runs("quickstart")

The fixture `runs` (conftest.py) starts the runs that the selected tests name. Runs that others wait for start first,
then the longest, so that both lanes end together. A job may wait for others (`after`) and reads their results with
`runs(name)`. If a job raises, every test that reads it raises too. The job `tiny` returns the directory of the tiny
model.
"""

import functools
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AT_A_TIME = 2  # on 2 cores; three at a time take as long (measured), and more memory
MEMORY_GB = 21  # of 24; Ray ends workers above 95 % of the machine's memory


@dataclass(frozen=True)
class Job:
    start: Callable[[Path, Callable[[str], Any]], Any]
    seconds: float
    memory_gb: float
    after: tuple[str, ...]


JOBS: dict[str, Job] = {}


def add(name: str, start: Callable, seconds: float = 100, memory_gb: float = 6, after: Iterable[str] = ()) -> None:
    """Adds a run. `start(directory, runs)` runs it in an empty directory. `seconds`, about, beside another run."""
    JOBS[name] = Job(start, seconds, memory_gb, tuple(after))


def write_tiny(directory: Path, runs: Callable[[str], Any], kind: str = "qwen3") -> Path:
    """Writes a tiny model, its data and its reward function, in a process, because threads share torch's seed."""
    command = [sys.executable, Path(__file__).with_name("tiny.py"), directory, kind]
    subprocess.run(command, check=True, capture_output=True)
    return directory


add("tiny", write_tiny, seconds=10, memory_gb=1)
add("tiny_moe", functools.partial(write_tiny, kind="moe"), seconds=10, memory_gb=1)


def job(name: str, **settings) -> Callable:
    def decorate(start: Callable) -> Callable:
        add(name, start, **settings)
        return start

    return decorate


class Queue:
    """Runs the named jobs and those that they wait for, in threads.

    Args:
        names: keys of JOBS.
        directory: name -> an empty directory for that job.
        say: prints a line.
    """

    def __init__(self, names: Iterable[str], directory: Callable[[str], Path], say: Callable[[str], None]):
        self._directory, self._say = directory, say
        self._pending: dict[str, Job] = {}
        self._done: dict[str, tuple[Any, BaseException | None]] = {}
        self._memory, self.seconds = 0.0, {}
        self._changed = threading.Condition()
        for name in names:
            self._want(name)
        waited_for = {name for one in self._pending.values() for name in one.after}
        order = sorted(self._pending, key=lambda name: (name not in waited_for, -self._pending[name].seconds))
        self._pending = {name: self._pending[name] for name in order}
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(AT_A_TIME)]
        for thread in self._threads:
            thread.start()

    def _want(self, name: str) -> None:
        if name not in self._pending:
            self._pending[name] = JOBS[name]
            for earlier in JOBS[name].after:
                self._want(earlier)

    def __call__(self, name: str) -> Any:
        """Waits for the end of a run and returns its result."""
        with self._changed:
            self._changed.wait_for(lambda: name in self._done)
            result, error = self._done[name]
        if error is not None:
            raise RuntimeError(f"the run {name} failed: {error}") from error
        return result

    def _startable(self) -> str | None:
        for name, one in self._pending.items():
            if self._memory + one.memory_gb <= MEMORY_GB and all(earlier in self._done for earlier in one.after):
                return name
        return None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._pending or self._startable())
                name = self._startable()
                if name is None:
                    return
                one = self._pending.pop(name)
                self._memory += one.memory_gb
            started, result, error = time.monotonic(), None, None
            self._say(f"[runs] {name}: started")
            try:
                with self._changed:  # pytest's makers of directories are not made for threads
                    directory = self._directory(name)
                result = one.start(directory, self)
            except BaseException as raised:
                error = raised
                self._say("".join(traceback.format_exception(raised)))
            self.seconds[name] = time.monotonic() - started
            self._say(f"[runs] {name}: {'failed' if error else 'ended'} after {self.seconds[name]:.0f} s")
            with self._changed:
                self._memory -= one.memory_gb
                self._done[name] = (result, error)
                self._changed.notify_all()
