"""Trajectory dumps of all runs, as data for the page's group tables and trajectory view.

Every group of a listed step has a row in a table. Tokens make a page large, so their number is limited. The newest and
the first steps get their tokens before the steps in between. Groups without tokens stay listed and are reported.
"""

import json
import math
from typing import Any

from verl_cast import trajectories
from verl_cast.teacher.context import problem_text
from verl_cast.tools.report.metrics_file import listed
from verl_cast.tools.report.runs import Run

MAX_STEPS = 200  # files read per run
PROBLEM_LENGTH = 160
MIN_COLOUR_RANGE = 0.05  # nats


def collect(runs: list[Run], max_tokens: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The page's data, and {run name: what the newest dump says of its run} (`trajectories.read`).

    Unreadable files are left out and reported in the run's remarks.

    Args:
        max_tokens: maximum number of response tokens on the page, over all runs.
    """
    num_dumped = sum(bool(run.dump_files) for run in runs)
    view, abouts = [], {}
    for place, run in enumerate(runs):
        if not run.dump_files:
            continue
        steps, about = _run_steps(run, max_tokens // num_dumped)
        if about is not None:
            abouts[run.name] = about
        if steps:
            view.append({"name": run.name, "place": place, "steps": steps})
    groups = (g for run in view for step in run["steps"] for g in step["groups"] if g["tokens"])
    rows = [row for group in groups for row in group["tokens"]["rows"]]
    gaps = sorted(abs(g) for row in rows for g in row["gap"] if g)
    ranges = {
        # |gap| of the strongest colour: 95 % of the nonzero gaps shown are no larger
        "gap": max(MIN_COLOUR_RANGE, gaps[int(0.95 * (len(gaps) - 1))]) if gaps else 1.0,
        "advantage": max((abs(a) for row in rows for a in row["advantage"] if a), default=1.0),
    }
    return {"runs": view, "ranges": ranges}, abouts


def _run_steps(run: Run, max_tokens: int) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    order = inwards(list(run.dump_files))
    if len(order) > MAX_STEPS:
        run.remarks.append(
            f"{run.name}: {len(order)} dumped steps; the page lists only {MAX_STEPS}, the newest and the first ones."
        )
    steps, about, differing, left_out, full, room = [], None, [], 0, False, max_tokens
    for step in order[:MAX_STEPS]:
        try:
            rows, about_file = trajectories.read(run.dump_files[step])
        except trajectories.DumpError as error:
            run.remarks.append(str(error))
            continue
        about = about or about_file
        if about_file["cast"] != about["cast"]:
            differing.append(step)
        by_group: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_group.setdefault(row["group"], []).append(row)
        groups = []
        for members in by_group.values():
            size = sum(len(row["response_ids"]) for row in members)
            # The first group always gets its tokens, so that the page shows at least one.
            full = full or (size > room and room < max_tokens)
            groups.append(_group(members, with_tokens=not full))
            room -= 0 if full else size
            left_out += full
        if groups:
            age = next((row["teacher_age"] for row in rows if row["teacher_age"] is not None), None)
            steps.append({"step": step, "age": age, "groups": groups})
    if differing:
        run.remarks.append(
            f"{run.name}: algorithm.cast at step {listed(sorted(differing))} differs from the newest dump, "
            "whose settings the page shows."
        )
    if left_out:
        run.remarks.append(
            f"{run.name}: the page is full and omits the tokens of {left_out} of the dumped groups. The newest and "
            "the first steps come first; raise --max-tokens to show more."
        )
    return sorted(steps, key=lambda s: s["step"]), about


def inwards(steps: list[int]) -> list[int]:
    """Newest, first, second newest, second, ..."""
    steps, order = sorted(steps), []
    while steps:
        order.append(steps.pop())
        if steps:
            order.append(steps.pop(0))
    return order


def _group(rows: list[dict[str, Any]], with_tokens: bool) -> dict[str, Any]:
    messages = json.loads(rows[0]["messages"])
    counted = [row for row in rows if any(row["response_mask"])]
    tokens = sum(sum(row["response_mask"]) for row in counted)
    gaps = {True: [], False: []}
    for row in counted:
        gaps[row["correct"]].append(_mean_gap(row))
    problem = " ".join(_problem(messages).split())
    return {
        "kind": (counted or rows)[0]["kind"],
        "problem": problem if len(problem) <= PROBLEM_LENGTH else f"{problem[: PROBLEM_LENGTH - 1]}…",
        "n": len(rows),
        "correct": sum(row["correct"] for row in rows),
        "abs_advantage": _share(sum(abs(a) for row in counted for a in row["advantages"]), tokens),
        "flipped": _share(sum(sum(row["flipped"]) for row in counted), tokens),
        "gap_correct": _share(sum(gaps[True]), len(gaps[True])),
        "gap_wrong": _share(sum(gaps[False]), len(gaps[False])),
        "length": _share(tokens, len(counted)),
        "tokens": _tokens(rows, messages) if with_tokens else None,
    }


def _tokens(rows: list[dict[str, Any]], messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "messages": [{"role": str(m["role"]), "content": _content(m["content"])} for m in messages],
        "teacher_prompt": rows[0]["teacher_prompt"],
        "reference": rows[0]["reference"],
        "rows": [
            {
                "reward": _number(row["reward"]),
                "correct": row["correct"],
                "kind": row["kind"],
                "base": _number(row["base_advantage"]),
                "mean_gap": _number(_mean_gap(row)) if any(row["response_mask"]) else None,
                "text": row["response_text"],
                "mask": "".join("01"[m] for m in row["response_mask"]),
                "flipped": "".join("01"[f] for f in row["flipped"]),
                "in_deadzone": _in_deadzone(row),
                "gap": [_number(v) for v in row["gap"]],
                "advantage": [_number(v) for v in row["advantages"]],
                "old": [_number(v) for v in row["old_log_probs"]],
                "teacher": [_number(v) for v in row["teacher_log_probs"]],
            }
            for row in rows
        ],
    }


def _mean_gap(row: dict[str, Any]) -> float:
    return sum(g for g, m in zip(row["gap"], row["response_mask"], strict=True) if m) / sum(row["response_mask"])


def _content(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _problem(messages: list[dict[str, Any]]) -> str:
    users = [m for m in messages if m["role"] == "user"]
    if users and isinstance(users[-1]["content"], str):
        return problem_text(messages)
    return " ".join(_content(m["content"]) for m in users or messages)


def _number(value: float) -> float | None:
    """The value with five significant digits, which keeps its sign. None if it is not finite: JSON has no NaN."""
    return float(f"{value:.5g}") + 0.0 if math.isfinite(value) else None


def _in_deadzone(row: dict[str, Any]) -> str:
    """One digit per token: 1 if it counts and its gap is 0 although teacher and policy differ, else 0."""
    tokens = zip(row["response_mask"], row["gap"], row["old_log_probs"], row["teacher_log_probs"], strict=True)
    return "".join(
        "01"[mask and gap == 0 and math.isfinite(teacher) and old != teacher] for mask, gap, old, teacher in tokens
    )


def _share(part: float, whole: int) -> float | None:
    return _number(part / whole) if whole else None
