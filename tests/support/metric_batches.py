"""Metrics of small batches, under the names that CAST logs them."""

import numpy as np
import torch

from verl_cast import CastConfig
from verl_cast.advantage.compute import compute_advantage
from verl_cast.advantage.metrics import advantage_metrics


def metrics_of(rewards, index, gap, mask, config=None, entropy=None):
    config = config or CastConfig()
    mask = torch.tensor(mask)
    token_rewards = torch.zeros(mask.shape)
    token_rewards[:, 0] = torch.tensor(rewards)
    gap = torch.tensor(gap)
    result = compute_advantage(token_rewards, mask, np.array(index), torch.zeros_like(gap), gap, config)
    own = advantage_metrics(result, None if entropy is None else torch.tensor(entropy))
    return {f"cast/{name}": value for name, value in own.items()}


def hand_made(**settings):
    """A mixed group, an all-correct group, an all-wrong group, and a padding row in its own group."""
    return metrics_of(
        rewards=[1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0],
        index=["a", "a", "b", "b", "c", "c", "pad"],
        gap=[[0.1, -0.1]] * 6 + [[9.0, 9.0]],
        mask=[[1, 1]] * 5 + [[1, 0]] + [[0, 0]],
        entropy=[[1.0, 2.0]] * 3 + [[2.0, 3.0]] * 2 + [[5.0, 99.0]] + [[99.0, 99.0]],
        config=CastConfig(**settings),
    )
