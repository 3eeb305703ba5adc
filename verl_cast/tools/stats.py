"""The statistics of the diagnosis and of the study, on plain numpy arrays: intervals, AUC, sign agreement.

Statistics over few problems have a 95 % interval. Samples of one problem are not independent, so intervals of
differences and of relations resample problems, not samples. None: these data do not determine it.
"""

import math
from collections.abc import Callable

import numpy as np

Z95 = 1.959963984540054
QUANTILES = (0.05, 0.5, 0.95)
RESAMPLES = 2000


def wilson_interval(successes: float, trials: float) -> tuple[float, float]:
    """95 % Wilson score interval of a share; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, Z95 * Z95
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = Z95 * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials)) / (1 + square / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy_interval(by_problem: np.ndarray, samples: int) -> tuple[float, float]:
    """95 % Wilson interval of a mean accuracy, over an effective number of independent trials.

    Samples of one problem tend to succeed or fail together. Counting them as independent makes the interval too narrow.
    The variance between problems therefore sets the number of trials.

    Args:
        by_problem: (N,) accuracy of every problem.
        samples: number of samples per problem.
    """
    number, mean = len(by_problem), float(by_problem.mean())
    variance = float(by_problem.var(ddof=1)) / number if number > 1 else 0.0
    # Without variance between problems, the dependence of their samples is unknown: one trial per problem.
    trials = mean * (1 - mean) / variance if variance > 0 else number
    trials = min(max(trials, number), number * samples)
    return wilson_interval(mean * trials, trials)


def mean_interval(values: np.ndarray, seed: int, resamples: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean.

    Args:
        values: (N,) one number per problem.
    """
    picks = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def group_interval(
    groups: np.ndarray, statistic: Callable[[np.ndarray], float | None], seed: int, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """95 % bootstrap interval of a statistic; resamples whole groups (problems).

    Args:
        groups: (N,) group of every row, as 0, 1, 2, ...
        statistic: row numbers (with repetitions) -> its value, None where it does not exist.

    Returns:
        None where the statistic exists in fewer than nine of ten resamples.
    """
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        value = statistic(np.concatenate([members[i] for i in rng.integers(0, len(members), size=len(members))]))
        if value is not None:
            values.append(value)
    if len(values) < 0.9 * resamples:
        return None
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Probability that a positive's score exceeds a negative's; a tie counts one half (area under the ROC curve).

    Args:
        scores: (N,).
        positive: (N,) bool.
    """
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if num_positive == 0 or num_negative == 0:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # equal scores get their mean rank
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def sign_agreement(a: np.ndarray, b: np.ndarray, above: float = 0.0) -> dict[str, float | int | None]:
    """How often two gaps of the same tokens have the same sign, among tokens where both |g| > `above`.

    `by_chance` is the agreement of independent signs with the same shares of positive gaps. `kappa` is Cohen's:
    (share - by_chance) / (1 - by_chance).

    Args:
        a, b: (N,) gaps of the same tokens.
    """
    both = (np.abs(a) > above) & (np.abs(b) > above)
    count = int(both.sum())
    if count == 0:
        return {"above": above, "tokens": 0, "share": None, "by_chance": None, "kappa": None}
    up_a, up_b = a[both] > 0, b[both] > 0
    share = float((up_a == up_b).mean())
    p, q = float(up_a.mean()), float(up_b.mean())
    chance = p * q + (1 - p) * (1 - q)
    kappa = (share - chance) / (1 - chance) if chance < 1 else None
    return {"above": above, "tokens": count, "share": share, "by_chance": chance, "kappa": kappa}


def distribution(values: np.ndarray) -> dict[str, float | int | None]:
    """Count, mean, mean of absolute values, quantiles, and the shares of positive and negative values and zeros."""
    names = [f"p{round(100 * q):02d}" for q in QUANTILES]
    if len(values) == 0:
        return {"tokens": 0, **dict.fromkeys(["mean", "abs_mean", *names, "positive", "negative", "zero"])}
    quantiles = np.quantile(values, QUANTILES)
    return {
        "tokens": len(values),
        "mean": float(values.mean()),
        "abs_mean": float(np.abs(values).mean()),
        **{name: float(value) for name, value in zip(names, quantiles, strict=True)},
        "positive": float((values > 0).mean()),
        "negative": float((values < 0).mean()),
        "zero": float((values == 0).mean()),
    }
