"""What a note of the report is, and the statistics that the rules of findings.py share."""

import math
from dataclasses import dataclass

from verl_cast.tools.report.runs import Run

OK, LOOK, WARNING = "ok", "look", "warning"
LEVELS = (WARNING, LOOK, OK)
ENOUGH_STEPS = 5  # a trend needs this many, and a mean over fewer never causes a warning


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
        span: the steps, in words.
        effective: effective number of steps, (Σ weight)² / Σ weight².
    """

    value: float
    error: float
    span: str
    effective: float

    @property
    def enough(self) -> bool:
        """Whether there are enough steps, and no one or two of them outweigh all others."""
        return self.effective >= 0.6 * ENOUGH_STEPS and not math.isinf(self.error)


def mean(values: dict[int, float], weights: dict[int, float] | None = None) -> Mean:
    """Mean of {step: value}; not all weights are 0. Fewer than ENOUGH_STEPS have an infinite error."""
    weights = weights or dict.fromkeys(values, 1.0)
    total = sum(weights[step] for step in values)
    value = sum(v * weights[step] for step, v in values.items()) / total
    squares = sum((weights[step] * (v - value)) ** 2 for step, v in values.items())
    effective = total**2 / sum(weights[step] ** 2 for step in values)
    n = len(values)
    error = math.sqrt(squares * n / (n - 1)) / total if n >= ENOUGH_STEPS else math.inf
    return Mean(value, error, span(values), effective)


def span(steps) -> str:
    """`step 3`, or `steps 1 to 8`."""
    first, last = min(steps), max(steps)
    return f"step {first}" if first == last else f"steps {first} to {last}"


def last_third(values: dict[int, float]) -> dict[int, float]:
    """The last third of the steps, but at least as many as a warning needs."""
    return dict(list(values.items())[-max(ENOUGH_STEPS, len(values) // 3) :])


def recent(run: Run, name: str) -> Mean | None:
    """The mean of a metric over the last third of its steps."""
    values = run.values(name)
    return mean(last_third(values)) if values else None


def ends(run: Run, name: str) -> tuple[Mean, Mean] | None:
    """Means of the first and the last fifth of a metric's steps; None if it was logged too rarely for a trend."""
    values = list(run.values(name).items())
    if len(values) < ENOUGH_STEPS:
        return None
    n = len(values) // 5
    return mean(dict(values[:n])), mean(dict(values[-n:]))
