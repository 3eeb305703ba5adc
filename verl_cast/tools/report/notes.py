"""What a note of the report is, and the statistics that the rules of findings.py share."""

import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass

from verl_cast.tools.report.runs import Run

OK, LOOK, WARNING = "ok", "look", "warning"
LEVELS = (WARNING, LOOK, OK)
TWIN = "twin"  # of a note that compares two runs, and judges neither
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

    The error takes the steps as independent. For fewer than ENOUGH_STEPS it is infinite.

    Attributes:
        span: the steps, in words.
    """

    value: float
    error: float
    span: str

    @property
    def enough(self) -> bool:
        return math.isfinite(self.error)


def mean(values: dict[int, float]) -> Mean:
    """Mean of {step: value}."""
    n, numbers = len(values), list(values.values())
    error = statistics.stdev(numbers) / math.sqrt(n) if n >= ENOUGH_STEPS else math.inf
    return Mean(statistics.fmean(numbers), error, span(values))


def span(steps: Collection[int]) -> str:
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
