"""The advantage estimators `cast`, `opsd`, `grpo_opsd`, `rlsd` and `rlrt` in verl's registry.

verl hands a registered estimator rewards, mask, groups and config, but no log-probabilities (verl issue #7473). The
trainer lays the rest out with `estimator_inputs` around verl's own advantage stage; called without it, by a trainer
that is not ours, an estimator stops the run rather than train something else under its name.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from verl_cast.advantage import TokenAdvantage, token_advantage, trajectory_advantage
from verl_cast.baselines.advantage import current_gap_weight
from verl_cast.baselines.config import BaselineConfig
from verl_cast.config import MethodConfig
from verl_cast.methods import METHODS
from verl_cast.metrics import cast_metrics
from verl_cast.rules import rule_of


@dataclass
class EstimatorInputs:
    """What the estimator needs beyond verl's arguments; row order is the batch's.

    Attributes:
        config: `algorithm.cast`, or the group of a baseline.
        old_log_probs, teacher_log_probs: (B, T), padded like the batch.
        final_row: (B,) int64, the row of the final output of each row's session.
        entropy: (B, T) of the policy, padded likewise; for the metrics alone.
        completed_steps: training steps before this one, for a weight that changes with them.
        scored: (B,) bool, rows that the teacher scored; None: all.
        metrics, result, response_mask: filled by the estimator; the mask is the one that it was given.
    """

    config: MethodConfig
    old_log_probs: torch.Tensor
    teacher_log_probs: torch.Tensor
    final_row: torch.Tensor
    entropy: torch.Tensor | None = None
    completed_steps: int = 0
    scored: torch.Tensor | None = None
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


def _compute_outcome_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any = None,
    *,
    method: type[MethodConfig],
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A method with verl's signature; see `verl_cast.advantage.compute_cast_advantage` for CAST.

    Args:
        token_level_rewards, response_mask: (B, T).
        index: (B,) group of every row.
        config: verl's `algorithm` config, for `norm_adv_by_std_in_grpo`.

    Raises:
        RuntimeError: no teacher log-probs were laid out for this batch, or not those of a row that needs them.
    """
    inputs = _inputs_of(method, response_mask)
    rule = rule_of(inputs.config)
    norm = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
    base = trajectory_advantage(rule, token_level_rewards, response_mask, index, inputs.config, norm, inputs.final_row)
    if inputs.scored is not None:
        unscored = rule.needs_gap(base, inputs.config, inputs.completed_steps) & ~inputs.scored
        if unscored.any():
            raise RuntimeError(
                f"CAST: {int(unscored.sum())} responses need the teacher's log-probs and were not scored; their "
                "rewards or masks have changed since. Stopping: without them they would train as in GRPO."
            )
    inputs.result = token_advantage(
        rule,
        base,
        response_mask,
        inputs.old_log_probs,
        inputs.teacher_log_probs,
        inputs.config,
        inputs.completed_steps,
        inputs.scored,
    )
    inputs.response_mask = response_mask
    if isinstance(inputs.config, BaselineConfig):
        inputs.metrics["cast/gap_weight"] = current_gap_weight(inputs.config, inputs.completed_steps)
    inputs.metrics.update(cast_metrics(inputs.result, response_mask, inputs.entropy))
    return inputs.result.advantages, inputs.result.advantages


# By the estimator's name, for verl's registry.
ESTIMATORS: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    name: functools.partial(_compute_outcome_advantage, method=method) for name, method in METHODS.items()
}


def _inputs_of(method: type[MethodConfig], response_mask: torch.Tensor) -> EstimatorInputs:
    inputs = _inputs.get()
    if inputs is None or not isinstance(inputs.config, method):
        raise RuntimeError(
            f"CAST: algorithm.adv_estimator={method.NAME}, but the trainer in this process computed no teacher "
            "log-probs (it is not verl's V1 trainer with verl_cast active). Stopping: without them the run would be "
            "GRPO. Start verl.trainer.main_ppo with trainer.use_v1=True, install verl_cast on every node, and leave "
            "VERL_USE_EXTERNAL_PLUGINS unset."
        )
    if inputs.teacher_log_probs.shape != response_mask.shape or inputs.old_log_probs.shape != response_mask.shape:
        raise RuntimeError(
            f"CAST: log-probs are for another batch: teacher {tuple(inputs.teacher_log_probs.shape)}, old "
            f"{tuple(inputs.old_log_probs.shape)}, response_mask {tuple(response_mask.shape)}."
        )
    return inputs
