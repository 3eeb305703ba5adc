"""Rules about any run: its files, reward, entropy, length, gradients.

A rule takes one run and returns a Note, or None if it has nothing to report. Thresholds are rules of thumb. Every note
gives the numbers, so that readers can judge for themselves.
"""

import math

from verl_cast.config.methods import METHODS
from verl_cast.tools.report.notes import LOOK, OK, WARNING, Note, ends, last_third, reward_change
from verl_cast.tools.report.runs import Run
from verl_cast.tools.report.text import percent

FEW_STEPS = 6  # with fewer, first and last parts of a run are single steps


def not_cast(run: Run) -> Note | None:
    if run.is_cast or not run.num_steps:
        return None
    if run.method:
        return Note(
            OK,
            f"Not a CAST run: {METHODS[run.method].TITLE}",
            "This run trained a baseline with a privileged teacher; its gaps are measured against that teacher. The "
            f"figures show its {run.method}/* metrics in place of CAST's cast/*.",
        )
    return Note(
        OK,
        "Not a CAST run",
        "No cast/* metric was logged: this run used another estimator (GRPO, ...). It is shown for comparison and is "
        "in no figure about CAST.",
    )


def not_trained(run: Run) -> Note | None:
    """A validation before training does not show which estimator the run uses."""
    if run.num_steps or not run.steps:
        return None
    return Note(
        LOOK,
        "No training step was logged",
        f"Only a validation was logged, at step {', '.join(map(str, run.steps))}. It does not show whether the run "
        "uses CAST.",
        "The run is still in its first step, or ended before it was complete: look at its console log.",
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
        "Values that are not finite numbers",
        f"NaN or infinity: {named}{more}.",
        "A NaN in a loss, gradient or log-prob ruins the weights: stop, and resume from a checkpoint before the "
        "first NaN.",
    )


def few_steps(run: Run) -> Note | None:
    if not 0 < run.num_steps < FEW_STEPS:
        return None
    return Note(
        LOOK,
        "A short run",
        f"Training steps: {run.num_steps}. With fewer than {FEW_STEPS}, the first and the last part are single steps, "
        "so their difference is mostly chance.",
    )


def late_start(run: Run) -> Note | None:
    first = min(run.steps, default=0)
    if first <= 1:
        return None
    return Note(
        LOOK,
        "The first steps are missing",
        f"The first logged step is {first}. verl's file logger starts a new file whenever a run is resumed.",
        "Keep the file of every part (VERL_FILE_LOGGER_PATH), or use the console log, which has all steps.",
    )


def reward(run: Run) -> Note | None:
    trend, values = ends(run, "critic/score/mean"), run.values("critic/score/mean")
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
            "If the teacher is worse than the policy, CAST makes the policy worse. Check whether the gaps agree with "
            "the verifier, and measure the teacher's context (verl-cast diagnose). In a run without CAST, check the "
            "learning rate and entropy.",
        )
    if last > first + max(0.02, 0.5 * spread):
        return Note(OK, "The reward rose", seen)
    return Note(
        LOOK,
        "The reward hardly changed",
        seen,
        "Short runs and hard data cause this. Otherwise, raise the learning rate.",
    )


def entropy(run: Run) -> Note | None:
    trend = ends(run, "actor/entropy")
    if trend is None or trend[0] <= 0:
        return None
    first, last = trend
    seen = f"Entropy of the policy {first:.3g} nats in the first fifth of the steps, {last:.3g} in the last."
    fell, change = last / first, reward_change(run)
    if fell < 0.3:
        if change > 0.02:
            return Note(
                LOOK,
                "Entropy falls as the reward rises",
                seen,
                "A solved task causes this. Otherwise, watch the validation score.",
            )
        return Note(
            WARNING,
            "Entropy collapses",
            seen,
            "The policy stops exploring without gaining reward: lower the learning rate, raise clip_ratio_high, or "
            "resume from an earlier checkpoint.",
        )
    if fell > 2.5:
        level = WARNING if change < -0.02 else LOOK
        return Note(
            level,
            "Entropy grows",
            seen,
            "The policy becomes less certain, often because the teacher's context is unfamiliar to the model. Check "
            "the context, gap_deadzone and the learning rate.",
        )
    return Note(OK, "Entropy", seen)


def _at_the_limit(run: Run) -> float:
    """Share of responses that end at the length limit, over the last third of the steps.

    verl's clip_ratio is the share of responses as long as the longest of their batch. The limit is taken to be the
    longest response of the whole run. A batch that does not reach it counts as 0.
    """
    limit = max(run.values("response_length/max"), default=0)
    shares = [
        values["response_length/clip_ratio"] if values.get("response_length/max") == limit else 0.0
        for values in run.steps.values()
        if "response_length/clip_ratio" in values
    ]
    part = shares[-max(1, len(shares) // 3) :]
    return sum(part) / len(part) if part else 0.0


def length(run: Run) -> Note | None:
    trend = ends(run, "response_length/mean")
    if trend is None or trend[0] <= 0:
        return None
    first, last = trend
    seen = f"Responses have {first:.0f} tokens in the first fifth of the steps, {last:.0f} in the last."
    clipped = _at_the_limit(run)
    if clipped > 0.25:
        return Note(
            LOOK,
            "Many responses are cut off",
            f"{seen} In the last third of the steps, {percent(clipped)} end at the length limit.",
            "A cut-off response counts as wrong whatever its content: raise data.max_response_length.",
        )
    if not 0.6 < last / first < 1.7:
        if reward_change(run) < -0.02:
            return Note(
                WARNING,
                "Response length changes strongly as the reward falls",
                seen,
                "This is how a collapse begins: look at the trajectories of the last steps, and at the teacher's "
                "context.",
            )
        return Note(
            LOOK, "Response length changes", seen, "Read a few trajectories to see whether you want the change."
        )
    return Note(OK, "Response length", seen)


def rollout(run: Run) -> Note | None:
    corr = last_third(run, "training/rollout_actor_probs_pearson_corr")
    if corr is None:
        return None
    seen = f"The sampled tokens' probabilities in rollout engine and trainer have a correlation of {corr.value:.4f}."
    if corr.value < 0.98:
        return Note(
            LOOK,
            "Rollout engine and trainer disagree",
            seen,
            "In an asynchronous run the samples come from an older policy. In other runs, check the engines' precision "
            "and the weight sync.",
        )
    return Note(OK, "Rollout engine and trainer agree", seen)


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
        "A single clipped gradient does no harm. If there are several in a row, lower the learning rate.",
    )
