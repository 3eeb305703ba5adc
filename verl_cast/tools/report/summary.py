"""A run's settings, and its key numbers in the first and the last fifth of the steps."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from verl_cast.config.cast import CastConfig
from verl_cast.tools.report.figures import Line
from verl_cast.tools.report.runs import Run, fifths
from verl_cast.tools.report.text import percent, plain, signed


@dataclass(frozen=True)
class KeyNumber:
    label: str
    line: Line
    format: Callable[[float], str] = plain


KEY_NUMBERS = (
    KeyNumber("Mean reward", Line("critic/score/mean")),
    KeyNumber(
        "Gap–correctness correlation", Line("{method}/gap/correctness_corr_in_group", in_mixed_groups=True), signed
    ),
    KeyNumber("Mixed groups", Line("{method}/group/mixed_share"), percent),
    KeyNumber("Flipped, correct responses", Line("{method}/flip/correct_share"), percent),
    KeyNumber("Flipped, wrong responses", Line("{method}/flip/wrong_share"), percent),
    KeyNumber("Mean gap, nats", Line("{method}/gap/mean"), signed),
    KeyNumber("Response length, tokens", Line("response_length/mean"), "{:.1f}".format),
    KeyNumber("Entropy, nats", Line("actor/entropy")),
    KeyNumber("Seconds per step", Line("timing_s/step")),
    KeyNumber("Teacher's share of a step", Line("timing_s/cast_teacher", over="timing_s/step"), percent),
)


@dataclass(frozen=True)
class Tile:
    """One key number: rows of (the run's place on the page, its name, first fifth, last fifth)."""

    label: str
    rows: list[tuple[int, str, str, str]]


def tiles(runs: list[Run]) -> list[Tile]:
    """The key numbers that at least one run has."""
    found = []
    for number in KEY_NUMBERS:
        rows = []
        for place, run in enumerate(runs):
            values = [value for value in number.line.series(run)[1] if not math.isnan(value)]
            if values:
                first, last = (number.format(mean) for mean in fifths(values))
                rows.append((place, run.name, first, last))
        if rows:
            found.append(Tile(number.label, rows))
    return found


def settings(cast: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """`algorithm.cast` of a run as (key, value).

    Returns:
        Settings that differ from the defaults, the dump's keys left out; and all settings.
    """
    defaults = dict(_flat(dataclasses.asdict(CastConfig())))
    values = list(_flat(cast))
    shown = [(key, _text(value)) for key, value in values]
    differing = [
        (key, _text(value))
        for key, value in values
        if not key.startswith("dump.") and _text(value) != _text(defaults.get(key, value))
    ]
    return differing, shown


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(v) for v in value)}]"
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value)
