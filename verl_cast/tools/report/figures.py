"""What a figure of the report is, and which figures of figure_table.py have data. No plotting here.

A line figure draws each run's lines in the run's colour; the second line is dashed, the third dotted. A figure is left
out if no run has its metrics. A run is left out of figures whose metrics it lacks. So a run without CAST is never drawn
as a CAST run.
"""

import math
from dataclasses import dataclass

from verl_cast.tools.report import explained
from verl_cast.tools.report.explained import Explained
from verl_cast.tools.report.runs import Run

LINES, BANDS, STACK, STAGES = "lines", "bands", "stack", "stages"
STYLES = ("solid", "dashed", "dotted")
FEW_MIXED_GROUPS = 4  # a correlation within fewer groups is mostly chance
MIXED_COUNT = "{method}/group/mixed_count"  # not every run logs it


@dataclass(frozen=True)
class Line:
    """A curve: a metric, or the ratio of two (`over`). `{method}` in a metric stands for the run's method.

    Attributes:
        in_mixed_groups: whether only mixed groups enter the metric. From few of them it is chance, so steps that are
            known to have fewer than FEW_MIXED_GROUPS are left out.
    """

    metric: str
    label: str = ""
    over: str = ""
    in_mixed_groups: bool = False

    def logged(self, run: Run) -> tuple[list[int], list[float]]:
        return run.ratio(self.metric, self.over) if self.over else run.series(self.metric)

    def series(self, run: Run) -> tuple[list[int], list[float]]:
        """Steps and values that are drawn."""
        steps, values = self.logged(run)
        if not self.in_mixed_groups:
            return steps, values
        few = {step for step, count in zip(*run.series(MIXED_COUNT), strict=True) if count < FEW_MIXED_GROUPS}
        kept = [(step, value) for step, value in zip(steps, values, strict=True) if step not in few]
        return [step for step, _ in kept], [value for _, value in kept]


@dataclass(frozen=True)
class Figure:
    """One figure: its lines and its caption.

    Attributes:
        caption: what the metric table does not say: verl's own metrics, and how the figure is drawn.
        kind: LINES; BANDS: the quantile bands of the gap around its median; STACK: shares that add up to 1, one panel a
            run; STAGES: mean seconds per stage, one bar a run.
        unit: of the y axis; "share" draws 0 to 1 as per cent, "log" a logarithmic axis.
        zero: whether a line marks y = 0.
        smooth: whether a long run is drawn with its running mean.
    """

    key: str
    title: str
    lines: tuple[Line, ...]
    caption: str = ""
    unit: str = ""
    kind: str = LINES
    zero: bool = False
    smooth: bool = True

    def explained(self) -> list[tuple[str, Explained]]:
        """The metric table on the figure's lines: (name of the line, or "" for the only one; its row)."""
        if self.kind == STAGES:
            return []
        rows = []
        for i, line in enumerate(self.lines):
            row = explained.metrics().get(line.metric.replace("{method}", explained.METHOD))
            if row is None or line.over or len(self.lines) > 1 and not line.label:
                continue
            style = f" ({STYLES[i]})" if self.kind == LINES and len(self.lines) > 1 else ""
            rows.append((line.label + style, row))
        return rows


@dataclass(frozen=True)
class Section:
    title: str
    figures: tuple[Figure, ...]


MAX_VALIDATION_FIGURES = 6


def with_data(table: tuple[Section, ...], runs: list[Run]) -> list[tuple[Section, list[Figure]]]:
    """The sections with data, each with those of its figures that have data."""
    found = []
    for section in table:
        figures = [figure for figure in section.figures if any(has_data(figure, run) for run in runs)]
        if section.title == "Learning":
            figures += validation_figures(runs)
        if figures:
            found.append((section, figures))
    return found


def has_data(figure: Figure, run: Run) -> bool:
    """Whether a figure draws this run: STAGES needs any of its lines, STACK all, the other kinds the first."""
    if figure.kind == STAGES:
        return any(run.has(line.metric) for line in figure.lines)
    if figure.kind == STACK:
        return all(run.has(line.metric) for line in figure.lines)
    values = [value for value in figure.lines[0].logged(run)[1] if not math.isnan(value)]
    # Without an accelerator verl logs 0 GB: nothing was measured.
    return any(values) if figure.unit == "GB" else bool(values)


def validation_figures(runs: list[Run]) -> list[Figure]:
    """One figure per validation score of verl (`val-core/...`), for the first MAX_VALIDATION_FIGURES names."""
    names = sorted({n for run in runs for values in run.steps.values() for n in values if n.startswith("val-core/")})
    left_out = len(names) - MAX_VALIDATION_FIGURES
    more = f" {left_out} more val-core metrics are in the metrics file." if left_out > 0 else ""
    return [
        Figure(
            f"validation_{i}",
            f"Validation: {name.removeprefix('val-core/')}",
            (Line(name),),
            f"Measured every trainer.test_freq steps. Healthy: it rises with the reward, and stays high.{more}",
        )
        for i, name in enumerate(names[:MAX_VALIDATION_FIGURES])
    ]
