"""The advantage estimators `cast`, `opsd`, `grpo_opsd`, `rlsd` and `rlrt` in verl's registry.

An estimator names its batch fields (BATCH_FIELDS). A verl with patches/verl/0001 hands them over; on others stock_verl
does. What the trainer knows of the step it lays out with `estimator_inputs` around verl's own advantage stage. An
estimator that is called without them stops the run: a trainer that is not ours would train something else under the
method's name.
"""

import contextlib
import contextvars
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from verl_cast import wire
from verl_cast.advantage.base import TrajectoryAdvantage
from verl_cast.advantage.compute import TokenAdvantage, token_advantage, trajectory_advantage
from verl_cast.advantage.rule import Rule
from verl_cast.config import MethodConfig
from verl_cast.config.methods import METHODS

# What an estimator reads of the batch beyond the arguments that verl gives every estimator: (B, T), padded alike.
BATCH_FIELDS = ("old_log_probs", wire.TEACHER_LOG_PROBS)


@dataclass(frozen=True)
class EstimatorInputs:
    """What the trainer knows of a step before the estimator is called. Row order is the batch's.

    Attributes:
        rule: the method in this step.
        scored: (B,) bool, rows that the teacher scored.
        final_row: (B,) int64, the row of the final output of each row's session.
        rewards: (B,) that the step was planned with.
        base: B as the step was planned with it; None where verl may have rejected rows since.
    """

    rule: Rule
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
    old_log_probs: torch.Tensor | None = None,
    teacher_log_probs: torch.Tensor | None = None,
    *,
    method: type[MethodConfig],
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A method with verl's signature.

    Args:
        token_level_rewards, response_mask: (B, T).
        index: (B,) group of every row.
        config: verl's `algorithm` config, for `norm_adv_by_std_in_grpo`.
        old_log_probs, teacher_log_probs: (B, T), the BATCH_FIELDS.

    Raises:
        RuntimeError: there are no teacher log-probs for this batch, or not those of a row that needs them.
    """
    laid_out = _laid_out.get()
    is_ours = laid_out is not None and isinstance(laid_out[0].rule.config, method)
    if not is_ours or old_log_probs is None or teacher_log_probs is None:
        raise RuntimeError(
            f"CAST: algorithm.adv_estimator={method.NAME}, but the trainer in this process computed no teacher "
            "log-probs (it is not verl's V1 trainer with verl_cast active). Stopping: without them the run would be "
            "GRPO. Start verl.trainer.main_ppo with trainer.use_v1=True, install verl_cast on every node, and leave "
            "VERL_USE_EXTERNAL_PLUGINS unset."
        )
    inputs, results = laid_out
    _check_same_batch(inputs, token_level_rewards, response_mask, old_log_probs, teacher_log_probs)
    _warn_of_low_precision(inputs.rule.config, old_log_probs.dtype)
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
    result = token_advantage(inputs.rule, base, response_mask, old_log_probs, teacher_log_probs, inputs.scored)
    results.append(result)
    return result.advantages, result.advantages


def _check_same_batch(
    inputs: EstimatorInputs,
    rewards: torch.Tensor,
    response_mask: torch.Tensor,
    old_log_probs: torch.Tensor,
    teacher_log_probs: torch.Tensor,
) -> None:
    if teacher_log_probs.shape != response_mask.shape or old_log_probs.shape != response_mask.shape:
        raise RuntimeError(
            f"CAST: log-probs are for another batch: teacher {tuple(teacher_log_probs.shape)}, old "
            f"{tuple(old_log_probs.shape)}, response_mask {tuple(response_mask.shape)}."
        )
    changed = rewards.sum(dim=-1) != inputs.rewards
    if changed.any():
        raise RuntimeError(
            f"CAST: the rewards of {int(changed.sum())} responses have changed since their base advantage was formed. "
            "Stopping: the update would train on rewards that are no longer the verifier's. Change rewards before "
            "verl's stage of old log-probs."
        )


def _warn_of_low_precision(method: MethodConfig, dtype: torch.dtype) -> None:
    if dtype in (torch.bfloat16, torch.float16):
        warnings.warn(  # once: Python shows a warning once per place
            f"{method.TITLE}: the engine returns log-probs in {dtype}, and their rounding decides the sign of small "
            "gaps (verl's engines do so on a CPU). Set +actor_rollout_ref.actor.fsdp_config.mixed_precision."
            "param_dtype=fp32, or CAST's ++algorithm.cast.gap_deadzone=noise.",
            stacklevel=2,
        )


# By the estimator's name, for verl's registry.
ESTIMATORS: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    name: functools.partial(_compute_outcome_advantage, method=method) for name, method in METHODS.items()
}
