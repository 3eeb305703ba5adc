"""A file of verl's file logger (JSON lines) -> {step: {name: value}}.

Unreadable lines are skipped and reported, never guessed. A value that is not finite is NaN, a gap in the curve.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

SUFFIX = ".jsonl"
MAX_NAMED = 6


def read(path: Path) -> tuple[dict[int, dict[str, float]], list[str]]:
    """The steps in order, and sentences about skipped lines and repeated steps.

    A file whose first two lines are no entries of verl's file logger is another program's, and has no steps.
    """
    steps, broken, went_back, remarks = {}, [], [], []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            entry = _entry(line)
            if entry is None and broken and not steps:
                return {}, []
            if entry is None and line.endswith("\n"):
                broken.append(number)
            elif entry is None:
                remarks.append(
                    f"{path}, line {number}: the last line is incomplete and is skipped (the run is still writing it, "
                    "or was killed)."
                )
            else:
                step, values = entry
                known = steps.get(step, {})
                if known.keys() & values.keys():
                    # The run resumed from a checkpoint: what it had logged after this step no longer counts.
                    went_back.append(step)
                    steps = {s: logged for s, logged in steps.items() if s < step}
                steps[step] = {**known, **values}
    if broken:
        remarks.append(f'{path}: lines not of the form {{"step": ..., "data": ...}} are skipped: {listed(broken)}.')
    if went_back:
        remarks.append(
            f"{path}: the run went back to step {listed(went_back)} (resumed from a checkpoint). What it had logged "
            "after it is left out."
        )
    return dict(sorted(steps.items())), remarks


def listed(items: Sequence[object]) -> str:
    """The first few items, and how many more there are."""
    more = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return ", ".join(map(str, items[:MAX_NAMED])) + more


def rounded(value: float) -> float | None:
    """The value with five significant digits, which keeps its sign. None if it is not finite: JSON has no NaN."""
    return float(f"{value:.5g}") + 0.0 if math.isfinite(value) else None


def _entry(line: str) -> tuple[int, dict[str, float]] | None:
    try:
        entry = json.loads(line)
        # verl's logger (orjson) writes NaN and infinity as null. Text and lists are not metrics.
        data = {name: math.nan if value is None else value for name, value in entry["data"].items()}
        values = {name: float(value) for name, value in data.items() if isinstance(value, int | float)}
        step = entry["step"]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):  # float() takes no integer of 400 digits
        return None
    if type(step) is not int:
        return None
    return step, {name: value if math.isfinite(value) else math.nan for name, value in values.items()}
