"""Markdown tables of evaluations: the paper's form (a row per run, a column per benchmark), and one with intervals."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_cast.tools.cli import UserError

# The paper's names; other benchmarks have their file's name.
TITLES = {
    "aime24": "AIME24",
    "aime25": "AIME25",
    "aime26": "AIME26",
    "math500": "MATH-500",
    "hmmt25": "HMMT25",
}


def read(directories: Sequence[str]) -> list[dict[str, Any]]:
    """The results of finished evaluations.

    Raises:
        UserError: a directory holds none, or the numbers of samples differ.
    """
    results = []
    for directory in directories:
        path = Path(directory).expanduser() / "results.json"
        if not path.is_file():
            raise UserError(f"--table {directory}: it holds no results.json; an evaluation writes it at its end.")
        results.append(json.loads(path.read_text(encoding="utf-8")))
    counts = {one["settings"]["samples"]: directory for one, directory in zip(results, directories, strict=True)}
    if len(counts) > 1:
        found = ", ".join(f"{count} in {directory}" for count, directory in counts.items())
        raise UserError(f"--table: Avg@k and Pass@k of different k cannot share a column (k is {found}).")
    return results


def paper_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Avg@k / Pass@k in per cent, one row per evaluation; below it, the settings in which they differ.

    Args:
        results: of `read`, or of one evaluation.
    """
    k = results[0]["settings"]["samples"]
    found = {name for one in results for name in one["benchmarks"]}
    columns = [name for name in TITLES if name in found] + sorted(found - set(TITLES))
    rows = [[f"Avg@{k} / Pass@{k}", *(TITLES.get(name, name) for name in columns)]]
    rows += [[one["name"], *(_cell(one["benchmarks"].get(name)) for name in columns)] for one in results]
    return _markdown(rows) + "".join(f"\n{note}\n" for note in _differences(results))


def details(result: Mapping[str, Any]) -> str:
    """One evaluation with its intervals, lengths and times."""
    k = result["settings"]["samples"]
    head = ["benchmark", "problems", f"Avg@{k} (95 %)", f"Pass@{k} (95 %)", "tokens", "truncated", "seconds"]
    rows = [
        [
            TITLES.get(name, name),
            str(one["problems"]),
            _with_interval(one["avg"], one["avg_interval"], 2),
            _with_interval(one["pass"], one["pass_interval"], 1),
            f"{one['mean_tokens']:.0f}",
            f"{100 * one['truncated_share']:.1f} %",
            f"{one['seconds']:.0f}",
        ]
        for name, one in result["benchmarks"].items()
    ]
    return _markdown([head, *rows])


def _cell(one: Mapping[str, Any] | None) -> str:
    return "–" if one is None else f"{100 * one['avg']:.2f} / {100 * one['pass']:.1f}"


def _with_interval(value: float, interval: Sequence[float], digits: int) -> str:
    low, high = (f"{100 * bound:.{digits}f}" for bound in interval)
    return f"{100 * value:.{digits}f} ({low} to {high})"


def _differences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for every setting in which the rows differ besides their model."""
    notes = []
    for name in results[0]["settings"]:
        if name in ("model", "benchmarks"):
            continue
        values = [one["settings"].get(name) for one in results]
        if any(value != values[0] for value in values):
            notes.append(f"The rows differ in {name}: {', '.join(json.dumps(value) for value in values)}.")
    for name in sorted({name for one in results for name in one["benchmarks"]}):
        of_rows = [one["settings"]["benchmarks"][name] for one in results if name in one["benchmarks"]]
        if any(about != of_rows[0] for about in of_rows):
            notes.append(f"The rows differ in the problems of {TITLES.get(name, name)}.")
    return notes


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"
