"""The diagnosis as one HTML page with its figures (plotly). It embeds plotly.js and needs no network.

In every figure correct responses are green and wrong ones orange; in the token view tokens that the teacher finds more
likely than the policy are blue, and less likely ones red.
"""

import html
from collections.abc import Sequence
from typing import Any

import markupsafe
import pandas
import plotly.express as px
import plotly.graph_objects as go

from verl_cast.tools import html_page
from verl_cast.tools.diagnose import summary
from verl_cast.tools.diagnose.gaps import FIFTHS

COLOURS = {"correct": "#12876a", "wrong": "#d9730d"}
STRONGEST = 1.0  # nats; larger gaps have the same colour


def render(result: dict[str, Any]) -> str:
    """The page of one diagnosis; `result` is what `command.py` writes as JSON."""
    compared, figures = result["gaps"]["compared"], {}
    if compared is not None:
        figures["histogram"] = _bars(compared["histogram"], "gap", "share")
        figures["position"] = _bars(compared["position"], "part", "mean", [*FIFTHS, "last token"])
        figures["class"] = _bars(compared["class"], "part", "mean")
    return html_page.render(
        __package__,
        "page.html.jinja",
        {"short": summary.short, "number": summary.number, "shade": shade},
        result=result,
        accuracy=summary.accuracy(result),
        gaps=summary.gaps(result),
        agreement=summary.agreement(result) if compared is not None else [],
        verdicts=summary.verdicts(result),
        verdict=next((one["verdict"] for one in result["accuracy"][1:] if one["context"] == result["context"]), ""),
        figures={name: _html(figure) for name, figure in figures.items()},
    )


def shade(gap: float) -> str:
    """The background of a token with this gap."""
    return f"rgba({'37,99,235' if gap > 0 else '220,38,38'},{min(1, abs(gap) / STRONGEST) * 0.6:.2f})"


def _bars(rows: list[dict[str, Any]], x: str, y: str, order: Sequence[str] = ()) -> go.Figure:
    """Bars for correct and wrong responses, with a row of the figure for each teacher."""
    table = pandas.DataFrame(rows)
    table["teacher"] = [html.escape(summary.short(name)) for name in table["teacher"]]
    figure = px.bar(
        table,
        x=x,
        y=y,
        color="responses",
        facet_row="teacher",
        category_orders={x: list(order)},
        color_discrete_map=COLOURS,
        hover_data=[] if x == "gap" else ["tokens", "agreement"],
        labels={"share": "tokens", "mean": "mean gap, nats", "gap": "gap, nats (end bins: and beyond)", "part": ""},
        height=460,
    )
    figure.for_each_annotation(lambda one: one.update(text=one.text.removeprefix("teacher=")))
    if x != "gap":
        return figure.update_layout(barmode="group")
    return figure.update_layout(barmode="overlay", bargap=0).update_traces(opacity=0.6).add_vline(x=0, line_width=1)


def _html(figure: go.Figure) -> markupsafe.Markup:
    figure.update_layout(
        template="plotly_white",
        margin=dict(l=50, r=30, t=40, b=50),
        legend=dict(orientation="h", y=1.02, yanchor="bottom", title=""),
    )
    config = {"displayModeBar": False, "responsive": True}
    return markupsafe.Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=config))
