"""The healthy range of a metric: the one place that figures and findings read.

The metric table in verl_cast/advantage/README.md has the same numbers (tests/unit/tools/test_report.py compares them).
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """From `low` to `high`; one of them may be open."""

    low: float = -math.inf
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"below {self.high:g}"
        return f"above {self.low:g}" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"


# Name of a metric below the method's own prefix -> its range.
HEALTHY = {
    "group/mixed_share": Range(low=0.3),
    "group/all_correct_share": Range(high=0.8),
    "group/all_wrong_share": Range(high=0.8),
    "gap/mean": Range(high=0.02),
    "gap/correctness_corr_in_group": Range(low=0),
    "gap/deadzone_share": Range(high=0.9),
    "weight/clipped_share": Range(0.3, 0.9),
    "flip/correct_share": Range(high=0.6),
    "flip/wrong_share": Range(high=0.6),
    "advantage/zero_variance_mass": Range(high=0.9),
    "noise/gap_share": Range(high=0.05),
}
