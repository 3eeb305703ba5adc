"""The verifier in a Ray worker, as verl calls it."""

import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from verl_cast.verifier import compute_score

ROOTS = (r"\boxed{\frac{\sqrt{2}}{2}}", "2^{-1/2}")  # needs math-verify
TOWER = r"\boxed{9^{9^{9^{9}}}}"


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_in_a_ray_worker_it_judges_and_is_not_held_up():
    """As in verl, the call comes from a thread of a Ray actor, whose main module is Ray's."""
    import ray

    class RewardWorker:
        def judge(self, *arguments, **options):
            with ThreadPoolExecutor() as pool:
                return pool.submit(compute_score, "math", *arguments, **options).result()

        def memory_of_processes(self):
            return [child.memory_info().rss for child in psutil.Process().children(recursive=True)]

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        worker = ray.remote(RewardWorker).remote()
        started = time.monotonic()
        first = ray.get(worker.judge.remote(*ROOTS, tail_fraction=0))
        hostile = ray.get(worker.judge.remote(TOWER, "1", tail_fraction=0, timeout=3))
        again = ray.get(worker.judge.remote(*ROOTS, tail_fraction=0))
        assert (first["score"], hostile["score"], hostile["unjudged"], again["score"]) == (1, 0, 1, 1)
        assert time.monotonic() - started < 120
        assert max(ray.get(worker.memory_of_processes.remote())) < 400 * 2**20, "no torch and no verl in them"
    finally:
        ray.shutdown()
