"""Ranks of a gloo process group outside Ray, forked from one warm process that has imported verl and torch once.

    with WarmProcess() as warm:
        outputs = warm.run("engine_laws", world_size=2, arguments=[directory, "fsdp2"], logs=directory)

Importing verl takes longer than most ranks run. The warm process imports it once and waits. A rank is a fork of it
with its own log. Its environment has RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. The rank calls `main(*arguments)`
of the named module and ends. What all ranks need, `prepare(*arguments)` makes before they are forked.
`python tests/support/ranks.py` is the warm process.
"""

import contextlib
import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import psutil

TIMEOUT = 240  # seconds for all ranks of a call


class WarmProcess:
    """The warm process. It starts at the first call and ends with the `with` block."""

    def __init__(self):
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "WarmProcess":
        return self

    def __exit__(self, *_) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(timeout=30)

    def run(
        self, module: str, world_size: int, arguments: Sequence[object], logs: Path, may_fail: bool = False
    ) -> list[str]:
        """Run `module.main(*arguments)` on every rank; returns what each rank printed.

        Raises:
            AssertionError: a rank failed or did not end, unless `may_fail`. The message ends with its log.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        paths = [logs / f"{module}_{port}_rank_{rank}.log" for rank in range(world_size)]
        request = {
            "module": module,
            "port": port,
            "arguments": list(map(str, arguments)),
            "logs": list(map(str, paths)),
        }
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"},
                text=True,
            )
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the warm process has ended"
        outputs = [path.read_text(errors="replace") for path in paths]
        for rank, (status, output) in enumerate(zip(json.loads(answer), outputs, strict=True)):
            assert may_fail or status == 0, f"rank {rank} ended with {status}:\n{output[-5000:]}"
        return outputs


def serve() -> None:
    """The warm process. For every call it reads a line of JSON and writes a line with the ranks' exit statuses."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of imports must not mix with the answers
    import torch
    import verl  # noqa: F401  (loads the plugin and the CPU platform)
    import verl.workers.engine  # noqa: F401  (all engines; 1,300 modules that every rank would import)
    import verl.workers.engine_workers  # noqa: F401
    from transformers import AutoModelForImageTextToText

    AutoModelForImageTextToText._model_mapping.keys()  # imports 75 modules; verl asks each rank's model for it
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # ranks need not look through what was imported: a layout of the laws takes a fifth less
    for line in sys.stdin:
        request = json.loads(line)
        importlib.import_module(request["module"]).prepare(*request["arguments"])
        ranks = [_fork(request, rank) for rank in range(len(request["logs"]))]
        answers.write(json.dumps(_wait(ranks)) + "\n")
        answers.flush()


def _fork(request: dict, rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        log = os.open(request["logs"][rank], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(len(request["logs"])),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(request["port"]),
        )
        sys.modules[request["module"]].main(*request["arguments"])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for child in psutil.Process().children(recursive=True):  # Megatron's checkpointing leaves child processes
            child.kill()
        os._exit(status)


def _wait(ranks: list[int]) -> list[int]:
    """The ranks' exit statuses. Ranks that still run after TIMEOUT are killed."""
    deadline, statuses = time.monotonic() + TIMEOUT, {}
    while len(statuses) < len(ranks):
        for pid in ranks:
            if pid not in statuses:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    statuses[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for pid in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        time.sleep(0.05)
    return [statuses[pid] for pid in ranks]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve()
