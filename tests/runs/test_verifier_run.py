"""The verifier in a Ray worker, as verl calls it. As a script, this file is the program that does so."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from queue_of_runs import job

from verl_cast.verifier import compute_score

ROOTS = (r"\boxed{\frac{\sqrt{2}}{2}}", "2^{-1/2}")  # needs math-verify
TOWER = r"\boxed{9^{9^{9^{9}}}}"


@job("verifier", seconds=40, memory_gb=2)
def verifier(directory, runs):
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests / 'support'}:{tests.parent}"}
    return subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.runs("verifier")
def test_in_a_ray_worker_it_judges_and_is_not_held_up(runs):
    done = runs("verifier")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["judged"] == [[1, 0], [0, 1], [1, 0]]
    assert found["seconds"] < 120
    assert found["memory"] < 400 * 2**20, "no torch and no verl in its processes"


def main() -> None:
    """As in verl, the call comes from a thread of a Ray actor, whose main module is Ray's."""
    import ray

    class RewardWorker:
        def judge(self, *arguments, **options):
            with ThreadPoolExecutor() as pool:
                return pool.submit(compute_score, "math", *arguments, **options).result()

        def memory_of_processes(self):
            return [child.memory_info().rss for child in psutil.Process().children(recursive=True)]

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    worker = ray.remote(RewardWorker).remote()
    started = time.monotonic()
    calls = ((*ROOTS, {}), (TOWER, "1", {"timeout": 3}), (*ROOTS, {}))
    answers = [ray.get(worker.judge.remote(*texts, tail_fraction=0, **options)) for *texts, options in calls]
    seconds = time.monotonic() - started
    judged = [[answer["score"], answer["unjudged"]] for answer in answers]
    memory = max(ray.get(worker.memory_of_processes.remote()))
    ray.shutdown()
    print(json.dumps({"judged": judged, "seconds": seconds, "memory": memory}))


if __name__ == "__main__":
    main()
