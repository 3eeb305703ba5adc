"""Draws the figures of figures.py with plotly; page.py writes them as JSON for plotly.js.

A run has the same colour on the whole page, and all step axes have the same range. A run's second line is dashed, its
third dotted. Figures hold every step, in the colours of the light mode. figures.js.jinja smooths them, changes their x
axis and their colours, and writes them as CSV. Each trace's `meta` has what it needs for that: `run` (name), `place` of
the run on the page, `metric`, and whether to `smooth`.
"""

import html
import math
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from verl_cast.tools.report import palette
from verl_cast.tools.report.figures import BANDS, STACK, STAGES, Figure, Line, has_data
from verl_cast.tools.report.runs import Run

DASHES = ("solid", "dash", "dot")
GROUP_COLOURS = ("#7fb3d5", "#c9cdd2", "#e8b08a")  # all correct, mixed, all wrong
STAGE_COLOURS = (
    "#8fb4d4", "#d9d3c7", "#b9c7a8", "#d8dcb0", "#7d5ba6", "#cdb7e0",
    "#e6e6e6", "#c8c8c8", "#4f6f8f", "#93a5b5", "#9fc7c0", "#dcc27f", "#c9a0b4",
)  # fmt: skip
MARKERS_UP_TO = 40
MANY_STEPS = 80
SMOOTHING = (3, 5, 11, 25, 51, 101)  # odd, so that a mean has its step in the middle
BARS_UP_TO = 150
HEIGHT = 262
INK, GRID, AXIS, ZERO, CARD = (pair[palette.LIGHT] for pair in palette.FIGURES.values())


def draw(figure: Figure, runs: list[Run], x_range: tuple[float, float]) -> go.Figure:
    """Draw a figure with all runs that have its data.

    Args:
        runs: all runs of the page, in its order; a run's place sets its colour.
        x_range: range of the step axis, the same in every figure.
    """
    chosen = [(place, run) for place, run in enumerate(runs) if has_data(figure, run)]
    if figure.kind == STACK:
        drawn = _stack(figure, chosen)
    elif figure.kind == STAGES:
        return _style(_stages(figure, chosen), figure)
    else:
        drawn = go.Figure()
        for order, (place, run) in enumerate(chosen):
            run_colour = palette.run(place)[palette.LIGHT]
            width = max(1.4, (2.8 if len(chosen) > 1 else 2) - 0.7 * order)  # curves that coincide stay visible
            if figure.kind == BANDS:
                _add_bands(drawn, figure, place, run)
            for i, line in enumerate(figure.lines[:2] if figure.kind == BANDS else figure.lines):
                steps, values = line.series(run)
                if steps:
                    name = " · ".join(part for part in (run.name if len(chosen) > 1 else "", line.label) if part)
                    dash = "dot" if figure.kind == BANDS and i else DASHES[i]
                    drawn.add_scatter(
                        x=steps,
                        y=_points(values),
                        mode="lines+markers" if len(steps) <= MARKERS_UP_TO else "lines",
                        line={"color": run_colour, "dash": dash, "width": width},
                        marker={"size": 4.5, "symbol": "circle" if dash == "solid" else "circle-open"},
                        name=html.escape(name or run.name),
                        meta={**_meta(place, run, line), "smooth": figure.smooth},
                    )
        drawn.update_layout(showlegend=sum(trace.showlegend is not False for trace in drawn.data) > 1)
    _style(drawn, figure)
    few = x_range[1] - x_range[0] <= 15
    if figure.kind != STACK:  # a STACK names the run below each panel instead
        drawn.update_xaxes(title_text="step")
    drawn.update_xaxes(range=x_range, title_standoff=2, tickformat="d", dtick=1 if few else None)
    return drawn


def _points(values: list[float]) -> list[float | None]:
    """The values with six digits, enough for a curve. NaN becomes None, a gap in the curve."""
    return [None if math.isnan(v) else float(f"{v:.6g}") for v in values]


def _meta(place: int, run: Run, line: Line) -> dict[str, Any]:
    metric = " / ".join(filter(None, (line.metric, line.over))).replace("{method}", str(run.method))
    return {"place": place, "run": run.name, "metric": metric}


def smoothing_width(num_steps: int) -> int:
    """Number of steps in the running mean with which the page opens; 1, so none, for a short run."""
    return 1 if num_steps <= MANY_STEPS else max(5, num_steps // 25 | 1)


def smoothing_choices(num_steps: int) -> list[int]:
    """Numbers of steps that the page offers for the running mean, up to a quarter of the run."""
    return sorted({1, smoothing_width(num_steps), *(width for width in SMOOTHING if 4 * width <= num_steps)})


def _add_bands(drawn: go.Figure, figure: Figure, place: int, run: Run) -> None:
    by_name = {line.metric.rpartition("/")[2]: line for line in figure.lines}
    for low, high, opacity in (("p05", "p95", "1a"), ("p25", "p75", "33")):
        steps, lower = by_name[low].series(run)
        upper_steps, upper = by_name[high].series(run)
        if steps != upper_steps:
            continue
        edge = {"x": steps, "mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
        drawn.add_scatter(y=_points(lower), meta=_meta(place, run, by_name[low]), **edge)
        fill = palette.run(place)[palette.LIGHT] + opacity
        drawn.add_scatter(
            y=_points(upper), fill="tonexty", fillcolor=fill, meta=_meta(place, run, by_name[high]), **edge
        )


def _stack(figure: Figure, chosen: list[tuple[int, Run]]) -> go.Figure:
    drawn = make_subplots(1, len(chosen), shared_yaxes=True, horizontal_spacing=0.04)
    for column, (place, run) in enumerate(chosen, start=1):
        for line, fill in zip(figure.lines, GROUP_COLOURS, strict=True):
            steps, values = line.series(run)
            common = {
                "x": steps,
                "y": _points(values),
                "name": line.label,
                "legendgroup": line.label,
                "showlegend": column == 1,
                "meta": _meta(place, run, line),
            }
            if len(steps) <= BARS_UP_TO:
                trace = go.Bar(**common, marker={"color": fill, "line": {"width": 0}})
            else:
                trace = go.Scatter(**common, mode="lines", line={"width": 0}, fillcolor=fill, stackgroup="groups")
            drawn.add_trace(trace, row=1, col=column)
        name = f"step · {html.escape(run.name)}" if len(chosen) > 1 else "step"
        drawn.update_xaxes(title_text=name, row=1, col=column)
    return drawn.update_layout(barmode="stack", bargap=0, showlegend=True)


def _stages(figure: Figure, chosen: list[tuple[int, Run]]) -> go.Figure:
    drawn = go.Figure()
    names = [html.escape(run.name) for _, run in chosen]
    for line, fill in zip(figure.lines, STAGE_COLOURS, strict=True):
        # The mean is over all steps, also for a stage that ran in only some of them (validation).
        means = [sum(run.values(line.metric)) / max(1, run.num_steps) for _, run in chosen]
        if max(means) > 0.002 * max(sum(run.values("timing_s/step")) / max(1, run.num_steps) for _, run in chosen):
            text = [f"{mean:.3g}" if mean else "" for mean in means]
            drawn.add_bar(
                y=names,
                x=_points(means),
                orientation="h",
                name=line.label,
                marker={"color": fill},
                text=text,
                textangle=0,
                textposition="inside",
                insidetextanchor="middle",
                insidetextfont={"color": _text_on(fill)},
                hovertemplate="%{x:.3g} s",
                meta={"runs": [run.name for _, run in chosen], "metric": line.metric},
            )
    drawn.update_layout(uniformtext={"minsize": 10, "mode": "hide"}, barmode="stack", bargap=0.35, showlegend=True)
    drawn.update_xaxes(title_text="seconds", title_standoff=2, rangemode="tozero")
    return drawn.update_yaxes(autorange="reversed", automargin=True, ticksuffix=" ")


def _text_on(fill: str) -> str:
    """Light text on the dark fills of STAGE_COLOURS, dark text on the others. Both modes have the same fills."""
    return "#fafafa" if sum(int(fill[i : i + 2], 16) for i in (1, 3, 5)) < 400 else "#22282e"


def _style(drawn: go.Figure, figure: Figure) -> go.Figure:
    drawn.update_layout(
        template=go.layout.Template(),  # plotly's default template adds about 10 kB per figure
        height=HEIGHT,
        margin={"l": 56, "r": 12, "t": 8 if drawn.layout.showlegend else 12, "b": 38},
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": INK},
        paper_bgcolor=CARD,  # an exported image needs a ground
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest" if figure.kind == STAGES else "x unified",
        hoverlabel={"bgcolor": CARD, "bordercolor": AXIS, "font": {"size": 12, "color": INK}},
        legend={
            "orientation": "h",
            "traceorder": "normal",
            "x": 0,
            "y": 1.02,
            "xanchor": "left",
            "yanchor": "bottom",
            "font": {"size": 11.5},
        },
    )
    drawn.update_xaxes(
        showgrid=False,
        zeroline=False,
        showline=True,
        linecolor=AXIS,
        ticks="outside",
        ticklen=3,
        tickcolor=AXIS,
    )
    if figure.kind == STAGES:
        return drawn
    drawn.update_yaxes(
        gridcolor=GRID, zeroline=figure.zero, zerolinecolor=ZERO, zerolinewidth=1.2, nticks=6, exponentformat="e"
    )
    values = [v for trace in drawn.data for v in trace.y or () if v is not None]
    if values and min(values) == max(values) != 0 and figure.unit not in ("share", "log"):
        drawn.update_yaxes(range=sorted((0, 2 * values[0])))  # plotly would draw ±1 around a constant of 1e-6
    if figure.unit == "share":
        highest = max(values, default=0)
        full = figure.kind == STACK or highest > 0.4
        top = 1.03 if full else 1.15 * highest or 0.1
        drawn.update_yaxes(tickformat=".0%" if full else ".2~%", range=[0, top])
    elif figure.unit == "log":
        drawn.update_yaxes(type="log", exponentformat="power", title_text="nats", title_standoff=4, nticks=5, dtick=1)
    elif figure.unit:
        drawn.update_yaxes(title_text=figure.unit, title_standoff=4)
    return drawn
