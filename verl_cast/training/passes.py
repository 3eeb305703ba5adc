"""Is one pass exact? Every reason why a step can, or cannot, skip the pass for old log-probs.

Where a rollout batch feeds one optimizer step, log π_old is what the update's own forward computes. The gap can then be
formed inside the update (one_pass_loss.py), and the self-teacher's pass is the only one before it. This module decides
where that is exact; verl's pass runs everywhere else. Three things decide:

* the run's settings: `why_two_passes`;
* what only its processes know: `training_only_settings` (the workers' model), `own_stage` (the trainer's class);
* the step: `step_allows_one_pass`.
"""

from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from verl_cast.config import MethodConfig

_ACTOR = "actor_rollout_ref.actor"
_CORRECTION = "algorithm.rollout_correction"
_ROUTER_REPLAY = f"{_ACTOR}.megatron.router_replay.mode"
_SYNC_STEP = "trainer.v1.separate_async.parameter_sync_step"
# Parts of the names of settings that act in training only, in Hugging Face's configs and in Megatron's.
_TRAINING_ONLY = ("dropout", "pdrop", "drop_rate", "drop_path", "layerdrop", "jitter")


def why_two_passes(config: DictConfig, method: MethodConfig) -> str | None:
    """Why no step of this run can skip the pass for old log-probs: key, value and reason. None if steps can.

    Args:
        config: verl's, of a run that `check_run` accepts.
        method: its settings.
    """

    def value(key: str) -> Any:
        return OmegaConf.select(config, key)

    if not method.one_pass:
        return f"{method.key()}.one_pass=False: it is switched off"
    mini_batch = f"{_ACTOR}.ppo_mini_batch_size"
    is_async = value("trainer.v1.trainer_mode") == "separate_async"
    same_context = method.teacher.context == "same"
    reasons = [
        (f"{_ACTOR}.ppo_epochs", value(f"{_ACTOR}.ppo_epochs") != 1, "the policy moves between the epochs"),
        (mini_batch, value(mini_batch) != value("data.train_batch_size"), "the policy moves between the mini-batches"),
        (_SYNC_STEP, is_async and value(_SYNC_STEP) != 1, "the policy moves between the updates of a step"),
        (
            f"{_ACTOR}.shuffle",
            same_context and value(f"{_ACTOR}.shuffle"),
            "with context=same the teacher must score the very micro-batches of the update",
        ),
        (_CORRECTION, weighs_by_old_log_probs(config), "it weighs or rejects by old log-probs, before the update"),
        (
            _ROUTER_REPLAY,
            value(_ROUTER_REPLAY) not in (None, "disabled"),
            "the pass for old log-probs records the routes",
        ),
    ]
    for part in ("", ".fsdp_config", ".megatron"):
        key = f"{_ACTOR}{part}.pad_to_length"
        reasons.append((key, value(key), "verl passes no logits under it, and the entropy would be lost"))
    for key, applies, reason in reasons:
        if applies:
            shown = value(key)
            shown = OmegaConf.to_container(shown) if OmegaConf.is_config(shown) else shown
            return f"{key}={shown}: {reason}"
    return None


def weighs_by_old_log_probs(config: DictConfig) -> bool:
    """Whether verl's rollout correction weighs or rejects responses by old log-probs, in its advantage stage."""
    return any(OmegaConf.select(config, f"{_CORRECTION}.{key}") is not None for key in ("rollout_is", "rollout_rs"))


def training_only_settings(engine: Any, hf_config: Any) -> list[str]:
    """`name=value` of every setting whose effect a forward has in training mode, and not in evaluation mode.

    Args:
        engine: verl's, initialized.
        hf_config: the model's config. Its parts (text, vision) are looked at too.
    """
    names = set(_training_only(hf_config.to_dict()))
    names |= set(_training_only(vars(engine.tf_config) if hasattr(engine, "tf_config") else {}))  # Megatron's
    for chunk in engine.module if isinstance(engine.module, list) else [engine.module]:
        for part in chunk.modules():
            if isinstance(part, torch.nn.modules.dropout._DropoutNd) and part.p > 0:
                names.add(f"{type(part).__name__}={part.p}")
    return sorted(names)


def _training_only(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _training_only(value)
        elif any(word in str(key) for word in _TRAINING_ONLY) and isinstance(value, int | float) and value > 0:
            yield f"{key}={value}"
        elif key == "moe_router_load_balancing_type" and "sinkhorn" in value:  # one name, or a list of them
            yield f"{key}={value}"  # Megatron balances the routes in training only


def own_stage(trainer: Any) -> str | None:
    """The module that gives the trainer a `_compute_old_log_prob` which is neither verl's nor ours; None without one.

    A subclass defines one, or a plugin wraps verl's in place. A wrapper copies the function's name and module, but not
    its globals.
    """
    for cls in type(trainer).__mro__:
        if "_compute_old_log_prob" in vars(cls):
            stage = vars(cls)["_compute_old_log_prob"]
            is_function = type(stage) is FunctionType  # not isinstance: a wrapper object may claim to be one
            module = stage.__globals__["__name__"] if is_function else type(stage).__module__
            if module.split(".")[0] not in ("verl", "verl_cast"):
                return module
    return None


def step_allows_one_pass(config: DictConfig, num_rows: int, global_step: int) -> bool:
    """Whether a step has exactly one update, over all of its rows (some runs begin without updates)."""
    actor = config.actor_rollout_ref.actor
    rows_of_an_update = actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    return num_rows == rows_of_an_update and config.trainer.critic_warmup <= global_step
