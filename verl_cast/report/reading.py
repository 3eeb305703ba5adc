"""The rules: what a run's numbers say, as short notes with a level, the numbers seen, and what to do.

A rule is a function of one run that returns a Note, or None where it has nothing to look at; `RULES` is all of them, in
the order in which they are read. Thresholds stand beside the sentence that they decide. They are those of README.md's
metric table where it has one, and otherwise rules of thumb: a note says what was seen, so that one can disagree.
"""

import math
from dataclasses import dataclass

from verl_cast.report.runs import Run, fifths
from verl_cast.report.text import percent, signed

OK, LOOK, WARNING = "ok", "look", "warning"
LEVELS = (WARNING, LOOK, OK)
FEW_STEPS = 6  # with fewer, first and last parts of a run are single steps
FEW_FOR_TREND = 3


@dataclass(frozen=True)
class Note:
    """One thing seen. `seen` holds the numbers; `advice` says what to do, "" where nothing is to be done."""

    level: str
    title: str
    seen: str
    advice: str = ""


@dataclass(frozen=True)
class Mean:
    """Mean of a metric over its last third of steps, with its standard error (steps taken as independent)."""

    value: float
    error: float
    steps: int


def last_third(run: Run, name: str) -> Mean | None:
    values = run.values(name)
    if not values:
        return None
    part = values[-max(1, len(values) // 3) :]
    mean = sum(part) / len(part)
    variance = sum((v - mean) ** 2 for v in part) / max(1, len(part) - 1)
    return Mean(mean, math.sqrt(variance / len(part)), len(part))


def _trend(run: Run, name: str) -> tuple[float, float] | None:
    """First and last fifth of a metric that was logged often enough to speak of a trend."""
    values = run.values(name)
    return fifths(values) if len(values) >= FEW_FOR_TREND else None


def _reward_change(run: Run) -> float:
    trend = _trend(run, "critic/score/mean")
    return 0.0 if trend is None else trend[1] - trend[0]


def not_cast(run: Run) -> Note | None:
    if run.is_cast:
        return None
    return Note(
        OK,
        "Not a CAST run",
        "No cast/* metric was logged: another estimator (GRPO, ...) trained here. It stands beside the others for "
        "comparison and is in no figure about CAST.",
    )


def not_finite(run: Run) -> Note | None:
    found = {}
    for step, values in run.steps.items():
        for name, value in values.items():
            if math.isnan(value):
                found.setdefault(name, []).append(step)
    if not found:
        return None
    named = "; ".join(f"{name} at step {', '.join(map(str, steps[:3]))}" for name, steps in list(found.items())[:3])
    more = f"; and {len(found) - 3} other metrics" if len(found) > 3 else ""
    return Note(
        WARNING,
        "Values that are no numbers",
        f"NaN or infinity: {named}{more}.",
        "A NaN in a loss, gradient or log-prob ruins the weights: stop, and resume from a checkpoint before the "
        "first one.",
    )


def few_steps(run: Run) -> Note | None:
    if not run.steps or run.num_steps >= FEW_STEPS:
        return None
    return Note(
        LOOK, "A short run", f"{run.num_steps} steps: what follows compares single steps, which is mostly chance."
    )


def late_start(run: Run) -> Note | None:
    first = min(run.steps, default=0)
    if first <= 1:
        return None
    return Note(
        LOOK,
        "Not from the start",
        f"The first step here is {first}. verl's file logger starts a new file whenever a run is resumed.",
        "Keep the files of every part (VERL_FILE_LOGGER_PATH), or read the console log, which has them all.",
    )


def reward(run: Run) -> Note | None:
    trend, values = _trend(run, "critic/score/mean"), run.values("critic/score/mean")
    if trend is None:
        return None
    first, last = trend
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    seen = f"Mean reward {first:.3f} in the first fifth of the steps, {last:.3f} in the last."
    if last < first - max(0.02, 0.5 * spread):
        return Note(
            WARNING,
            "The reward fell",
            seen,
            "If the teacher is worse than the policy, CAST pulls it down: see whether the gaps agree with the "
            "verifier, and measure the teacher's context (verl-cast diagnose). In a twin without CAST, look at "
            "learning rate and entropy.",
        )
    if last > first + max(0.02, 0.5 * spread):
        return Note(OK, "The reward rose", seen)
    return Note(
        LOOK, "The reward stands still", seen, "Short runs and hard data do that; else raise the learning rate."
    )


def teacher_and_verifier(run: Run) -> Note | None:
    name = "cast/gap/correctness_corr_in_group"
    corr = last_third(run, name)
    if corr is None:
        return None
    seen = (
        f"Correlation of a trajectory's mean gap with its correctness, within groups: {signed(corr.value, 2)} "
        f"± {corr.error:.2f} over the last third ({corr.steps} steps)."
    )
    if corr.value < -0.05 and corr.value + 2 * corr.error < 0:
        return Note(
            WARNING,
            "The teacher prefers what is wrong",
            seen,
            "With both flips CAST moves the policy to where the teacher is. Change the teacher's context "
            "(verl-cast diagnose measures it), or let the verifier decide: flip=none, a larger gap_deadzone.",
        )
    if corr.value > 0.02:
        return Note(OK, "The teacher agrees with the verifier", seen)
    return Note(
        LOOK,
        "The teacher says nothing about correctness",
        seen,
        "Flips then follow the teacher's style, or chance. Measure its context (verl-cast diagnose); gap_deadzone and "
        "one-sided flips let more of the verifier through.",
    )


def flips(run: Run) -> Note | None:
    share = last_third(run, "cast/flip/correct_share")
    if share is None:
        return None
    wrong = last_third(run, "cast/flip/wrong_share")
    seen = f"Flipped over the last third: {percent(share.value)} of the tokens of correct trajectories"
    seen += f", {percent(wrong.value)} of those of wrong ones." if wrong else "."
    if share.value > 0.6:
        return Note(
            WARNING if share.value > 0.8 else LOOK,
            "Most tokens of correct responses are flipped",
            seen,
            "The teacher likes most of what is right less than the policy does. Check its context; gap_deadzone "
            "keeps small gaps from flipping, flip=wrong never flips correct responses.",
        )
    return Note(OK, "Flips", seen)


def noise(run: Run) -> Note | None:
    below, gap, floor = (last_third(run, f"cast/{n}") for n in ("noise/gap_share", "gap/abs_mean", "noise/p99"))
    if gap is None or floor is None:
        return None
    seen = (
        f"Mean |gap| {gap.value:.3g} nats; the engine's own noise is at most {floor.value:.2g} on 99 % of the tokens."
    )
    if below is not None:
        seen += f" {percent(below.value)} of the gaps are no larger than that."
    share = below.value if below is not None else 0.0
    if gap.value < 3 * floor.value or share > 0.3:
        return Note(
            WARNING if gap.value < floor.value or share > 0.6 else LOOK,
            "Gaps near the engine's noise",
            seen,
            f"There the sign of an advantage is chance: set gap_deadzone to {floor.value:.2g} or more, or compute "
            "log-probs in a higher precision.",
        )
    return Note(OK, "Gaps stand above the engine's noise", seen)


def groups(run: Run) -> Note | None:
    mixed, right, wrong = (last_third(run, f"cast/group/{k}_share") for k in ("mixed", "all_correct", "all_wrong"))
    if mixed is None or right is None or wrong is None:
        return None
    seen = (
        f"Groups over the last third: {percent(mixed.value)} mixed, {percent(right.value)} all correct, "
        f"{percent(wrong.value)} all wrong."
    )
    if wrong.value > 0.8:
        return Note(
            WARNING, "The task is too hard", seen, "Almost no response is right: use easier data or more responses."
        )
    if right.value > 0.8:
        return Note(
            LOOK, "The task is solved", seen, "The verifier has nothing left to say here: stop, or use harder data."
        )
    if mixed.value < 0.1:
        return Note(
            LOOK, "Few mixed groups", seen, "The verifier tells responses apart in mixed groups only: change the data."
        )
    return Note(OK, "Groups", seen)


def zero_variance(run: Run) -> Note | None:
    mass = last_third(run, "cast/advantage/zero_variance_mass")
    if mass is None or mass.value < 0.8:
        return None
    return Note(
        LOOK,
        "The self-teacher alone drives the run",
        f"{percent(mass.value)} of Σ|Â| over the last third comes from all-correct and all-wrong groups.",
        "There the gap alone tells tokens apart: change the data's difficulty, or lower base_correct and base_wrong.",
    )


def gap_growth(run: Run) -> Note | None:
    trend = _trend(run, "cast/gap/mean")
    if trend is None:
        return None
    first, last = trend
    seen = f"Mean gap {signed(first)} nats in the first fifth of the steps, {signed(last)} in the last."
    if last < first - 0.02 and abs(last) > 1.5 * abs(first):
        return Note(
            LOOK,
            "Policy and teacher part",
            seen,
            "The policy moves to where the teacher thinks it less likely. A shorter refresh_interval, or a smaller "
            "learning rate, keeps them together.",
        )
    return Note(OK, "Policy and teacher", f"{seen} At or below 0, and not falling, is as it should be.")


def entropy(run: Run) -> Note | None:
    trend = _trend(run, "actor/entropy")
    if trend is None or trend[0] <= 0:
        return None
    first, last = trend
    seen = f"Entropy of the policy {first:.3g} nats in the first fifth of the steps, {last:.3g} in the last."
    fell, change = last / first, _reward_change(run)
    if fell < 0.3:
        if change > 0.02:
            return Note(
                LOOK, "Entropy falls as the reward rises", seen, "A solved task does that; else watch validation."
            )
        return Note(
            WARNING,
            "Entropy collapses",
            seen,
            "The policy stops exploring without gaining reward: lower the learning rate, raise clip_ratio_high, or "
            "resume earlier.",
        )
    if fell > 2.5:
        level = WARNING if change < -0.02 else LOOK
        return Note(
            level,
            "Entropy grows",
            seen,
            "The policy drifts to where it is unsure, often towards a teacher with a context that it does not know: "
            "check the context, gap_deadzone, and the learning rate.",
        )
    return Note(OK, "Entropy", seen)


def length(run: Run) -> Note | None:
    trend = _trend(run, "response_length/mean")
    if trend is None or trend[0] <= 0:
        return None
    first, last = trend
    seen = f"Responses have {first:.0f} tokens in the first fifth of the steps, {last:.0f} in the last."
    clipped = last_third(run, "response_length/clip_ratio")
    if clipped is not None and clipped.value > 0.25:
        return Note(
            LOOK,
            "Many responses are cut off",
            f"{seen} {percent(clipped.value)} end at the length limit (last third).",
            "A cut response counts as wrong whatever it says: raise data.max_response_length.",
        )
    if not 0.6 < last / first < 1.7:
        if _reward_change(run) < -0.02:
            return Note(
                WARNING,
                "Response length runs away as the reward falls",
                seen,
                "This is how a collapse begins: look at the trajectories of the last steps, and at the teacher's "
                "context.",
            )
        return Note(LOOK, "Response length changes", seen, "Read a few trajectories: is the change what you want?")
    return Note(OK, "Response length", seen)


def teacher_cost(run: Run) -> Note | None:
    shares = run.ratio("timing_s/cast_teacher", "timing_s/step")[1]
    against = run.ratio("timing_s/cast_teacher", "timing_s/old_log_prob")[1]
    if not shares or not against:
        return None
    share, ratio = sum(shares) / len(shares), sum(against) / len(against)
    seen = f"The teacher's pass takes {percent(share)} of a step, {ratio:.2f} × the old log-probs."
    if ratio > 1.5:
        return Note(
            LOOK,
            "The teacher's pass is dear",
            seen,
            "It should cost as much as old_log_prob times the ratio of context lengths: is the context that long, "
            "or does parameter offload move the shard twice?",
        )
    return Note(OK, "The teacher's cost", seen)


def teacher_never_ran(run: Run) -> Note | None:
    values = run.values("cast/teacher/forward")
    if not values or sum(values) > 0:
        return None
    return Note(WARNING, "The teacher never ran a forward", "cast/teacher/forward is 0 on every step: no gap, no CAST.")


def gradients(run: Run) -> Note | None:
    values = run.values("actor/grad_norm")
    if len(values) < FEW_STEPS:
        return None
    median = sorted(values)[len(values) // 2]
    peak = max(values)
    if median <= 0 or peak < 10 * median:
        return None
    steps, series = run.series("actor/grad_norm")
    return Note(
        LOOK,
        "A gradient far larger than the others",
        f"actor/grad_norm {peak:.3g} at step {steps[series.index(peak)]}; the median is {median:.3g}.",
        "One that is clipped does no harm; several in a row ask for a lower learning rate.",
    )


RULES = (
    not_cast,
    not_finite,
    few_steps,
    late_start,
    reward,
    teacher_and_verifier,
    flips,
    noise,
    groups,
    zero_variance,
    gap_growth,
    entropy,
    length,
    gradients,
    teacher_never_ran,
    teacher_cost,
)


def notes(run: Run) -> list[Note]:
    """All that the rules see in a run, the most pressing first."""
    found = [note for rule in RULES if (note := rule(run)) is not None]
    return sorted(found, key=lambda note: LEVELS.index(note.level))


def comparison(runs: list[Run]) -> list[Note]:
    """What a page with CAST and other runs says about them together: cost and reward, CAST over the other."""
    cast = [run for run in runs if run.is_cast and run.steps]
    others = [run for run in runs if not run.is_cast]
    found = []
    for run in cast:
        for other in others:
            pair, seconds = f"{run.name} beside {other.name}", [r.values("timing_s/step") for r in (run, other)]
            if all(seconds):
                a, b = (sorted(values)[len(values) // 2] for values in seconds)
                found.append(
                    Note(
                        OK,
                        f"{pair}: cost",
                        f"A step takes {a:.3g} s against {b:.3g} s (medians): {a / b:.2f} ×. The paper says 1.25 ×.",
                    )
                )
            rewards = [r.values("critic/score/mean") for r in (run, other)]
            if all(rewards):
                a, b = (fifths(values)[1] for values in rewards)
                found.append(
                    Note(
                        OK,
                        f"{pair}: reward",
                        f"{a:.3f} against {b:.3f} in the last fifth of the steps.",
                        "One run each: repeat both with other seeds before calling a difference CAST's.",
                    )
                )
    return found
