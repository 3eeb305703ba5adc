"""The `cast/*` metrics have the right values, verl averages them correctly, and one table explains each of them."""

import metric_table
import numpy as np
import pytest
import torch
from metric_batches import hand_made, metrics_of
from verl.trainer.ppo.v1.utils import MetricsAggregator

from verl_cast import CastConfig
from verl_cast.advantage.compute import compute_advantage, rule_of, token_advantage, trajectory_advantage
from verl_cast.advantage.metrics import advantage_metrics, measured_noise, noise_metrics, one_sided_rewards

_TEACHER = (
    "age",
    "forward",
    "host_gib",
    "peak_memory_gib",
    *(f"{w}_{u}" for w in ("refresh", "swap") for u in ("gib", "seconds")),
)
_TRUST = ("trusted", "teacher_share", "policy_share", "standard_errors")
TRAINER_METRICS = {
    "cast/one_pass",
    "cast/gap/deadzone",
    *(f"cast/teacher/{name}" for name in _TEACHER),
    *(f"cast/trust/{name}" for name in _TRUST),
}
STAGES = ("cast_teacher", "cast_after_update", "cast_noise", "cast_dump", "cast_trust")
NOISE_METRICS = {f"cast/noise/{name}" for name in ("abs_mean", "p99", "gap_share", "flip_share")}


def test_numbers_of_a_hand_made_batch():
    m = hand_made()
    third = pytest.approx(1 / 3)
    assert [m[f"cast/group/{kind}_share"] for kind in ("mixed", "all_correct", "all_wrong")] == [third] * 3
    assert m["cast/correct_share"] == pytest.approx(0.5)
    mixed_base = 0.5 / (0.5**0.5 + 1e-6)
    assert m["cast/base/abs_mean"] == pytest.approx((2 * mixed_base + 4) / 6, rel=1e-5)
    # 11 tokens count: six at +0.1, five at -0.1
    assert m["cast/gap/mean"] == pytest.approx(0.1 / 11, rel=1e-4)
    assert m["cast/gap/abs_mean"] == pytest.approx(0.1)
    assert m["cast/gap/positive_share"] == pytest.approx(6 / 11)
    assert m["cast/gap/zero_share"] == 0
    # correct: rows 1, 3, 4 flip their second token; wrong: rows 2, 5, 6 flip their first
    assert m["cast/group/mixed_count"] == 1
    assert m["cast/flip/share"] == pytest.approx(6 / 11)
    assert m["cast/flip/correct_share"] == pytest.approx(3 / 6)
    assert m["cast/flip/wrong_share"] == pytest.approx(3 / 5)
    up, down = 1.05, float(np.exp(0.1))
    masses = {"mixed": 2 * mixed_base * (up + down), "correct": 2 * (up + down), "wrong": (up + down) + up}
    assert m["cast/advantage/zero_variance_mass"] == pytest.approx(
        (masses["correct"] + masses["wrong"]) / sum(masses.values()), rel=1e-5
    )
    assert m["cast/advantage/abs_mean"] == pytest.approx(sum(masses.values()) / 11, rel=1e-5)
    assert m["cast/advantage/clipped_share"] == 0
    # A positive gap gives e^0.1 = 1.105, above the bound of 1.05, so its weight or flip is clipped. A negative gap has
    # the bound 1.2, so neither its weight nor its flip is clipped.
    assert m["cast/weight/clipped_share"] == pytest.approx(6 / 11)


def test_quantiles_dead_zone_and_exact_zeros():
    gap = [[0.0, 0.05, 0.1, 0.2, 0.4], [-0.05, 0.0, -0.2, -0.3, 9.0]]
    m = metrics_of([1.0, 0.0], ["a", "a"], gap, [[1] * 5, [1] * 4 + [0]], CastConfig(gap_deadzone=0.1))
    assert m["cast/gap/zero_share"] == pytest.approx(2 / 9)
    assert m["cast/gap/deadzone_share"] == pytest.approx(3 / 9)
    # Gap metrics use the raw gap, before the dead zone.
    raw = gap[0] + gap[1][:4]
    assert m["cast/gap/positive_share"] == pytest.approx(4 / 9)
    assert m["cast/gap/mean"] == pytest.approx(np.mean(raw)) and m["cast/gap/abs_mean"] == pytest.approx(
        np.mean(np.abs(raw))
    )
    assert m["cast/gap/correct_mean"] == pytest.approx(np.mean(gap[0]))
    for share in (5, 25, 50, 75, 95):
        assert m[f"cast/gap/p{share:02d}"] == pytest.approx(np.quantile(raw, share / 100), abs=1e-6)


def test_a_share_of_advantages_is_clipped_where_the_clip_changes_them():
    # With B = +1, weights and flips reach at most 1.2. That is the clip's bound, so nothing is clipped.
    assert metrics_of([1.0, 1.0], ["a"] * 2, [[-9.0, 9.0]] * 2, [[1, 1]] * 2)["cast/advantage/clipped_share"] == 0
    # One correct response of eight has B = 2.47, and all its tokens are clipped. The others have B = -0.35; none is.
    m = metrics_of([1.0] + [0.0] * 7, ["a"] * 8, [[-9.0, 9.0]] * 8, [[1, 1]] * 8)
    assert m["cast/advantage/clipped_share"] == pytest.approx(1 / 8)


def test_what_differs_between_correct_and_wrong_trajectories():
    m = hand_made()
    assert [m[f"cast/length/{side}_mean"] for side in ("correct", "wrong")] == pytest.approx([2, 5 / 3])
    # correct: rows 1, 3, 4; wrong: rows 2, 5, 6 (one token)
    assert m["cast/entropy/correct_mean"] == pytest.approx((1.5 + 1.5 + 2.5) / 3)
    assert m["cast/entropy/wrong_mean"] == pytest.approx((1.5 + 2.5 + 5) / 3)
    assert m["cast/gap/correct_mean"] == pytest.approx(0, abs=1e-7)
    assert m["cast/gap/wrong_mean"] == pytest.approx(0.1 / 3)
    gaps, correct = [0, 0, 0, 0, 0, 0.1], [1, 0, 1, 1, 0, 0]
    assert m["cast/gap/correctness_corr"] == pytest.approx(np.corrcoef(gaps, correct)[0, 1])
    # Mean gaps in the groups: a (0, 0), b (0, 0), c (0, 0.1). Correctness varies only in a, the gap only in c.
    assert m["cast/gap/correctness_corr_in_group"] == pytest.approx(0, abs=1e-7)


def test_the_teacher_that_prefers_what_is_correct_and_its_opposite():
    """Differences in difficulty hide the preference from the plain correlation. The one within groups shows it."""
    rewards, index = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0], ["easy"] * 3 + ["hard"] * 3
    gap = [[-0.1], [-0.1], [-0.2], [0.4], [0.3], [0.3]]
    m = metrics_of(rewards, index, gap, [[1]] * 6)
    assert m["cast/gap/correctness_corr_in_group"] == pytest.approx(1)
    assert m["cast/gap/correctness_corr"] < 0.5
    m = metrics_of([1 - r for r in rewards], index, gap, [[1]] * 6)
    assert m["cast/gap/correctness_corr_in_group"] == pytest.approx(-1)


@pytest.mark.parametrize(
    "rewards, counts, settings, absent",
    [
        ([0.0, 0.0], 0, {}, [""]),  # no row counts
        ([0.0, 0.0], 1, {}, ["gap/correct_", "length/correct_", "entropy/correct_", "flip/correct_", "flip/mixed_"]),
        ([1.0, 1.0], 1, {}, ["gap/wrong_", "length/wrong_", "entropy/wrong_", "flip/wrong_", "flip/mixed_"]),
        ([1.0, 0.0], 1, {}, ["flip/zero_variance_"]),
        # no row has a base advantage, and so none is scored
        ([1.0, 1.0], 1, {"base_correct": 0.0}, ["gap/", "weight/", "flip/correct_", "advantage/zero_variance_mass"]),
    ],
)
def test_no_number_is_logged_of_an_empty_set(rewards, counts, settings, absent):
    """Each set in turn is empty: rows, correct and wrong ones, groups of each kind, scored ones."""
    rule = rule_of(CastConfig(**settings))
    data = torch.tensor(rewards).unsqueeze(-1), torch.full((len(rewards), 1), counts)
    base = trajectory_advantage(rule, *data, np.array(["a"] * len(rewards)))
    log_probs = torch.zeros(len(rewards), 1)
    result = token_advantage(rule, base, data[1], log_probs, log_probs + 0.1, rule.needs_gap(base))
    metrics = advantage_metrics(result, log_probs)
    assert all(isinstance(value, float) and np.isfinite(value) for value in metrics.values())
    assert not [name for name in metrics if name.startswith(tuple(absent))]
    assert len(metrics) > 10 or absent == [""]


def noise(again, old, gap, mask, **settings):
    """Metrics of the noise between two passes."""
    floor = measured_noise(mask, old, again).floor
    config = CastConfig(**settings)
    result = compute_advantage(
        torch.zeros(mask.shape), mask, np.array(["a", "a"]), old, old + gap, config, noise_floor=floor
    )
    return {f"cast/{name}": value for name, value in noise_metrics(measured_noise(mask, old, again), result).items()}


def test_the_noise_floor():
    old = torch.zeros(2, 3)
    again = torch.tensor([[0.001, -0.002, 0.0], [0.003, 7.0, 7.0]])
    gap = torch.tensor([[0.0005, -0.5, 0.0], [-0.0029, 0.0, 0.0]])  # wrong rows: the first one's 0.0005 alone flips
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    m = noise(again, old, gap, mask)
    assert set(m) == NOISE_METRICS
    assert m["cast/noise/abs_mean"] == pytest.approx(0.0015)
    assert m["cast/noise/p99"] == pytest.approx(np.quantile([0.001, 0.002, 0, 0.003], 0.99))
    assert m["cast/noise/gap_share"] == pytest.approx(2 / 4)  # an exact zero is not doubtful
    assert m["cast/noise/flip_share"] == 1
    silenced = noise(again, old, gap, mask, gap_deadzone="noise")
    assert silenced["cast/noise/gap_share"] == 0 and "cast/noise/flip_share" not in silenced, "none is in doubt"
    assert measured_noise(torch.zeros(2, 3), old, again) is None


def test_rewards_that_vary_on_one_side_of_the_threshold():
    """Of three groups one is mixed. In one of the other two all are wrong, and their rewards differ."""
    index, gap, mask = ["a"] * 2 + ["b"] * 2 + ["c"] * 3 + ["pad"], [[0.1]] * 8, [[1]] * 7 + [[0]]
    m = metrics_of([1.0, 0.2, 0.2, 0.0, 1.0, 1.0, 1.0, 0.1], index, gap, mask)
    assert m["cast/reward/varies_on_one_side_share"] == 0.5
    only_mixed = metrics_of([1.0, 0.2], ["a", "a"], [[0.1]] * 2, [[1]] * 2)
    assert "cast/reward/varies_on_one_side_share" not in only_mixed
    rewards, counts = torch.tensor([[0.0], [0.2], [0.9], [1.0], [0.5], [0.0]]), torch.ones(6, 1)
    counts[5] = 0
    base = trajectory_advantage(rule_of(CastConfig()), rewards, counts, np.array(["a", "a", "b", "b", "c", "c"]))
    assert one_sided_rewards(base) == pytest.approx((0.0, 0.2)), "the widest; a row that does not count is in none"
    assert one_sided_rewards(base.take(torch.tensor([4, 5]))) is None


def test_verl_averages_every_one_of_them():
    aggregator = MetricsAggregator()
    for name in set(hand_made()) | TRAINER_METRICS | NOISE_METRICS:
        assert aggregator._get_aggregation_type(name) == "weighted_avg", name
    for stage in STAGES:
        assert aggregator._get_aggregation_type(f"timing_s/{stage}") == "time_sum"


def test_the_table_explains_every_metric_and_no_other():
    stages = {f"timing_s/{stage}" for stage in STAGES}
    assert set(metric_table.rows()) == set(hand_made()) | TRAINER_METRICS | NOISE_METRICS | stages
    assert all(row.what and row.healthy for row in metric_table.rows().values())
