"""Token advantages of OPSD, GRPO+OPSD, RLSD and RLRT as pure tensor functions (method section 10).

A is GRPO's advantage of the response (0 in groups without variance), Δ = log π_T − log π_old the gap to the privileged
teacher, detached. Shapes: `B` rows (responses), `T` response tokens, padded to one length.

    OPSD        Δ                                                              (sampled-token form)
    GRPO+OPSD   A + λ·Δ
    RLSD        A·[(1 − λ) + λ·clip(exp(sign(A)·Δ), 1 ± ε)],  λ falls linearly to 0
    RLRT        A·[(1 − λ) + λ·clip(exp(−sign(A)·Δ), 1 ± ε)]  on correct responses, A on wrong ones

Not in section 10: how OPSD's and GRPO's parts are weighed (the plainest reading is here), and that RLRT's wrong
responses keep A (so the author's public development code of CAST does, which holds RLRT too).
"""

from collections.abc import Callable

import numpy as np
import torch

from verl_cast.advantage import (
    MAX_EXPONENT,
    Rule,
    ShapedAdvantage,
    TokenAdvantage,
    token_advantage,
    trajectory_advantage,
)
from verl_cast.base import EXCLUDED, BaseAdvantage, grpo_advantage
from verl_cast.baselines.config import BaselineConfig, GrpoOpsdConfig, OpsdConfig, RlrtConfig, RlsdConfig


def current_gap_weight(config: BaselineConfig, completed_steps: int) -> float:
    """λ in the step that follows `completed_steps` training steps; 1 for OPSD, which has none."""
    if isinstance(config, OpsdConfig):
        return 1.0
    if isinstance(config, RlsdConfig) and config.gap_weight_decay_steps > 0:
        return config.gap_weight * max(0.0, 1 - completed_steps / config.gap_weight_decay_steps)
    return config.gap_weight


# What a formula returns: advantages (B, T) before the mask, and where the weight lay outside its bounds (B, T).
Formula = tuple[torch.Tensor, torch.Tensor]


def _opsd(base: BaseAdvantage, gap: torch.Tensor, config: OpsdConfig, gap_weight: float) -> Formula:
    return gap.clone(), torch.zeros_like(gap, dtype=torch.bool)


def _grpo_opsd(base: BaseAdvantage, gap: torch.Tensor, config: GrpoOpsdConfig, gap_weight: float) -> Formula:
    return base.value.unsqueeze(-1) + gap_weight * gap, torch.zeros_like(gap, dtype=torch.bool)


def _rlsd(base: BaseAdvantage, gap: torch.Tensor, config: RlsdConfig, gap_weight: float) -> Formula:
    return _reweighted(base.value.unsqueeze(-1), gap, gap_weight, config.weight_clip)


def _rlrt(base: BaseAdvantage, gap: torch.Tensor, config: RlrtConfig, gap_weight: float) -> Formula:
    advantage, correct = base.value.unsqueeze(-1), base.correct.unsqueeze(-1)
    reweighted, clipped = _reweighted(advantage, -gap, gap_weight, config.weight_clip)
    return torch.where(correct, reweighted, advantage.expand_as(gap)), clipped & correct


def _reweighted(advantage: torch.Tensor, gap: torch.Tensor, gap_weight: float, clip: float) -> Formula:
    raw_weight = torch.exp((torch.sign(advantage) * gap).clamp(-MAX_EXPONENT, MAX_EXPONENT))
    weight = raw_weight.clamp(1 - clip, 1 + clip)
    return advantage * ((1 - gap_weight) + gap_weight * weight), weight != raw_weight


def _rule(
    formula: Callable[..., Formula], needs_gap: Callable[[BaseAdvantage], torch.Tensor] = lambda base: base.value != 0
) -> Rule:
    """A baseline's rule: GRPO's base and the formula; `needs_gap` says which rows depend on the gap where λ > 0."""

    def grpo(scores, index, counts, config, norm_adv_by_std_in_grpo):
        return grpo_advantage(scores, index, counts, config.correct_threshold, norm_adv_by_std_in_grpo)

    def rows(base, config, completed_steps=0):
        return (base.kind != EXCLUDED) & needs_gap(base) & (current_gap_weight(config, completed_steps) > 0)

    def shape(base, gap, config, completed_steps):
        advantages, weight_clipped = formula(base, gap, config, current_gap_weight(config, completed_steps))
        flipped = torch.sign(advantages) * torch.sign(base.value.unsqueeze(-1)) < 0
        return ShapedAdvantage(advantages, flipped, weight_clipped, torch.zeros_like(flipped))

    return Rule(grpo, rows, shape)


BASELINE_RULES: dict[type[BaselineConfig], Rule] = {
    OpsdConfig: _rule(_opsd, needs_gap=lambda base: torch.ones_like(base.correct)),
    GrpoOpsdConfig: _rule(_grpo_opsd, needs_gap=lambda base: torch.ones_like(base.correct)),
    RlsdConfig: _rule(_rlsd),
    RlrtConfig: _rule(_rlrt, needs_gap=lambda base: base.correct & (base.value != 0)),
}


def baseline_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    old_log_probs: torch.Tensor,
    teacher_log_probs: torch.Tensor,
    config: BaselineConfig,
    norm_adv_by_std_in_grpo: bool = True,
    final_row: torch.Tensor | None = None,
    completed_steps: int = 0,
) -> TokenAdvantage:
    """Token advantages of a baseline, and all that is known about the batch.

    Args, errors: as `verl_cast.advantage.compute_cast_advantage`; `completed_steps` is for RLSD's λ.

    Returns:
        `base` is GRPO's advantage; `flipped` are the tokens whose advantage has the opposite sign of it, which the
        rules of RLSD and RLRT never give; nothing is clipped but the weight.
    """
    rule = BASELINE_RULES[type(config)]
    base = trajectory_advantage(
        rule, token_level_rewards, response_mask, index, config, norm_adv_by_std_in_grpo, final_row
    )
    return token_advantage(rule, base, response_mask, old_log_probs, teacher_log_probs, config, completed_steps)
