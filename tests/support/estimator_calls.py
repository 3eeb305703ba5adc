"""The estimator's call as the trainer prepares it, for tests that call an estimator themselves."""

import torch

from verl_cast.advantage.compute import rule_of
from verl_cast.training.estimator import EstimatorCall
from verl_cast.training.step_plan import Step


def call_of(config, token_level_rewards, completed_steps=0, scored=None, base=None, fields=None) -> EstimatorCall:
    """Every row is its own session. With `base=None` the estimator forms B. `scored=None` means all rows."""
    num_rows = len(token_level_rewards)
    step = Step(
        rule=rule_of(config, completed_steps),
        base=base,
        base_is_final=base is not None,
        rewards=token_level_rewards.sum(dim=-1),
        final_row=torch.arange(num_rows),
        scored=torch.ones(num_rows, dtype=torch.bool) if scored is None else scored,
        gap_is_zero=False,
        teacher_age=None,
        one_pass=False,
        measures_noise=False,
    )
    return EstimatorCall(step, fields or {})
