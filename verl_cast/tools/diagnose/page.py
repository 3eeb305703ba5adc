"""The diagnosis as one HTML page. It embeds plotly.js once and needs no network."""

from typing import Any

import markupsafe
import plotly.graph_objects as go

from verl_cast.tools import html_page
from verl_cast.tools.diagnose import figures
from verl_cast.tools.diagnose.summary import SIDE_NAMES, interval, number, percent, short

VERDICTS = {
    "better": "The teacher's context makes a better policy",
    "worse": "The teacher's context makes a worse policy",
    "undecided": "Undecided: the teacher's context may be better or worse",
}


def render(result: dict[str, Any]) -> str:
    """The page of one diagnosis; `result` is what `command.py` writes as JSON."""
    own = next((one for one in result["direction"] if one["context"] == result["settings"]["context"]), None)
    drawn: dict[str, markupsafe.Markup] = {}
    if result["contexts"] is not None:
        drawn["accuracy"] = _html(figures.accuracy(result["contexts"]))
    if own is not None and own["levers"]:
        drawn["levers"] = _html(figures.levers(own))
    if result["gaps"] is not None:
        drawn["histograms"] = _html(figures.histograms(result["gaps"]))
        drawn["agreement"] = _html(figures.agreement(result["gaps"], result["rollouts"]["noise_p99"]))
        for key in ("positions", "classes"):
            drawn[key] = _html(figures.by_part(result["gaps"], key))
    verdict = None
    if result["contexts"] is not None:
        measured = {one["context"]: one["verdict"] for one in result["contexts"]["teachers"]}
        verdict = measured.get(result["contexts"]["own_context"])
    return html_page.render(
        __package__,
        "page.html.jinja",
        {"short": short, "number": number, "percent": percent, "interval": interval},
        result=result,
        own=own,
        figures=drawn,
        verdict=verdict,
        verdict_words=VERDICTS.get(verdict, ""),
        teachers=figures.TEACHERS,
        side_names=SIDE_NAMES,
    )


def _html(figure: go.Figure) -> markupsafe.Markup:
    config = {"displayModeBar": False, "responsive": True}
    return markupsafe.Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=config))
