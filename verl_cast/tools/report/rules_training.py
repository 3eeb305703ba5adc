"""Rules about any run: its files, reward, entropy, length, gradients.

A rule is a function of one run that returns a Note, or None where it has nothing to look at. Thresholds stand beside
the sentence that they decide; they are rules of thumb, and a note says what was seen, so that one can disagree.
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
            "A baseline trained here, with a privileged teacher: its gaps are to that teacher. In the figures its "
            f"{run.method}/* metrics stand where CAST's cast/* do.",
        )
    return Note(
        OK,
        "Not a CAST run",
        "No cast/* metric was logged: another estimator (GRPO, ...) trained here. It stands beside the others for "
        "comparison and is in no figure about CAST.",
    )


def not_trained(run: Run) -> Note | None:
    """A validation before training says nothing of the estimator that is to train."""
    if run.num_steps or not run.steps:
        return None
    return Note(
        LOOK,
        "No training step was logged",
        f"Only a validation, at step {', '.join(map(str, run.steps))}: with CAST or not, nothing here tells.",
        "The run is at its first step, or ended before it was whole: look at its console log.",
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
    if not 0 < run.num_steps < FEW_STEPS:
        return None
    return Note(
        LOOK,
        "A short run",
        f"With {run.num_steps} of at least {FEW_STEPS} steps, first and last parts are single steps: mostly chance.",
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
            "If the teacher is worse than the policy, CAST pulls it down: see whether the gaps agree with the "
            "verifier, and measure the teacher's context (verl-cast diagnose). In a twin without CAST, look at "
            "learning rate and entropy.",
        )
    if last > first + max(0.02, 0.5 * spread):
        return Note(OK, "The reward rose", seen)
    return Note(
        LOOK, "The reward stands still", seen, "Short runs and hard data do that; else raise the learning rate."
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


def _at_the_limit(run: Run) -> float:
    """Share of the responses of the last third that end at the length limit.

    verl's clip_ratio compares with the longest response of the batch; that is the limit only where the batch reaches
    it, and the longest response of the whole run is taken for it.
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
            f"{seen} {percent(clipped)} end at the length limit (last third).",
            "A cut response counts as wrong whatever it says: raise data.max_response_length.",
        )
    if not 0.6 < last / first < 1.7:
        if reward_change(run) < -0.02:
            return Note(
                WARNING,
                "Response length runs away as the reward falls",
                seen,
                "This is how a collapse begins: look at the trajectories of the last steps, and at the teacher's "
                "context.",
            )
        return Note(LOOK, "Response length changes", seen, "Read a few trajectories: is the change what you want?")
    return Note(OK, "Response length", seen)


def rollout(run: Run) -> Note | None:
    corr = last_third(run, "training/rollout_actor_probs_pearson_corr")
    if corr is None:
        return None
    seen = f"Probabilities of the sampled tokens, rollout engine against trainer: correlation {corr.value:.4f}."
    if corr.value < 0.98:
        return Note(
            LOOK,
            "The rollout engine samples from another policy",
            seen,
            "Asynchronous samples are a policy old; else look at the engines' precision and at the weight sync.",
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
        "One that is clipped does no harm; several in a row ask for a lower learning rate.",
    )
