"""Accuracy of the policy with the student's prompt and in each teacher context: is the teacher better?

The teacher measured here has the policy's own weights, so only its context makes a difference. Intervals are 95 %. A
teacher's difference is paired by problem.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from verl_cast.config.words import command_words
from verl_cast.tools import stats

STUDENT = "student"
# An interval over fewer problems says nothing: with three equal differences its width is 0.
MIN_PROBLEMS = 10
IN_THE_RUN = f"{command_words({'trust': 'measured'})} makes this measurement in the run, at every refresh."


def summarize(name: str, outputs: Sequence[Any], correct: np.ndarray) -> dict[str, Any]:
    """Accuracy, length and truncation of the samples in one context.

    Args:
        name: `student`, or the teacher's context.
        outputs: the samples of every problem, from `sampling.sample`.
        correct: (problems, samples) bool.
    """
    return {
        "context": name,
        "accuracy": float(correct.mean()),
        "interval": list(stats.accuracy_interval(correct.mean(axis=1), correct.shape[1])),
        "length_mean": float(np.mean([len(one["ids"]) for samples in outputs for one in samples])),
        "truncated_share": float(np.mean([one["truncated"] for samples in outputs for one in samples])),
        "accuracy_by_problem": correct.mean(axis=1).tolist(),
    }


def compare(student: dict[str, Any], teacher: dict[str, Any], seed: int) -> dict[str, Any]:
    """The teacher's summary with its difference to the student's, paired by problem, and the verdict.

    The verdict is `better` or `not better` where the interval of the difference lies above or below 0, else
    `undecided`.
    """
    differences = np.array(teacher["accuracy_by_problem"]) - np.array(student["accuracy_by_problem"])
    low, high = stats.mean_interval(differences, seed)
    verdict = "better" if low > 0 else "not better" if high < 0 else "undecided"
    return {
        **teacher,
        "difference": {"value": float(differences.mean()), "interval": [low, high]},
        "verdict": verdict if len(differences) >= MIN_PROBLEMS else "undecided",
    }
