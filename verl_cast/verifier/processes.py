r"""Processes that can be killed, for work that can hang or crash.

math-verify limits its time with SIGALRM. SIGALRM fails outside the main thread, where verl's reward workers call. It
also cannot stop a single C call such as 9^(9^9). So comparisons run in pebble's process pool. Every task has a time
limit, after which its process is killed and replaced. Every process has a memory limit.

The processes are spawned. They import sympy but not numpy, torch or verl, and take about 65 MB each. Spawned
processes import the main module, so a script that judges needs `if __name__ == "__main__"`. Every calling process has
its own pool: verl's 8 reward workers (`reward.num_workers`) start 16 processes.

An error is raised only if the installation is broken: the processes cannot start or judge. Left out: a cache.
"""

import math
import multiprocessing
import os
import signal
import threading
from functools import lru_cache

from pebble import ProcessPool

NUM_PROCESSES = 2
MEMORY_LIMIT_BYTES = 2 * 2**30
# A process is replaced after this many comparisons, because sympy's caches grow.
COMPARISONS_PER_PROCESS = 1000
# A caller gives up after this many seconds in the queue, on top of the comparison's own time limit.
MAX_QUEUE_SECONDS = 120

_pool_lock = threading.Lock()


def judge(answer: str, reference: str, timeout: float) -> bool | None:
    """`mathematics.judge` in a process; None where it had to be stopped (time, memory, crash).

    Args:
        timeout: seconds for the comparison itself; waiting for a free process comes on top.

    Raises:
        RuntimeError: no process works here.
    """
    task = _running_pool().schedule(_judge_alone, args=[answer, reference, timeout], timeout=timeout)
    try:
        return task.result(timeout=timeout + MAX_QUEUE_SECONDS)
    except Exception:  # time-out, killed process, or an error of sympy on this text: the caller reports it
        task.cancel()
        return None


def _judge_alone(answer: str, reference: str, timeout: float) -> bool:
    from verl_cast.verifier import mathematics

    # If the caller is killed meanwhile, nothing else enforces the time limit: the kernel ends this process.
    signal.alarm(math.ceil(timeout) + 2)
    try:
        return mathematics.judge(answer, reference)
    finally:
        signal.alarm(0)


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
        works = pool.schedule(_judge_alone, args=["8^{1/2}", r"2\sqrt{2}", MAX_QUEUE_SECONDS]).result(MAX_QUEUE_SECONDS)
        if not works:
            raise ArithmeticError("math-verify takes the root of 8 for another number than 2 times that of 2")
    except Exception as error:
        pool.stop()
        raise RuntimeError(f"verifier: its math-verify processes do not work here ({error!r}).") from error
    return pool


def _prepare_process() -> None:
    import logging
    import resource

    from verl_cast.verifier import mathematics  # noqa: F401  imported before the first task, whose time is limited

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _reset_after_fork() -> None:
    """A forked child lacks the threads that serve the pool, so it makes its own pool."""
    global _pool_lock
    _pool_lock = threading.Lock()
    _pool.cache_clear()


os.register_at_fork(after_in_child=_reset_after_fork)
