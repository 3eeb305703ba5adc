"""Settings of a CAST run that are valid but pointless or risky: each gets a sentence with key, value and remedy.

checks/run.py refuses what cannot work. A setting that merely differs from the evaluated run's gets no warning. Every
function in ADVICE returns one sentence or None. A remedy is made of whole words (`++key=value`) that can be pasted
behind the command; each group of words ends the warning. The doctor shows the sentences, and so does a run's start.
This module imports neither torch nor verl.
"""

from collections.abc import Callable

from omegaconf import DictConfig, OmegaConf

from verl_cast.config.cast import NOISE, CastConfig
from verl_cast.config.methods import cast_config
from verl_cast.config.words import command_words
from verl_cast.platform import is_cpu

# What the study of this repository recommends where the teacher's context is better, and the page with the reason.
RECOMMENDED = {"flip_groups": "zero_variance", "base_correct": 0, "base_wrong": 0.1, "gap_deadzone": 1}
RECOMMENDATION = f"{command_words(RECOMMENDED)} (verl_cast/advantage/README.md, Why)"

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


def deadzone_is_wide(config: DictConfig, method: CastConfig) -> str | None:
    if method.gap_deadzone == NOISE or method.gap_deadzone <= 1:
        return None
    return (
        f"{_PREFIX}.gap_deadzone={method.gap_deadzone:g} nats: only tokens whose probability differs by a factor of "
        f"{2.718281828**method.gap_deadzone:.1f} or more have a gap at all (cast/gap/deadzone_share shows the others). "
        f"Set {command_words({'gap_deadzone': 1})} or less."
    )


def clip_is_below_the_base(config: DictConfig, method: CastConfig) -> str | None:
    clip = method.advantage_clip
    if clip is None:
        return None
    bases = {key: getattr(method, key) for key in ("base_correct", "base_wrong") if getattr(method, key) > clip}
    if not bases:
        return None
    named = " and ".join(f"{key}={base:g}" for key, base in bases.items())
    return (
        f"{_PREFIX}.advantage_clip={clip:g} is below {named}: in these groups the clip sets the size of the advantage "
        f"and cuts off most of the gap's weight. Set {command_words({'advantage_clip': max(bases.values())})} or more, "
        f"or {command_words(dict.fromkeys(bases, clip))}."
    )


def threshold_misses_binary_rewards(config: DictConfig, method: CastConfig) -> str | None:
    threshold = method.correct_threshold
    if 0 <= threshold < 1:
        return None
    return (
        f"{_PREFIX}.correct_threshold={threshold:g}: a response is correct if its reward is greater, so with rewards "
        f"of 0 and 1 all responses are {'wrong' if threshold >= 1 else 'correct'}. Set it between the two rewards of "
        f"your verifier: {command_words({'correct_threshold': 0.5})} for 0 and 1."
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


def snapshot_is_never_renewed(config: DictConfig, method: CastConfig) -> str | None:
    teacher, steps = method.teacher, OmegaConf.select(config, "trainer.total_training_steps")
    if teacher.weights != "snapshot" or steps is None or teacher.refresh_interval < steps:
        return None
    return (
        f"{_PREFIX}.teacher.refresh_interval={teacher.refresh_interval} in a run of {steps} training steps: the "
        f"snapshot is never renewed. Set {command_words({'teacher.refresh_interval': _often(steps)})}, or say what it "
        f"is: {command_words({'teacher.weights': 'initial'})}."
    )


def snapshot_is_the_policy(config: DictConfig, method: CastConfig) -> str | None:
    teacher = method.teacher
    if teacher.weights != "snapshot" or teacher.refresh_interval > 1:
        return None
    return (
        f"{_PREFIX}.teacher.refresh_interval=1: the teacher has the policy's weights at every step, so its copy is "
        f"useless. {command_words({'teacher.weights': 'current'})} is the same without the copy; the paper's run has "
        f"{command_words({'teacher.refresh_interval': 10})}."
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
        "descriptions that stand in the student's prompt, so tool calls look unlikely to it. Set "
        f"{command_words({'teacher.context': 'same'})}."
    )


def noise_is_measured_often(config: DictConfig, method: CastConfig) -> str | None:
    if method.noise_floor_interval != 1:
        return None
    return (
        f"{_PREFIX}.noise_floor_interval=1: every step pays for one more forward to measure the engine's noise. Set "
        f"{command_words({'noise_floor_interval': 50})} or more."
    )


def interval_is_never_reached(config: DictConfig, method: CastConfig) -> str | None:
    steps = OmegaConf.select(config, "trainer.total_training_steps")
    for key, interval, what in (
        ("dump.interval", method.dump.interval, "no trajectory is ever written"),
        ("noise_floor_interval", method.noise_floor_interval, "the noise is measured in the first step only"),
    ):
        if steps is not None and interval is not None and interval > steps:
            return (
                f"{_PREFIX}.{key}={interval} in a run of {steps} training steps: {what}. Set "
                f"{command_words({key: _often(steps)})}, or leave it out."
            )
    return None


def _often(steps: int) -> int:
    """An interval that a run of this many steps reaches about ten times."""
    return max(2, steps // 10)


# ---------------------------------------------------------------------------------------------------- the rest of verl


def groups_are_small(config: DictConfig, method: CastConfig) -> str | None:
    key, n = f"{_ROLLOUT}.n", OmegaConf.select(config, f"{_ROLLOUT}.n")
    if n not in (2, 3):
        return None
    return (
        f"{key}={n}: even a problem that the policy solves half of the time gives {2 * 0.5**n:.0%} one-sided groups, "
        f"where only the self-teacher makes differences between tokens. Set ++{key}=8 as in the paper, or at least 4."
    )


def samples_are_equal(config: DictConfig, method: CastConfig) -> str | None:
    key = f"{_ROLLOUT}.top_k"
    if OmegaConf.select(config, key) != 1:
        return None
    return f"{key}=1: all responses of a group are the same, so no group is ever mixed. Set ++{key}=-1."


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
    deadzone_is_wide,
    clip_is_below_the_base,
    threshold_misses_binary_rewards,
    bases_outweigh_mixed_groups,
    snapshot_is_never_renewed,
    snapshot_is_the_policy,
    average_hardly_moves,
    teacher_pulls_back_to_the_start,
    context_lacks_the_tools,
    noise_is_measured_often,
    interval_is_never_reached,
    groups_are_small,
    samples_are_equal,
    overlong_penalty_turns_correct_into_wrong,
    rewards_come_from_a_model,
    rounding_decides_signs,
    noise_is_measured_once,
)
