"""What a measurement of the teacher (`trust=measured`, training/measurement.py) requires of a run.

This module imports neither torch nor verl.
"""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from verl_cast.config.cast import MEASURED, CastConfig, CastConfigError, MethodConfig
from verl_cast.config.words import command_words

_CHOSEN = "the policy's share of correct responses is read from training batches, which must not be chosen"
_REWARD_MODEL = "reward.reward_model"


def why_not_measured(config: DictConfig, method: CastConfig) -> Iterator[CastConfigError]:
    """Every setting that keeps the teacher from being measured; none where nobody asks for it.

    Args:
        method: the run's settings, or those that it might have.
    """
    if method.trust != MEASURED:
        return
    teacher, found = method.teacher, []
    if teacher.weights != "snapshot":
        reason = "the rollout engine must hold the teacher's weights at every refresh, and they must not change between"
        remedy = f"use {command_words({'teacher.weights': 'snapshot'})}"
        found.append((f"{teacher.KEY}.weights", teacher.weights, reason, remedy))
    if teacher.context == "same":
        reason = "there is nothing to measure: at every snapshot teacher and policy are one"
        found.append((f"{teacher.KEY}.context", "same", reason, "use another context"))
    for key, reason, remedy in (
        ("algorithm.filter_groups.enable", f"{_CHOSEN} by their rewards", "set it to False"),
        ("trainer.v1.sampler.custom_sampler.path", f"{_CHOSEN} by another sampler", "set it to null"),
        ("skip.rollout_tq.enable", "the rollout engine must generate", "set it to False"),
    ):
        value = OmegaConf.select(config, key)
        if value:
            found.append((key, value, reason, remedy))
    engine = "actor_rollout_ref.rollout.name"
    if OmegaConf.select(config, engine) == "trtllm":
        reason = "this engine shortens responses to prompts longer than data.max_prompt_length, as a teacher's may be"
        found.append((engine, "trtllm", reason, "use vllm or sglang"))
    pool = f"{_REWARD_MODEL}.enable_resource_pool"
    if OmegaConf.select(config, f"{_REWARD_MODEL}.enable") and not OmegaConf.select(config, pool):
        reason = "rewards are needed while the rollout engine is awake, and this reward model takes its place"
        found.append((pool, False, reason, "set it to True"))
    for key, value, reason, remedy in found:
        always = command_words({"trust": "always"})
        yield CastConfigError(key, value, f"with trust={MEASURED} {reason}; {remedy}, or {always}.")


def same_context(method: MethodConfig) -> str:
    """The words that give the run's teacher the student's own prompt, in which it cannot be measured."""
    settings = {"teacher.context": "same"} | ({"trust": "always"} if method.trust == MEASURED else {})
    return command_words(settings, type(method))
