"""One metrics file -> {step: {name: value}}: verl's file logger (JSON lines) or a console log.

Both loggers get the same numbers. In a console log they may be wrapped (`np.float64(0.5)`) and follow Ray's prefix and
colour codes. The log also holds everything else that a run prints. Unreadable parts are skipped and reported, never
guessed. A value that is not finite stays in the series as NaN, which is a gap in the curve.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

JSON_SUFFIXES = (".jsonl",)
CONSOLE_SUFFIXES = (".log", ".txt", ".out")

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_STEP = re.compile(r"(?<![\w/:-])step:(\d+) - (?=\S+:)")
_VALUE = re.compile(r"(?:np\.\w+\()?([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+|nan|inf)|True|False)\)?", re.IGNORECASE)
_MAX_LINES_NAMED = 6
_UNFINISHED = "the last line is incomplete and is skipped (the run is still writing it, or was killed)."


@dataclass
class Metrics:
    """What one file holds.

    Attributes:
        steps: {step: {name: value}} in the order of the steps; NaN where the logged value is not finite.
        remarks: sentences about skipped lines and repeated steps, with file and line numbers.
    """

    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def is_json_metrics(path: Path) -> bool:
    """Whether one of the first lines is {"step": ..., "data": ...} of verl's file logger."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return any(_json_line(line) is not None for _, line in zip(range(20), lines, strict=False))


def read(path: Path) -> Metrics:
    """Read a metrics file: as JSON lines if it has their suffix, otherwise as a console log."""
    metrics = Metrics()
    entries = _json_entries if path.suffix in JSON_SUFFIXES else _console_entries
    again: list[int] = []
    dropped: set[int] = set()
    last = None
    for step, values in entries(path, metrics.remarks):
        known = metrics.steps.get(step)
        if last is not None and (step < last if known is None else known.keys() & values.keys()):
            # The run resumed from a checkpoint: what it had logged after this step no longer counts.
            again.append(step)
            later = {s for s in metrics.steps if s > step}
            dropped |= later
            metrics.steps = {s: v for s, v in metrics.steps.items() if s not in later}
        metrics.steps[step] = {**(known or {}), **values}
        last = step
    metrics.steps = dict(sorted(metrics.steps.items()))
    if again:
        lost = sorted(dropped - metrics.steps.keys())
        left_out = f" Left out because not logged again: {_numbers('step', lost)}." if lost else ""
        metrics.remarks.append(
            f"{path}: the run went back to step {', '.join(map(str, again[:_MAX_LINES_NAMED]))} (resumed from "
            f"a checkpoint); the later lines count.{left_out}"
        )
    not_finite = Counter(n for values in metrics.steps.values() for n, v in values.items() if math.isnan(v))
    if not_finite:
        named = ", ".join(f"{name} ({count})" for name, count in not_finite.most_common(_MAX_LINES_NAMED))
        metrics.remarks.append(
            f"{path}: values that are not finite numbers are gaps in the curves: {named}"
            f"{' and others' if len(not_finite) > _MAX_LINES_NAMED else ''}."
        )
    return metrics


def _json_line(line: str) -> tuple[int, dict[str, float]] | None:
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
        return entry["step"], {name: _finite(float(value)) for name, value in data.items()}
    except OverflowError:  # an integer of hundreds of digits: no logger wrote this line
        return None


def _json_entries(path: Path, remarks: list[str]) -> Iterator[tuple[int, dict[str, float]]]:
    broken: list[int] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            entry = _json_line(line)
            if entry is not None:
                yield entry
            elif not line.endswith("\n"):
                remarks.append(f"{path}, line {number}: {_UNFINISHED}")
            elif line.strip():
                broken.append(number)
    if broken:
        remarks.append(f'{path}: {_numbers("line", broken)} not of the form {{"step": ..., "data": ...}}; skipped.')


def _console_entries(path: Path, remarks: list[str]) -> Iterator[tuple[int, dict[str, float]]]:
    lost: list[int] = []
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if "step:" not in line:
                continue
            # A progress bar rewrites its line with carriage returns and may share it with the metrics.
            for part in _ANSI.sub("", line).replace("\r\n", "\n").split("\r"):
                match = _STEP.search(part)
                if match is None:
                    continue
                if not line.endswith("\n"):
                    remarks.append(f"{path}, line {number}: {_UNFINISHED}")
                    continue
                values, unreadable = _console_values(part[match.end() :])
                if unreadable:
                    lost.append(number)
                if values:
                    yield int(match[1]), values
    if lost:
        remarks.append(f"{path}: {_numbers('line', lost)} only partly readable; the unreadable values are left out.")


def _console_values(text: str) -> tuple[dict[str, float], bool]:
    """The values of `name:value - name:value`, and whether one could not be read."""
    values, unreadable = {}, False
    for item in text.rstrip().split(" - "):
        name, _, number = item.rpartition(":")
        match = _VALUE.fullmatch(number)
        if not name or match is None:
            unreadable = True
            continue
        word = match[1].lower()
        values[name] = float(word == "true") if word in ("true", "false") else _finite(float(word))
    return values, unreadable


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def _numbers(noun: str, numbers: list[int]) -> str:
    """`line 3 is`, `lines 3, 5 (2) are`; `step 4`, `steps 4, 5`, which get no verb."""
    named = ", ".join(map(str, numbers[:_MAX_LINES_NAMED])) + (", ..." if len(numbers) > _MAX_LINES_NAMED else "")
    if noun == "step":
        return f"step{'s' if len(numbers) > 1 else ''} {named}"
    return f"lines {named} ({len(numbers)}) are" if len(numbers) > 1 else f"line {named} is"
