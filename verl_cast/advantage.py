"""CAST's token advantages as pure tensor functions (method sections 2 to 6): base, gap, weight, flip, clip.

Two parts: the trajectory's, from rewards alone (section 2), and the token's, from gaps (sections 3 to 6). The baselines
have the same two parts with rules of their own (baselines/advantage.py). No verl, no Ray, no state. Works in the dtype
of its inputs; nothing here carries a gradient. Shapes: `B` rows (responses), `T` response tokens, padded to one length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from verl_cast.config import CastConfig, MethodConfig

# verl's own ε of GRPO (`compute_grpo_outcome_advantage`); a contract test holds the two together.
GRPO_EPSILON = 1e-6
# The exponent's clamp of section 4: exp() cannot overflow, and exp(±20) lies far outside every sensible bound.
MAX_EXPONENT = 20.0

EXCLUDED, MIXED, ALL_CORRECT, ALL_WRONG = -1, 0, 1, 2


@dataclass(frozen=True)
class BaseAdvantage:
    """Trajectory-level advantage B (section 2).

    Attributes:
        value: (B,) B of every row; 0 for rows that do not count.
        kind: (B,) int64, the type of the row's group: MIXED, ALL_CORRECT, ALL_WRONG; EXCLUDED for rows not counted.
        group: (B,) int64, the row's group as 0, 1, 2, ...; -1 for rows not counted.
        correct: (B,) bool, reward > threshold; False for rows not counted.
    """

    value: torch.Tensor
    kind: torch.Tensor
    group: torch.Tensor
    correct: torch.Tensor

    def take(self, rows: torch.Tensor) -> "BaseAdvantage":
        """The base of other rows of the batch: `rows` (B,) says for every row which row to read."""
        return BaseAdvantage(self.value[rows], self.kind[rows], self.group[rows], self.correct[rows])


@dataclass(frozen=True)
class TokenAdvantage:
    """Everything that the estimator knows about a batch; `advantages` is what trains, the rest is for metrics.

    Attributes:
        advantages: (B, T) Â, 0 where the mask is 0.
        raw_gap: (B, T) g, 0 where the mask is 0.
        gap: (B, T) g as it was used: 0 also inside the dead zone.
        base: per row, see `BaseAdvantage`.
        flipped: (B, T) bool, tokens whose advantage got the opposite sign of B (section 5).
        weight_clipped: (B, T) bool, tokens whose weight exp(±g) lay outside its bounds (sections 4 and 5).
        clipped: (B, T) bool, tokens whose advantage the final clip changed (section 6).
        scored: (B,) bool, rows that the teacher scored; the others need no gap, and theirs is 0.
    """

    advantages: torch.Tensor
    raw_gap: torch.Tensor
    gap: torch.Tensor
    base: BaseAdvantage
    flipped: torch.Tensor
    weight_clipped: torch.Tensor
    clipped: torch.Tensor
    scored: torch.Tensor


class ShapedAdvantage(NamedTuple):
    """What `shape_advantage` returns, all (B, T); see `TokenAdvantage`."""

    advantages: torch.Tensor
    flipped: torch.Tensor
    weight_clipped: torch.Tensor
    clipped: torch.Tensor


@torch.no_grad()
def grpo_advantage(
    scores: torch.Tensor,
    index: np.ndarray,
    counts: torch.Tensor,
    correct_threshold: float,
    norm_adv_by_std_in_grpo: bool = True,
) -> BaseAdvantage:
    """verl's GRPO advantage of every row, bit for bit, and the type of its group (section 2).

    The type is decided by correctness (score > correct_threshold), never by the standard deviation. A group of which
    one row alone counts has nothing to compare, and gets 0.

    Args:
        scores: (B,) reward of every response.
        index: (B,) group of every row, any values that sort (verl's `uid`).
        counts: (B,) bool, rows that count. The others (padding, rejected, empty) enter no statistic.
        norm_adv_by_std_in_grpo: verl's switch; False leaves out the division by the standard deviation.

    Raises:
        ValueError: a row that counts has a score that is not finite.
    """
    if not torch.isfinite(scores[counts]).all():
        raise ValueError("CAST: a reward is NaN or infinite; the verifier must return a finite number per response.")
    rows = counts.nonzero().squeeze(-1)
    value = torch.zeros_like(scores)
    kind = torch.full(scores.shape, EXCLUDED, dtype=torch.int64, device=scores.device)
    group = torch.full_like(kind, -1)
    correct = counts & (scores > correct_threshold)
    if rows.numel() == 0:
        return BaseAdvantage(value, kind, group, correct)

    _, inverse = np.unique(np.asarray(index)[rows.cpu().numpy()], return_inverse=True)
    group[rows] = torch.from_numpy(inverse.astype(np.int64)).to(scores.device)
    size = torch.bincount(group[rows])
    num_correct = torch.bincount(group[rows], weights=correct[rows].double())
    group_kind = torch.full_like(size, MIXED)
    group_kind[num_correct == size] = ALL_CORRECT
    group_kind[num_correct == 0] = ALL_WRONG
    kind[rows] = group_kind[group[rows]]

    # Group by group, as verl does: over (groups, size) rows torch runs another kernel, which differs in the last bits.
    by_group = rows[torch.argsort(group[rows], stable=True)]
    for members in torch.split(by_group, size.tolist()):
        if len(members) == 1:
            continue
        member_scores = scores[members]
        advantage = member_scores - torch.mean(member_scores)
        if norm_adv_by_std_in_grpo:
            advantage = advantage / (torch.std(member_scores) + GRPO_EPSILON)
        value[members] = advantage
    return BaseAdvantage(value, kind, group, correct)


@torch.no_grad()
def base_advantage(
    scores: torch.Tensor,
    index: np.ndarray,
    counts: torch.Tensor,
    config: CastConfig,
    norm_adv_by_std_in_grpo: bool = True,
) -> BaseAdvantage:
    """Base advantage B of every row (section 2): `grpo_advantage`, but in one-sided groups bounded and of their sign.

    All-correct groups get +base_correct, all-wrong ones -base_wrong. For arguments and errors see `grpo_advantage`.
    """
    base = grpo_advantage(scores, index, counts, config.correct_threshold, norm_adv_by_std_in_grpo)
    base.value[base.kind == ALL_CORRECT] = config.base_correct
    base.value[base.kind == ALL_WRONG] = 0.0 - config.base_wrong  # not -b: b = 0 must give the 0.0 of GRPO, not -0.0
    return base


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
    gap = torch.where(response_mask.bool(), gap, torch.zeros((), dtype=gap.dtype, device=gap.device))
    if not torch.isfinite(gap).all():
        raise ValueError("CAST: a teacher or old log-probability is NaN or infinite on a token that counts.")
    return gap


def apply_deadzone(gap: torch.Tensor, deadzone: float) -> torch.Tensor:
    """The gap with 0 where |g| <= deadzone (section 7)."""
    return gap.masked_fill(gap.abs() <= deadzone, 0.0)


@torch.no_grad()
def shape_advantage(base: torch.Tensor, gap: torch.Tensor, config: CastConfig) -> ShapedAdvantage:
    """Weight, flip and clip (sections 4 to 6) of base advantages by gaps.

    Every token's advantage is B times a coefficient: max(0, 1 + λ(w − 1)) with the clipped weight w = exp(s·g) of its
    side, or, where it is flipped, −(1 + λ(d − 1)) with d = exp(|g|) clipped to the bounds of the other side.

    Args:
        base: (B, 1), or any shape that broadcasts with `gap`.
        gap: (B, T).

    Returns:
        (advantages, flipped, weight_clipped, clipped), all (B, T); the mask is not applied here.
    """
    correct_side = base >= 0
    signed_gap = torch.sign(base) * gap  # > 0: the teacher agrees with the verifier
    may_flip = torch.zeros_like(correct_side)
    if config.flip in ("both", "correct"):
        may_flip = may_flip | (base > 0)
    if config.flip in ("both", "wrong"):
        may_flip = may_flip | (base < 0)
    flipped = may_flip & (signed_gap < 0)

    (pos_low, pos_high), (neg_low, neg_high) = config.positive_clip, config.negative_clip

    def bound(positive: float, negative: float, flip_of_positive: float, flip_of_negative: float) -> torch.Tensor:
        own = torch.where(correct_side, base.new_tensor(positive), base.new_tensor(negative))
        other = torch.where(correct_side, base.new_tensor(flip_of_positive), base.new_tensor(flip_of_negative))
        return torch.where(flipped, other, own)

    exponent = torch.where(flipped, -signed_gap, signed_gap).clamp(-MAX_EXPONENT, MAX_EXPONENT)
    lower = bound(pos_low, neg_low, max(1.0, neg_low), max(1.0, pos_low))
    upper = bound(pos_high, neg_high, neg_high, pos_high)
    raw_weight = torch.exp(exponent)
    weight = torch.minimum(torch.maximum(raw_weight, lower), upper)
    coefficient = (1 + config.gap_weight * (weight - 1)).clamp_min(0)
    unclipped = base * torch.where(flipped, -coefficient, coefficient)
    advantages = unclipped
    if config.advantage_clip is not None:
        advantages = unclipped.clamp(-config.advantage_clip, config.advantage_clip)
    return ShapedAdvantage(advantages, flipped, weight != raw_weight, advantages != unclipped)


def rows_that_count(response_mask: torch.Tensor, final_row: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) bool, the rows that are part of their group, and (B,) the row of the final output of each row's session.

    Only the final output of a session is graded; a row without a token that counts (padding, rejected, empty) is not
    part of its group.
    """
    rows = torch.arange(response_mask.shape[0], device=response_mask.device)
    final_row = rows if final_row is None else final_row
    return (final_row == rows) & response_mask.bool().any(dim=-1), final_row


class Rule(NamedTuple):
    """What makes a method: how it grades trajectories, which of them need a gap, and how gaps shape their tokens.

    Attributes:
        base: (scores (B,), index, counts (B,), config, norm_adv_by_std_in_grpo) -> BaseAdvantage.
        needs_gap: (BaseAdvantage, config, completed_steps) -> (B,) bool, rows whose advantage depends on their gap.
        shape: (BaseAdvantage, gap (B, T), config, completed_steps) -> ShapedAdvantage; the mask is not applied.
    """

    base: Callable[..., BaseAdvantage]
    needs_gap: Callable[..., torch.Tensor]
    shape: Callable[..., ShapedAdvantage]


def cast_needs_gap(base: BaseAdvantage, config: CastConfig, completed_steps: int = 0) -> torch.Tensor:
    """(B,) bool, rows whose advantage depends on the gap: not where B = 0, nor where λ = 0 and no token may flip."""
    positive = config.gap_weight > 0 or config.flip in ("both", "correct")
    negative = config.gap_weight > 0 or config.flip in ("both", "wrong")
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
    mask = response_mask.bool()
    scored = mask.new_ones(mask.shape[0]) if scored is None else scored
    raw_gap = token_gap(teacher_log_probs, old_log_probs, mask & scored.unsqueeze(-1))
    gap = apply_deadzone(raw_gap, config.gap_deadzone)
    advantages, *where = rule.shape(base, gap, config, completed_steps)
    flipped, weight_clipped, clipped = (condition & mask for condition in where)
    return TokenAdvantage(advantages * response_mask, raw_gap, gap, base, flipped, weight_clipped, clipped, scored)


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
