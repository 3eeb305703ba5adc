r"""Decides whether two answers are the same, by math-verify in processes that can be killed.

math-verify limits its time with SIGALRM. SIGALRM fails outside the main thread, where verl's reward workers call. It
also cannot stop a single C call such as 9^(9^9). So comparisons run in pebble's process pool. Every task has a time
limit, after which its process is killed and replaced. Every process has a memory limit. Most comparisons need no
process: empty, over-long and textually equal answers and pairs of integers are decided at once.

How an answer is read:
* Text that contains $...$, \(...\), \[...\] or \boxed{...} is read as it is.
* Any other text is put in dollars and read as LaTeX. Without them, math-verify reads `3\pi` as 3, `1,2` as 1.2 and
  `\sqrt{2}` as nothing.
* Plain prose ("the total is 42") is read a second time, as it is. There the last number counts.

The processes are spawned. They import sympy but not numpy, torch or verl, and take about 65 MB each. Spawned
processes import the main module, so a script that judges needs `if __name__ == "__main__"`. Every calling process has
its own pool: verl's 8 reward workers (`reward.num_workers`) start 16 processes.

An error is raised only if the installation is broken: the processes cannot start or judge. Left out: a cache,
and finding the answer in a response (`answers`).
"""

import math
import multiprocessing
import os
import re
import signal
import threading
from functools import lru_cache

from pebble import ProcessPool

# Longer text is no final answer: it counts as wrong and is not parsed.
MAX_ANSWER_CHARACTERS = 1000
NUM_PROCESSES = 2
MEMORY_LIMIT_BYTES = 2 * 2**30
# A process is replaced after this many comparisons, because sympy's caches grow.
COMPARISONS_PER_PROCESS = 1000
# A caller gives up after this many seconds in the queue, on top of the comparison's own time limit.
MAX_QUEUE_SECONDS = 120

_INTEGER = re.compile(r"[+-]?\d{1,300}", re.ASCII)
_DELIMITERS = ("$", "\\(", "\\[", "\\boxed")
_PROSE = re.compile(r"[^\W\d_]{2,}\s")
_pool_lock = threading.Lock()


def is_equal(answer: str, reference: str, timeout: float) -> bool | None:
    """Whether the answer equals the reference; None where the comparison had to be stopped (time, memory, crash).

    Args:
        answer: extracted from a response.
        reference: extracted from the ground truth.
        timeout: seconds for the comparison itself; waiting for a free process comes on top.
    """
    if not answer or not reference:
        return False
    if _normalized(answer) == _normalized(reference):
        return True
    if len(answer) > MAX_ANSWER_CHARACTERS or len(reference) > MAX_ANSWER_CHARACTERS:
        return False
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(reference):
        return int(answer) == int(reference)
    task = _running_pool().schedule(_compare_alone, args=[answer, reference, timeout], timeout=timeout)
    try:
        return task.result(timeout=timeout + MAX_QUEUE_SECONDS)
    except Exception:  # time-out, killed process, or an error of sympy on this text: the caller reports it
        task.cancel()
        return None


def _compare_alone(answer: str, reference: str, timeout: float) -> bool:
    # If the caller is killed meanwhile, nothing else enforces the time limit: the kernel ends this process.
    signal.alarm(math.ceil(timeout) + 2)
    try:
        return compare(answer, reference)
    finally:
        signal.alarm(0)


def compare(answer: str, reference: str) -> bool:
    """math-verify's verdict. It may hang or crash: call it only in a process of the pool."""
    from math_verify import parse, verify

    gold = parse(_as_latex(reference), parsing_timeout=None)
    readings = [_as_latex(answer)]
    if "\\" not in answer and _PROSE.search(answer):
        readings.append(answer)
    return any(verify(gold, parse(reading, parsing_timeout=None), timeout_seconds=None) for reading in readings)


def _as_latex(text: str) -> str:
    return text if any(mark in text for mark in _DELIMITERS) else f"${text}$"


def _normalized(text: str) -> str:
    return "".join(text.split()).lower()


def _running_pool() -> ProcessPool:
    with _pool_lock:
        if not _pool().active:
            _pool.cache_clear()
        return _pool()


@lru_cache(maxsize=1)
def _pool() -> ProcessPool:
    """The pool, tested before its first use: a broken pool would silently make every answer wrong.

    Raises:
        RuntimeError: its processes do not start, or judge wrongly.
    """
    pool = ProcessPool(
        max_workers=NUM_PROCESSES,
        max_tasks=COMPARISONS_PER_PROCESS,
        initializer=_prepare_process,
        # Not fork: the caller has threads, and perhaps a GPU context.
        context=multiprocessing.get_context("spawn"),
    )
    try:
        works = pool.schedule(compare, args=["\\frac{1}{2}", "0.5"]).result(timeout=MAX_QUEUE_SECONDS)
    except Exception as error:
        pool.stop()
        raise RuntimeError(f"verifier: its math-verify processes do not work here ({error!r}).") from error
    if not works:
        raise RuntimeError("verifier: math-verify does not judge 1/2 equal to 0.5 here; reinstall math-verify.")
    return pool


def _prepare_process() -> None:
    import logging
    import resource

    import math_verify  # noqa: F401  imported before the first task, whose time is limited

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _reset_after_fork() -> None:
    """A forked child lacks the threads that serve the pool, so it makes its own pool."""
    global _pool_lock
    _pool_lock = threading.Lock()
    _pool.cache_clear()


os.register_at_fork(after_in_child=_reset_after_fork)
