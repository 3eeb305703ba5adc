# Copyright 2026 Bytedance Ltd. and/or its affiliates
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""CAST's token advantages on numbers that can be checked by hand.

B is the base advantage of a response, g = log pi_teacher - log pi_old the gap of a token. Rows with one token each.
"""

from math import exp, log

import numpy as np
import pytest
import torch

from verl.experimental.cast.advantage import compute_cast_advantage
from verl.experimental.cast.config import CastConfig
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

CORRECT, WRONG = [1.0, 1.0], [0.0, 0.0]  # groups of two responses: B = +1, B = -1
MIXED = [1.0, 0.0]
GRPO_OF_TWO = 0.5 / 0.5**0.5  # (1 - mean) / std, unbiased


def cast(rewards, gaps, group=None, **settings):
    """The advantages of rows with one token each; `group` names the group of every row (default: one for all)."""
    rewards, gaps = torch.tensor(rewards).unsqueeze(-1), torch.tensor(gaps).unsqueeze(-1)
    index = np.array(group or ["g"] * len(rewards), dtype=object)
    old = torch.full_like(rewards, -1.0)
    advantages, returns = compute_cast_advantage(
        rewards, torch.ones_like(rewards), index, old, old + gaps, CastConfig(**settings)
    )
    assert torch.equal(advantages, returns)
    return advantages.squeeze(-1).tolist()


def approx(*values):
    return pytest.approx(list(values), abs=2e-6)


def test_base_advantage_by_kind_of_group():
    rewards, group = MIXED + CORRECT + WRONG, ["m", "m", "c", "c", "w", "w"]
    no_gap = [0.0] * 6
    assert cast(rewards, no_gap, group) == approx(GRPO_OF_TWO, -GRPO_OF_TWO, 1, 1, -1, -1)
    halved = cast(rewards, no_gap, group, base_correct=0.5, base_wrong=0.25)
    assert halved == approx(GRPO_OF_TWO, -GRPO_OF_TWO, 0.5, 0.5, -0.25, -0.25)


def test_correctness_decides_the_kind_of_a_group_not_its_spread():
    assert cast([0.6, 0.9], [0.0, 0.0]) == [1, 1]
    assert cast([0.1, 0.5], [0.0, 0.0]) == [-1, -1], "correct means greater than the threshold"
    assert cast([0.75, 1.75], [0.0, 0.0], correct_threshold=1.0) == approx(-GRPO_OF_TWO, GRPO_OF_TWO)
    assert cast([1.0], [0.0]) == [1] and cast([0.0], [0.0]) == [-1], "a group of one is one of a kind, too"
    assert cast([1.0], [0.0], base_correct=0.0) == [0], "GRPO has nothing to compare there"


def test_weight_and_its_bounds():
    """exp(sign(B) * g) in [0.8, 1.05] where B > 0, in [0.95, 1.2] where B < 0."""
    assert cast(CORRECT, [log(1.02), 1.0], flip="none") == approx(1.02, 1.05)
    assert cast(CORRECT, [-0.1, -1.0], flip="none") == approx(exp(-0.1), 0.8)
    assert cast(WRONG, [-log(1.1), -1.0], flip="none") == approx(-1.1, -1.2)
    assert cast(WRONG, [0.01, 1.0], flip="none") == approx(-exp(-0.01), -0.95)
    assert cast(CORRECT, [-100.0, 100.0], flip="none") == approx(0.8, 1.05)


@pytest.mark.parametrize("flip", ["both", "correct", "wrong", "none"])
def test_flip_by_the_verifiers_sign(flip):
    """A flipped token has the opposite sign, and the weight exp(|g|) with the bounds of that sign."""
    disliked = cast(CORRECT, [-log(1.1), -1.0], flip=flip)
    assert disliked == (approx(-1.1, -1.2) if flip in ("both", "correct") else approx(1 / 1.1, 0.8))
    liked = cast(WRONG, [log(1.02), 1.0], flip=flip)
    assert liked == (approx(1.02, 1.05) if flip in ("both", "wrong") else approx(-1 / 1.02, -0.95))
    assert cast(CORRECT, [0.0, 1.0], flip=flip) == approx(1, 1.05), "no flip where the gap agrees, or is 0"


def test_flips_in_zero_variance_groups_only():
    rewards, group = MIXED + CORRECT, ["m", "m", "c", "c"]
    advantages = cast(rewards, [-1.0, 1.0, -1.0, -1.0], group, flip_groups="zero_variance")
    assert advantages == approx(0.8 * GRPO_OF_TWO, -0.95 * GRPO_OF_TWO, -1.2, -1.2)


def test_gap_weight():
    """1 + lambda * (w - 1), never below 0: lambda scales advantages and changes no sign."""
    assert cast(CORRECT, [1.0, -1.0], gap_weight=0.5) == approx(1.025, -1.1)
    assert cast(CORRECT, [1.0, -1.0], gap_weight=0.0) == [1, -1]
    assert cast(CORRECT, [0.0, -1.0], gap_weight=10.0, flip="none") == approx(1, 0)


def test_final_clip():
    """It also bounds GRPO's advantages: one correct response of eight has (1 - 1/8) / sqrt(1/8) = 2.47."""
    rewards, gaps = [1.0] + [0.0] * 7, [0.0] * 8
    assert cast(rewards, gaps) == approx(1.2, *[-0.125 * 8**0.5] * 7)
    assert cast(rewards, gaps, advantage_clip=None) == pytest.approx([0.875 * 8**0.5] + [-0.125 * 8**0.5] * 7, rel=1e-5)


def test_dead_zone():
    assert cast(CORRECT, [-0.125, -0.25], gap_deadzone=0.125) == approx(1, -1.2)
    assert cast(WRONG, [0.125, 0.25], gap_deadzone=0.125) == approx(-1, 1.05)


def test_with_both_flips_the_sign_is_the_gaps():
    """Closed form at lambda = 1: clip(sign(g) * |B| * min(exp(|g|), 1.05 or 1.2), +-1.2)."""
    for gap in (-2.0, -0.125, -0.0625, 0.03125, 0.0625, 2.0):
        expected = min(exp(gap), 1.05) if gap > 0 else -min(exp(-gap), 1.2)
        for rewards in (CORRECT, WRONG):
            assert cast(rewards, [gap, gap]) == approx(expected, expected)
    assert cast(CORRECT, [0.0, 0.0]) == [1, 1] and cast(WRONG, [0.0, 0.0]) == [-1, -1]


def test_masked_tokens_and_values_that_are_not_finite():
    rewards, mask = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[1, 1], [1, 0]])
    old, teacher = torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [1.0, float("nan")]])
    index = np.array(["g", "g"], dtype=object)
    advantages, _ = compute_cast_advantage(rewards, mask, index, old, teacher, CastConfig())
    assert advantages.flatten().tolist() == approx(1.05, 1.05, 1.05, 0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        compute_cast_advantage(rewards, torch.ones(2, 2), index, old, teacher, CastConfig())


@pytest.mark.parametrize("norm_adv_by_std_in_grpo", [True, False])
def test_neutral_settings_are_grpo_bit_for_bit(norm_adv_by_std_in_grpo):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.zeros(64, 6)
    rewards[:, -1] = (torch.rand(64, generator=generator) < 0.3).float()
    rewards[:16, -1] = torch.tensor([0.0, 1.0]).repeat_interleave(8)  # an all-wrong and an all-correct group
    mask = (torch.rand(64, 6, generator=generator) < 0.7).long()
    mask[:, 0] = 1
    index = np.repeat([f"uid{group}" for group in range(8)], 8).astype(object)
    old, gap = -torch.rand(64, 6, generator=generator), torch.randn(64, 6, generator=generator)
    config = CastConfig(gap_weight=0.0, flip="none", base_correct=0.0, base_wrong=0.0, advantage_clip=None)
    ours, _ = compute_cast_advantage(rewards, mask, index, old, old + gap, config, norm_adv_by_std_in_grpo)
    grpo, _ = compute_grpo_outcome_advantage(
        rewards.clone(), mask, index, norm_adv_by_std_in_grpo=norm_adv_by_std_in_grpo
    )
    assert torch.equal(ours.view(torch.int32), grpo.view(torch.int32)) and ours.abs().sum() > 0
