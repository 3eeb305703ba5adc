"""Writes the page: page.html.jinja, filled with the other modules' results, as one self-contained file.

Jinja escapes text. Data goes into JSON blocks without any `<`, and the page's script turns it into text nodes only. So
nothing that a policy wrote can run as code.
"""

import datetime
import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

import verl_cast
from verl_cast.files import whole_file
from verl_cast.tools import html_page
from verl_cast.tools.report import drawing, dump_view, figures, findings, notes, palette, summary, x_axes
from verl_cast.tools.report.figure_table import SECTIONS
from verl_cast.tools.report.runs import Run


def write(runs: list[Run], output: Path, max_tokens: int, reload_seconds: int | None = None) -> None:
    """Write the page. Remarks about dumps are added to the runs.

    Args:
        max_tokens: maximum number of response tokens on the page.
        reload_seconds: how often the page reloads itself; None: never.

    Raises:
        OSError: the file cannot be written.
    """
    num_steps = max((run.num_steps for run in runs), default=0)
    axes, smoothing = x_axes.offered(runs), drawing.smoothing_width(num_steps)
    view, abouts = dump_view.collect(runs, max_tokens)
    x_range = _step_range(runs)
    sections, data = [], {}
    for section, chosen in figures.with_data(SECTIONS, runs):
        shown = []
        for figure in chosen:
            panels = sum(figures.has_data(figure, run) for run in runs)
            wide = figure.kind == figures.STAGES or figure.kind == figures.STACK and panels > 1
            shown.append({"figure": figure, "wide": wide})
            data[figure.key] = json.loads(drawing.draw(figure, runs, x_range).to_json())
        sections.append({"title": section.title, "figures": shown})
    html = html_page.render(
        __package__,
        "page.html.jinja",
        {"data": _data},
        title=" · ".join(run.name for run in runs),
        heads=[_head(place, run, abouts.get(run.name)) for place, run in enumerate(runs)],
        tiles=summary.tiles(runs),
        comparison=findings.comparison(runs),
        sections=sections,
        axes=axes,
        smoothing=smoothing,
        smoothing_choices=drawing.smoothing_choices(num_steps),
        figure_data={"figures": data, "axes": axes, "dark": palette.dark_figures(), "smoothing": smoothing},
        token_colours={
            mode: {name: pair[i] for name, pair in palette.TOKENS.items()} for i, mode in enumerate(("light", "dark"))
        },
        view=view,
        colour=lambda place: f"var(--run-{place % len(palette.RUNS)})",
        light=palette.css(palette.LIGHT),
        dark=palette.css(palette.DARK),
        reload_seconds=reload_seconds,
        version=verl_cast.__version__,
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as scratch:
        scratch.write_text(html, encoding="utf-8", errors="replace")  # a path may hold bytes that are not UTF-8


def _head(place: int, run: Run, about: dict[str, Any] | None) -> dict[str, Any]:
    differing, settings = summary.settings(about["cast"]) if about else ([], [])
    found = findings.notes(run)
    return {
        "place": place,
        "run": run,
        "model": about["model"] if about else None,
        "verl_cast": about["verl_cast"] if about else None,
        "differing": differing,
        "settings": settings,
        "urgent": [note for note in found if note.level != notes.OK],
        "fine": [note for note in found if note.level == notes.OK],
    }


def _step_range(runs: list[Run]) -> tuple[float, float]:
    steps = [step for run in runs for step in run.steps]
    first, last = min(steps, default=0), max(steps, default=1)
    margin = max(0.5, 0.02 * (last - first))
    return first - margin, last + margin


def _data(value: Any) -> Markup:
    """JSON for a <script type="application/json"> block: no character in it can end the block."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
