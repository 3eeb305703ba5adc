"""The estimator's call as the trainer prepares it, for tests that call an estimator themselves."""

import torch

from verl_cast.advantage.compute import rule_of
from verl_cast.training.estimator import EstimatorCall


def call_of(config, token_level_rewards, completed_steps=0, scored=None, base=None, fields=None) -> EstimatorCall:
    """Every row is its own session. With `base=None` the estimator forms B. `scored=None` means all rows."""
    num_rows = len(token_level_rewards)
    return EstimatorCall(
        rule=rule_of(config, completed_steps),
        scored=torch.ones(num_rows, dtype=torch.bool) if scored is None else scored,
        final_row=torch.arange(num_rows),
        rewards=token_level_rewards.sum(dim=-1),
        base=base,
        fields=fields or {},
    )
