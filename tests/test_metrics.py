"""The `cast/*` numbers: right, reduced by verl as they should be, and explained; README and code say the same."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from verl.trainer.ppo.v1.utils import MetricsAggregator

from verl_cast import CastConfig, TeacherConfig
from verl_cast.advantage import cast_advantage
from verl_cast.metrics import cast_metrics

README = (Path(__file__).parent.parent / "README.md").read_text()
TRAINER_METRICS = {"cast/teacher/age", "cast/teacher/forward"}


def metrics_of(rewards, index, gap, mask, config=None):
    config = config or CastConfig()
    mask = torch.tensor(mask)
    token_rewards = torch.zeros(mask.shape)
    token_rewards[:, 0] = torch.tensor(rewards)
    gap = torch.tensor(gap)
    result = cast_advantage(token_rewards, mask, np.array(index), torch.zeros_like(gap), gap, config)
    return cast_metrics(result, mask, config)


def hand_made():
    """A mixed group, an all-correct one, an all-wrong one, and a padding row in a group of its own."""
    return metrics_of(
        rewards=[1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0],
        index=["a", "a", "b", "b", "c", "c", "pad"],
        gap=[[0.1, -0.1]] * 6 + [[9.0, 9.0]],
        mask=[[1, 1]] * 5 + [[1, 0]] + [[0, 0]],
    )


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


def test_padding_changes_nothing_and_an_empty_batch_is_finite():
    with_padding = hand_made()
    without = metrics_of(
        [1.0, 0.0, 1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b", "c", "c"], [[0.1, -0.1]] * 6, [[1, 1]] * 5 + [[1, 0]]
    )
    assert with_padding == without
    nothing = metrics_of([0.0, 0.0], ["pad", "pad"], [[0.0]] * 2, [[0]] * 2)
    assert all(np.isfinite(value) for value in nothing.values())


def test_verl_averages_every_one_of_them():
    aggregator = MetricsAggregator()
    for name in set(hand_made()) | TRAINER_METRICS:
        assert aggregator._get_aggregation_type(name) == "weighted_avg", name
    assert aggregator._get_aggregation_type("timing_s/cast_teacher") == "time_sum"


def test_the_readme_explains_every_metric_and_no_other():
    section = README.split("## Metrics")[1].split("\n## ")[0]
    assert set(re.findall(r"`(cast/[\w/]+)`", section)) == set(hand_made()) | TRAINER_METRICS


def test_the_readme_lists_every_key_with_its_default():
    section = README.split("## Configuration")[1].split("\n## ")[0]
    listed = dict(re.findall(r"^\| `([\w.]+)` \| (.+?) \|", section, re.MULTILINE))
    expected = {f.name: getattr(CastConfig(), f.name) for f in dataclasses.fields(CastConfig) if f.name != "teacher"}
    expected |= {f"teacher.{f.name}": getattr(TeacherConfig(), f.name) for f in dataclasses.fields(TeacherConfig)}
    assert listed.keys() == expected.keys()
    for key, default in expected.items():
        assert listed[key] == str(list(default) if isinstance(default, tuple) else default), key
