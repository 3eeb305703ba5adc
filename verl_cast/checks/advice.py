"""Settings of a CAST run that are valid but pointless or risky: each gets a sentence with key, value and remedy.

checks/run.py refuses what cannot work. A setting that merely differs from the evaluated run's gets no warning. The
default run, which is the paper's, gets one: its teacher is always trusted. Every function in ADVICE returns one
sentence or None. A remedy is made of whole words (`++key=value`) that can be pasted behind the command; each group of
words ends the warning. The doctor shows the sentences, and so does a run's start. This module imports neither torch
nor verl.
"""

from collections.abc import Callable
from dataclasses import replace

from omegaconf import DictConfig, OmegaConf

from verl_cast.checks.trust import same_context, why_not_measured
from verl_cast.config.cast import MEASURED, NOISE, CastConfig
from verl_cast.config.methods import cast_config
from verl_cast.config.words import command_words
from verl_cast.platform import is_cpu

_PREFIX = "algorithm.cast"
_ROLLOUT = "actor_rollout_ref.rollout"


def logits_type(config: DictConfig) -> tuple[str, str]:
    """The key that decides the type of the model's logits, and that type: bf16, fp16 or fp32.

    verl's FSDP engines run the model in `mixed_precision.param_dtype`, Megatron in its `dtype`. Both give logits of
    that precision. Only Triton's fused kernels form log-probs without logits, from float32 sums.
    """
    actor, model = "actor_rollout_ref.actor", "actor_rollout_ref.model"
    if OmegaConf.select(config, f"{actor}.strategy") == "megatron":
        key = f"{actor}.megatron.dtype"
        fused, dtype = OmegaConf.select(config, f"{model}.use_fused_kernels"), OmegaConf.select(config, key)
    else:
        parent = f"{actor}.fsdp_config.mixed_precision"
        key, dtype = f"{parent}.param_dtype", (OmegaConf.select(config, parent) or {}).get("param_dtype", "bf16")
        backend = OmegaConf.select(config, f"{model}.fused_kernel_options.impl_backend")
        fused = OmegaConf.select(config, f"{model}.use_fused_kernels") and backend == "triton"
    short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    return key, "fp32" if fused else short.get(str(dtype), str(dtype))


def warnings_of(config: DictConfig) -> list[str]:
    """Warnings about a run, before it starts.

    Args:
        config: the composed config of a run that `check_run` accepts, with adv_estimator=cast.
    """
    method, found = cast_config(config), []
    for advise in ADVICE:
        try:
            found.append(advise(config, method))
        except Exception as problem:  # advice must never keep a run from starting
            found.append(f"{advise.__name__} could not be looked at: {type(problem).__name__}: {problem}")
    return [sentence for sentence in found if sentence is not None]


# ------------------------------------------------------------------------------------------- the method's own settings


def no_gap_can_act(config: DictConfig, method: CastConfig) -> str | None:
    weights_act = method.gap_weight > 0 and {method.positive_clip, method.negative_clip} != {(1.0, 1.0)}
    if method.flip != "none" or weights_act:
        return None
    what = "GRPO's advantages" if method.base_correct == method.base_wrong == 0 else "the base advantages"
    return (
        f"{_PREFIX}.flip=none with gap_weight={method.gap_weight:g} and bounds {list(method.positive_clip)}, "
        f"{list(method.negative_clip)}: no gap can act, and the run trains on {what} only. "
        f"Set {command_words({'flip': 'both'})}."
    )


def bases_outweigh_mixed_groups(config: DictConfig, method: CastConfig) -> str | None:
    key = "algorithm.norm_adv_by_std_in_grpo"
    if OmegaConf.select(config, key) is not False or max(method.base_correct, method.base_wrong) < 1:
        return None
    return (
        f"{key}=False: mixed groups then have base advantages of reward - mean, always below 1, while all-correct and "
        f"all-wrong groups keep +{method.base_correct:g} and -{method.base_wrong:g} and outweigh them. Set "
        f"{command_words({'base_correct': 0.5, 'base_wrong': 0.5})} or less."
    )


# --------------------------------------------------------------------------------------------------------- the teacher


def teacher_is_always_trusted(config: DictConfig, method: CastConfig) -> str | None:
    """Not where this run's teacher cannot be measured whatever its weights: there is no remedy then."""
    teacher_acts = method.flip != "none" or method.base_correct or method.base_wrong
    if method.trust == MEASURED or not teacher_acts:
        return None
    measured = replace(method, trust=MEASURED, teacher=replace(method.teacher, weights="snapshot"))
    if any(why_not_measured(config, measured)):
        return None
    snapshot = {} if method.teacher.weights == "snapshot" else {"teacher.weights": "snapshot"}
    return (
        f"{_PREFIX}.trust={method.trust}: the paper's rule destroys a policy whose teacher context is not better than "
        f"its own prompt. Set {command_words({**snapshot, 'trust': MEASURED})}."
    )


def snapshot_is_never_renewed(config: DictConfig, method: CastConfig) -> str | None:
    teacher, steps = method.teacher, OmegaConf.select(config, "trainer.total_training_steps")
    if teacher.weights != "snapshot" or steps is None or teacher.refresh_interval < steps:
        return None
    often = command_words({"teacher.refresh_interval": max(2, steps // 10)})
    initial = f", or say what it is: {command_words({'teacher.weights': 'initial'})}"
    return (
        f"{_PREFIX}.teacher.refresh_interval={teacher.refresh_interval} in a run of {steps} training steps: the "
        f"snapshot is never renewed. Set {often}{'' if method.trust == MEASURED else initial}."
    )


def average_hardly_moves(config: DictConfig, method: CastConfig) -> str | None:
    teacher, steps = method.teacher, OmegaConf.select(config, "trainer.total_training_steps")
    if teacher.weights != "ema":
        return None
    decay = teacher.ema_decay
    if steps is not None and decay**steps > 0.9:
        what = f"after all {steps} steps the teacher is still {decay**steps:.0%} the initial policy"
    elif steps is None and decay > 0.9999:
        what = f"the teacher remembers more than {1 / (1 - decay):.0f} training steps"
    else:
        return None
    lower = command_words({"teacher.ema_decay": 0.995 if steps is None else min(0.995, 1 - 1 / max(2, steps))})
    initial = command_words({"teacher.weights": "initial"})
    return f"{_PREFIX}.teacher.ema_decay={decay:g}: {what}. Set {lower}, or say what it is: {initial}."


def teacher_pulls_back_to_the_start(config: DictConfig, method: CastConfig) -> str | None:
    if (method.teacher.context, method.teacher.weights) != ("same", "initial"):
        return None
    return (
        f"{_PREFIX}.teacher.context=same with weights=initial: the gap is the policy's change since the start, so "
        f"every flip trains it back there. Set {command_words({'teacher.weights': 'snapshot'})}, or another context."
    )


def context_lacks_the_tools(config: DictConfig, method: CastConfig) -> str | None:
    key = f"{_ROLLOUT}.agent.default_agent_loop"
    loop = OmegaConf.select(config, key)
    if loop != "tool_agent" or method.teacher.context == "same":
        return None
    return (
        f"{_PREFIX}.teacher.context={method.teacher.context} with {key}={loop}: the teacher does not read the tools' "
        "descriptions that stand in the student's prompt, so tool calls look unlikely to it. "
        f"Set {same_context(method)}."
    )


# ---------------------------------------------------------------------------------------------------- the rest of verl


def overlong_penalty_turns_correct_into_wrong(config: DictConfig, method: CastConfig) -> str | None:
    key = "reward.reward_kwargs.overlong_buffer_cfg"
    penalty = OmegaConf.select(config, key)
    if not penalty or not penalty.get("enable") or 1 - penalty.penalty_factor > method.correct_threshold:
        return None
    return (
        f"{key}.penalty_factor={penalty.penalty_factor:g}: the penalty is taken off the reward, so a long correct "
        f"response (1 - {penalty.penalty_factor:g}) counts as wrong for CAST. Set "
        f"++{key}.penalty_factor={0.8 * (1 - method.correct_threshold):g} or ++{key}.enable=False."
    )


def rewards_come_from_a_model(config: DictConfig, method: CastConfig) -> str | None:
    key, function = "reward.reward_model.enable", "reward.custom_reward_function.path"
    if not OmegaConf.select(config, key) or OmegaConf.select(config, function):
        return None
    return (
        f"{key}=True: a reward model gives grades, and CAST needs a verdict. What is above {_PREFIX}.correct_threshold="
        f"{method.correct_threshold:g} counts as correct; set that for the model's scale, or use a verifier: "
        f"++{key}=False ++{function}=pkg://verl_cast.verifier."
    )


def rounding_decides_signs(config: DictConfig, method: CastConfig) -> str | None:
    """Logits in bf16 are 0.125 nats apart at 16 to 32, and a log-prob of them is no finer, whatever forms it."""
    key, dtype = logits_type(config)
    if method.gap_deadzone != 0 or method.flip == "none" or dtype not in ("bf16", "fp16"):
        return None
    where = "log-probs come" if is_cpu() else "the model's logits come"  # a CPU's autocast rounds log_softmax too
    remedy = command_words({"gap_deadzone": NOISE, "noise_floor_interval": 50})
    other = f" Or set ++{key}=fp32." if is_cpu() else ""
    return (
        f"{key}={dtype}: {where} in that type, and its rounding decides the sign of small gaps. Set {remedy}, which "
        f"measures the noise and keeps such gaps from flipping.{other}"
    )


def noise_is_measured_once(config: DictConfig, method: CastConfig) -> str | None:
    if method.gap_deadzone != NOISE or method.noise_floor_interval:
        return None
    return (
        f"{_PREFIX}.gap_deadzone={NOISE} with noise_floor_interval=0: the noise floor of the first step holds for the "
        "whole run, and a policy that becomes surer has another one. Set "
        f"{command_words({'noise_floor_interval': 50})}."
    )


ADVICE: tuple[Callable[[DictConfig, CastConfig], str | None], ...] = (
    no_gap_can_act,
    bases_outweigh_mixed_groups,
    teacher_is_always_trusted,
    snapshot_is_never_renewed,
    average_hardly_moves,
    teacher_pulls_back_to_the_start,
    context_lacks_the_tools,
    overlong_penalty_turns_correct_into_wrong,
    rewards_come_from_a_model,
    rounding_decides_signs,
    noise_is_measured_once,
)
