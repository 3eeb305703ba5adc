"""The figures of the page (plotly). In every figure correct responses are green, wrong ones orange."""

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from verl_cast.tools.diagnose.direction import setting_in_words
from verl_cast.tools.diagnose.gaps import is_noise
from verl_cast.tools.diagnose.summary import SIDE_NAMES, short

RIGHT, WRONG, STUDENT, TEACHER = "#12876a", "#d9730d", "#5f6b7a", "#3763c6"
SIDES = {"right": RIGHT, "wrong": WRONG}
TEACHERS = {"answer_free": "answer-free teacher", "privileged": "privileged teacher"}


def _layout(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    figure.update_layout(
        height=height,
        margin=dict(l=60, r=20, t=40, b=50),
        template="plotly_white",
        font=dict(family="system-ui, sans-serif", size=13, color="#1f2933"),
        legend=dict(orientation="h", yanchor="bottom", y=1.04, x=0),
        **layout,
    )
    return figure


def accuracy(contexts: dict[str, Any]) -> go.Figure:
    """Accuracy under each context, with its 95 % Wilson interval."""
    rows = [contexts["student"], *contexts["teachers"]]
    names = ["student's prompt"] + [f"teacher: {short(one['context'])}" for one in contexts["teachers"]]
    shares = [one["accuracy"] for one in rows]
    figure = go.Figure(
        go.Scatter(
            x=shares,
            y=names,
            mode="markers",
            marker=dict(size=13, color=[STUDENT] + [TEACHER] * (len(rows) - 1)),
            error_x=dict(
                type="data",
                array=[one["interval"][1] - share for one, share in zip(rows, shares, strict=True)],
                arrayminus=[share - one["interval"][0] for one, share in zip(rows, shares, strict=True)],
                thickness=2,
                width=7,
                color="#8a94a0",
            ),
            hovertemplate="%{y}: %{x:.2f}<extra></extra>",
        )
    )
    figure.add_vline(x=shares[0], line=dict(color=STUDENT, dash="dot", width=1))
    figure.update_xaxes(range=[-0.02, 1.02], title="share of correct responses, 95 % interval")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return _layout(figure, 120 + 46 * len(rows))


def levers(own: dict[str, Any]) -> go.Figure:
    """Share of tokens that keep the verifier's sign, by flip and dead zone, for correct and wrong responses."""
    settings = list(dict.fromkeys(setting_in_words(row) for row in own["levers"]))
    zones = list(dict.fromkeys(row["gap_deadzone"] for row in own["levers"]))
    figure = make_subplots(1, 2, subplot_titles=("tokens of correct responses", "tokens of wrong responses"))
    for column, side in enumerate(("right", "wrong"), start=1):
        cells = {(setting_in_words(row), row["gap_deadzone"]): row[f"verifier_sign_{side}"] for row in own["levers"]}
        values = [[cells[setting, zone] for zone in zones] for setting in settings]
        figure.add_trace(
            go.Heatmap(
                z=values,
                x=[f"{zone:g}" for zone in zones],
                y=settings,
                zmin=0,
                zmax=1,
                colorscale=[[0, "#f6c9a0"], [0.5, "#f5f3ec"], [1, "#8fd0b9"]],
                text=[["" if v is None else f"{100 * v:.0f} %" for v in row] for row in values],
                texttemplate="%{text}",
                showscale=False,
                hovertemplate="%{y}, gap_deadzone %{x}: %{text}<extra></extra>",
            ),
            1,
            column,
        )
        figure.update_xaxes(title="gap_deadzone, nats", type="category", row=1, col=column)
    figure.update_yaxes(autorange="reversed")
    return _layout(figure, 330)


def histograms(gaps: dict[str, Any]) -> go.Figure:
    """Distributions of the gaps of both teachers, on correct and on wrong responses."""
    edges = gaps["histogram"]["edges"]
    width = edges[1] - edges[0]
    centres = [(low + high) / 2 for low, high in zip(edges, edges[1:], strict=False)]
    figure = make_subplots(1, 2, subplot_titles=tuple(TEACHERS.values()), shared_yaxes=True)
    for column, name in enumerate(TEACHERS, start=1):
        for side, colour in SIDES.items():
            counts = gaps["histogram"]["counts"][name][side]
            total = max(1, sum(counts))
            figure.add_trace(
                go.Bar(
                    x=centres,
                    y=[count / total for count in counts],
                    width=width,
                    marker=dict(color=colour, line=dict(width=0)),
                    opacity=0.6,
                    name=f"{SIDE_NAMES[side]} responses",
                    showlegend=column == 1,
                    hovertemplate="gap %{x:.2f}: %{y:.1%}<extra></extra>",
                ),
                1,
                column,
            )
        figure.add_vline(x=0, line=dict(color="#1f2933", width=1), row=1, col=column)
        figure.update_xaxes(
            title="gap g, nats (end bins include values outside)", range=[edges[0], edges[-1]], row=1, col=column
        )
    figure.update_yaxes(title="share of tokens", tickformat=".0%", row=1, col=1)
    figure = _layout(figure, 360, barmode="overlay")
    return figure.update_layout(legend=dict(y=1.12))


def agreement(gaps: dict[str, Any], noise: float) -> go.Figure:
    """How often both teachers' gaps have the same sign, against chance, for rising thresholds on |g|."""
    figure = make_subplots(1, 2, subplot_titles=("correct responses", "wrong responses"), shared_yaxes=True)
    for column, (side, colour) in enumerate(SIDES.items(), start=1):
        rows = gaps["agreement"][side]
        names = ["all" if row["above"] == 0 else f"|g| > {_threshold(row['above'], noise)}" for row in rows]
        figure.add_trace(
            go.Bar(
                x=names,
                y=[row["share"] for row in rows],
                marker_color=colour,
                opacity=0.75,
                name=f"agreement, {SIDE_NAMES[side]} responses",
                customdata=[row["tokens"] for row in rows],
                hovertemplate="%{x}: %{y:.1%} of %{customdata} tokens<extra></extra>",
            ),
            1,
            column,
        )
        figure.add_trace(
            go.Scatter(
                x=names,
                y=[row["by_chance"] for row in rows],
                mode="markers",
                marker=dict(symbol="line-ew-open", size=46, color="#1f2933", line=dict(width=2)),
                name="expected by chance",
                showlegend=column == 1,
                hovertemplate="by chance: %{y:.1%}<extra></extra>",
            ),
            1,
            column,
        )
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    figure = _layout(figure, 340)
    return figure.update_layout(legend=dict(y=1.12))


def _threshold(above: float, noise: float) -> str:
    return "noise" if is_noise(above, noise) else f"{above:g}"


def by_part(gaps: dict[str, Any], key: str) -> go.Figure:
    """Mean gap by `key` (`positions` or `classes` of tokens), per teacher, on correct and wrong responses."""
    rows = gaps[key]
    figure = make_subplots(1, 2, subplot_titles=tuple(TEACHERS.values()), shared_yaxes=True)
    names = [row["part"].replace(" ", "<br>") for row in rows]
    for column, name in enumerate(TEACHERS, start=1):
        for side, colour in SIDES.items():
            cells = [row[f"{name}_{side}"] for row in rows]
            figure.add_trace(
                go.Bar(
                    x=names,
                    y=[cell["mean"] for cell in cells],
                    marker_color=colour,
                    opacity=0.8,
                    name=f"{SIDE_NAMES[side]} responses",
                    showlegend=column == 1,
                    customdata=[[cell["tokens"], cell["positive"]] for cell in cells],
                    hovertemplate="%{x}: mean gap %{y:.2f}, g > 0 on %{customdata[1]:.0%} of %{customdata[0]} tokens"
                    "<extra></extra>",
                ),
                1,
                column,
            )
    figure.update_yaxes(title="mean gap, nats", row=1, col=1)
    figure = _layout(figure, 360, barmode="group")
    return figure.update_layout(legend=dict(y=1.12))
