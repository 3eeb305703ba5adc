"""Laws of the tools' statistics: intervals that hold their promise, AUC, agreement in sign."""

import numpy as np
import pytest

from verl_cast.advantage.metrics import centred, correlation
from verl_cast.tools import stats


def test_the_accuracy_interval_covers_where_samples_of_a_problem_hang_together():
    """Half of the problems are nearly always solved, half nearly never. So 64 x 4 samples count as about 64."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(400):
        accuracy = rng.binomial(4, rng.choice([0.1, 0.9], size=64)) / 4
        low, high = stats.accuracy_interval(accuracy, 4)
        covered += low <= 0.5 <= high
        low, high = stats.wilson_interval(4 * accuracy.sum(), 256)
        naive += low <= 0.5 <= high
    assert covered / 400 > 0.92 and naive / 400 < 0.85
    independent = np.array([0.25, 0.5, 0.75, 0.5] * 16)
    assert stats.accuracy_interval(independent, 4) == stats.wilson_interval(128, 256)  # not more trials than samples
    assert stats.accuracy_interval(np.ones(10), 4) == stats.wilson_interval(10, 10)  # not fewer than problems
    assert stats.accuracy_interval(np.zeros(1), 4) == stats.wilson_interval(0, 1)


@pytest.mark.parametrize(
    "successes, trials, low, high",  # Newcombe 1998, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_wilson_interval_has_the_published_values(successes, trials, low, high):
    assert stats.wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    mirrored = stats.wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 6, size=rng.integers(2, 30)).astype(float)  # many ties
        positive = rng.random(len(scores)) < 0.4
        pairs = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
        assert stats.auc(scores, positive) == (pytest.approx(np.mean(pairs)) if pairs else None)


def test_agreement_of_signs_and_what_chance_gives():
    a, b = np.array([1.0, 2.0, -1.0, -0.1, 5.0]), np.array([1.0, -2.0, -1.0, -3.0, 0.0])
    # The last pair has a zero and does not count. Of the other 4 pairs, 3 agree.
    # a is positive in 1/2 of them and b in 1/4, so chance gives 1/2·1/4 + 1/2·3/4 = 1/2.
    row = stats.sign_agreement(a, b)
    assert row == {"above": 0.0, "tokens": 4, "share": 0.75, "by_chance": 0.5, "kappa": 0.5}
    assert stats.sign_agreement(a, b, above=0.5)["tokens"] == 3  # |−0.1| is below
    assert stats.sign_agreement(a, b, above=9)["share"] is None
    rng = np.random.default_rng(1)
    row = stats.sign_agreement(rng.normal(0.3, 1, 50_000), rng.normal(-0.5, 1, 50_000))
    assert row["share"] == pytest.approx(row["by_chance"], abs=0.01) and abs(row["kappa"]) < 0.02


def test_correlation_and_centring():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=30), rng.normal(size=30)
    assert correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert correlation(x, np.ones(30)) is None
    own = centred(x, np.repeat([0, 1, 2], 10)).reshape(3, 10)
    assert own == pytest.approx(x.reshape(3, 10) - x.reshape(3, 10).mean(axis=1, keepdims=True))


def test_intervals_resample_problems_not_samples():
    """Copies of a sample within its problem add no information, so the interval does not change."""
    values = np.random.default_rng(3).normal(size=12)

    def interval(copies):
        rows = np.repeat(values, copies)
        return stats.group_interval(np.repeat(np.arange(12), copies), lambda i: float(rows[i].mean()), seed=0)

    assert interval(1) == pytest.approx(interval(7))
    low, high = interval(1)
    assert low < values.mean() < high and high - low == pytest.approx(2 * 1.96 * values.std() / 12**0.5, rel=0.2)
    assert stats.group_interval(np.arange(12), lambda i: None, seed=0) is None
