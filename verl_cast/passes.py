"""Which forward passes a training step takes: whether the pass for old log-probs can be left out (one pass).

Where every rollout batch feeds one optimizer step, the old log-probs are the log-probs that the update's own forward
computes with the same weights: the gap can be formed inside the update (verl_cast/one_pass.py), and the self-teacher's
pass is the only one before it. Here is decided where that is exact; everywhere else verl's own pass runs. No torch.
"""

from omegaconf import DictConfig, OmegaConf

from verl_cast.config import MethodConfig

_ACTOR = "actor_rollout_ref.actor"
_CORRECTION = "algorithm.rollout_correction"


def why_two_passes(config: DictConfig, method: MethodConfig) -> str | None:
    """Why no step of this run can do without a pass for old log-probs: key and value; None where steps can.

    What only the workers know (dropout and the like), or only a step (its rows, the noise floor), is not looked at.

    Args:
        config: verl's, of a run that `check_run` accepts.
        method: its settings.
    """

    if not method.one_pass:
        return f"{method.key()}.one_pass=False: it is switched off"

    def value(key: str):
        return OmegaConf.select(config, key)

    correction = weighs_by_old_log_probs(config)
    prompts_per_update = value("data.train_batch_size")
    several_updates = value(f"{_ACTOR}.ppo_mini_batch_size") != prompts_per_update
    same_but_shuffled = method.teacher.context == "same" and value(f"{_ACTOR}.shuffle")
    asynchronous = value("trainer.v1.trainer_mode") == "separate_async"
    reasons = (
        (value(f"{_ACTOR}.ppo_epochs") != 1, f"{_ACTOR}.ppo_epochs", "the policy moves between the epochs"),
        (several_updates, f"{_ACTOR}.ppo_mini_batch_size", "the policy moves between the mini-batches"),
        (
            asynchronous and value("trainer.v1.separate_async.parameter_sync_step") != 1,
            "trainer.v1.separate_async.parameter_sync_step",
            "the policy moves between the updates of a step",
        ),
        (
            same_but_shuffled,
            f"{_ACTOR}.shuffle",
            "with context=same the teacher must score the very micro-batches of the update",
        ),
        (correction, _CORRECTION, "it weighs or rejects by old log-probs, before the update"),
        (
            value(f"{_ACTOR}.megatron.router_replay.mode") not in (None, "disabled"),
            f"{_ACTOR}.megatron.router_replay.mode",
            "the pass for old log-probs records the routes",
        ),
        *(
            (bool(value(key)), key, "verl hands out no logits under it, and the entropy would be lost")
            for key in (
                f"{_ACTOR}.pad_to_length",
                f"{_ACTOR}.fsdp_config.pad_to_length",
                f"{_ACTOR}.megatron.pad_to_length",
            )
        ),
    )
    for applies, key, reason in reasons:
        if applies:
            shown = value(key)
            shown = OmegaConf.to_container(shown) if OmegaConf.is_config(shown) else shown
            return f"{key}={shown}: {reason}"
    return None


def weighs_by_old_log_probs(config: DictConfig) -> bool:
    """Whether verl's rollout correction weighs or rejects responses by old log-probs, in its advantage stage."""
    return any(OmegaConf.select(config, f"{_CORRECTION}.{key}") is not None for key in ("rollout_is", "rollout_rs"))


def rows_of_an_update(config: DictConfig) -> int:
    """Responses that one optimizer step takes."""
    return config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
