"""What a note of the report is, and the statistics that the rules share. The rules are in rules_*.py."""

import math
from dataclasses import dataclass

from verl_cast.tools.report.runs import Run, fifths

OK, LOOK, WARNING = "ok", "look", "warning"
LEVELS = (WARNING, LOOK, OK)
FEW_FOR_TREND = 5
FEW_FOR_WARNING = 5  # steps: a mean over fewer never causes a warning


@dataclass(frozen=True)
class Note:
    """One finding. `seen` holds the numbers; `advice` says what to do, or is empty."""

    level: str
    title: str
    seen: str
    advice: str = ""


@dataclass(frozen=True)
class Mean:
    """Mean of a metric over some steps, with its standard error.

    The error takes the steps as independent. For one step it is infinite.

    Attributes:
        effective: effective number of steps, (Σ weight)² / Σ weight²; equal to `steps` if all weights are equal.
    """

    value: float
    error: float
    steps: int
    effective: float

    @property
    def enough(self) -> bool:
        """Whether the mean is reliable: it has enough steps, and no one or two of them outweigh all others."""
        return self.steps >= FEW_FOR_WARNING and self.effective >= 0.6 * FEW_FOR_WARNING

    @property
    def warning(self) -> str:
        """WARNING if there are enough steps, otherwise LOOK."""
        return WARNING if self.enough else LOOK

    @property
    def part(self) -> str:
        return f"the last {self.steps} steps" if self.steps > 1 else "one step"


def third(count: int) -> int:
    """Number of steps in the last third of `count` steps, but at least as many as a warning needs."""
    return max(FEW_FOR_WARNING, count // 3)


def last_third(run: Run, name: str) -> Mean | None:
    values = run.values(name)
    return mean(values[-third(len(values)) :]) if values else None


def mean(values: list[float], weights: list[float] | None = None) -> Mean:
    """Weighted mean of steps and its standard error; not all weights are 0."""
    weights = [1.0] * len(values) if weights is None else weights
    total = sum(weights)
    value = sum(v * w for v, w in zip(values, weights, strict=True)) / total
    squares = sum((w * (v - value)) ** 2 for v, w in zip(values, weights, strict=True))
    effective = total**2 / sum(w**2 for w in weights)
    n = len(values)
    return Mean(value, math.sqrt(squares * n / (n - 1)) / total if n > 1 else math.inf, n, effective)


def ends(run: Run, name: str) -> tuple[float, float] | None:
    """Means of a metric's first and last fifth; None if it was logged too rarely for a trend."""
    values = run.values(name)
    return fifths(values) if len(values) >= FEW_FOR_TREND else None


def reward_change(run: Run) -> float:
    trend = ends(run, "critic/score/mean")
    return 0.0 if trend is None else trend[1] - trend[0]
