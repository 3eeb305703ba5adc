"""The quick start's verifier: binary, the number after the last "Answer:" must be the task's answer."""

import re


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info=None, **kwargs
) -> dict[str, float]:
    """verl's signature of a custom reward function; `score` is 1.0 or 0.0."""
    answers = re.findall(r"Answer:\s*\$?(-?\d+)", solution_str)
    correct = float(bool(answers) and answers[-1] == ground_truth)
    return {"score": correct, "acc": correct}
