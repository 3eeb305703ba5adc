"""Trajectory dumps of all runs, as data for the page's group tables and trajectory view.

Tokens make a page large, so their number is limited. The newest and the first steps come before the steps in between.
What has no room is reported.
"""

import itertools
import json
import math
from typing import Any

from verl_cast import trajectories
from verl_cast.teacher.context import problem_text
from verl_cast.tools.report.metrics_file import listed, rounded
from verl_cast.tools.report.runs import Run

PROBLEM_LENGTH = 160
MIN_COLOUR_RANGE = 0.05  # nats


def collect(runs: list[Run], max_tokens: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The page's data, and {run name: what the newest dump says of its run} (`trajectories.read`).

    Unreadable files are left out and reported in the run's remarks.

    Args:
        max_tokens: maximum number of response tokens on the page, over all runs. Each run's first group has its tokens.
    """
    num_dumped = sum(bool(run.dump_files) for run in runs)
    view, abouts = [], {}
    for place, run in enumerate(runs):
        if run.dump_files:
            steps, about = _run_steps(run, max_tokens // num_dumped)
            if steps:
                view.append({"name": run.name, "place": place, "steps": steps})
                abouts[run.name] = about
    rows = [row for run in view for step in run["steps"] for group in step["groups"] for row in group["rows"]]
    gaps = sorted(abs(g) for row in rows for g in row["gap"] if g)
    ranges = {
        # |gap| of the strongest colour: 95 % of the nonzero gaps shown are no larger
        "gap": max(MIN_COLOUR_RANGE, gaps[int(0.95 * (len(gaps) - 1))]) if gaps else 1.0,
        "advantage": max((abs(a) for row in rows for a in row["advantage"] if a), default=1.0),
    }
    return {"runs": view, "ranges": ranges}, abouts


def _run_steps(run: Run, max_tokens: int) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    steps, about, differing, room = [], None, [], max_tokens
    for step in inwards(list(run.dump_files)):
        try:
            rows, about_file = trajectories.read(run.dump_files[step])
        except trajectories.DumpError as error:
            run.remarks.append(str(error))
            continue
        about = about or about_file
        if about_file["cast"] != about["cast"]:
            differing.append(step)
        groups = []
        for _, members in itertools.groupby(rows, key=lambda row: row["group"]):
            members = list(members)
            room -= sum(len(row["response_ids"]) for row in members)
            if room < 0 and (steps or groups):
                break
            groups.append(_group(members))
        if groups:
            age = next((row["teacher_age"] for row in rows if row["teacher_age"] is not None), None)
            steps.append({"step": step, "age": age, "groups": groups})
        if room < 0:
            run.remarks.append(
                f"{run.name}: the page is full. It shows {sum(len(s['groups']) for s in steps)} groups, of "
                f"{len(steps)} of the {len(run.dump_files)} dumped steps: the newest and the first ones. Raise "
                "--max-tokens to show more."
            )
            break
    if differing:
        run.remarks.append(
            f"{run.name}: algorithm.cast at step {listed(sorted(differing))} differs from the newest dump, "
            "whose settings the page shows."
        )
    return sorted(steps, key=lambda s: s["step"]), about


def inwards(steps: list[int]) -> list[int]:
    """Newest, first, second newest, second, ..."""
    steps, order = sorted(steps), []
    while steps:
        order.append(steps.pop())
        steps.reverse()
    return order


def _group(rows: list[dict[str, Any]]) -> dict[str, Any]:
    messages = json.loads(rows[0]["messages"])
    counted = [row for row in rows if any(row["response_mask"])]
    tokens = sum(sum(row["response_mask"]) for row in rows)
    gaps = {correct: [_mean_gap(row) for row in counted if row["correct"] == correct] for correct in (True, False)}
    problem = " ".join(_problem(messages).split())
    return {
        "kind": (counted or rows)[0]["kind"],
        "problem": problem if len(problem) <= PROBLEM_LENGTH else f"{problem[: PROBLEM_LENGTH - 1]}…",
        "abs_advantage": _ratio(sum(abs(a) for row in rows for a in row["advantages"]), tokens),
        "flipped": _ratio(sum(sum(row["flipped"]) for row in rows), tokens),
        "gap_correct": _ratio(sum(gaps[True]), len(gaps[True])),
        "gap_wrong": _ratio(sum(gaps[False]), len(gaps[False])),
        "length": _ratio(tokens, len(counted)),
        "messages": [{"role": str(m["role"]), "content": _content(m["content"])} for m in messages],
        "teacher_prompt": rows[0]["teacher_prompt"],
        "reference": rows[0]["reference"],
        "rows": [
            {
                "reward": rounded(row["reward"]),
                "correct": row["correct"],
                "kind": row["kind"],
                "base": rounded(row["base_advantage"]),
                "mean_gap": _mean_gap(row),
                "text": row["response_text"],
                "mask": "".join("01"[m] for m in row["response_mask"]),
                "flipped": "".join("01"[f] for f in row["flipped"]),
                "in_deadzone": _in_deadzone(row),
                "gap": list(map(rounded, row["gap"])),
                "advantage": list(map(rounded, row["advantages"])),
                "old": list(map(rounded, row["old_log_probs"])),
                "teacher": list(map(rounded, row["teacher_log_probs"])),
            }
            for row in rows
        ],
    }


def _mean_gap(row: dict[str, Any]) -> float | None:
    """None for a response without tokens that count. The gap is 0 where the mask is 0."""
    return _ratio(sum(row["gap"]), sum(row["response_mask"]))


def _ratio(part: float, whole: int) -> float | None:
    return rounded(part / whole) if whole else None


def _content(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _problem(messages: list[dict[str, Any]]) -> str:
    try:
        return problem_text(messages)
    except ValueError:  # no user message, or one with images
        return _content(messages[-1]["content"])


def _in_deadzone(row: dict[str, Any]) -> str:
    """One digit per token: 1 if it counts and its gap is 0 although teacher and policy differ, else 0."""
    tokens = zip(row["response_mask"], row["gap"], row["old_log_probs"], row["teacher_log_probs"], strict=True)
    return "".join(
        "01"[mask and gap == 0 and math.isfinite(teacher) and old != teacher] for mask, gap, old, teacher in tokens
    )
