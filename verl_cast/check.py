"""Checks of a whole run's config, before anything is spent: what CAST needs from the rest of verl's settings.

`check_run` runs in the driver before Ray starts and again in the trainer. `apply_method_defaults` sets, in the driver
only, what the method fixes outside `algorithm.cast` and the user has not set.
"""

import os

from omegaconf import DictConfig, OmegaConf

import verl_cast
from verl_cast.config import CastConfig, CastConfigError
from verl_cast.context import load_template

ESTIMATOR_KEY = "algorithm.adv_estimator"
LOSS_KEY = "actor_rollout_ref.actor.policy_loss.loss_mode"
# verl's losses that replace token advantages by one number per response, or take no old log-probs at all.
LOSSES_WITHOUT_TOKEN_SIGNS = ("geo_mean", "bypass_mode")
SUPPORTED_STRATEGIES = ("fsdp", "fsdp2", "megatron")
# Engine settings under which the swap of parameters could not be trusted: (key below the actor, value that works, why).
ENGINE_SETTINGS = (
    ("fsdp_config.qat.enable", False, "quantization scales are cached between forwards and would be the policy's"),
    ("megatron.qat.enable", False, "quantization scales are cached between forwards and would be the policy's"),
    ("megatron.override_transformer_config.fp8", None, "FP8 copies of the weights go stale when weights are swapped"),
    ("megatron.override_transformer_config.fp4", None, "FP4 copies of the weights go stale when weights are swapped"),
    (
        "megatron.override_ddp_config.overlap_param_gather",
        False,
        "after an update the other ranks' parameters are stale until the next forward, and so would a snapshot be",
    ),
    (
        "optim.override_optimizer_config.overlap_param_gather",
        False,
        "after an update the other ranks' parameters are stale until the next forward, and so would a snapshot be",
    ),
    (
        "megatron.use_distributed_optimizer",
        True,
        "verl's own loading and export of parameters need the distributed optimizer's flat buffers",
    ),
    ("megatron.use_megatron_fsdp", False, "its parameters do not live in the buffers that the self-teacher swaps"),
    ("megatron.dynamic_context_parallel", False, "it was never tried with the teacher's own sequence lengths"),
)
# What the method fixes (section 6), and verl's stock value for it: (key, verl's default, the method's value).
METHOD_DEFAULTS = (
    (LOSS_KEY, "vanilla", "cast"),
    ("actor_rollout_ref.actor.clip_ratio_high", 0.2, 0.28),
)


def is_cast_run(config: DictConfig) -> bool:
    """Whether the run's advantage estimator is `cast`."""
    return str(OmegaConf.select(config, ESTIMATOR_KEY)) == "cast"


def cast_config(config: DictConfig) -> CastConfig:
    """`algorithm.cast` of a run, validated."""
    values = OmegaConf.select(config, "algorithm.cast")
    return CastConfig.from_dict(OmegaConf.to_container(values, resolve=True) if OmegaConf.is_config(values) else values)


def apply_method_defaults(config: DictConfig, overrides: list[str]) -> list[str]:
    """Set what the method fixes where the run has verl's stock value and its command line does not name the key.

    Args:
        config: the composed config, changed in place.
        overrides: the command line's overrides, `key=value`.

    Returns:
        A sentence for every value that was set.
    """
    named = {override.split("=", 1)[0].lstrip("+~") for override in overrides}
    changes = []
    for key, stock, value in METHOD_DEFAULTS:
        if key not in named and OmegaConf.select(config, key) == stock:
            OmegaConf.update(config, key, value)
            changes.append(f"{key}={value} (CAST's value in place of verl's {stock}; set the key to choose another)")
    return changes


def check_run(config: DictConfig) -> None:
    """Refuse a run that could not train CAST as it says.

    Raises:
        CastConfigError: names the key, the value and the remedy.
    """
    loss_mode = OmegaConf.select(config, LOSS_KEY)
    if not is_cast_run(config):
        _check_not_half_cast(config, loss_mode)
        return

    method = cast_config(config)
    load_template(method.teacher.context)
    teacher = method.teacher
    always_policy = teacher.weights == "current" or (teacher.weights == "snapshot" and teacher.refresh_interval == 1)
    if teacher.context == "same" and always_policy:
        raise CastConfigError(
            "algorithm.cast.teacher.context",
            teacher.context,
            "with weights that are the policy's at every step the gap is 0 on every token, and nothing is taught; use "
            "weights=snapshot with refresh_interval above 1, weights=ema, or another context.",
        )

    def refuse_if(key: str, condition, remedy: str) -> None:
        value = OmegaConf.select(config, key)
        if condition(value):
            raise CastConfigError(key, value, remedy)

    refuse_if("trainer.use_v1", lambda v: not v, "CAST needs verl's V1 trainer; set trainer.use_v1=True.")
    refuse_if(
        "actor_rollout_ref.rollout.n",
        lambda v: v < 2,
        "CAST compares the responses of a group; set actor_rollout_ref.rollout.n to 2 or more (the paper uses 8).",
    )
    refuse_if("critic.enable", bool, "CAST has no critic; leave critic.enable unset.")
    refuse_if(
        "algorithm.use_kl_in_reward",
        bool,
        "the verifier's reward alone decides correctness; use actor_rollout_ref.actor.use_kl_loss for a KL term.",
    )
    refuse_if(
        "algorithm.rollout_correction.bypass_mode",
        bool,
        "the gap needs old log-probs of the training engine, not the rollout engine's; set it to False.",
    )
    refuse_if(
        LOSS_KEY,
        lambda v: v in LOSSES_WITHOUT_TOKEN_SIGNS,
        "this loss drops the signs of token advantages, which are what CAST trains with; use loss_mode=cast.",
    )
    refuse_if(
        "actor_rollout_ref.actor.strategy",
        lambda v: v not in SUPPORTED_STRATEGIES,
        f"the self-teacher supports {', '.join(SUPPORTED_STRATEGIES)}.",
    )
    strategy = OmegaConf.select(config, "actor_rollout_ref.actor.strategy")
    mode = OmegaConf.select(config, "trainer.v1.trainer_mode")
    refuse_if(
        "algorithm.filter_groups.enable",
        lambda v: v and (method.base_correct > 0 or method.base_wrong > 0),
        "it removes the all-correct and all-wrong groups, which CAST trains on; set it to False (mixed groups only are "
        "+algorithm.cast.base_correct=0 +algorithm.cast.base_wrong=0).",
    )
    for key, works, reason in ENGINE_SETTINGS:  # a key of another engine is not in the config, and None
        remedy = f"{reason}; set it to {'null' if works is None else works}."
        refuse_if(f"actor_rollout_ref.actor.{key}", lambda v, works=works: v not in (None, works), remedy)
    stages = OmegaConf.select(config, "actor_rollout_ref.actor.megatron.virtual_pipeline_model_parallel_size")
    if method.noise_floor_interval > 0 and strategy == "megatron" and stages not in (None, 1):
        raise CastConfigError(
            "algorithm.cast.noise_floor_interval",
            method.noise_floor_interval,
            "it is measured in micro-batches of one row, which a virtual pipeline cannot always take; set it to 0.",
        )
    sync_step = "trainer.v1.separate_async.parameter_sync_step"
    if mode == "separate_async" and strategy == "fsdp2" and OmegaConf.select(config, sync_step) > 1:
        for key in ("param_offload", "offload_policy"):
            refuse_if(
                f"actor_rollout_ref.actor.fsdp_config.{key}",
                bool,
                f"with {sync_step} above 1 verl's copy of the old policy is an alias of offloaded parameters, "
                "which loses updates; set it to False, or the step to 1.",
            )
    refuse_if("distillation.enabled", bool, "CAST is its own teacher; leave verl's distillation off.")
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        from verl_cast.platform import cpu_config

        cpu_config.check_config(config)


def _check_not_half_cast(config: DictConfig, loss_mode: str | None) -> None:
    """With another estimator no part of CAST may be asked for: such a run would say CAST and train something else."""
    estimator = OmegaConf.select(config, ESTIMATOR_KEY)
    remedy = f"set {ESTIMATOR_KEY}=cast, or leave out this key: {ESTIMATOR_KEY} is {estimator}."
    if loss_mode == "cast":
        raise CastConfigError(LOSS_KEY, loss_mode, remedy)
    values = OmegaConf.select(config, "algorithm.cast")
    if values is not None:
        raise CastConfigError("algorithm.cast", OmegaConf.to_container(OmegaConf.create(values)), remedy)


def summary(config: DictConfig) -> str:
    """One line for the log: which CAST this run trains."""
    method, actor = cast_config(config), config.actor_rollout_ref.actor
    teacher = method.teacher
    chosen = [key for key, _, value in METHOD_DEFAULTS if OmegaConf.select(config, key) != value]
    note = f" | not the method's own: {', '.join(chosen)}" if chosen else ""
    memory = {"snapshot": f"/{teacher.refresh_interval}", "ema": f"/{teacher.ema_decay:g}"}
    weights = teacher.weights + memory.get(teacher.weights, "")
    return (
        f"[verl_cast {verl_cast.__version__}] CAST is active: flip={method.flip} gap_weight={method.gap_weight:g} "
        f"gap_deadzone={method.gap_deadzone:g} base=+{method.base_correct:g}/-{method.base_wrong:g} "
        f"advantage_clip={method.advantage_clip} | teacher weights={weights} context={teacher.context} | "
        f"loss={actor.policy_loss.loss_mode} clip=[{actor.clip_ratio_low}, {actor.clip_ratio_high}] "
        f"{actor.loss_agg_mode} | {config.actor_rollout_ref.rollout.n} responses per prompt{note}"
    )
