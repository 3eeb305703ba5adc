"""A second implementation of the baselines, from method section 10, one float64 token at a time. Shares no code."""

import math


def clip(x: float, low: float, high: float) -> float:
    return max(low, min(high, x))


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def opsd(A: float, gap: float, correct: bool) -> float:
    return gap


def grpo_opsd(A: float, gap: float, correct: bool, weight=1.0) -> float:
    return A + weight * gap


def rlsd(A: float, gap: float, correct: bool, step: int, weight=0.5, decay=50, eps=0.2) -> float:
    """`step` counts from 0."""
    lam = weight * (1 - min(step, decay) / decay) if decay else weight
    return A * ((1 - lam) + lam * clip(math.exp(clip(sign(A) * gap, -20, 20)), 1 - eps, 1 + eps))


def rlrt(A: float, gap: float, correct: bool, lam=0.5, eps=1.0) -> float:
    if not correct:
        return A
    return A * ((1 - lam) + lam * clip(math.exp(clip(sign(A) * -gap, -20, 20)), 1 - eps, 1 + eps))
