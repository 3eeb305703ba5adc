"""Avg@k and Pass@k of verified samples, with 95 % bootstrap intervals over problems.

Samples of one problem are correlated, so problems are resampled, not samples. If all problems are alike (none or all
solved), the interval has width 0. That shows only that these problems do not differ.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from verl_cast.tools.stats import mean_interval


def pass_at_k(correct: np.ndarray, samples: int, k: int) -> np.ndarray:
    """Probability that of k samples drawn without repetition at least one is correct (Chen et al. 2021).

    With k = samples, it is 1 if any of them is correct, else 0.

    Args:
        correct: (N,) number of correct samples of every problem, out of `samples`.
    """
    # 1 − C(n−c, k) / C(n, k). The i-th factor is the share of wrong samples after i wrong draws.
    drawn = np.arange(k)
    wrong_left = np.clip(samples - correct[:, None] - drawn, 0, None)
    return 1 - np.prod(wrong_left / (samples - drawn), axis=1)


def summarise(problems: Sequence[Sequence[Mapping[str, Any]]], seed: int) -> dict[str, Any]:
    """The numbers of one benchmark.

    Args:
        problems: the samples of every problem (lines of `record.Record`); the same number for each.
        seed: of the bootstrap.
    """
    correct = np.array([[line["correct"] for line in lines] for lines in problems], dtype=float)
    lines = [line for samples in problems for line in samples]
    number, samples = correct.shape
    avg, any_correct = correct.mean(axis=1), pass_at_k(correct.sum(axis=1), samples, samples)
    ks = [2**i for i in range(samples.bit_length()) if 2**i < samples]
    return {
        "problems": number,
        "samples": samples,
        "avg": float(avg.mean()),
        "avg_interval": mean_interval(avg, seed),
        "pass": float(any_correct.mean()),
        "pass_interval": mean_interval(any_correct, seed),
        "pass_at": {k: float(pass_at_k(correct.sum(axis=1), samples, k).mean()) for k in [*ks, samples]},
        "mean_tokens": float(np.mean([line["tokens"] for line in lines])),
        "truncated_share": float(np.mean([line["truncated"] for line in lines])),
        "seconds": round(sum(line["seconds"] for line in lines), 2),
    }
