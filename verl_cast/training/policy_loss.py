"""The registered policy loss `cast`: the clipped objective of DAPO/GRPO on token advantages of either sign (section 6).

    −min(ρ_t·Â_t, clip(ρ_t, 1 − ε_low, 1 + ε_high)·Â_t),   ρ_t = π_θ(y_t) / π_old(y_t)

It is verl's `vanilla` loss without the dual clip (`clip_ratio_c`), which is not part of the method. ε_low and ε_high
are verl's `actor.clip_ratio_low` and `actor.clip_ratio_high`.
"""

from typing import Any

import torch
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils.torch_functional import masked_mean
from verl.workers.config import ActorConfig

# The clamp that verl puts on log ρ before exp.
MAX_LOG_RATIO = 20.0


def compute_policy_loss_cast(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig | None = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The signature of every policy loss in verl's registry.

    Args:
        old_log_prob, log_prob, advantages, response_mask: (B, T).
        loss_agg_mode: any mode of verl's `agg_loss`.
        config: the actor's config; gives the clip ratios and the sizes of the global batch.
        rollout_is_weights: (B, T) or None, importance weights of verl's rollout correction.

    Returns:
        (loss, metrics): a scalar, and verl's own actor metrics pg_clipfrac, ppo_kl and pg_clipfrac_lower (always 0).

    Raises:
        ValueError: no actor config.
    """
    if config is None:
        raise ValueError("The policy loss `cast` needs the actor's config (clip_ratio_low, clip_ratio_high).")
    clip_low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    clip_high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high

    log_ratio = torch.clamp(log_prob - old_log_prob, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = torch.exp(log_ratio)
    unclipped = -advantages * ratio
    clipped = -advantages * torch.clamp(ratio, 1 - clip_low, 1 + clip_high)
    losses = torch.maximum(unclipped, clipped)
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    loss = agg_loss(loss_mat=losses, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info)

    metrics = {
        "actor/pg_clipfrac": masked_mean((clipped > unclipped).float(), response_mask).detach().item(),
        "actor/ppo_kl": masked_mean(-log_ratio, response_mask).detach().item(),
        "actor/pg_clipfrac_lower": 0.0,
    }
    return loss, metrics
