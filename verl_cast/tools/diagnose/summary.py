"""The diagnosis as text for a terminal of 100 columns, and the forms of numbers that the page shares with it."""

import textwrap
from pathlib import Path
from typing import Any

from verl_cast.tools.diagnose.contexts import IN_THE_RUN
from verl_cast.tools.diagnose.gaps import PRIVILEGED

WIDTH = 100


def short(context: str) -> str:
    """A template file's name without its directory."""
    return Path(context).name


def number(value: float | None, form: str = "+.2f") -> str:
    return "-" if value is None else format(value, form)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def interval(bounds: Any, form: str = "+.2f") -> str:
    return "" if bounds is None else f"{bounds[0]:{form}} to {bounds[1]:{form}}"


def verdicts(result: dict[str, Any]) -> list[str]:
    """A sentence for each context that was sampled, and how the run itself measures it."""
    means = {
        "better": "better than the student",
        "not better": "not better than the student",
        "undecided": "undecided; raise --problems to decide",
    }
    found = []
    for one in result["accuracy"][1:]:
        own = ", this run's teacher" if one["context"] == result["context"] else ""
        found.append(f"{short(one['context'])}{own}: {means[one['verdict']]}")
    if result["context"] == "same":
        return ["same: teacher and student read one prompt, so nothing differs before the training", *found]
    return [*found, IN_THE_RUN]


def text(result: dict[str, Any]) -> str:
    """The whole text."""
    gaps = result["gaps"]
    lines = [*_accuracy(result), *(line for words in verdicts(result) for line in _wrapped(words)), ""]
    lines.append("Gaps: log-prob of the teacher less that of the policy, on the student's responses")
    lines.append(
        f"  {'teacher':26s}{'mean':>7s}{'g > 0':>7s}{'correct':>9s}{'wrong':>7s}{'AUC':>6s}  {'95 %':14s}"
        f"{'correlation':>11s}"
    )
    for one in gaps["teachers"]:
        everything, auc = one["gap"]["all"], one["auc"]
        means = [number(one["gap"].get(side, {}).get("mean")) for side in ("correct", "wrong")]
        lines.append(
            f"  {short(one['teacher'])[:25]:26s}{everything['mean']:+7.2f}{percent(everything['positive']):>7s}"
            f"{means[0]:>9s}{means[1]:>7s}{number(auc['value'], '.2f'):>6s}  {interval(auc['interval'], '.2f'):14s}"
            f"{number(one['correlation']['value']):>11s}"
        )
    if gaps["compared"] is not None:
        one = gaps["compared"]["agreement"][0]
        lines += _wrapped(
            f"{short(result['context'])} and {PRIVILEGED} (which reads the reference answer) agree in sign on "
            f"{percent(one['share'])} of the tokens; {percent(one['by_chance'])} by chance."
        )
    return "\n".join(lines)


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False)


def _accuracy(result: dict[str, Any]) -> list[str]:
    lines = [f"Contexts: {result['problems']} problems x {result['samples']} samples"]
    lines.append(f"  {'context':30s}{'accuracy':>8s}  {'95 %':14s}{'difference':>25s}{'tokens':>9s}{'cut off':>9s}")
    for i, one in enumerate(result["accuracy"]):
        name = f"teacher ({short(one['context'])})" if i else "student"
        words = f"{one['difference']['value']:+.2f} ({interval(one['difference']['interval'])})" if i else ""
        lines.append(
            f"  {name[:30]:30s}{one['accuracy']:8.2f}  {interval(one['interval'], '.2f'):14s}{words:>25s}"
            f"{one['length_mean']:9.1f}{percent(one['truncated_share']):>9s}"
        )
    return lines
