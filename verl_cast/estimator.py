"""The advantage estimator `cast` in verl's registry.

verl hands a registered estimator rewards, mask, groups and config, but no log-probabilities (verl issue #7473). The
trainer lays the rest out with `estimator_inputs` around verl's own advantage stage; called without it, by a trainer
that is not ours, the estimator stops the run rather than train something else under the name of CAST.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from verl_cast.advantage import TokenAdvantage, cast_advantage
from verl_cast.config import CastConfig
from verl_cast.metrics import cast_metrics

ESTIMATOR_NAME = "cast"


@dataclass
class EstimatorInputs:
    """What the estimator needs beyond verl's arguments; row order is the batch's.

    Attributes:
        config: `algorithm.cast`.
        old_log_probs, teacher_log_probs: (B, T), padded like the batch.
        final_row: (B,) int64, the row of the final output of each row's session.
        entropy: (B, T) of the policy, padded likewise; for the metrics alone.
        metrics, result, response_mask: filled by the estimator; the mask is the one that it was given.
    """

    config: CastConfig
    old_log_probs: torch.Tensor
    teacher_log_probs: torch.Tensor
    final_row: torch.Tensor
    entropy: torch.Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    result: TokenAdvantage | None = None
    response_mask: torch.Tensor | None = None


_inputs: contextvars.ContextVar[EstimatorInputs | None] = contextvars.ContextVar("cast_estimator_inputs", default=None)


@contextlib.contextmanager
def estimator_inputs(inputs: EstimatorInputs) -> Iterator[EstimatorInputs]:
    """Lay out the inputs of the estimator for one advantage stage."""
    token = _inputs.set(inputs)
    try:
        yield inputs
    finally:
        _inputs.reset(token)


def compute_cast_outcome_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The estimator with verl's signature; see `verl_cast.advantage.compute_cast_advantage` for the method.

    Args:
        token_level_rewards, response_mask: (B, T).
        index: (B,) group of every row.
        config: verl's `algorithm` config, for `norm_adv_by_std_in_grpo`.

    Raises:
        RuntimeError: no teacher log-probs were laid out for this batch.
    """
    inputs = _inputs.get()
    if inputs is None:
        raise RuntimeError(
            "CAST: algorithm.adv_estimator=cast, but the trainer in this process computed no teacher log-probs (it is "
            "not verl's V1 trainer with verl_cast active). Stopping: without them the run would be GRPO. Start "
            "verl.trainer.main_ppo with trainer.use_v1=True, install verl_cast on every node, and leave "
            "VERL_USE_EXTERNAL_PLUGINS unset."
        )
    if inputs.teacher_log_probs.shape != response_mask.shape or inputs.old_log_probs.shape != response_mask.shape:
        raise RuntimeError(
            f"CAST: log-probs are for another batch: teacher {tuple(inputs.teacher_log_probs.shape)}, old "
            f"{tuple(inputs.old_log_probs.shape)}, response_mask {tuple(response_mask.shape)}."
        )
    norm_by_std = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
    result = cast_advantage(
        token_level_rewards,
        response_mask,
        index,
        inputs.old_log_probs,
        inputs.teacher_log_probs,
        inputs.config,
        norm_by_std,
        inputs.final_row,
    )
    inputs.result, inputs.response_mask = result, response_mask
    inputs.metrics.update(cast_metrics(result, response_mask, inputs.entropy))
    return result.advantages, result.advantages
