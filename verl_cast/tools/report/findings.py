"""The rules: each takes one run and returns a Note, or None if it has nothing to report. And twins, compared.

Numbers are as verl logs them. Healthy ranges are those of healthy.py; other thresholds are rules of thumb, so every
note gives the numbers. Settings in an advice are whole words, which can be pasted behind a command.
"""

import functools
import itertools
import math
import statistics

from verl_cast.config.words import command_words
from verl_cast.tools.report.healthy import HEALTHY
from verl_cast.tools.report.metrics_file import listed
from verl_cast.tools.report.notes import (
    ENOUGH_STEPS,
    LEVELS,
    LOOK,
    OK,
    TWIN,
    WARNING,
    Note,
    ends,
    last_third,
    mean,
    recent,
    span,
)
from verl_cast.tools.report.runs import Run

DIAGNOSE = "Measure the teacher's context with verl-cast diagnose"
NO_TEACHER = "With measured trust a step is GRPO's while the teacher is not better: " + command_words(
    {"trust": "measured"}
)


def not_started(run: Run) -> Note | None:
    if run.num_steps or not run.steps:
        return None
    return Note(
        LOOK,
        "No training step was logged",
        f"Only a validation was logged, at step {listed(list(run.steps))}. It does not show whether the run uses CAST.",
        "The run is still in its first step, or ended before it was complete: look at its console log.",
    )


def not_finite(run: Run) -> Note | None:
    first = {}
    for step, values in run.steps.items():
        first = {name: step for name, value in values.items() if math.isnan(value)} | first
    if not first:
        return None
    return Note(
        WARNING,
        "Values that are not finite numbers",
        f"NaN or infinity, first: {listed([f'{name} at step {step}' for name, step in first.items()])}.",
        "A NaN in a loss, gradient or log-prob ruins the weights: resume from a checkpoint before the first NaN.",
    )


def few_steps(run: Run) -> Note | None:
    if not 0 < run.num_steps <= ENOUGH_STEPS:
        return None
    return Note(LOOK, "A short run", f"Training steps: {run.num_steps}. Differences between them are mostly chance.")


def late_start(run: Run) -> Note | None:
    if min(run.steps, default=0) <= 1:
        return None
    return Note(
        LOOK,
        "The first steps are missing",
        f"The first logged step is {min(run.steps)}. verl's file logger empties its file when a run is resumed.",
        "Give every part of a run its own VERL_FILE_LOGGER_PATH, and join the files (cat) for the report.",
    )


def reward(run: Run) -> Note | None:
    trend = ends(run, "critic/score/mean")
    if trend is None:
        return None
    first, last = trend
    seen = f"Mean reward {first.value:.3f} over {first.span}, {last.value:.3f} over {last.span}."
    least = max(0.02, 0.5 * statistics.stdev(run.values("critic/score/mean").values()))
    if last.value < first.value - least:
        advice = f"A teacher that is worse than the policy makes the policy worse. {DIAGNOSE}. {NO_TEACHER}"
        return Note(WARNING, "The reward fell", seen, advice if run.is_cast else "Check learning rate and entropy.")
    if last.value > first.value + least:
        return Note(OK, "The reward rose", seen)
    return Note(LOOK, "The reward hardly changed", seen, "Short runs and hard data cause this.")


def trust(run: Run) -> Note | None:
    trusted = run.values("cast/trust/trusted")
    if not trusted:
        return None
    teacher, policy = run.values("cast/trust/teacher_share"), run.values("cast/trust/policy_share")
    shown = sorted({min(teacher), max(teacher)}) if teacher else []
    shares = "; ".join(f"{teacher[step]:.2f} at step {step} (policy {policy[step]:.2f})" for step in shown)
    measured = f" The teacher's measured share of correct responses: {shares}." if shares else ""
    # as stretches without a step of 0 between them
    stretches = itertools.groupby(trusted, key=lambda step: trusted[step] > 0)
    steps = [span(list(stretch)) for is_trusted, stretch in stretches if is_trusted]
    if not steps:
        return Note(
            LOOK,
            "The teacher was never trusted: the run was GRPO",
            f"None of {len(trusted)} steps used the teacher.{measured}",
            f"Its context does not make a better policy so far. {DIAGNOSE}, or write another context.",
        )
    title = f"The teacher was trusted in {sum(map(bool, trusted.values()))} of {len(trusted)} steps"
    return Note(OK, title, f"Trusted at {listed(steps)}; any other step was GRPO's.{measured}")


def agreement(run: Run) -> Note | None:
    """Within groups, so that the difficulty of problems plays no part."""
    values = run.values("cast/gap/correctness_corr_in_group")
    if not values:
        return None
    # The last third, if it is conclusive; otherwise all steps.
    late = mean(last_third(values))
    corr = late if late.enough and abs(late.value) > 2 * late.error else mean(values)
    seen = f"Correlation of gap and correctness within groups: {corr.value:+.2f} "
    if not corr.enough:
        return Note(
            LOOK,
            "Too few steps to compare teacher and verifier",
            f"{seen}over {corr.span}, which may be chance.",
            f"This needs at least {ENOUGH_STEPS} steps with mixed groups. {DIAGNOSE}.",
        )
    seen += f"± {corr.error:.2f} over {corr.span} (healthy: {HEALTHY['gap/correctness_corr_in_group']})."
    if corr.value + 2 * corr.error < 0:
        advice = f"With both flips CAST moves the policy towards the teacher. {DIAGNOSE}. {NO_TEACHER}"
        return Note(WARNING, "The teacher prefers wrong responses", seen, advice)
    if corr.value > 2 * corr.error:
        return Note(OK, "The teacher agrees with the verifier", seen)
    return Note(LOOK, "The gap hardly depends on correctness", seen, f"Flips then follow style or chance. {DIAGNOSE}.")


def groups(run: Run) -> Note | None:
    mixed, right, wrong = (recent(run, f"cast/group/{one}_share") for one in ("mixed", "all_correct", "all_wrong"))
    if mixed is None or right is None or wrong is None:
        return None
    seen = (
        f"Over {mixed.span}: {mixed.value:.2f} mixed (healthy: {HEALTHY['group/mixed_share']}), "
        f"{right.value:.2f} all correct, {wrong.value:.2f} all wrong."
    )
    one_sided = recent(run, "cast/reward/varies_on_one_side_share")
    if one_sided is not None and one_sided.value > 0 and mixed.value not in HEALTHY["group/mixed_share"]:
        return Note(
            WARNING if one_sided.enough else LOOK,
            "Rewards vary, and never cross the threshold",
            f"{seen} In {one_sided.value:.2f} of the all-correct and all-wrong groups rewards differ, on one side of "
            "correct_threshold.",
            f"CAST cannot tell these responses apart. {_threshold(run)}",
        )
    if wrong.value not in HEALTHY["group/all_wrong_share"]:
        level = WARNING if wrong.enough else LOOK
        return Note(level, "The task is too hard", seen, "Use easier data, or more responses per group.")
    if right.value not in HEALTHY["group/all_correct_share"]:
        return Note(LOOK, "The task is solved", seen, "Stop, or use harder data.")
    if mixed.value not in HEALTHY["group/mixed_share"]:
        return Note(LOOK, "Few mixed groups", seen, "The verifier compares responses only there: change the data.")
    return Note(OK, "Groups", seen)


def _threshold(run: Run) -> str:
    low, high = (run.values(f"critic/score/{one}") for one in ("min", "max"))
    if not low or not high:
        return "Choose algorithm.cast.correct_threshold between the rewards."
    lowest, highest = min(low.values()), max(high.values())
    words = command_words({"correct_threshold": round((lowest + highest) / 2, 6)})
    return f"Choose a threshold between the rewards, which lie in {lowest:g} to {highest:g}: for example {words}"


SMALL_GAPS = f"Small gaps flip nothing with {command_words({'gap_deadzone': 1})}"
# Metric with a healthy range -> what it is, and what to do outside of that range.
BANDED = {
    "flip/correct_share": (
        "Flipped tokens of correct responses",
        f"The teacher finds most tokens less likely than the policy does. {DIAGNOSE}. {SMALL_GAPS}, correct responses "
        f"never with {command_words({'flip': 'wrong'})}",
    ),
    "flip/wrong_share": (
        "Flipped tokens of wrong responses",
        f"The teacher finds most tokens more likely than the policy does. {DIAGNOSE}. {SMALL_GAPS}, wrong responses "
        f"never with {command_words({'flip': 'correct'})}",
    ),
    "noise/gap_share": (
        "Gaps within the engine's noise",
        f"The sign of such a gap is chance. Set {command_words({'gap_deadzone': 'noise'})}",
    ),
    "gap/deadzone_share": (
        "Gaps inside the dead zone",
        "What remains is GRPO with base advantages in all-correct and all-wrong groups. Lower gap_deadzone.",
    ),
    "advantage/zero_variance_mass": (
        "Advantage mass of all-correct and all-wrong groups",
        "Only the self-teacher drives the run: in these groups only the gap tells tokens apart. Change the data's "
        f"difficulty, or lower the bases: {command_words({'base_correct': 0, 'base_wrong': 0.1})}",
    ),
    "gap/mean": (
        "Mean gap",
        "Over the policy's own samples its expectation is at most 0. Check the sampling (top_p, top_k), whether an "
        "older policy made the samples, and whether rollout engine and trainer agree.",
    ),
}


def banded(run: Run, metric: str) -> Note | None:
    """A metric's healthy range, over the last third of its steps."""
    found, (title, advice) = recent(run, f"cast/{metric}"), BANDED[metric]
    if found is None:
        return None
    seen = f"{found.value:.3g} over {found.span} (healthy: {HEALTHY[metric]})."
    return Note(OK, title, seen) if found.value in HEALTHY[metric] else Note(LOOK, title, seen, advice)


def entropy(run: Run) -> Note | None:
    trend = ends(run, "actor/entropy")
    if trend is None or trend[0].value <= 0:
        return None
    seen = "{0.value:.3g} nats over {0.span}, {1.value:.3g} over {1.span}.".format(*trend)
    ratio, gain = trend[1].value / trend[0].value, _reward_gain(run)
    if ratio < 0.3 and gain <= 0.02:
        advice = "The policy stops exploring without gaining reward: lower the learning rate."
        return Note(WARNING, "Entropy collapses", seen, advice)
    if ratio < 0.3:
        return Note(LOOK, "Entropy falls as the reward rises", seen, "A solved task causes this.")
    if ratio > 2.5:
        advice = f"Often the teacher's context is unfamiliar to the model. {DIAGNOSE}."
        return Note(WARNING if gain < -0.02 else LOOK, "Entropy grows", seen, advice if run.is_cast else "")
    return Note(OK, "Entropy", seen)


def length(run: Run) -> Note | None:
    trend = ends(run, "response_length/mean")
    if trend is None or trend[0].value <= 0:
        return None
    seen = "{0.value:.0f} tokens over {0.span}, {1.value:.0f} over {1.span}.".format(*trend)
    if 0.6 < trend[1].value / trend[0].value < 1.7:
        return Note(OK, "Response length", seen)
    if _reward_gain(run) < -0.02:
        advice = "A collapse begins like this: read the trajectories of the last steps."
        return Note(WARNING, "Response length changes as the reward falls", seen, advice)
    return Note(LOOK, "Response length changes", seen, "Read a few trajectories to see whether you want the change.")


def _reward_gain(run: Run) -> float:
    trend = ends(run, "critic/score/mean")
    return 0.0 if trend is None else trend[1].value - trend[0].value


def cost(run: Run) -> Note | None:
    shares, trust = (run.values(f"timing_s/cast_{part} over timing_s/step") for part in ("teacher", "trust"))
    if not shares:
        return None
    seen = f"The teacher's pass takes {mean(shares).value:.2f} of a step"
    if trust:
        seen += f", and measuring trust {sum(trust.values()) / run.num_steps:.3f}"
    if any(run.values("cast/one_pass").values()):
        return Note(OK, "Cost", f"{seen}. One pass: it replaces the pass for old log-probs.")
    passes = run.values("timing_s/cast_teacher over timing_s/old_log_prob")
    if not passes:
        return Note(OK, "Cost", f"{seen}.")
    ratio = mean(passes).value
    seen += f"; the pass takes {ratio:.2f} × the pass for old log-probs."
    if ratio > 1.5:
        advice = "It should take the ratio of context lengths: check the context's length, and parameter offload."
        return Note(LOOK, "The teacher's pass costs more than that for old log-probs", seen, advice)
    return Note(OK, "Cost", seen)


CAST_RULES = (trust, agreement, groups, cost, *(functools.partial(banded, metric=metric) for metric in BANDED))


def notes(run: Run) -> list[Note]:
    """The notes of all rules on a run, the most urgent first."""
    rules = (not_started, not_finite, few_steps, late_start, reward, *(CAST_RULES if run.is_cast else ()))
    found = [rule(run) for rule in (*rules, entropy, length)]
    return sorted(filter(None, found), key=lambda note: LEVELS.index(note.level))


def comparison(runs: list[Run]) -> list[Note]:
    """Cost and reward of every CAST run beside every other run, over the steps that both logged.

    The first of these steps is left out of the cost, because it warms engines up. Without enough steps nothing is said.
    """
    found = []
    for run in (one for one in runs if one.is_cast):
        for other in (one for one in runs if not one.is_cast and one.num_steps):
            pair = f"{run.name} and {other.name}"
            seconds = [values[1:] for values in _common(run, other, "timing_s/step")]
            if len(seconds[0]) >= ENOUGH_STEPS:
                a, b = map(statistics.median, seconds)
                text = f"{a:.3g} and {b:.3g} s a step (medians of {len(seconds[0])} common steps): {a / b:.2f} ×."
                found.append(Note(TWIN, f"{pair}: cost", text))
            rewards = _common(run, other, "critic/score/mean")
            if len(rewards[0]) >= ENOUGH_STEPS:
                last = len(rewards[0]) // 5
                a, b = (statistics.fmean(values[-last:]) for values in rewards)
                text = f"{a:.3f} and {b:.3f} over the last {last} of the {len(rewards[0])} steps that both have."
                found.append(Note(TWIN, f"{pair}: reward", text, "One run each: other seeds may differ as much."))
    return found


def _common(run: Run, other: Run, name: str) -> tuple[list[float], list[float]]:
    """A metric's values in two runs, at the steps where both have a number."""
    a, b = run.values(name), other.values(name)
    steps = [step for step in a if step in b]
    return [a[step] for step in steps], [b[step] for step in steps]
