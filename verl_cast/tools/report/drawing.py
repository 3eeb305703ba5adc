"""Draws the figures of figures.py: traces and layout for plotly.js, as plain data.

A run has the same colour in every figure, and all step axes have the same range. A green ground is the healthy range of
the first line. Colours fit the light and the dark mode; the style sets those of text and ground. Each trace's `meta` is
its run's place on the page, for a click on a point.
"""

import html
import math
from typing import Any

from verl_cast.tools.report.figures import Figure, series
from verl_cast.tools.report.metrics_file import rounded
from verl_cast.tools.report.runs import Run

RUN_COLOURS = ("#2b8cc4", "#e0702d", "#17a27d", "#c967a0", "#a9820f", "#7d8790")
HEALTHY_GROUND = "rgba(44, 160, 100, 0.13)"
GRID, AXIS = "rgba(128, 140, 150, 0.22)", "rgba(128, 140, 150, 0.6)"
DASHES = ("solid", "dash", "dot")
LAYOUT = {
    "legend": {"orientation": "h", "traceorder": "normal", "y": 1.02, "yanchor": "bottom", "font": {"size": 11}},
    "height": 270,
    "margin": {"l": 52, "r": 10, "t": 30, "b": 38},
    "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12},
    "plot_bgcolor": "rgba(0, 0, 0, 0)",
    "hovermode": "x unified",
}
X_AXIS = {"showgrid": False, "zeroline": False, "showspikes": False, "title": {"text": "step", "standoff": 4}}
X_AXIS |= {"linecolor": AXIS, "ticks": "outside", "ticklen": 3, "tickcolor": AXIS, "tickformat": "d"}
Y_AXIS = {"gridcolor": GRID, "zerolinecolor": AXIS, "nticks": 6, "automargin": True, "hoverformat": ".4~g"}
LOG_AXIS = {"type": "log", "exponentformat": "power", "dtick": 1}
EDGE = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}


def draw(figure: Figure, runs: list[Run], x_range: tuple[float, float]) -> dict[str, Any]:
    """A figure's `data` and `layout`, with all runs that are in it."""
    traces, shapes = [], []
    chosen = [(place, run) for place, run in enumerate(runs) if figure.has(run)]
    for place, run in chosen:
        colour = run_colour(place)
        for low, high in figure.between:
            traces.append(_trace(run, low, place, **EDGE))
            traces.append(_trace(run, high, place, **EDGE, fill="tonexty", fillcolor=f"{colour}2e"))
        marked = [step for step, value in run.values(figure.marks).items() if value]
        shapes += [_ground(f"{colour}33", x0=s - 0.5, x1=s + 0.5, y0=0, y1=1, yref="paper") for s in marked]
        for (label, metric), dash in zip(figure.lines.items(), DASHES, strict=False):
            names = [run.name] * (len(chosen) > 1) + [label] * (len(figure.lines) > 1)
            traces.append(
                _trace(
                    run,
                    metric,
                    place,
                    name=html.escape(" · ".join(names) or run.name),  # plotly reads HTML in names
                    line={"color": colour, "dash": dash, "width": 2},
                    marker={"size": 5, "symbol": "circle" if dash == "solid" else "circle-open"},
                )
            )
    traces = [trace for trace in traces if trace["x"]]
    x_axis = {**X_AXIS, "range": x_range, **({"dtick": 1} if x_range[1] - x_range[0] <= 15 else {})}
    y_axis = {**Y_AXIS, "title": {"text": figure.unit, "standoff": 6}, **(LOG_AXIS if figure.log else {})}
    healthy = figure.ranges.get(next(iter(figure.lines)))
    if healthy:
        values = [value for trace in traces for value in trace["y"] if value is not None]
        values += [edge for edge in (healthy.low, healthy.high) if math.isfinite(edge)]
        pad = 0.08 * (max(values) - min(values)) or 0.5
        bottom, top = y_axis["range"] = min(values) - pad, max(values) + pad
        y0, y1 = max(healthy.low, bottom), min(healthy.high, top)
        shapes.append(_ground(HEALTHY_GROUND, x0=0, x1=1, y0=y0, y1=y1, xref="paper"))
    return {"data": traces, "layout": {**LAYOUT, "xaxis": x_axis, "yaxis": y_axis, "shapes": shapes}}


def run_colour(place: int) -> str:
    """The colour of the page's run number `place`, from 0."""
    return RUN_COLOURS[place % len(RUN_COLOURS)]


def _trace(run: Run, metric: str, place: int, **style: Any) -> dict[str, Any]:
    points = series(run, metric)
    return {"x": list(points), "y": [rounded(value) for value in points.values()], "meta": place, **style}


def _ground(colour: str, **where: Any) -> dict[str, Any]:
    return {"type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": colour, **where}
