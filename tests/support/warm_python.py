"""Python processes of the tests, forked from one process that has imported what they need.

`program()` stands in for python: for the workers of a run as Ray's `py_executable`, and in forked processes as
multiprocessing's. It sends its arguments, environment and open files to the warm process, whose fork does what python
would do, and waits for the fork's end. More than half of a run's processor time are imports, in ten processes.

A run's driver, the quick start and the benchmark are not forked.
`python tests/support/warm_python.py serve DIRECTORY CODE` is the warm process.
"""

import contextlib
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

# Not ray and verl: they read the environment when they are imported.
WORKERS = "import datasets, tensordict, transformers, vllm.entrypoints.openai.api_server, vllm.v1.worker.cpu_worker"
SOCKET = "socket"
_LOCK = threading.Lock()


def program(imports: str = WORKERS, **environment: str) -> Path:
    """A program that does what python does, after these imports in this environment.

    The first call starts the warm process, which ends with this process.
    """
    with _LOCK:
        return _start(imports, tuple(environment.items()))[0]


@functools.cache
def _start(imports: str, environment: tuple[tuple[str, str], ...]) -> tuple:
    """The program, and what must live as long as the warm process."""
    made = tempfile.TemporaryDirectory(prefix="warm")  # short, as a socket's path must be
    directory = Path(made.name)
    command = [sys.executable, __file__, "serve", made.name, imports]
    of_server = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING", **dict(environment)}
    with open(directory / "log", "w") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=of_server)
    while not (directory / SOCKET).exists():
        assert process.poll() is None, (directory / "log").read_text()
        time.sleep(0.1)
    path = directory / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {__file__} ask {directory} "$@"\n')
    path.chmod(0o755)
    return path, process, made


def ask(directory: str, arguments: list[str]) -> int:
    """Has the warm process do what python does with these arguments. Returns the exit status."""
    files = [number for number in map(int, os.listdir("/proc/self/fd")) if _is_open(number)]
    request = {"arguments": arguments, "environment": dict(os.environ), "directory": os.getcwd(), "files": files}
    text = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{directory}/{SOCKET}")
        socket.send_fds(connection, [len(text).to_bytes(4, "big")], files)
        connection.sendall(text)
        status = connection.recv(1)  # nothing if the warm process was killed
        return status[0] if status else 1


def _is_open(number: int) -> bool:
    with contextlib.suppress(OSError):  # the directory that listdir read
        os.fstat(number)
        return True
    return False


def serve(directory: str, imports: str) -> None:
    exec(imports)
    assert imports != WORKERS or not {"ray", "verl"} & sys.modules.keys()
    gc.freeze()  # a fork need not look through what was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{directory}/{SOCKET}")
    listener.listen(100)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _keep(connection, Path(directory, "python"))
        connection.close()


def _keep(connection: socket.socket, program: Path) -> None:
    """In a fork: forks the worker and waits for its end. The worker is killed when the process that asked has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(connection, 4, 250)
    request = json.loads(connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    worker = os.fork()
    if worker == 0:
        connection.close()
        _work(program, files, **request)
    for file in files:
        os.close(file)
    end = os.pidfd_open(worker)
    if end not in select.select([connection, end], [], [])[0]:
        os.kill(worker, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    with contextlib.suppress(OSError):
        connection.send(bytes([status % 256]))
    os._exit(0)


def _work(
    program: Path, received: list[int], arguments: list[str], environment: dict, directory: str, files: list[int]
) -> None:
    """In a fork of the fork: becomes the process that python with these arguments would be."""
    import atexit
    import fcntl
    import multiprocessing
    import random
    import runpy
    import traceback
    import types

    import numpy as np

    os.setpgid(0, 0)  # as Ray's workers are
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, 1000) for file in received]
    for file in received:
        os.close(file)
    for file, number in zip(moved, files, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    of_environment = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [*of_environment, *sys.path]
    multiprocessing.set_executable(str(program))
    random.seed()
    np.random.seed()
    status = 0
    try:
        if "-c" in arguments:  # multiprocessing's, after flags like -B
            code, *rest = arguments[arguments.index("-c") + 1 :]
            sys.argv = ["-c", *rest]
            sys.path.insert(0, "")
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(code, sys.modules["__main__"].__dict__)
        else:
            sys.argv = arguments
            sys.path.insert(0, os.path.dirname(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    role, directory, *words = sys.argv[1:]
    if role == "ask":
        sys.exit(ask(directory, words))
    sys.path.pop(0)  # the tests' modules
    serve(directory, *words)
