"""Rules about CAST: the teacher and the verifier, flips, noise, groups, gap, cost.

A rule takes one run and returns a Note, or None if it has nothing to report. Thresholds come from the metric table in
verl_cast/advantage/README.md. Where the table has none, they are rules of thumb.
"""

import math

from verl_cast.checks import evidence
from verl_cast.tools.report.notes import FEW_FOR_WARNING, LOOK, OK, WARNING, Mean, Note, ends, last_third, mean, third
from verl_cast.tools.report.runs import Run
from verl_cast.tools.report.text import percent, signed


def _agreement(run: Run) -> list[Mean]:
    """In-group correlation of gap and correctness, over the last third and over all steps.

    Only mixed groups have a correlation, so a step's weight is its share of mixed groups.
    """
    name = "cast/gap/correctness_corr_in_group"
    steps = [
        (values[name], values.get("cast/group/mixed_share", 1.0)) for values in run.steps.values() if name in values
    ]
    steps = [(value, weight) for value, weight in steps if not math.isnan(value) and weight > 0]
    if not steps:
        return []
    return [mean(*map(list, zip(*part, strict=True))) for part in (steps[-third(len(steps)) :], steps)]


def teacher_and_verifier(run: Run) -> Note | None:
    found = _agreement(run)
    if not found:
        return None
    whole = found[-1]
    # The last third, if it is conclusive; otherwise all steps.
    corr = next((part for part in found if part.enough and abs(part.value) > 2 * part.error), whole)
    seen = f"Correlation of a trajectory's mean gap with its correctness, within groups: {signed(corr.value, 2)} "
    if not corr.enough:
        return Note(
            LOOK,
            "Too few steps to compare teacher and verifier",
            f"{seen}over {corr.steps} step{'s' if corr.steps > 1 else ''} with mixed groups, which may be chance.",
            f"This needs at least {FEW_FOR_WARNING} steps with mixed groups. verl-cast diagnose measures more in less "
            "time.",
        )
    seen += f"± {corr.error:.2f} over {f'all {corr.steps} steps' if corr.steps == whole.steps else corr.part}."
    if corr.value < -0.05 and corr.value + 2 * corr.error < 0:
        return Note(
            WARNING,
            "The teacher prefers wrong responses",
            seen,
            "With both flips CAST moves the policy towards the teacher. Change the teacher's context (verl-cast "
            f"diagnose measures it). {evidence.advice('not better')}",
        )
    if corr.value > 0.02 and corr.value > 2 * corr.error:
        return Note(OK, "The teacher agrees with the verifier", seen)
    return Note(
        LOOK,
        "The gap hardly depends on correctness",
        seen,
        "Flips then follow the teacher's style, or chance. Measure the teacher's context (verl-cast diagnose). "
        f"{evidence.advice('noise')}",
    )


def flips(run: Run) -> Note | None:
    share = last_third(run, "cast/flip/correct_share")
    if share is None:
        return None
    wrong = last_third(run, "cast/flip/wrong_share")
    seen = f"Flipped over {share.part}: {percent(share.value)} of the tokens of correct trajectories"
    seen += f", {percent(wrong.value)} of those of wrong ones." if wrong else "."
    if share.value > 0.6:
        return Note(
            share.warning if share.value > 0.8 else LOOK,
            "Most tokens of correct responses are flipped",
            seen,
            "Most tokens of correct responses are less likely under the teacher than under the policy. Check the "
            "teacher's context. gap_deadzone keeps small gaps from flipping; flip=wrong never flips correct responses.",
        )
    return Note(OK, "Flips", seen)


def noise(run: Run) -> Note | None:
    """Share of gaps within the engine's noise. Gaps that the dead zone already sets to 0 do not count."""
    within, gap, floor = (last_third(run, f"cast/{n}") for n in ("noise/gap_share", "gap/abs_mean", "noise/p99"))
    if within is None or gap is None or floor is None:
        return None
    noise_seen = f"the engine's own noise is at most {floor.value:.2g} on 99 % of the tokens."
    if floor.value == 0:
        noise_seen = "two passes of the policy gave the same log-probs on 99 % of the tokens."
    seen = f"Mean |gap| before the dead zone is {gap.value:.3g} nats; {noise_seen}"
    if floor.value > 0:
        seen += f" {percent(within.value)} of the tokens have a gap within this noise, outside the dead zone."
    if within.value > 0.05:
        # One measurement covers all tokens of a step, so few steps are enough for a warning.
        return Note(
            WARNING if within.value > 0.3 else LOOK,
            "Gaps near the engine's noise",
            seen,
            "The sign of such a token's advantage is chance: set gap_deadzone=noise, or compute log-probs in a higher "
            "precision.",
        )
    return Note(OK, "Gaps outside the dead zone exceed the engine's noise", seen)


def dead_zone(run: Run) -> Note | None:
    share = last_third(run, "cast/gap/deadzone_share")
    if share is None or share.value < 0.9:
        return None
    return Note(
        LOOK,
        "The dead zone removes most gaps",
        f"It sets the gap to 0 on {percent(share.value)} of the tokens over {share.part}.",
        "What remains is GRPO plus base advantages in all-correct and all-wrong groups. Lower gap_deadzone to use more "
        "gaps.",
    )


def groups(run: Run) -> Note | None:
    mixed, right, wrong = (last_third(run, f"cast/group/{k}_share") for k in ("mixed", "all_correct", "all_wrong"))
    if mixed is None or right is None or wrong is None:
        return None
    seen = (
        f"Groups over {mixed.part}: {percent(mixed.value)} mixed, {percent(right.value)} all correct, "
        f"{percent(wrong.value)} all wrong."
    )
    if wrong.value > 0.8:
        return Note(
            wrong.warning,
            "The task is too hard",
            seen,
            "Almost no response is correct: use easier data or more responses per group.",
        )
    if right.value > 0.8:
        return Note(
            LOOK,
            "The task is solved",
            seen,
            "The verifier no longer tells most responses apart: stop, or use harder data.",
        )
    if mixed.value < 0.1:
        return Note(
            LOOK,
            "Few mixed groups",
            seen,
            "The verifier tells responses apart in mixed groups only: change the data's difficulty.",
        )
    return Note(OK, "Groups", seen)


def zero_variance(run: Run) -> Note | None:
    mass = last_third(run, "cast/advantage/zero_variance_mass")
    if mass is None or mass.value < 0.9:
        return None
    return Note(
        LOOK,
        "The self-teacher alone drives the run",
        f"{percent(mass.value)} of Σ|Â| over {mass.part} comes from all-correct and all-wrong groups.",
        "In these groups only the gap tells tokens apart: change the data's difficulty, or lower base_correct and "
        "base_wrong.",
    )


def gap_growth(run: Run) -> Note | None:
    trend = ends(run, "cast/gap/mean")
    if trend is None:
        return None
    first, last = trend
    seen = f"Mean gap {signed(first)} nats in the first fifth of the steps, {signed(last)} in the last."
    if last < first - 0.02 and abs(last) > 1.5 * abs(first):
        return Note(
            LOOK,
            "Policy and teacher drift apart",
            seen,
            "The policy's responses become less likely under the teacher. A shorter refresh_interval or a smaller "
            "learning rate keeps the two together.",
        )
    if last > 0.02:
        return Note(
            LOOK,
            "The mean gap is above 0",
            seen,
            "Over the policy's own samples its expectation is −KL, so at most 0. Check the sampling (top_p, top_k, "
            "temperature), whether an older policy made the samples, and whether rollout engine and trainer agree.",
        )
    return Note(OK, "Policy and teacher", f"{seen} Healthy: near or below 0, and not falling fast.")


def teacher_cost(run: Run) -> Note | None:
    shares = [value for value in run.ratio("timing_s/cast_teacher", "timing_s/step")[1] if not math.isnan(value)]
    if not shares:
        return None
    seen = f"The teacher's pass takes {percent(sum(shares) / len(shares))} of a step"
    if sum(run.values("cast/one_pass")) > 0:
        return Note(OK, "The teacher's cost", f"{seen}, and replaces the pass for old log-probs (one pass).")
    against = [v for v in run.ratio("timing_s/cast_teacher", "timing_s/old_log_prob")[1] if not math.isnan(v)]
    if not against:
        return None
    ratio = sum(against) / len(against)
    seen = f"{seen}, {ratio:.2f} × the old log-probs."
    if ratio > 1.5:
        return Note(
            LOOK,
            "The teacher's pass costs more than the old log-probs",
            seen,
            "It should cost old_log_prob times the ratio of context lengths. Check the context's length, and whether "
            "parameter offload moves the shard twice.",
        )
    return Note(OK, "The teacher's cost", seen)


def teacher_never_ran(run: Run) -> Note | None:
    values = run.values("cast/teacher/forward")
    if not values or sum(values) > 0:
        return None
    seen = f"cast/teacher/forward is 0 on every step so far ({len(values)})"
    if len(values) < FEW_FOR_WARNING:
        return Note(
            LOOK,
            "The teacher has run no forward yet",
            f"{seen}. With context=same, a step right after a snapshot needs no forward: its gap is 0.",
        )
    return Note(
        WARNING,
        "The teacher never ran a forward",
        f"{seen}: without gaps, CAST has only its base advantages.",
        "With context=same and refresh_interval=1 the teacher is always the policy: change one of them.",
    )
