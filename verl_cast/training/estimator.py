"""The advantage estimators `cast`, `opsd`, `grpo_opsd`, `rlsd` and `rlrt` in verl's registry.

verl hands a registered estimator rewards, mask, groups and config, but no log-probs (verl's pull request #7473 would).
The trainer lays the rest out with `estimator_inputs` around verl's own advantage stage. An estimator that is called
without them stops the run: a trainer that is not ours would train something else under the method's name.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from verl_cast.advantage.base import TrajectoryAdvantage
from verl_cast.advantage.compute import TokenAdvantage, token_advantage, trajectory_advantage
from verl_cast.advantage.rule import Rule
from verl_cast.config import MethodConfig
from verl_cast.config.methods import METHODS


@dataclass(frozen=True)
class EstimatorInputs:
    """What the estimator needs beyond verl's arguments. Row order is the batch's.

    Attributes:
        rule: the method in this step.
        old_log_probs, teacher_log_probs: (B, T), padded like the batch.
        scored: (B,) bool, rows that the teacher scored.
        final_row: (B,) int64, the row of the final output of each row's session.
        rewards: (B,) that the step was planned with.
        base: B as the step was planned with it; None where verl may have rejected rows since.
    """

    rule: Rule
    old_log_probs: torch.Tensor
    teacher_log_probs: torch.Tensor
    scored: torch.Tensor
    final_row: torch.Tensor
    rewards: torch.Tensor
    base: TrajectoryAdvantage | None


# The inputs that are laid out, and the results of the calls that used them.
_laid_out: contextvars.ContextVar[tuple[EstimatorInputs, list[TokenAdvantage]] | None] = contextvars.ContextVar(
    "cast_estimator_inputs", default=None
)


@contextlib.contextmanager
def estimator_inputs(inputs: EstimatorInputs) -> Iterator[list[TokenAdvantage]]:
    """Lay out the inputs of the estimator for one advantage stage. Yields a list of what it computes."""
    results: list[TokenAdvantage] = []
    token = _laid_out.set((inputs, results))
    try:
        yield results
    finally:
        _laid_out.reset(token)


def _compute_outcome_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any = None,
    *,
    method: type[MethodConfig],
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A method with verl's signature.

    Args:
        token_level_rewards, response_mask: (B, T).
        index: (B,) group of every row.
        config: verl's `algorithm` config, for `norm_adv_by_std_in_grpo`.

    Raises:
        RuntimeError: no teacher log-probs were laid out for this batch, or not those of a row that needs them.
    """
    laid_out = _laid_out.get()
    if laid_out is None or not isinstance(laid_out[0].rule.config, method):
        raise RuntimeError(
            f"CAST: algorithm.adv_estimator={method.NAME}, but the trainer in this process computed no teacher "
            "log-probs (it is not verl's V1 trainer with verl_cast active). Stopping: without them the run would be "
            "GRPO. Start verl.trainer.main_ppo with trainer.use_v1=True, install verl_cast on every node, and leave "
            "VERL_USE_EXTERNAL_PLUGINS unset."
        )
    inputs, results = laid_out
    _check_same_batch(inputs, token_level_rewards, response_mask)
    base = inputs.base
    if base is None:
        norm = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
        base = trajectory_advantage(
            inputs.rule, token_level_rewards, response_mask, index, norm, final_row=inputs.final_row
        )
    unscored = inputs.rule.needs_gap(base) & ~inputs.scored
    if unscored.any():
        raise RuntimeError(
            f"CAST: {int(unscored.sum())} responses need the teacher's log-probs and were not scored; their masks have "
            "changed since. Stopping: without them they would train as in GRPO."
        )
    result = token_advantage(
        inputs.rule, base, response_mask, inputs.old_log_probs, inputs.teacher_log_probs, inputs.scored
    )
    results.append(result)
    return result.advantages, result.advantages


def _check_same_batch(inputs: EstimatorInputs, rewards: torch.Tensor, response_mask: torch.Tensor) -> None:
    if inputs.teacher_log_probs.shape != response_mask.shape or inputs.old_log_probs.shape != response_mask.shape:
        raise RuntimeError(
            f"CAST: log-probs are for another batch: teacher {tuple(inputs.teacher_log_probs.shape)}, old "
            f"{tuple(inputs.old_log_probs.shape)}, response_mask {tuple(response_mask.shape)}."
        )
    changed = rewards.sum(dim=-1) != inputs.rewards
    if changed.any():
        raise RuntimeError(
            f"CAST: the rewards of {int(changed.sum())} responses have changed since their base advantage was formed. "
            "Stopping: the update would train on rewards that are no longer the verifier's. Change rewards before "
            "verl's stage of old log-probs."
        )


# By the estimator's name, for verl's registry.
ESTIMATORS: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    name: functools.partial(_compute_outcome_advantage, method=method) for name, method in METHODS.items()
}
