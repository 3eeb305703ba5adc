"""The quick start's verifier: binary; the last whole number of the response must be the task's answer."""

import re


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info=None, **kwargs
) -> dict[str, float]:
    """verl's signature of a custom reward function; `score` is 1.0 or 0.0."""
    numbers = re.findall(r"-?\d+", solution_str)
    correct = float(bool(numbers) and numbers[-1] == ground_truth)
    return {"score": correct, "acc": correct}
