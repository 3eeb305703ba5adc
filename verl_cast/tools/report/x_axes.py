"""The x axes that the page offers: steps, and what verl's metrics say that each step took."""

from dataclasses import dataclass
from typing import Any

from verl_cast.tools.report.runs import Run


@dataclass(frozen=True)
class XAxis:
    """Sums of a metric from the first logged step on, divided by `unit`."""

    key: str
    metric: str
    unit: float


X_AXES = (XAxis("tokens", "perf/total_num_tokens", 1), XAxis("hours", "timing_s/step", 3600))


def offered(runs: list[Run]) -> list[dict[str, Any]]:
    """The axes of X_AXES that every trained run has, as data for the page.

    A run whose metric misses a step has no sum. An axis that not all runs have would leave runs out of figures.
    """
    trained = [(place, run) for place, run in enumerate(runs) if run.num_steps]
    found = []
    for axis in X_AXES:
        sums = {place: run.sums(axis.metric) for place, run in trained}
        if sums and all(sums.values()):
            at = {
                place: {step: float(f"{value / axis.unit:.6g}") for step, value in of_run.items()}
                for place, of_run in sums.items()
            }
            found.append({"key": axis.key, "at": at})
    return found
