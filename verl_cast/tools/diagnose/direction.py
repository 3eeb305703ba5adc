"""Where CAST would move the policy on these rollouts, and which levers keep the verifier's sign.

With both flips a token's sign is the sign of its gap, and the verifier sets only the size (method section 7). This
module therefore answers two questions:

* Does the gap rise with correctness?
* How many tokens keep the verifier's sign (correct > 0, wrong < 0) under each `flip`, `flip_groups` and `gap_deadzone`?

Advantages come from the method's own code in `verl_cast.advantage`.
"""

import dataclasses
from typing import Any

import numpy as np

from verl_cast.advantage.metrics import centred, correlation
from verl_cast.checks import evidence
from verl_cast.config.cast import FLIPS
from verl_cast.tools import stats
from verl_cast.tools.diagnose.rollouts import Rollouts

# (flip, flip_groups) of the table's rows.
FLIP_SETTINGS = (*((flip, "all") for flip in FLIPS), ("both", "zero_variance"))
DEADZONE_QUANTILES = (0.5, 0.75, 0.9, 0.99)  # of |g|; a dead zone of 0 is always the first
# A recommended dead zone leaves at least this share of tokens with the verifier's sign, on each side.
ENOUGH = 0.9


def relation(rollouts: Rollouts, teacher: list[np.ndarray], seed: int) -> dict[str, Any]:
    """A trajectory's mean gap against its correctness: correlation and AUC, overall and within groups.

    Positive (AUC above 0.5): the teacher's gaps agree with the verifier. Negative: CAST trains towards wrong responses.
    """
    mean_gap, right, groups = rollouts.mean_gaps(teacher), rollouts.right, rollouts.groups
    own, truth = centred(mean_gap, groups), centred(right.astype(float), groups)

    def with_interval(statistic) -> dict[str, Any]:
        everything = np.arange(len(right))
        return {"value": statistic(everything), "interval": stats.group_interval(groups, statistic, seed)}

    return {
        "correlation": with_interval(lambda rows: correlation(mean_gap[rows], right[rows].astype(float))),
        # Centred before resampling: a group keeps its own mean, however often it is drawn.
        "correlation_in_group": with_interval(lambda rows: correlation(own[rows], truth[rows])),
        "auc": with_interval(lambda rows: stats.auc(mean_gap[rows], right[rows])),
        "mean_gap_right": float(mean_gap[right].mean()) if right.any() else None,
        "mean_gap_wrong": float(mean_gap[~right].mean()) if (~right).any() else None,
    }


def lever_table(rollouts: Rollouts, teacher: list[np.ndarray]) -> list[dict[str, Any]]:
    """One row per setting of FLIP_SETTINGS and dead zone; see `_lever_row`."""
    size = np.abs(rollouts.gaps(teacher))
    zones = [0.0] + [float(f"{np.quantile(size, q):.3g}") for q in DEADZONE_QUANTILES]
    rows = []
    for flip, groups in FLIP_SETTINGS:
        for zone in dict.fromkeys(zones):
            rows.append(_lever_row(rollouts, teacher, flip, groups, zone))
    return rows


def _lever_row(rollouts: Rollouts, teacher: list[np.ndarray], flip: str, groups: str, zone: float) -> dict[str, Any]:
    """Share of tokens with the verifier's sign, and mean advantage, for correct and for wrong responses.

    `silenced` is the share of gaps that the dead zone sets to 0. Tokens with base advantage 0 (base_correct or
    base_wrong 0) have no sign to keep and are left out.
    """
    method = dataclasses.replace(rollouts.method, flip=flip, flip_groups=groups, gap_deadzone=zone)
    result, advantages = rollouts.advantage(teacher, method)
    owner = rollouts.owner()
    base, right = result.base.value.numpy()[owner], rollouts.right[owner]
    sides = {"right": right & (base != 0), "wrong": ~right & (base != 0)}
    kept = np.where(right, advantages > 0, advantages < 0)

    def mean(values: np.ndarray, among: np.ndarray) -> float | None:
        return float(values[among].mean()) if among.any() else None

    return {
        "flip": flip,
        "flip_groups": groups,
        "gap_deadzone": zone,
        "silenced": float((np.abs(rollouts.gaps(teacher)) <= zone).mean()),
        "verifier_sign": mean(kept, sides["right"] | sides["wrong"]),
        **{f"verifier_sign_{side}": mean(kept, among) for side, among in sides.items()},
        **{f"advantage_{side}": mean(advantages, among) for side, among in sides.items()},
    }


def recommended_deadzone(table: list[dict[str, Any]]) -> float | None:
    """The smallest dead zone of the table at which most tokens keep the verifier's sign, with both flips; else None."""
    for row in table:
        sides = (row["verifier_sign_right"], row["verifier_sign_wrong"])
        if (row["flip"], row["flip_groups"]) == ("both", "all") and all(
            side is None or side >= ENOUGH for side in sides
        ):
            return row["gap_deadzone"]
    return None


def expect(rollouts: Rollouts, context: str, verdict: str | None, seed: int) -> dict[str, Any]:
    """All results about one answer-free teacher.

    Args:
        context: one of `rollouts.teachers`.
        verdict: of the measured fitness; None where it was not measured.
    """
    teacher, method = rollouts.teachers[context], rollouts.method
    gap, owner = rollouts.gaps(teacher), rollouts.owner()
    right = rollouts.right[owner]
    table = lever_table(rollouts, teacher) if np.any(gap) else []
    return {
        "context": context,
        "verdict": verdict,
        "gap": {
            "all": stats.distribution(gap),
            "right": stats.distribution(gap[right]),
            "wrong": stats.distribution(gap[~right]),
        },
        "relation": relation(rollouts, teacher, seed),
        "as_configured": _lever_row(rollouts, teacher, method.flip, method.flip_groups, method.gap_deadzone),
        "levers": table,
        "recommended_deadzone": recommended_deadzone(table),
    }


def in_words(expected: dict[str, Any], flip: str) -> list[str]:
    """Sentences on the expected direction of training; where the teacher is worse, they recommend a setting."""
    lines, verdict, relation_ = [], expected["verdict"], expected["relation"]
    if expected["gap"]["all"]["abs_mean"] == 0:
        return [
            "The gap is 0 on every token: policy and teacher have the same weights and read the same tokens. The "
            "direction is unknown before training. With this context the policy follows a lagged copy of itself."
        ]
    moves = {
        "better": "the teacher's context makes a better policy. With both flips, training moves the model towards it",
        "worse": "the teacher's context makes a WORSE policy. With both flips, training moves the model towards it",
        "undecided": "undecided whether the teacher's context makes a better policy; raise --problems to decide",
    }
    if verdict is not None:
        lines.append(f"Fitness: {moves[verdict]}.")
    auc, correlation = relation_["auc"], relation_["correlation"]["value"]
    if auc["value"] is not None and auc["interval"] is not None and correlation is not None:
        low, high = auc["interval"]
        says = (
            "the teacher prefers correct responses"
            if low > 0.5
            else "the teacher prefers WRONG responses"
            if high < 0.5
            else "these rollouts show no relation between the teacher's preference and correctness"
        )
        lines.append(
            f"Gaps: {says}. A correct response has a higher mean gap than a wrong one with probability "
            f"{auc['value']:.2f} (AUC, {low:.2f} to {high:.2f}; correlation {correlation:+.2f})."
        )
    now = expected["as_configured"]
    if now["advantage_right"] is not None and now["advantage_wrong"] is not None:
        lines.append(
            f"Advantage as configured: mean {now['advantage_right']:+.2f} on tokens of correct responses, "
            f"{now['advantage_wrong']:+.2f} on tokens of wrong ones. {100 * now['verifier_sign']:.0f} % of the tokens "
            "keep the verifier's sign."
        )
    lessons = [] if verdict is None else evidence.about(verdict, flip, now["flip_groups"])
    if verdict == "worse" and flip != "none":
        lessons[0] += f" {_groups_in_words(expected)}{_deadzone_in_words(expected)}"
        lines.append("Recommended: another teacher context (the table of contexts compares them). Otherwise:")
    return [*lines, *lessons]


def setting_in_words(row: dict[str, Any]) -> str:
    """The flips of a row of the table."""
    return f"flip={row['flip']}" + (", zero_variance" if row["flip_groups"] == "zero_variance" else "")


def _groups_in_words(expected: dict[str, Any]) -> str:
    """What flips in zero-variance groups alone would leave; nothing where no mixed group shows it."""
    kept = next((r["verifier_sign"] for r in expected["levers"] if r["flip_groups"] == "zero_variance"), None)
    if kept is None:
        return ""
    return f"flip_groups=zero_variance keeps it in mixed groups, on {100 * kept:.0f} % of all tokens here. "


def _deadzone_in_words(expected: dict[str, Any]) -> str:
    zone = expected["recommended_deadzone"]
    enough = f"at least {100 * ENOUGH:.0f} % of the tokens of correct and of wrong responses"
    if zone is None:
        return "With both flips, no dead zone of the table is enough."
    if zone == 0:
        return f"With both flips, {enough} keep the verifier's sign without a dead zone."
    silenced = next(row["silenced"] for row in expected["levers"] if row["gap_deadzone"] == zone)
    return (
        f"With both flips, set algorithm.cast.gap_deadzone={zone:g} or more: {enough} then keep the verifier's sign. "
        f"That dead zone sets {100 * silenced:.0f} % of the gaps to 0."
    )
