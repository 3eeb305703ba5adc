"""Accuracy of the policy under the student's prompt and under each teacher context: is the teacher better?

With both flips CAST moves the policy to the teacher (method section 7). The teacher measured here has the policy's own
weights, so only its context makes a difference. Intervals are 95 %. A teacher's difference is paired by problem.
"""

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np

import verl_cast
from verl_cast.checks import fitness
from verl_cast.tools import stats

STUDENT = "student"


def summarize(name: str, outputs: Sequence[Any], rewards: np.ndarray, threshold: float) -> dict[str, Any]:
    """Accuracy, lengths and truncation of the samples under one context.

    Args:
        name: `student`, or the teacher's context.
        outputs: the samples of every problem, from `sampling.sample`.
        rewards: (problems, samples).
    """
    right = rewards > threshold
    lengths = np.array([[len(one["ids"]) for one in samples] for samples in outputs])

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if values.size else None

    return {
        "context": name,
        "right": int(right.sum()),
        "samples": int(right.size),
        "accuracy": float(right.mean()),
        "interval": list(stats.accuracy_interval(right.mean(axis=1), right.shape[1])),
        "length_mean": float(lengths.mean()),
        "length_right": mean(lengths[right]),
        "length_wrong": mean(lengths[~right]),
        "truncated_share": float(np.mean([one["truncated"] for samples in outputs for one in samples])),
        "accuracy_by_problem": right.mean(axis=1).tolist(),
    }


def compare(student: dict[str, Any], teacher: dict[str, Any], seed: int) -> dict[str, Any]:
    """The teacher's summary with its difference to the student's, paired by problem, and the verdict."""
    differences = np.array(teacher["accuracy_by_problem"]) - np.array(student["accuracy_by_problem"])
    interval = list(stats.mean_interval(differences, seed))
    compared = {**teacher, "difference": {"value": float(differences.mean()), "interval": interval}}
    return {**compared, "verdict": fitness.verdict({**compared, "problems": len(differences)})}


def fitness_record(
    setup: Any, student: dict[str, Any], teacher: dict[str, Any], samples: int, which: str, seed: int
) -> dict[str, Any]:
    """The record for `verl_cast.checks.fitness`: the measurement and its settings.

    Args:
        student, teacher: from `summarize` and `compare`.
        samples: responses per problem.
        which: the data files that were used, val or train.
    """
    kept = ("right", "samples", "accuracy", "interval", "length_mean", "truncated_share")
    files = setup.config.data[f"{which}_files"]
    return {
        "record_version": fitness.RECORD_VERSION,
        "verl_cast": verl_cast.__version__,
        "measured_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "model": setup.model_path,
        "context": teacher["context"],
        "measured_on": [str(file) for file in ([files] if isinstance(files, str) else files)],
        "problems": len(student["accuracy_by_problem"]),
        "samples": samples,
        "seed": seed,
        "temperature": setup.temperature,
        "student": {key: student[key] for key in kept},
        "teacher": {key: teacher[key] for key in kept},
        "difference": teacher["difference"],
    }
