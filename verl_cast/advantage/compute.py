"""A method's token advantages: B of every response, then the tokens. The same two steps for CAST and the baselines.

Works in the dtype of its inputs; nothing here carries a gradient. Shapes: `B` rows (responses), `T` response tokens,
padded to one length.
"""

from dataclasses import dataclass

import numpy as np
import torch

from verl_cast.advantage.base import BaseAdvantage, TrajectoryAdvantage, rows_that_count
from verl_cast.advantage.baselines import GrpoOpsdRule, OpsdRule, RlrtRule, RlsdRule
from verl_cast.advantage.cast import CastRule, token_gap
from verl_cast.advantage.rule import Rule
from verl_cast.config import CastConfig, MethodConfig

_RULES: dict[str, type[Rule]] = {
    "cast": CastRule,
    "opsd": OpsdRule,
    "grpo_opsd": GrpoOpsdRule,
    "rlsd": RlsdRule,
    "rlrt": RlrtRule,
}


def rule_of(config: MethodConfig, completed_steps: int = 0, noise_floor: float | None = None) -> Rule:
    """The rule of these settings in the training step that follows `completed_steps` others. Arguments as in `Rule`."""
    return _RULES[config.NAME](config, completed_steps, noise_floor)


@dataclass(frozen=True)
class TokenAdvantage:
    """Everything that is known of a batch: `advantages` trains, the rest is for metrics and dumps.

    Attributes:
        advantages: (B, T) Â, 0 where the mask is 0.
        base: of every response.
        mask: (B, T) bool, tokens that count.
        scored: (B,) bool, rows that the teacher scored. The others need no gap; theirs is 0.
        raw_gap: (B, T) g, 0 where the mask is 0.
        gap: (B, T) g as the rule used it: 0 also inside the dead zone.
        flipped, weight_clipped, clipped: (B, T) bool, see `ShapedAdvantage`; False where the mask is 0.
    """

    advantages: torch.Tensor
    base: BaseAdvantage
    mask: torch.Tensor
    scored: torch.Tensor
    raw_gap: torch.Tensor
    gap: torch.Tensor
    flipped: torch.Tensor
    weight_clipped: torch.Tensor
    clipped: torch.Tensor


@torch.no_grad()
def trajectory_advantage(
    rule: Rule,
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    norm_adv_by_std_in_grpo: bool = True,
    final_row: torch.Tensor | None = None,
) -> TrajectoryAdvantage:
    """B of every row. Arguments as in `compute_advantage`."""
    counts, final_row = rows_that_count(response_mask, final_row)
    return rule.base(token_level_rewards.sum(dim=-1), index, counts, norm_adv_by_std_in_grpo).take(final_row)


@torch.no_grad()
def token_advantage(
    rule: Rule,
    base: BaseAdvantage,
    response_mask: torch.Tensor,
    old_log_probs: torch.Tensor,
    teacher_log_probs: torch.Tensor,
    scored: torch.Tensor | None = None,
) -> TokenAdvantage:
    """The tokens: gap, dead zone, shape, mask.

    Args:
        base: B of these rows.
        response_mask, old_log_probs, teacher_log_probs: (B, T).
        scored: (B,) bool, rows that the teacher scored; None: all. Log-probs of the others are not looked at.
    """
    mask = response_mask.bool()
    scored = torch.ones_like(base.correct) if scored is None else scored
    raw_gap = token_gap(teacher_log_probs.detach(), old_log_probs.detach(), mask & scored.unsqueeze(-1))
    gap = torch.where(raw_gap.abs() > rule.gap_deadzone, raw_gap, 0.0)  # section 7
    shaped = rule.shape(base, gap)
    return TokenAdvantage(
        advantages=shaped.advantages * mask,
        base=base,
        mask=mask,
        scored=scored,
        raw_gap=raw_gap,
        gap=gap,
        flipped=shaped.flipped & mask,
        weight_clipped=shaped.weight_clipped & mask,
        clipped=shaped.clipped & mask,
    )


def compute_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    old_log_probs: torch.Tensor,
    teacher_log_probs: torch.Tensor,
    config: MethodConfig,
    norm_adv_by_std_in_grpo: bool = True,
    final_row: torch.Tensor | None = None,
    completed_steps: int = 0,
    noise_floor: float | None = None,
) -> TokenAdvantage:
    """Token advantages of CAST (sections 2 to 6) or of a baseline (section 10), and all that is known of them.

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
        completed_steps: training steps before this one, for a λ that changes with them (RLSD).
        noise_floor: the engine's, nats, for gap_deadzone=noise.

    Raises:
        ValueError: a reward or log-probability that counts is NaN or infinite; gap_deadzone=noise without noise floor.
    """
    rule = rule_of(config, completed_steps, noise_floor)
    base = trajectory_advantage(rule, token_level_rewards, response_mask, index, norm_adv_by_std_in_grpo, final_row)
    return token_advantage(rule, base, response_mask, old_log_probs, teacher_log_probs)


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
    """CAST's token advantages; `compute_advantage` in the form of verl's estimators.

    Returns:
        (advantages, returns), both (B, T) and equal, as for verl's GRPO.
    """
    advantages = compute_advantage(
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
