"""Applies all rules to a run, and compares CAST runs with other runs."""

import math

from verl_cast.tools.report import rules_cast, rules_training
from verl_cast.tools.report.notes import LEVELS, OK, Note
from verl_cast.tools.report.runs import Run, fifths

RULES = (
    rules_training.not_cast,
    rules_training.not_trained,
    rules_training.not_finite,
    rules_training.few_steps,
    rules_training.late_start,
    rules_training.reward,
    rules_cast.teacher_and_verifier,
    rules_cast.flips,
    rules_cast.noise,
    rules_cast.dead_zone,
    rules_cast.groups,
    rules_cast.zero_variance,
    rules_cast.gap_growth,
    rules_training.entropy,
    rules_training.length,
    rules_training.gradients,
    rules_training.rollout,
    rules_cast.teacher_never_ran,
    rules_cast.teacher_cost,
)


def notes(run: Run) -> list[Note]:
    """The notes of all rules on a run, the most urgent first. Rules about CAST do not apply to baselines."""
    baseline = run.method is not None and not run.is_cast
    rules = [rule for rule in RULES if not (baseline and rule.__module__ == rules_cast.__name__)]
    found = [note for rule in rules if (note := rule(run)) is not None]
    return sorted(found, key=lambda note: LEVELS.index(note.level))


def comparison(runs: list[Run]) -> list[Note]:
    """Cost and reward of every CAST run compared with every other run, over the steps that both have."""
    cast = [run for run in runs if run.is_cast and run.steps]
    others = [run for run in runs if run.num_steps and not run.is_cast]
    found = []
    for run in cast:
        for other in others:
            pair = f"{run.name} compared with {other.name}"
            seconds = _on_common_steps(run, other, "timing_s/step")
            if seconds:
                a, b = (sorted(values)[len(values) // 2] for values in zip(*seconds, strict=True))
                text = f"A step takes {a:.3g} s against {b:.3g} s (medians): {a / b:.2f} ×. The paper reports 1.25 ×."
                found.append(Note(OK, f"{pair}: cost", text))
            rewards = _on_common_steps(run, other, "critic/score/mean")
            if rewards:
                a, b = (fifths(list(values))[1] for values in zip(*rewards, strict=True))
                text = f"{a:.3f} against {b:.3f} in the last fifth of the {len(rewards)} steps that both have."
                advice = "This is one run each: repeat both with other seeds before you attribute a difference to CAST."
                found.append(Note(OK, f"{pair}: reward", text, advice))
    return found


def _on_common_steps(run: Run, other: Run, name: str) -> list[tuple[float, float]]:
    """A metric's values in two runs, at the steps where both have a number."""
    pairs = [
        (values[name], other.steps.get(step, {}).get(name, math.nan))
        for step, values in run.steps.items()
        if name in values
    ]
    return [pair for pair in pairs if not any(math.isnan(value) for value in pair)]
