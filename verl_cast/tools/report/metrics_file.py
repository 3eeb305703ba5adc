"""A file of verl's file logger (JSON lines) -> {step: {name: value}}.

Unreadable lines are skipped and reported, never guessed. A value that is not finite is NaN, a gap in the curve.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SUFFIX = ".jsonl"
LINES_BEFORE_METRICS = 20  # a file without an entry in its first lines is not of verl's file logger
MAX_NAMED = 6


@dataclass
class Metrics:
    """What one file holds.

    Attributes:
        steps: {step: {name: value}} in the order of the steps; NaN where the logged value is not finite.
        remarks: sentences about skipped lines and repeated steps, with file and line numbers.
    """

    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def read(path: Path) -> Metrics:
    """Read a file. Without any entry of verl's file logger, `steps` is empty."""
    metrics, broken, went_back, dropped = Metrics(), [], [], set()
    last = None
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            entry = _entry(line)
            if entry is None:
                if number >= LINES_BEFORE_METRICS and not metrics.steps:
                    return Metrics()
                if not line.endswith("\n"):
                    metrics.remarks.append(
                        f"{path}, line {number}: the last line is incomplete and is skipped (the run is still writing "
                        "it, or was killed)."
                    )
                elif line.strip():
                    broken.append(number)
                continue
            step, values = entry
            known = metrics.steps.get(step)
            if last is not None and (step < last if known is None else known.keys() & values.keys()):
                # The run resumed from a checkpoint: what it had logged after this step no longer counts.
                went_back.append(step)
                later = {s for s in metrics.steps if s > step}
                dropped |= later
                metrics.steps = {s: v for s, v in metrics.steps.items() if s not in later}
            metrics.steps[step] = {**(known or {}), **values}
            last = step
    metrics.steps = dict(sorted(metrics.steps.items()))
    if broken:
        metrics.remarks.append(
            f'{path}: lines not of the form {{"step": ..., "data": ...}} are skipped: {listed(broken)}.'
        )
    if went_back:
        lost = sorted(dropped - metrics.steps.keys())
        metrics.remarks.append(
            f"{path}: the run went back to step {listed(went_back)} (resumed from a checkpoint); the later lines count."
            + (f" Left out because not logged again: step {listed(lost)}." if lost else "")
        )
    not_finite = Counter(n for values in metrics.steps.values() for n, v in values.items() if math.isnan(v))
    if not_finite:
        named = listed([f"{name} ({count})" for name, count in not_finite.most_common()])
        metrics.remarks.append(f"{path}: values that are not finite numbers are gaps in the curves: {named}.")
    return metrics


def listed(items: Sequence[object]) -> str:
    """The first few items, and how many more there are."""
    more = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return ", ".join(map(str, items[:MAX_NAMED])) + more


def _entry(line: str) -> tuple[int, dict[str, float]] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("data"), dict) or type(entry.get("step")) is not int:
        return None
    # verl's logger (orjson) writes NaN and infinity as null. Text and lists are not metrics.
    data = {
        n: math.nan if v is None else v for n, v in entry["data"].items() if v is None or isinstance(v, int | float)
    }
    try:
        values = {name: float(value) for name, value in data.items()}
    except OverflowError:  # an integer of hundreds of digits: no logger wrote this line
        return None
    return entry["step"], {name: value if math.isfinite(value) else math.nan for name, value in values.items()}
