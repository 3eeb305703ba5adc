"""The processes in which math-verify runs: they are killed, replaced, and end with their caller."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from verl_cast.verifier import compute_score, processes

ROOTS = (r"\boxed{\frac{\sqrt{2}}{2}}", "2^{-1/2}")  # needs math-verify
TOWER = r"\boxed{9^{9^{9^{9}}}}"


def score(response, reference, timeout=10):
    return compute_score("math", response, reference, tail_fraction=0, timeout=timeout)["score"]


def pool_processes(pid: int | None = None) -> list[psutil.Process]:
    """The pool's processes: children that multiprocessing spawned, without its resource tracker."""
    return [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]


def test_outside_the_main_thread_and_from_many_threads():
    # verl's reward workers call the verifier in a thread pool. math-verify's own time limit raises there.
    with ThreadPoolExecutor(16) as threads:
        responses = [rf"\boxed{{\sqrt{{{i % 7}}}}}" for i in range(200)] + [TOWER] * 2
        scores = list(threads.map(lambda response: score(response, r"\frac{3}{\sqrt{3}}", timeout=2), responses))
    assert scores == [float(i % 7 == 3) for i in range(200)] + [0.0, 0.0]


def test_a_killed_process_costs_one_verdict_at_most():
    score(*ROOTS)
    for process in pool_processes():
        process.kill()
    score(*ROOTS)
    assert score(*ROOTS) == 1


def test_equal_texts_rational_numbers_and_nothing_need_no_process(monkeypatch):
    monkeypatch.setattr(processes, "_running_pool", lambda: pytest.fail("asked for a process"))
    assert [
        score(*pair)
        for pair in [("x+Y", "x + Y"), ("7", "007"), ("1 1/2", "1.50"), ("7", "8"), ("", "7"), ("x" * 2000, "7")]
    ] == [1, 1, 1, 0, 0, 0]


PROGRAM = """
import os, sys
from verl_cast.verifier import compute_score
if __name__ == "__main__":
    result = compute_score("math", "8^{1/2}", "2*sqrt(2)", tail_fraction=0)
    modules = sorted({"torch", "verl", "transformers", "math_verify", "numpy"} & set(sys.modules))
    print(result["score"], modules, flush=True)
    if "idle" in sys.argv:
        sys.stdin.read()
    if "hangs" in sys.argv:
        compute_score("math", r"\\boxed{9^{9^{9^{9}}}}", "3", timeout=2)
"""


def alive_in_group(group):
    """Processes of the group, without zombies that only wait for init."""
    listed = subprocess.run(["ps", "-eo", "pgid=,ppid=,stat="], capture_output=True, text=True).stdout
    rows = [row.split() for row in listed.splitlines()]
    return [row for row in rows if row[0] == str(group) and not (row[1] == "1" and row[2].startswith("Z"))]


@pytest.mark.parametrize("end", ["exit", "killed while idle", "killed while it hangs"])
def test_nothing_is_left_behind(tmp_path, end):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", end.split()[-1]]
    # The group holds the program and all its descendants, unless one leaves the group.
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    program = subprocess.Popen(command, cwd=tmp_path, **pipes, text=True, start_new_session=True)
    assert program.stdout.readline() == "1.0 []\n"  # the calling process imports nothing heavy
    if end != "exit":
        time.sleep(0.5)
        assert pool_processes(program.pid)
        program.kill()
    program.wait(timeout=20)
    give_up = time.monotonic() + 15
    while alive_in_group(program.pid) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not alive_in_group(program.pid)


def test_a_broken_math_verify_is_an_error_and_no_verdict(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "math_verify.py").write_text(
        "raise ImportError('no antlr here')"
    )  # the program's directory is first on the path
    run = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "RuntimeError: verifier: its math-verify processes do not work here" in run.stderr
    assert "no antlr here" in run.stderr


def test_a_forked_child_makes_its_own_pool():
    score(*ROOTS)
    pid = os.fork()
    if pid == 0:
        verdict = 1
        try:
            verdict = 0 if score(*ROOTS) == 1 else 2
        finally:
            os._exit(verdict)
    assert os.waitpid(pid, 0)[1] == 0
