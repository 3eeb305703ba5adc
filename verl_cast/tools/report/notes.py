"""What a note of the report is, and the few statistics that the rules share. The rules are in rules_*.py."""

import math
from dataclasses import dataclass

from verl_cast.tools.report.runs import Run, fifths

OK, LOOK, WARNING = "ok", "look", "warning"
LEVELS = (WARNING, LOOK, OK)
FEW_FOR_TREND = 5
FEW_FOR_WARNING = 5  # steps: a mean over fewer is no ground for a warning


@dataclass(frozen=True)
class Note:
    """One thing seen. `seen` holds the numbers; `advice` says what to do, "" where nothing is to be done."""

    level: str
    title: str
    seen: str
    advice: str = ""


@dataclass(frozen=True)
class Mean:
    """Mean of a metric over some steps, with its standard error (steps taken as independent; of one step infinite).

    Attributes:
        effective: steps of equal weight that would tell as much; `steps` where all weigh the same.
    """

    value: float
    error: float
    steps: int
    effective: float

    @property
    def enough(self) -> bool:
        """Whether it may speak for the run: enough steps, and not one or two that outweigh all others."""
        return self.steps >= FEW_FOR_WARNING and self.effective >= 0.6 * FEW_FOR_WARNING

    @property
    def warning(self) -> str:
        """The level of what would be a warning over enough steps."""
        return WARNING if self.enough else LOOK

    @property
    def part(self) -> str:
        return f"the last {self.steps} steps" if self.steps > 1 else "one step"


def third(count: int) -> int:
    """How many of `count` steps are the last third: of a short run all, as far as a warning needs them."""
    return max(FEW_FOR_WARNING, count // 3)


def last_third(run: Run, name: str) -> Mean | None:
    values = run.values(name)
    return mean(values[-third(len(values)) :]) if values else None


def mean(values: list[float], weights: list[float] | None = None) -> Mean:
    """Mean and standard error; `weights` say how much a step knows (not all are 0)."""
    weights = [1.0] * len(values) if weights is None else weights
    total = sum(weights)
    value = sum(v * w for v, w in zip(values, weights, strict=True)) / total
    squares = sum((w * (v - value)) ** 2 for v, w in zip(values, weights, strict=True))
    effective = total**2 / sum(w**2 for w in weights)
    n = len(values)
    return Mean(value, math.sqrt(squares * n / (n - 1)) / total if n > 1 else math.inf, n, effective)


def ends(run: Run, name: str) -> tuple[float, float] | None:
    """First and last fifth of a metric that was logged often enough to speak of a trend."""
    values = run.values(name)
    return fifths(values) if len(values) >= FEW_FOR_TREND else None


def reward_change(run: Run) -> float:
    trend = ends(run, "critic/score/mean")
    return 0.0 if trend is None else trend[1] - trend[0]
