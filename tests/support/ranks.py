"""Ranks of a gloo process group outside Ray: forks of one process that has imported verl (warm_python.py)."""

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import warm_python

SUPPORT = Path(__file__).parent
TIMEOUT = 240  # seconds for all ranks of a call

IMPORTS = """
import engine_faults, engine_laws, verl.workers.engine, verl.workers.engine_workers
from transformers import AutoModelForImageTextToText
AutoModelForImageTextToText._model_mapping.keys()  # imports 75 modules; verl asks each rank's model for it
"""
RANK = """
import importlib, os, sys, traceback
import psutil
status = 1
try:
    importlib.import_module(sys.argv[1]).main(*sys.argv[2:])
    status = 0
except BaseException:
    traceback.print_exc()
sys.stdout.flush()
for child in psutil.Process().children(recursive=True):  # Megatron's checkpointing leaves child processes
    child.kill()
os._exit(status)  # a process group whose peer has failed may not end otherwise
"""


def run(module: str, world_size: int, arguments: Sequence[object], logs: Path, may_fail: bool = False) -> list[str]:
    """Runs `module.main(*arguments)` on every rank; returns what each rank printed.

    A rank has its own log, and RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment.

    Raises:
        AssertionError: a rank failed or did not end, unless `may_fail`. The message ends with its log.
    """
    paths = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))
    settings = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    python = warm_python.program(IMPORTS, **settings)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings |= {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logs_ = [logs / f"{module}_{port}_rank_{rank}.log" for rank in range(world_size)]
    ranks = []
    for rank, path in enumerate(logs_):
        with path.open("w") as log:
            environment = {**os.environ, **settings, "RANK": str(rank)}
            command = [python, "-c", RANK, module, *map(str, arguments)]
            ranks.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    deadline = time.monotonic() + TIMEOUT
    for rank in ranks:
        try:
            rank.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()
    outputs = [path.read_text(errors="replace") for path in logs_]
    for number, (rank, output) in enumerate(zip(ranks, outputs, strict=True)):
        assert may_fail or rank.returncode == 0, f"rank {number} ended with {rank.returncode}:\n{output[-5000:]}"
    return outputs
