"""What the advantage of CAST costs on a CPU, and what its metrics do: beside a copy and verl's own GRPO. Not a test.

    python tests/benchmarks/measure_advantage.py [ROWS TOKENS]

Fixed data: every row of the batch as verl hands it over (rewards and log-probs float32, mask int64), groups of 8,
lengths from an eighth to all of TOKENS, the paper's settings. Prints medians and spread of interleaved rounds, ratios
to the copy of one (ROWS, TOKENS) float32 tensor in the same run, and the peak of extra memory in such tensors.

A copy that gets its memory from the system pays for the pages; one whose memory was freed just before does not, and is
several times as fast. So all is measured both ways: `fresh` (before every call the allocator gives back to the system
what it holds, as where a batch's tensors stay until the step ends) and `recycled`. Other work on the machine spoils it
all: run it alone.
"""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from verl_cast import CastConfig
from verl_cast.advantage.compute import TokenAdvantage, compute_advantage, rule_of, trajectory_advantage
from verl_cast.advantage.metrics import advantage_metrics, noise_metrics

ROUNDS, GROUP = 11, 8


def work(rows: int, length: int) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
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
        "noise metrics": lambda: noise_metrics(result, old, teacher),
    }


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that the tensors made inside the call hold at one time, its result among them."""
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
    main(*(int(argument) for argument in sys.argv[1:3] or (512, 8192)))
