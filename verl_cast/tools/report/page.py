"""Writes the page: page.html.jinja, filled with the other modules' results, as one self-contained file.

Jinja escapes text. Data goes into JSON blocks without any `<` (Jinja's `tojson`), and the page's script turns it into
text nodes only. So nothing that a policy wrote can run as code.
"""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import verl_cast
from verl_cast.config.cast import CastConfig, CastConfigError
from verl_cast.config.words import narration
from verl_cast.files import whole_file
from verl_cast.tools import html_page
from verl_cast.tools.report import drawing, dump_view, figures, findings
from verl_cast.tools.report.runs import Run


def write(runs: list[Run], output: Path, max_tokens: int) -> None:
    """Write the page. Remarks about dumps are added to the runs.

    Args:
        max_tokens: maximum number of response tokens on the page.

    Raises:
        OSError: the file cannot be written.
    """
    view, abouts = dump_view.collect(runs, max_tokens)
    settings = {run.name: _settings(run, abouts[run.name]["cast"]) for run in runs if run.name in abouts}
    sections = figures.with_data(runs)
    steps = [step for run in runs for step in run.steps] or [0, 1]
    margin = max(0.5, 0.02 * (max(steps) - min(steps)))
    x_range = min(steps) - margin, max(steps) + margin
    html = html_page.render(
        __package__,
        "page.html.jinja",
        {},
        runs=runs,
        abouts=abouts,
        settings=settings,
        notes={run.name: findings.notes(run) for run in runs},
        comparison=findings.comparison(runs),
        sections=sections,
        figure_data={
            figure.title: drawing.draw(figure, runs, x_range) for chosen in sections.values() for figure in chosen
        },
        view=view,
        colour=drawing.run_colour,
        version=verl_cast.__version__,
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as scratch:
        scratch.write_text(html, encoding="utf-8", errors="replace")  # a path may hold bytes that are not UTF-8


def _settings(run: Run, cast: Mapping[str, Any]) -> str:
    """What differs from the defaults, in words; a dump of another version may have keys that this one lacks."""
    try:
        return narration(CastConfig.from_dict(cast))
    except CastConfigError as error:
        run.remarks.append(f"{run.name}: the dump's settings are not those of this version ({error.complaints[0]})")
        return "see all settings"
