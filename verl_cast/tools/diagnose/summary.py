"""The diagnosis as text: its tables and verdicts, for the terminal (100 columns) and for the page."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas

from verl_cast.tools.diagnose.contexts import IN_THE_RUN
from verl_cast.tools.diagnose.gaps import PRIVILEGED

WIDTH = 100
_MEANS = {
    "better": "better than the student",
    "not better": "not better than the student",
    "undecided": "undecided; raise --problems to decide",
}


def short(context: str) -> str:
    """A template file's name without its directory."""
    return Path(context).name


def number(value: float | None, form: str = "+.2f") -> str:
    return "-" if value is None else format(value, form)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _with_interval(value: float | None, interval: Sequence[float] | None, form: str = "+.2f") -> str:
    return number(value, form) + ("" if interval is None else f" ({interval[0]:{form}} to {interval[1]:{form}})")


def accuracy(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for the student, and one for each teacher's context."""
    return [
        {
            "context": short(one["context"]),
            "accuracy": _with_interval(one["accuracy"], one["interval"], ".2f"),
            "difference": _with_interval(**one["difference"]) if "difference" in one else "",
            "verdict": one.get("verdict", ""),
            "tokens": f"{one['length_mean']:.1f}",
            "cut off": _percent(one["truncated_share"]),
        }
        for one in result["accuracy"]
    ]


def gaps(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for each teacher, on all responses and on correct and wrong ones."""
    return [
        {
            "teacher": short(one["teacher"]),
            "responses": side,
            "tokens": gap["tokens"],
            "mean": number(gap["mean"]),
            "g > 0": _percent(gap["positive"]),
            "AUC": _with_interval(**one["auc"], form=".2f") if side == "all" else "",
            "correlation": _with_interval(**one["correlation"]) if side == "all" else "",
            "within groups": _with_interval(**one["correlation_in_group"]) if side == "all" else "",
        }
        for one in result["gaps"]["teachers"]
        for side, gap in one["gap"].items()
    ]


def agreement(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for all, correct and wrong responses, on tokens with large gaps only, too."""
    return [
        {
            "responses": one["responses"],
            "tokens with": f"both |g| > {one['above']:g}",
            "number": one["tokens"],
            "agree": _percent(one["share"]),
            "by chance": _percent(one["by_chance"]),
            "kappa": number(one["kappa"]),
        }
        for one in result["gaps"]["compared"]["agreement"]
    ]


def verdicts(result: dict[str, Any]) -> list[str]:
    """A sentence for each context that was sampled, and how the run itself measures it."""
    found = []
    for one in result["accuracy"][1:]:
        own = ", this run's teacher" if one["context"] == result["context"] else ""
        found.append(f"{short(one['context'])}{own}: {_MEANS[one['verdict']]}")
    if result["context"] == "same":
        return ["same: teacher and student read one prompt, so nothing differs before the training", *found]
    return [*found, IN_THE_RUN]


def text(result: dict[str, Any]) -> str:
    """The whole text."""
    compared = result["gaps"]["compared"]
    on_all = [row for row in gaps(result) if row["responses"] == "all"]
    sentences = verdicts(result)
    if compared is not None:
        on_all_tokens = compared["agreement"][0]
        sentences.append(
            f"{short(result['context'])} and {PRIVILEGED} (which reads the reference answer) agree in sign on "
            f"{_percent(on_all_tokens['share'])} of the tokens; {_percent(on_all_tokens['by_chance'])} by chance."
        )
    return "\n".join(
        [
            f"Accuracy: {result['problems']} problems x {result['samples']} samples, 95 % intervals over problems",
            _table(accuracy(result)),
            "Gaps: log-prob of the teacher less that of the policy, on the student's responses",
            _table(on_all, "responses", "tokens", "within groups"),
            *(textwrap.fill(one, WIDTH, subsequent_indent="  ", break_long_words=False) for one in sentences),
        ]
    )


def _table(rows: list[dict[str, Any]], *left_out: str) -> str:
    table = pandas.DataFrame(rows).drop(columns=list(left_out))
    names = table.pop(table.columns[0]).str.slice(0, 25)
    return table.set_axis(names.to_list()).to_string()
