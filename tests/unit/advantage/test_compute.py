"""Laws of the advantage computation, sections 2 to 7 of the method.

With neutral settings advantages are verl's GRPO bit for bit. Masked tokens and padding rows get zero; NaN or infinite
values that count raise an error. test_properties.py holds them against the reference.
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from verl_cast import CastConfig
from verl_cast.advantage import compute_cast_advantage
from verl_cast.advantage.base import ALL_CORRECT, ALL_WRONG, MIXED, TrajectoryAdvantage
from verl_cast.advantage.cast import CastRule, GrpoRule
from verl_cast.advantage.compute import compute_advantage, token_advantage, trajectory_advantage

GRPO = CastConfig(gap_weight=0.0, flip="none", base_correct=0.0, base_wrong=0.0, advantage_clip=None)


def test_which_rows_need_the_teacher_follows_from_the_groups_that_flip():
    value, kind = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0]), torch.tensor([MIXED, MIXED, ALL_CORRECT, ALL_WRONG, MIXED])
    base = TrajectoryAdvantage(value, value > 0, kind, torch.tensor([0, 0, 1, 2, 0]), value)

    def needs(**settings):
        return CastRule(CastConfig(gap_weight=0.0, **settings)).needs_gap(base).tolist()

    assert needs() == [True, True, True, True, False]
    assert needs(flip_groups="zero_variance") == [False, False, True, True, False]
    assert needs(flip_groups="zero_variance", flip="wrong") == [False, False, False, True, False]
    weighs = CastRule(CastConfig(flip_groups="zero_variance")).needs_gap(base).tolist()
    assert weighs == [True, True, True, True, False], "the gap still weighs in mixed groups"


def batch(rewards, index, length=5, gap=None, mask=None, dtype=torch.float32):
    """Tensors of a batch. The reward is on the last token, as in verl."""
    num_rows = len(rewards)
    token_rewards = torch.zeros(num_rows, length, dtype=dtype)
    token_rewards[:, -1] = torch.tensor(rewards, dtype=dtype)
    mask = torch.ones(num_rows, length, dtype=torch.int64) if mask is None else torch.tensor(mask)
    old = torch.full((num_rows, length), -1.0, dtype=dtype)
    teacher = old + (torch.zeros_like(old) if gap is None else torch.as_tensor(gap, dtype=dtype))
    return token_rewards, mask, np.array(index, dtype=object), old, teacher


@settings(max_examples=100, deadline=None)
@given(
    groups=st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=17), min_size=1, max_size=6),
    norm=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_reduces_to_grpo_bit_for_bit(groups, norm, seed):
    """With λ = 0, no flip, b = 0 and no clip, CAST is verl's GRPO. Groups, row order, mask and gap are random."""
    rewards, index = zip(*((r, f"uid{g}") for g, group in enumerate(groups) for r in group), strict=True)
    order = np.random.default_rng(seed).permutation(len(rewards))
    rewards, index = [rewards[i] for i in order], [index[i] for i in order]
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(len(rewards), 6, generator=generator) < 0.7).long()
    mask[:, 0] = 1
    tensors = batch(rewards, index, 6, torch.randn(len(rewards), 6, generator=generator), mask.tolist())
    ours, returns = compute_cast_advantage(*tensors, GRPO, norm)
    verls, _ = compute_grpo_outcome_advantage(tensors[0].clone(), tensors[1], tensors[2], norm_adv_by_std_in_grpo=norm)
    assert ours.dtype == verls.dtype
    assert torch.equal(ours.view(torch.int32), verls.view(torch.int32))
    assert torch.equal(ours, returns)


@settings(max_examples=100, deadline=None)
@given(
    groups=st.lists(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=20), min_size=1, max_size=5),
    norm=st.booleans(),
    gap_deadzone=st.sampled_from([0.0, 0.1, "noise"]),
)
def test_a_teacher_that_is_not_trusted_leaves_verls_grpo_bit_for_bit(groups, norm, gap_deadzone):
    """For any reward, in groups of every kind, whatever the settings and the gaps; no row needs its gap.

    The base of mixed groups under CAST's own rule is the same one.
    """
    rewards, index = zip(*((r, g) for g, group in enumerate(groups) for r in group), strict=True)
    tensors = batch(rewards, index, gap=torch.randn(len(rewards), 5))
    rule = GrpoRule(CastConfig(gap_deadzone=gap_deadzone))
    base = trajectory_advantage(rule, *tensors[:3], norm)
    assert not rule.needs_gap(base).any()
    casts = trajectory_advantage(CastRule(CastConfig()), *tensors[:3], norm)
    assert torch.equal(casts.value[base.kind == MIXED], base.value[base.kind == MIXED])
    result = token_advantage(rule, base, tensors[1], *tensors[3:])
    verls, _ = compute_grpo_outcome_advantage(tensors[0].clone(), tensors[1], tensors[2], norm_adv_by_std_in_grpo=norm)
    assert torch.equal(result.advantages.view(torch.int32), verls.view(torch.int32))
    assert not (result.flipped | result.weight_clipped | result.clipped).any()


def test_graded_rewards_in_float64_have_verls_last_bits_too():
    """torch's std over matrix rows uses another kernel than its std over one group. Their last bits differ."""
    rewards = torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).flatten()
    index = np.repeat(np.arange(200), 5)
    base = CastRule(GRPO).base(rewards, index, torch.ones(1000, dtype=torch.bool))
    verls, _ = compute_grpo_outcome_advantage(rewards[:, None].clone(), torch.ones(1000, 1), index)
    mixed = base.kind == MIXED
    assert mixed.sum() > 500 and torch.equal(base.value[mixed], verls[mixed, 0])


def test_a_batch_without_tokens_is_no_error():
    empty = torch.zeros(3, 0)
    advantages, _ = compute_cast_advantage(empty, empty.long(), np.array(["a"] * 3), empty, empty, CastConfig())
    assert advantages.shape == (3, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_zeros_have_the_sign_that_grpo_gives_them(dtype):
    """A gap of −0.0 flips nothing, and no reported gap is −0.0.

    A masked advantage is a zero with the sign of B, as in verl's product.
    """
    zeros = torch.zeros(3, 4, dtype=dtype)
    rewards, mask = [1.0, 0.0, 0.0], [[1, 1, 0, 0]] * 3
    tensors = batch(rewards, ["a", "a", "b"], 4, zeros, mask, dtype)
    for teacher, old in ((zeros, zeros), (-zeros, zeros), (zeros, -zeros)):
        result = compute_advantage(*tensors[:3], old, teacher, CastConfig())
        assert not result.flipped.any()
        B = result.base.value.unsqueeze(-1)
        assert torch.equal(result.advantages, B.clamp(-1.2, 1.2) * tensors[1])
        assert torch.equal(torch.signbit(result.advantages), torch.signbit(B * tensors[1]))
        assert not torch.signbit(result.gap).any() and not torch.signbit(result.raw_gap).any()


def test_inputs_are_left_alone_and_no_gradient_flows_through():
    tensors = batch([1.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"], gap=0.3)
    copies = copy.deepcopy(tensors)
    for log_probs in tensors[3:]:
        log_probs.requires_grad_(True)
    advantages, returns = compute_cast_advantage(*tensors, CastConfig())
    assert not advantages.requires_grad and not returns.requires_grad
    assert all((tensor == before).all() for tensor, before in zip(tensors, copies, strict=True))
