"""CAST's token advantages as pure tensor functions (method sections 2 to 6): base, gap, weight, flip, clip.

Two parts: the trajectory's, from rewards alone (section 2), and the token's, from gaps (sections 3 to 6). The baselines
have the same two parts with rules of their own (baselines/advantage.py). No verl, no Ray, no state. Works in the dtype
of its inputs; nothing here carries a gradient. Shapes: `B` rows (responses), `T` response tokens, padded to one length.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from verl_cast.base import BaseAdvantage, base_advantage, rows_that_count
from verl_cast.config import CastConfig, MethodConfig

# The exponent's clamp of section 4: exp() cannot overflow, and exp(±20) lies far outside every sensible bound.
MAX_EXPONENT = 20.0
# Tokens at a time on a CPU: a float32 tensor of them is 1 MiB.
BLOCK_TOKENS = 2**18


class TokenDetails(NamedTuple):
    """What metrics and dumps want to know of a batch beside its advantages, all (B, T); see `TokenAdvantage`."""

    raw_gap: torch.Tensor
    gap: torch.Tensor
    flipped: torch.Tensor
    weight_clipped: torch.Tensor
    clipped: torch.Tensor


@dataclass(frozen=True)
class TokenAdvantage:
    """Everything that the estimator knows about a batch; `advantages` is what trains, the rest is for metrics.

    What is only for metrics is computed when it is first asked for, from the tensors that the advantages are made of.

    Attributes:
        advantages: (B, T) Â, 0 where the mask is 0.
        base: per row, see `BaseAdvantage`.
        scored: (B,) bool, rows that the teacher scored; the others need no gap, and theirs is 0.
        raw_gap: (B, T) g, 0 where the mask is 0.
        gap: (B, T) g as it was used: 0 also inside the dead zone.
        flipped: (B, T) bool, tokens whose advantage got the opposite sign of B (section 5).
        weight_clipped: (B, T) bool, tokens whose weight exp(±g) lay outside its bounds (sections 4 and 5).
        clipped: (B, T) bool, tokens whose advantage the final clip changed (section 6).
    """

    advantages: torch.Tensor
    base: BaseAdvantage
    scored: torch.Tensor
    compute_details: Callable[[], TokenDetails]

    @cached_property
    def _details(self) -> TokenDetails:
        return self.compute_details()

    raw_gap = property(lambda self: self._details.raw_gap)
    gap = property(lambda self: self._details.gap)
    flipped = property(lambda self: self._details.flipped)
    weight_clipped = property(lambda self: self._details.weight_clipped)
    clipped = property(lambda self: self._details.clipped)


class ShapedAdvantage(NamedTuple):
    """What a rule makes of gaps, all (B, T), the mask not applied; see `TokenAdvantage`."""

    advantages: torch.Tensor
    flipped: torch.Tensor
    weight_clipped: torch.Tensor
    clipped: torch.Tensor


class ShapingSteps(NamedTuple):
    """The steps of CAST's shaping, all (B, T): a `ShapedAdvantage` whose comparisons are made when they are asked for.

    Attributes:
        side: +1, or −1 where the token is flipped.
        raw_weight, weight: the weight before and after its bounds, with the sign of `side`.
        unclipped, advantages: before and after the final clip.
    """

    side: torch.Tensor
    raw_weight: torch.Tensor
    weight: torch.Tensor
    unclipped: torch.Tensor
    advantages: torch.Tensor

    flipped = property(lambda self: self.side < 0)
    weight_clipped = property(lambda self: self.weight != self.raw_weight)
    clipped = property(lambda self: self.advantages != self.unclipped)


@torch.no_grad()
def token_gap(
    teacher_log_probs: torch.Tensor, old_log_probs: torch.Tensor, response_mask: torch.Tensor
) -> torch.Tensor:
    """Gap g = log π_φ − log π_old of every response token (section 3), 0 where the mask is 0.

    Args:
        teacher_log_probs, old_log_probs: (B, T), at the sampling temperature.
        response_mask: (B, T), 1 for tokens that the policy wrote and that count.

    Raises:
        ValueError: a log-probability that counts is NaN or infinite.
    """
    gap = teacher_log_probs - old_log_probs
    gap *= response_mask.to(gap.dtype)
    if not torch.isfinite(gap.sum()):
        # A NaN or infinity under a zero mask says nothing, but survives the product.
        gap = torch.where(response_mask.bool(), teacher_log_probs - old_log_probs, gap.new_zeros(()))
        if not torch.isfinite(gap).all():
            raise ValueError("CAST: a teacher or old log-probability is NaN or infinite on a token that counts.")
    return gap.add_(0.0)  # −0.0 becomes 0.0


def apply_deadzone(gap: torch.Tensor, deadzone: float) -> torch.Tensor:
    """The gap with 0 where |g| <= deadzone (section 7)."""
    return torch.nn.functional.hardshrink(gap, deadzone) if deadzone > 0 else gap


@torch.no_grad()
def shape_advantage(base: torch.Tensor, gap: torch.Tensor, config: CastConfig) -> ShapingSteps:
    """Weight, flip and clip (sections 4 to 6) of base advantages by gaps.

    Every token's advantage is B times a coefficient: max(0, 1 + λ(w − 1)) with the clipped weight w = exp(s·g) of its
    side, or, where it is flipped, −(1 + λ(d − 1)) with d = exp(|g|) clipped to the bounds of the other side.

    Both are one formula if the weight has a sign: side + λ(weight − side), where the side is +1, or −1 where flipped.
    Whatever depends on B's sign and the config alone is computed once a row; over the tokens go plain products, sums,
    minima and maxima, most of them in place, which cost a tenth of torch.where or a bool on a CPU.

    Args:
        base: (B, 1), or any shape that broadcasts with `gap`.
        gap: (B, T).

    Returns:
        Its advantages are before the mask.
    """

    def by_side(positive: float, negative: float) -> torch.Tensor:
        return torch.where(base >= 0, base.new_tensor(positive), base.new_tensor(negative))

    may_flip = ((base > 0) & (config.flip in ("both", "correct"))) | ((base < 0) & (config.flip in ("both", "wrong")))
    signed_gap = torch.sign(base) * gap  # > 0: the teacher agrees with the verifier
    # sign(−1, 0 or 1, plus ½) is −1 where the teacher disagrees, else 1; plus 2 it is always 1.
    side = torch.sign(signed_gap).add_(torch.where(may_flip, 0.5, 2.0)).sign_()
    exponent = signed_gap.mul_(side).clamp_(-MAX_EXPONENT, MAX_EXPONENT)  # |g| in rows that may flip, else s·g
    raw_weight = exponent.exp_().mul_(side)

    (pos_low, pos_high), (neg_low, neg_high) = config.positive_clip, config.negative_clip
    upper, upper_of_flipped = by_side(pos_high, neg_high), by_side(neg_high, pos_high)
    lower, lower_of_flipped = by_side(pos_low, neg_low), by_side(max(1.0, neg_low), max(1.0, pos_low))
    if max(pos_low, neg_low) <= 1:
        # In rows that may flip no weight lies between −1 and 1, so a lower bound of at most 1 says nothing there: the
        # weights are bounded by −U of the other side and U of their own.
        weight = torch.minimum(raw_weight, upper)
        torch.maximum(weight, torch.where(may_flip, -upper_of_flipped, lower), out=weight)
    else:
        weight = torch.where(
            side > 0,
            torch.minimum(torch.maximum(raw_weight, lower), upper),
            torch.maximum(torch.minimum(raw_weight, -lower_of_flipped), -upper_of_flipped),
        )

    coefficient = torch.lerp(side, weight, config.gap_weight)  # exactly the side at λ = 0, and the weight at λ = 1
    if config.gap_weight > 1:  # else it cannot fall below 0; where tokens may flip it is 1 or more, or −1 or less
        torch.maximum(coefficient, torch.where(may_flip, -torch.inf, 0.0).to(base.dtype), out=coefficient)
    unclipped = coefficient.mul_(base)
    advantages = unclipped
    if config.advantage_clip is not None:
        advantages = unclipped.clamp(-config.advantage_clip, config.advantage_clip)
    return ShapingSteps(side, raw_weight, weight, unclipped, advantages)


class Rule(NamedTuple):
    """What makes a method: how it grades trajectories, which of them need a gap, and how gaps shape their tokens.

    Attributes:
        base: (scores (B,), index, counts (B,), config, norm_adv_by_std_in_grpo) -> BaseAdvantage.
        needs_gap: (BaseAdvantage, config, completed_steps) -> (B,) bool, rows whose advantage depends on their gap.
        shape: (BaseAdvantage, gap (B, T), config, completed_steps) -> ShapedAdvantage, or what has its attributes.
    """

    base: Callable[..., BaseAdvantage]
    needs_gap: Callable[..., torch.Tensor]
    shape: Callable[..., ShapedAdvantage | ShapingSteps]


def cast_needs_gap(base: BaseAdvantage, config: CastConfig, completed_steps: int = 0) -> torch.Tensor:
    """(B,) bool, rows whose advantage depends on the gap.

    Not where B = 0, nor where no token may flip and the weight does nothing (λ = 0, or both bounds 1).
    """
    weighs = [config.gap_weight > 0 and bounds != (1.0, 1.0) for bounds in (config.positive_clip, config.negative_clip)]
    positive = weighs[0] or config.flip in ("both", "correct")
    negative = weighs[1] or config.flip in ("both", "wrong")
    return ((base.value > 0) & positive) | ((base.value < 0) & negative)


CAST_RULE = Rule(
    base_advantage,
    cast_needs_gap,
    lambda base, gap, config, completed_steps: shape_advantage(base.value.unsqueeze(-1), gap, config),
)


@torch.no_grad()
def trajectory_advantage(
    rule: Rule,
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: MethodConfig,
    norm_adv_by_std_in_grpo: bool = True,
    final_row: torch.Tensor | None = None,
) -> BaseAdvantage:
    """The trajectory's part of a method: B of every row. Args as `compute_cast_advantage`."""
    counts, final_row = rows_that_count(response_mask, final_row)
    scores = token_level_rewards.sum(dim=-1)
    return rule.base(scores, index, counts, config, norm_adv_by_std_in_grpo).take(final_row)


def row_blocks(response_mask: torch.Tensor) -> Iterator[slice]:
    """Rows of a batch (B, T), so few at a time that a CPU's cache holds what is computed for them; elsewhere all."""
    rows, tokens = response_mask.shape
    size = max(1, BLOCK_TOKENS // max(tokens, 1)) if response_mask.device.type == "cpu" else rows
    for start in range(0, max(rows, 1), max(size, 1)):
        yield slice(start, start + size)


@torch.no_grad()
def token_advantage(
    rule: Rule,
    base: BaseAdvantage,
    response_mask: torch.Tensor,
    old_log_probs: torch.Tensor,
    teacher_log_probs: torch.Tensor,
    config: MethodConfig,
    completed_steps: int = 0,
    scored: torch.Tensor | None = None,
) -> TokenAdvantage:
    """The token's part of a method: gap, dead zone, shape, mask.

    Args:
        base: of `trajectory_advantage`, for these rows.
        response_mask, old_log_probs, teacher_log_probs: (B, T).
        completed_steps: training steps before this one, for a rule that changes with them.
        scored: (B,) bool, rows that the teacher scored; None: all. What stands for the others is not looked at.
    """
    old_log_probs, teacher_log_probs = old_log_probs.detach(), teacher_log_probs.detach()

    def blocks() -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor, ShapedAdvantage | ShapingSteps]]:
        for rows in row_blocks(response_mask):
            mask = response_mask[rows].to(old_log_probs.dtype)
            has_gap = mask if scored is None else mask * scored[rows].unsqueeze(-1)
            raw_gap = token_gap(teacher_log_probs[rows], old_log_probs[rows], has_gap)
            gap = apply_deadzone(raw_gap, config.gap_deadzone)
            yield rows, mask, raw_gap, gap, rule.shape(base.take(rows), gap, config, completed_steps)

    def details() -> TokenDetails:
        parts = []
        for _, mask, raw_gap, gap, shaped in blocks():
            on = mask.bool()
            parts.append(
                TokenDetails(raw_gap, gap, shaped.flipped & on, shaped.weight_clipped & on, shaped.clipped & on)
            )
        return TokenDetails(*map(torch.cat, zip(*parts, strict=True)))

    dtype = torch.promote_types(base.value.dtype, torch.promote_types(old_log_probs.dtype, teacher_log_probs.dtype))
    advantages = torch.empty(response_mask.shape, dtype=dtype, device=response_mask.device)
    for rows, mask, _, _, shaped in blocks():
        torch.mul(shaped.advantages, mask, out=advantages[rows])
    scored_rows = torch.ones_like(base.correct) if scored is None else scored
    return TokenAdvantage(advantages, base, scored_rows, details)


def cast_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    old_log_probs: torch.Tensor,
    teacher_log_probs: torch.Tensor,
    config: CastConfig,
    norm_adv_by_std_in_grpo: bool = True,
    final_row: torch.Tensor | None = None,
) -> TokenAdvantage:
    """`compute_cast_advantage` with everything that it knows about the batch; see there for the arguments."""
    base = trajectory_advantage(
        CAST_RULE, token_level_rewards, response_mask, index, config, norm_adv_by_std_in_grpo, final_row
    )
    return token_advantage(CAST_RULE, base, response_mask, old_log_probs, teacher_log_probs, config)


def compute_cast_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    old_log_probs: torch.Tensor,
    teacher_log_probs: torch.Tensor,
    config: CastConfig,
    norm_adv_by_std_in_grpo: bool = True,
    final_row: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """CAST's token advantages (method sections 2 to 6).

    Args:
        token_level_rewards: (B, T), verifier rewards; their sum over T is a response's reward.
        response_mask: (B, T), 1 for tokens that count. Rows without any are in no group and get 0.
        index: (B,) group of every row (verl's `uid`).
        old_log_probs: (B, T), log π_old of the response tokens at the sampling temperature.
        teacher_log_probs: (B, T), log π_φ of the same tokens at the same temperature.
        config: the method's settings.
        norm_adv_by_std_in_grpo: verl's switch of the same name, for mixed groups.
        final_row: (B,) int64 or None. For agent loops with several outputs per session: the row of the final output of
            each row's session. Only final outputs enter the group; the others take over their session's B. None: every
            row is its own session.

    Returns:
        (advantages, returns), both (B, T) and equal, as for verl's GRPO.

    Raises:
        ValueError: a reward or log-probability that counts is NaN or infinite.
    """
    advantages = cast_advantage(
        token_level_rewards,
        response_mask,
        index,
        old_log_probs,
        teacher_log_probs,
        config,
        norm_adv_by_std_in_grpo,
        final_row,
    ).advantages
    return advantages, advantages
