"""What a note of the report is, and the few statistics that the rules share. The rules are in rules_*.py."""

import math
from dataclasses import dataclass

from verl_cast.report.runs import Run, fifths

OK, LOOK, WARNING = "ok", "look", "warning"
LEVELS = (WARNING, LOOK, OK)
FEW_FOR_TREND = 3


@dataclass(frozen=True)
class Note:
    """One thing seen. `seen` holds the numbers; `advice` says what to do, "" where nothing is to be done."""

    level: str
    title: str
    seen: str
    advice: str = ""


@dataclass(frozen=True)
class Mean:
    """Mean of a metric over some steps, with its standard error (steps taken as independent)."""

    value: float
    error: float
    steps: int


def last_third(run: Run, name: str) -> Mean | None:
    values = run.values(name)
    return mean(values[-max(1, len(values) // 3) :]) if values else None


def mean(values: list[float], weights: list[float] | None = None) -> Mean:
    """Mean and standard error; `weights` say how much a step knows (not all are 0)."""
    weights = [1.0] * len(values) if weights is None else weights
    total = sum(weights)
    value = sum(v * w for v, w in zip(values, weights, strict=True)) / total
    squares = sum((w * (v - value)) ** 2 for v, w in zip(values, weights, strict=True))
    correction = len(values) / max(1, len(values) - 1)
    return Mean(value, math.sqrt(squares * correction) / total, len(values))


def ends(run: Run, name: str) -> tuple[float, float] | None:
    """First and last fifth of a metric that was logged often enough to speak of a trend."""
    values = run.values(name)
    return fifths(values) if len(values) >= FEW_FOR_TREND else None


def reward_change(run: Run) -> float:
    trend = ends(run, "critic/score/mean")
    return 0.0 if trend is None else trend[1] - trend[0]
