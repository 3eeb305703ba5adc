"""CPU cost of CAST's advantages and of their metrics, beside a copy and verl's own GRPO. Not a test.

    python tests/benchmarks/measure_advantage.py [ROWS TOKENS]

The data are fixed: a batch as verl passes it (rewards and log-probs float32, mask int64), in groups of 8. Lengths are
an eighth to all of TOKENS, and the settings are the paper's. The script prints medians and spreads of interleaved
rounds, and the peak of extra memory. The unit is one (ROWS, TOKENS) float32 tensor: its copy in the same run, or its
size.

A copy into new pages of the system is several times slower than a copy into just-freed memory. So everything is
measured both ways:
* `fresh`: the allocator returns its free memory to the system before every call. In training, tensors that stay until
  the step ends have this effect.
* `recycled`: the allocator reuses freed memory.

Other work on the machine distorts the numbers, so run the script alone.
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from verl_cast import CastConfig
from verl_cast.advantage.compute import TokenAdvantage, compute_advantage, rule_of, trajectory_advantage
from verl_cast.advantage.metrics import advantage_metrics, measured_noise, noise_metrics

ROUNDS, GROUP = 11, 8


def work(rows: int, length: int) -> dict[str, Callable[[], Any]]:
    """The measured calls, by name."""
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(rows, length, generator=generator)
    teacher = old + 0.3 * torch.randn(rows, length, generator=generator)
    lengths = torch.randint(length // 8, length + 1, (rows, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    rewards = torch.zeros(rows, length)
    rewards[:, 0] = (torch.rand(rows, generator=generator) < 0.5).float()
    index = np.array([f"prompt {i // GROUP}" for i in range(rows)], dtype=object)
    config, grpo = CastConfig(), get_adv_estimator_fn("grpo_vectorized")

    def advantages() -> TokenAdvantage:
        return compute_advantage(rewards, mask, index, old, teacher, config)

    result = advantages()
    return {
        "copy of one tensor": old.clone,
        "verl's grpo_vectorized": lambda: grpo(rewards, mask, index),
        "trajectories' part": lambda: trajectory_advantage(rule_of(config), rewards, mask, index),
        "advantages": advantages,
        "advantages, metrics": lambda: advantage_metrics(advantages(), entropy=teacher),
        "noise metrics": lambda: noise_metrics(measured_noise(result.mask, old, teacher), result),
    }


def peak_bytes(call: Callable[[], Any]) -> int:
    """Peak bytes of the tensors made inside the call, including its result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def main(rows: int, length: int) -> None:
    calls, give_back = work(rows, length), ctypes.CDLL(None).malloc_trim
    print(f"{rows} x {length} tokens, {ROUNDS} rounds, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for memory in ("fresh", "recycled"):
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                if memory == "fresh":
                    give_back(0)
                started = time.perf_counter()
                result = call()
                seconds[name].append(time.perf_counter() - started)
                del result
        copy = statistics.median(seconds["copy of one tensor"])
        for name, times in seconds.items():
            median = statistics.median(times)
            spread = f"{1000 * median:8.1f} ms  ({1000 * min(times):.1f} to {1000 * max(times):.1f})"
            print(f"  {memory:10s}{name:24s}{spread:34s}{median / copy:7.2f} x copy")
        metrics = statistics.median(seconds["advantages, metrics"]) - statistics.median(seconds["advantages"])
        print(f"  the metrics are below 2 % of every step longer than {50 * metrics:.1f} s")
    for name, call in calls.items():
        print(f"  peak      {name:24s}{peak_bytes(call) / (4 * rows * length):8.2f} x one tensor")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", type=int, default=512)
    parser.add_argument("length", nargs="?", type=int, default=8192)
    main(**vars(parser.parse_args()))
