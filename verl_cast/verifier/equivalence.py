r"""Are two answers the same? math-verify decides, in processes that can be killed.

math-verify guards itself with SIGALRM. That fails outside the main thread, where verl's reward workers call, and waits
for ever in a single C call such as 9^(9^9). So the comparison runs in pebble's process pool: every task has a time
limit, after which its process is killed and replaced; every process has a memory limit. Most comparisons need no
process at all: empty, over-long, textually equal answers and pairs of integers are decided on the spot.

How an answer is read: text with $...$, \(...\), \[...\] or \boxed{...} in it as it stands; anything else as LaTeX, in
dollars (given bare, math-verify reads `3\pi` as 3, `1,2` as 1.2 and `\sqrt{2}` as nothing). Plain prose ("the total is
42") gets a second reading as it stands, in which the last number counts.

The processes start afresh (spawn), with sympy and without torch or verl, about 80 MB each; as always with spawn they
import the main module, so a script that judges needs its `if __name__ == "__main__"`. A pool belongs to one process:
verl's 8 reward workers (`reward.num_workers`) make 16 of these.

Raised is only what concerns the installation: processes that cannot start. Left out: any cache, and the choice of what
the answer is (`answers`).
"""

import math
import multiprocessing
import os
import re
import signal
import threading
from functools import lru_cache

from pebble import ProcessPool

# Extracted text beyond this is no final answer; it is wrong without being parsed.
MAX_ANSWER_CHARACTERS = 1000
NUM_PROCESSES = 2
MEMORY_LIMIT_BYTES = 2 * 2**30
# sympy's caches grow; a process is replaced after this many comparisons.
COMPARISONS_PER_PROCESS = 1000
# Seconds in the queue, on top of a comparison's own time limit, after which a caller gives up.
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
    except Exception:  # time-out, killed process, or whatever sympy raised over this text: the caller reports it
        task.cancel()
        return None


def _compare_alone(answer: str, reference: str, timeout: float) -> bool:
    # Should the caller be killed meanwhile, nobody is left to keep the time: then the kernel ends this process.
    signal.alarm(math.ceil(timeout) + 2)
    try:
        return compare(answer, reference)
    finally:
        signal.alarm(0)


def compare(answer: str, reference: str) -> bool:
    """math-verify's verdict. It may hang or die: call it in a process of the pool."""
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
    """The pool, which has shown that it works: a broken one would make every answer wrong without a word.

    Raises:
        RuntimeError: its processes do not start or do not judge here.
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
        raise RuntimeError("verifier: math-verify does not find 1/2 equal to 0.5 here; is its installation whole?")
    return pool


def _prepare_process() -> None:
    import logging
    import resource

    import math_verify  # noqa: F401  before the first task, whose time is limited

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _reset_after_fork() -> None:
    """A forked child has no threads that would serve its copy of the pool: it makes its own."""
    global _pool_lock
    _pool_lock = threading.Lock()
    _pool.cache_clear()


os.register_at_fork(after_in_child=_reset_after_fork)
