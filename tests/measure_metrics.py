"""What the cast/* metrics cost: seconds on one batch, beside the advantages that they describe. Not a test.

    python tests/measure_metrics.py [ROWS TOKENS]

Prints medians of interleaved rounds, ratios of the same run, and how long a training step must be for the metrics to
stay below 2 % of it (the advantages, too, are verl's work on the driver's CPU).
"""

import statistics
import sys
import time

import numpy as np
import torch

from verl_cast import CastConfig
from verl_cast.advantage import cast_advantage
from verl_cast.metrics import cast_metrics, noise_metrics

ROUNDS, GROUP = 5, 8


def main(rows: int, length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(rows, length, generator=generator)
    teacher = old + 0.3 * torch.randn(rows, length, generator=generator)
    lengths = torch.randint(length // 8, length + 1, (rows, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    rewards = torch.zeros(rows, length)
    rewards[:, 0] = (torch.rand(rows, generator=generator) < 0.5).float()
    index = np.repeat(np.arange(rows // GROUP), GROUP)
    config = CastConfig()
    seconds: dict[str, list[float]] = {"copy of one tensor": [], "advantages": [], "metrics": [], "noise metrics": []}
    for _ in range(ROUNDS):
        for name in seconds:
            started = time.perf_counter()
            if name == "copy of one tensor":
                old.clone()
            elif name == "advantages":
                result = cast_advantage(rewards, mask, index, old, teacher, config)
            elif name == "metrics":
                cast_metrics(result, mask, entropy=teacher)
            else:
                noise_metrics(teacher, old, result.gap, mask)
            seconds[name].append(time.perf_counter() - started)
    print(f"{rows} x {length} tokens, {ROUNDS} rounds, {torch.get_num_threads()} threads")
    advantages = statistics.median(seconds["advantages"])
    for name, times in seconds.items():
        median = statistics.median(times)
        spread = f"{min(times):.4f} to {max(times):.4f} s"
        print(f"  {name:20s}{median:9.4f} s  ({spread})   {median / advantages:6.2f} x advantages")
    print(f"  the metrics are below 2 % of every step longer than {50 * statistics.median(seconds['metrics']):.2f} s")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3] or (512, 8192)))
