"""Draws the figures of figures.py: traces and layout for plotly.js, as plain data.

A run has the same colour in every figure, and all step axes have the same range. A green ground is the healthy range of
the first line. Colours fit the light and the dark mode; the style sets those of text and ground. Each trace's `meta` is
its run's place on the page, for a click on a point.
"""

import html
import math
from typing import Any

from verl_cast.tools.report.figures import Figure, series
from verl_cast.tools.report.runs import Run

RUN_COLOURS = ("#2b8cc4", "#e0702d", "#17a27d", "#c967a0", "#a9820f", "#7d8790")
HEALTHY_GROUND = "rgba(44, 160, 100, 0.13)"
GRID, AXIS = "rgba(128, 140, 150, 0.22)", "rgba(128, 140, 150, 0.6)"
DASHES = ("solid", "dash", "dot")
MAX_MARKERS = 60


def draw(figure: Figure, runs: list[Run], x_range: tuple[float, float]) -> dict[str, Any]:
    """A figure's `data` and `layout`, with all runs that are in it."""
    traces, shapes = [], []
    chosen = [(place, run) for place, run in enumerate(runs) if figure.has(run)]
    for place, run in chosen:
        colour = run_colour(place)
        for low, high in figure.between:
            traces.append(_edge(series(run, low), place))
            traces.append({**_edge(series(run, high), place), "fill": "tonexty", "fillcolor": f"{colour}2e"})
        if figure.marks:
            shapes += [
                _ground(f"{colour}33", x0=step - 0.5, x1=step + 0.5, y0=0, y1=1, yref="paper")
                for step, value in run.values(figure.marks).items()
                if value
            ]
        for (label, metric), dash in zip(figure.lines.items(), DASHES, strict=False):
            points = series(run, metric)
            if points:
                names = [run.name] * (len(chosen) > 1) + [label] * (len(figure.lines) > 1)
                traces.append(
                    {
                        "x": list(points),
                        "y": _numbers(points, figure.log),
                        "mode": "lines+markers" if len(points) <= MAX_MARKERS else "lines",
                        "line": {"color": colour, "dash": dash, "width": 2},
                        "marker": {"size": 5, "symbol": "circle" if dash == "solid" else "circle-open"},
                        # plotly reads HTML in names
                        "name": html.escape(" · ".join(names) or run.name),
                        "meta": place,
                    }
                )
    y_axis = {"gridcolor": GRID, "zerolinecolor": AXIS, "nticks": 6, "automargin": True, "hoverformat": ".4~g"}
    y_axis["title"] = {"text": figure.unit, "standoff": 6}
    if figure.log:
        y_axis |= {"type": "log", "exponentformat": "power", "dtick": 1}
    healthy = figure.ranges.get(next(iter(figure.lines)))
    if healthy:
        values = [value for trace in traces for value in trace["y"] if value is not None]
        edges = [edge for edge in (healthy.low, healthy.high) if math.isfinite(edge)]
        bottom, top = min(values + edges), max(values + edges)
        pad = 0.08 * (top - bottom) or 0.5
        y_axis["range"] = bottom - pad, top + pad
        y0, y1 = max(healthy.low, bottom - pad), min(healthy.high, top + pad)
        shapes.append(_ground(HEALTHY_GROUND, x0=0, x1=1, y0=y0, y1=y1, xref="paper"))
    x_axis = {
        "range": x_range,
        "title": {"text": "step", "standoff": 4},
        "showgrid": False,
        "zeroline": False,
        "showspikes": False,
    }
    x_axis |= {"linecolor": AXIS, "ticks": "outside", "ticklen": 3, "tickcolor": AXIS, "tickformat": "d"}
    layout = {
        "xaxis": x_axis | ({"dtick": 1} if x_range[1] - x_range[0] <= 15 else {}),
        "yaxis": y_axis,
        "shapes": shapes,
        "showlegend": sum(trace.get("showlegend", True) for trace in traces) > 1,
        "legend": {
            "orientation": "h",
            "traceorder": "normal",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "font": {"size": 11},
        },
        "height": 270,
        "margin": {"l": 52, "r": 10, "t": 30, "b": 38},
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12},
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "hovermode": "x unified",
        "dragmode": "zoom",
    }
    return {"data": traces, "layout": layout}


def run_colour(place: int) -> str:
    """The colour of the page's run number `place`, from 0."""
    return RUN_COLOURS[place % len(RUN_COLOURS)]


def _edge(points: dict[int, float], place: int) -> dict[str, Any]:
    """An invisible line, the edge of a shaded area."""
    line = {"x": list(points), "y": _numbers(points), "mode": "lines", "line": {"width": 0}, "meta": place}
    return {**line, "showlegend": False, "hoverinfo": "skip"}


def _ground(colour: str, **where: Any) -> dict[str, Any]:
    return {"type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": colour, **where}


def _numbers(points: dict[int, float], log: bool = False) -> list[float | None]:
    """Six digits are enough for a curve. None is a gap: NaN, and 0 on a logarithmic axis."""
    return [None if math.isnan(value) or (log and value <= 0) else float(f"{value:.6g}") for value in points.values()]
