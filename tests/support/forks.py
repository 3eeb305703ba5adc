"""Probes of the CPU platform: each runs in its own fork of one child interpreter with VERL_PLATFORM=cpu.

A probe file, run as a script, prints its report with `print_report`; its tests get it with `report_of(__file__)`. They
therefore do not depend on that variable in the session's environment.
"""

import importlib
import json
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

SUPPORT = Path(__file__).parent


class Fork:
    """`function(*args)` in a fork of this process."""

    def __init__(self, function, *args):
        context = multiprocessing.get_context("fork")
        self.results, other_end = context.Pipe(duplex=False)
        self.process = context.Process(target=self._run, args=(other_end, function, args), daemon=True)
        self.process.start()
        other_end.close()

    @staticmethod
    def _run(results, function, args):
        try:
            results.send(function(*args))
        except BaseException:
            results.send(traceback.format_exc())
        signal.pause()  # stay alive, like a vLLM worker, while ZeroMQ sends its last message; result() kills it

    def result(self, timeout: float = 60):
        try:
            return self.results.recv() if self.results.poll(timeout) else f"no result after {timeout} s"
        except EOFError:
            return "ended without a result"
        finally:
            self.process.kill()


def results_of(probes: Iterable[Callable]) -> dict:
    """Name of a probe, without `probe_` -> its result."""
    return {probe.__name__.removeprefix("probe_"): Fork(probe).result() for probe in probes}


def changed_seam(departures: Iterable[tuple[str, Callable]], module_name: str, path: str) -> list[str]:
    """Refusals by a module's departures after one of its functions has got another signature and body."""
    from verl.workers.engine.base import EngineRegistry

    from verl_cast.seams import SeamChanged

    EngineRegistry._engines.clear()  # verl refuses to register an engine twice
    module = importlib.import_module(module_name)
    owner, _, attribute = path.rpartition(".")
    setattr(operator.attrgetter(owner)(module) if owner else module, attribute, lambda changed: None)
    refusals = []
    for departure in [departure for name, departure in departures if name == module_name]:
        try:
            departure(module)
        except SeamChanged as error:
            refusals.append(str(error))
    return refusals


def print_report(report: dict) -> None:
    print("REPORT" + json.dumps(report))


def report_of(script: str) -> dict:
    """The report that a probe file prints as a script."""
    env = {**os.environ, "VERL_PLATFORM": "cpu", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
    # This checkout, whichever is installed.
    env["PYTHONPATH"] = os.pathsep.join([str(SUPPORT), str(SUPPORT.parents[1]), os.environ["PYTHONPATH"]])
    child = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=220)
    assert child.returncode == 0, child.stderr[-4000:]
    return json.loads(child.stdout.partition("REPORT")[2])


def good_config() -> DictConfig:
    """The settings that the end-to-end run on the CPU uses."""
    rollout = {"name": "vllm", "free_cache_engine": False, "enable_sleep_mode": False, "full_determinism": False}
    return OmegaConf.create(
        {
            "trainer": {"device": "cpu", "n_gpus_per_node": 1},
            "ray_kwargs": {"ray_init": {"num_gpus": 1}},
            "actor_rollout_ref": {
                "actor": {"strategy": "fsdp2"},
                "model": {"override_config": {"attn_implementation": "sdpa"}},
                "rollout": rollout,
            },
        }
    )
