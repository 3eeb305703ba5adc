"""The advantage estimators `cast`, `opsd`, `grpo_opsd`, `rlsd` and `rlrt` in verl's registry.

An estimator names its batch fields (BATCH_FIELDS). A verl with patches/verl/0001 passes them; on stock verl attach.py
does. What the trainer knows of the step comes from `estimator_call`, which the trainer opens around verl's advantage
stage. An estimator that is called outside of it stops the run: a trainer that is not ours would train something else
under the method's name.
"""

import contextlib
import contextvars
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from verl_cast import wire
from verl_cast.advantage.compute import TokenAdvantage, token_advantage, trajectory_advantage
from verl_cast.config import MethodConfig
from verl_cast.config.methods import METHODS
from verl_cast.training.step_plan import Step

# What an estimator reads of the batch beyond the arguments that verl gives every estimator: (B, T), padded alike.
BATCH_FIELDS = ("old_log_probs", wire.TEACHER_LOG_PROBS)


@dataclass
class EstimatorCall:
    """One call of the estimator: what the trainer knows before it, and what it computed. Row order is the batch's.

    Attributes:
        step: as it was planned.
        fields: the BATCH_FIELDS, on a verl that passes none to estimators.
        result: what the estimator computed; None before.
    """

    step: Step
    fields: Mapping[str, torch.Tensor] = field(default_factory=dict)
    result: TokenAdvantage | None = None


_current: contextvars.ContextVar[EstimatorCall | None] = contextvars.ContextVar("cast_estimator_call", default=None)


@contextlib.contextmanager
def estimator_call(call: EstimatorCall) -> Iterator[EstimatorCall]:
    """The call that verl's advantage stage, run inside, makes."""
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)


def current_call() -> EstimatorCall | None:
    """The open call; None outside of `estimator_call`."""
    return _current.get()


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
        RuntimeError: there are no teacher log-probs for this batch, or not those of a row that needs them; or this is
            the second call in one stage.
    """
    call = current_call()
    is_ours = call is not None and isinstance(call.step.rule.config, method)
    if not is_ours or old_log_probs is None or teacher_log_probs is None:
        raise RuntimeError(
            f"CAST: algorithm.adv_estimator={method.NAME}, but the trainer in this process computed no teacher "
            "log-probs (it is not verl's V1 trainer with verl_cast active). Stopping: without them the run would be "
            "GRPO. Start verl.trainer.main_ppo with trainer.use_v1=True, install verl_cast on every node, and leave "
            "VERL_USE_EXTERNAL_PLUGINS unset."
        )
    if call.result is not None:
        raise RuntimeError(
            f"CAST: verl's advantage stage called the estimator `{method.NAME}` twice. Stopping: the run would be "
            "another method's."
        )
    step, base = call.step, call.step.base
    _check_same_batch(step, token_level_rewards, response_mask, old_log_probs, teacher_log_probs)
    _warn_of_low_precision(step.rule.config, old_log_probs.dtype)
    if not step.base_is_final:
        norm = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
        base = trajectory_advantage(step.rule, token_level_rewards, response_mask, index, norm, step.final_row)
    unscored = step.rule.needs_gap(base) & ~step.scored
    if unscored.any():
        raise RuntimeError(
            f"CAST: {int(unscored.sum())} responses need the teacher's log-probs and were not scored; their masks have "
            "changed since. Stopping: without them they would train as in GRPO."
        )
    call.result = token_advantage(step.rule, base, response_mask, old_log_probs, teacher_log_probs, step.scored)
    return call.result.advantages, call.result.advantages


def _check_same_batch(
    step: Step,
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
    changed = rewards.sum(dim=-1) != step.rewards
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
