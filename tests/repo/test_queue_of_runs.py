"""The queue of the real runs: start order, memory limit, jobs that wait for others, and failed jobs."""

import threading
import time

import pytest
import queue_of_runs
from queue_of_runs import Queue, add


@pytest.fixture
def jobs(monkeypatch, tmp_path):
    """Starts a queue of fake jobs and records which jobs were running when each began."""
    monkeypatch.setattr(queue_of_runs, "JOBS", {})
    running, began, lock = set(), {}, threading.Lock()

    def start(name, seconds=0.05, error=None):
        def run(directory, runs):
            with lock:
                running.add(name)
                began[name] = sorted(running)
            time.sleep(seconds)
            with lock:
                running.remove(name)
            if error:
                raise ValueError(error)
            return directory.name

        return run

    def queue(*names):
        return Queue(names, lambda name: tmp_path / name, lambda line: None)

    return start, began, queue


def test_two_at_a_time_the_longest_first_as_memory_allows(jobs):
    start, began, queue = jobs
    for name, seconds, memory in (("a", 100, 6), ("long", 400, 14), ("short", 30, 3), ("large", 200, 14)):
        add(name, start(name, seconds=seconds / 2000), seconds, memory_gb=memory)
    runs = queue("a", "short", "long", "large")
    assert [runs(name) for name in ("a", "long", "large", "short")] == ["a", "long", "large", "short"]
    assert list(began) == ["long", "a", "short", "large"] and all(len(names) <= 2 for names in began.values())


def test_a_job_waits_for_another_that_no_test_named(jobs):
    start, began, queue = jobs
    add("first", start("first", seconds=0.2))
    add("second", lambda directory, runs: runs("first") + " and second", after=["first"])
    add("never", start("never"))
    assert queue("second")("second") == "first and second" and "never" not in began


def test_a_failure_is_raised_by_everyone_who_asks(jobs):
    start, _, queue = jobs
    add("bad", start("bad", error="the reason"))
    add("good", start("good"))
    runs = queue("bad", "good")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the run bad failed: the reason"):
            runs("bad")
    assert runs("good") == "good"
