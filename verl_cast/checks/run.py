"""Checks of a whole run's config before anything is spent: what CAST or a baseline needs from verl's other settings.

One error names everything that is wrong, because each try costs the user a start of verl. `check_run` runs in the
driver, before Ray starts, and again in the trainer. `apply_method_defaults` runs in the driver only: it sets what the
method fixes outside `algorithm.cast` and the user has not set.
"""

import difflib
import math
from collections.abc import Callable, Iterator
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import verl_cast
from verl_cast.checks.spelling import LOSS_KEY, misspelt_groups, settings_of_other_methods, settings_out_of_place
from verl_cast.checks.stack import unfit_packages
from verl_cast.checks.trust import why_not_measured
from verl_cast.config.cast import NOISE, TEMPLATE_SUFFIXES, CastConfig, CastConfigError, MethodConfig
from verl_cast.config.methods import is_cast_run, method_class, method_config
from verl_cast.config.words import command_words, narration
from verl_cast.platform import is_cpu
from verl_cast.teacher.context import check_shows_the_question, load_template

# verl's losses that replace token advantages by one number per response, or take no old log-probs at all.
LOSSES_WITHOUT_TOKEN_SIGNS = ("geo_mean", "bypass_mode")
STRATEGY_KEY = "actor_rollout_ref.actor.strategy"
SYNC_KEY = "trainer.v1.separate_async.parameter_sync_step"
SUPPORTED_STRATEGIES = ("fsdp", "fsdp2", "megatron")
# Engine settings under which the swap of parameters is not safe: reason -> (key below the actor, value that works).
ENGINE_SETTINGS = {
    "quantization scales are cached between forwards and would be the policy's": (
        ("fsdp_config.qat.enable", False),
        ("megatron.qat.enable", False),
    ),
    "FP8 and FP4 copies of the weights go stale when weights are swapped": (
        ("megatron.override_transformer_config.fp8", None),
        ("megatron.override_transformer_config.fp4", None),
    ),
    "after an update the other ranks' parameters are stale until the next forward, and a snapshot would be stale": (
        ("megatron.override_ddp_config.overlap_param_gather", False),
        ("optim.override_optimizer_config.overlap_param_gather", False),
    ),
    "verl's own loading and export of parameters need the distributed optimizer's flat buffers": (
        ("megatron.use_distributed_optimizer", True),
    ),
    "its parameters do not live in the buffers that the self-teacher swaps": (("megatron.use_megatron_fsdp", False),),
    "it was never tried with the teacher's own sequence lengths": (("megatron.dynamic_context_parallel", False),),
}
# What the method fixes (section 6), and verl's stock value for it: (key, verl's default, the method's value).
METHOD_DEFAULTS = (
    (LOSS_KEY, "vanilla", "cast"),
    ("actor_rollout_ref.actor.clip_ratio_high", 0.2, 0.28),
)


def apply_method_defaults(config: DictConfig, overrides: list[str] | None = None) -> list[str]:
    """Set what CAST fixes, where the run has verl's stock value and the command line does not name the key.

    Args:
        config: the composed config, changed in place.
        overrides: the command line's overrides, `key=value`; None: those that hydra knows of.

    Returns:
        One sentence for every value that was set; none for another estimator.
    """
    if not is_cast_run(config):
        return []
    if overrides is None:
        overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    named = {override.split("=", 1)[0].lstrip("+~") for override in overrides}
    changes = []
    for key, stock, value in METHOD_DEFAULTS:
        if key not in named and OmegaConf.select(config, key) == stock:
            OmegaConf.update(config, key, value)
            changes.append(f"{key}={value} (CAST's value in place of verl's {stock}; set the key to choose another)")
    return changes


def check_run(config: DictConfig, twin_as_well: bool = False) -> None:
    """Refuse a run that cannot train the method that it names.

    Args:
        twin_as_well: refuse a run of another estimator, too, if verl would end it after its start.

    Raises:
        CastConfigError: names every key that cannot work, its value and the remedy, one a line.
    """
    method, checks = method_class(config), [settings_of_other_methods(config)]
    if method is not None:
        checks += [
            misspelt_groups(config),
            settings_out_of_place(config, method),
            _template(config),
            _own_settings(config),
            _rest_of_verl(config, method),
            _cpu(config),
        ]
    if method is not None or twin_as_well:
        checks += [_micro_batches(config), unfit_packages(config)]
    complaints: list[str] = []
    for check in checks:
        try:
            for error in check:
                complaints += error.complaints
        except CastConfigError as error:  # other settings of the check are not looked at
            complaints += error.complaints
    if complaints:
        raise CastConfigError.of_several(list(dict.fromkeys(complaints)))


def _own_settings(config: DictConfig) -> Iterator[CastConfigError]:
    """What depends on the method's settings, which are valid by themselves."""
    method = method_config(config)
    teacher = method.teacher
    if teacher.weights == "current" and _updates_between_syncs(config) > 1:
        snapshot = command_words({"teacher.weights": "snapshot"}, type(method))
        yield CastConfigError(
            f"{teacher.KEY}.weights",
            "current",
            f"with {SYNC_KEY} above 1 the live weights are no longer those of the step's old log-probs, and the gap "
            f"would be wrong; use {snapshot}, or {SYNC_KEY}=1.",
        )
    if isinstance(method, CastConfig):
        yield from _cast_settings(config, method)
        yield from why_not_measured(config, method)
    else:
        from verl_cast.teacher.privileged import check_references

        check_references(config, method)


def _cast_settings(config: DictConfig, method: CastConfig) -> Iterator[CastConfigError]:
    teacher = method.teacher
    always_policy = teacher.weights == "current" or (teacher.weights == "snapshot" and teacher.refresh_interval == 1)
    if teacher.context == "same" and always_policy:
        yield CastConfigError(
            f"{teacher.KEY}.context",
            teacher.context,
            "with weights that are the policy's at every step the gap is 0 on every token, and the teacher teaches "
            f"nothing; use {command_words({'teacher.weights': 'snapshot', 'teacher.refresh_interval': 10})}, "
            f"{command_words({'teacher.weights': 'ema'})}, or {command_words({'teacher.context': 'plain'})}.",
        )
    if OmegaConf.select(config, "algorithm.filter_groups.enable") and (method.base_correct or method.base_wrong):
        yield CastConfigError(
            "algorithm.filter_groups.enable",
            True,
            "it removes the all-correct and all-wrong groups, which CAST trains on; use algorithm.filter_groups.enable="
            f"False. To train on mixed groups only, use {command_words({'base_correct': 0, 'base_wrong': 0})}.",
        )
    for key, is_asked in (
        ("noise_floor_interval", (method.noise_floor_interval or 0) > 0),
        ("gap_deadzone", method.gap_deadzone == NOISE),
    ):
        if is_asked and _has_virtual_pipeline(config):
            yield CastConfigError(
                f"algorithm.cast.{key}",
                getattr(method, key),
                "the noise floor is measured in micro-batches of one row, which a virtual pipeline cannot always "
                f"take; use {command_words({key: 0})}.",
            )


def noise_floor_interval(config: DictConfig, method: MethodConfig) -> int | None:
    """Training steps between measurements of the noise floor. 0: only in the first step; None: never."""
    return None if _has_virtual_pipeline(config) else method.noise_floor_interval


def _has_virtual_pipeline(config: DictConfig) -> bool:
    stages = OmegaConf.select(config, "actor_rollout_ref.actor.megatron.virtual_pipeline_model_parallel_size")
    return OmegaConf.select(config, STRATEGY_KEY) == "megatron" and stages not in (None, 1)


def _updates_between_syncs(config: DictConfig) -> int:
    mode = OmegaConf.select(config, "trainer.v1.trainer_mode")
    return OmegaConf.select(config, SYNC_KEY) if mode == "separate_async" else 1


def _template(config: DictConfig) -> Iterator[CastConfigError]:
    """The template is looked at even where other settings of CAST are invalid."""
    context = OmegaConf.select(config, "algorithm.cast.teacher.context")
    if is_cast_run(config) and isinstance(context, str) and context.endswith(TEMPLATE_SUFFIXES):
        try:
            check_shows_the_question(context, load_template(context))
        except CastConfigError as error:
            yield error


def _rest_of_verl(config: DictConfig, method: type[MethodConfig]) -> Iterator[CastConfigError]:
    """What every method with a self-teacher requires of verl's own settings."""
    title, actor = method.TITLE, "actor_rollout_ref.actor"
    rules: list[tuple[str, Callable[[Any], Any], str]] = [
        ("trainer.use_v1", lambda v: not v, f"{title} needs verl's V1 trainer; set trainer.use_v1=True."),
        (
            "actor_rollout_ref.rollout.n",
            lambda v: method.COMPARES_A_GROUP and (not isinstance(v, int) or v < 2),
            f"{title} compares the responses of a group; use actor_rollout_ref.rollout.n=8 as in the paper, or 2 or "
            "more.",
        ),
        (
            "actor_rollout_ref.rollout.temperature",
            lambda v: not isinstance(v, int | float) or v <= 0,
            "all responses of a group would be the same, and log-probs exist only at temperatures above 0; use "
            "actor_rollout_ref.rollout.temperature=1.0, or another value that samples.",
        ),
        ("critic.enable", bool, f"{title} has no critic; leave critic.enable unset."),
        (
            "algorithm.use_kl_in_reward",
            bool,
            f"only the verifier's reward decides correctness; use {actor}.use_kl_loss for a KL term.",
        ),
        (
            "algorithm.rollout_correction.bypass_mode",
            bool,
            "the gap needs old log-probs of the training engine, not the rollout engine's; use "
            "algorithm.rollout_correction.bypass_mode=False.",
        ),
        (
            STRATEGY_KEY,
            lambda v: v not in SUPPORTED_STRATEGIES,
            f"the self-teacher supports {', '.join(SUPPORTED_STRATEGIES)}.",
        ),
        ("distillation.enabled", bool, f"{title} is its own teacher; leave verl's distillation off."),
    ]
    for reason, settings in ENGINE_SETTINGS.items():
        for key, works in settings:  # a key of another engine is not in the config, and None
            remedy = f"{reason}; use ++{actor}.{key}={'null' if works is None else works}."
            rules.append((f"{actor}.{key}", lambda v, works=works: v not in (None, works), remedy))
    strategy = OmegaConf.select(config, STRATEGY_KEY)
    if strategy == "fsdp2" and _updates_between_syncs(config) > 1:
        for key in (f"{actor}.fsdp_config.param_offload", f"{actor}.fsdp_config.offload_policy"):
            remedy = (
                f"with {SYNC_KEY} above 1 verl's copy of the old policy is an alias of offloaded parameters, which "
                f"loses updates; use {key}=False, or {SYNC_KEY}=1."
            )
            rules.append((key, bool, remedy))
    ranks = OmegaConf.select(config, "trainer.nnodes") * OmegaConf.select(config, "trainer.n_gpus_per_node")
    if strategy == "fsdp" and ranks > 1:
        remedy = (
            f"PyTorch's FSDP1 then shares no gradients, and each of the {ranks} ranks trains a policy of its own (with "
            f"GRPO too); use {STRATEGY_KEY}=fsdp2, or another size."
        )
        rules.append((f"{actor}.fsdp_config.fsdp_size", lambda v: v == 1, remedy))
    for key, is_refused, remedy in rules:
        value = OmegaConf.select(config, key)
        if is_refused(value):
            yield CastConfigError(key, value, remedy)
    yield from _loss(config, method)


def _loss(config: DictConfig, method: type[MethodConfig]) -> Iterator[CastConfigError]:
    """verl looks the loss up in a worker, after models have been loaded."""
    value, usual = OmegaConf.select(config, LOSS_KEY), "cast" if method is CastConfig else "vanilla"
    if value in LOSSES_WITHOUT_TOKEN_SIGNS:
        yield CastConfigError(
            LOSS_KEY,
            value,
            f"this loss drops the signs of token advantages, and {method.TITLE} trains with them; use "
            f"{LOSS_KEY}={usual}.",
        )
        return
    if OmegaConf.select(config, "actor_rollout_ref.model.external_lib"):
        return  # a worker imports it, and it may register losses
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    if value != "cast" and value not in POLICY_LOSS_REGISTRY:
        good = [name for name in POLICY_LOSS_REGISTRY if name not in LOSSES_WITHOUT_TOKEN_SIGNS]
        near = difflib.get_close_matches(str(value), good, n=1)
        yield CastConfigError(
            LOSS_KEY,
            value,
            f"verl has no such loss{f'; did you mean {near[0]}?' if near else '.'} Use {LOSS_KEY}={usual}, or one of "
            f"{', '.join(good)}.",
        )


def _cpu(config: DictConfig) -> Iterator[CastConfigError]:
    if is_cpu():
        from verl_cast.platform import cpu_config

        try:
            cpu_config.check_config(config)
        except ValueError as problem:
            _, *settings = str(problem).splitlines()
            yield CastConfigError.of_several([f"VERL_PLATFORM=cpu: {line.strip()}" for line in settings])


def _micro_batches(config: DictConfig) -> Iterator[CastConfigError]:
    """verl's workers cut a rank's rows into micro-batches of a fixed size: those that do not come out even.

    Each would end the run in its first step.
    """
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    ranks, syncs = _data_parallel_ranks(config), _updates_between_syncs(config)
    if not isinstance(rollout.n, int) or ranks < 1:
        return  # refused by another check, or by verl
    if config.data.train_batch_size % syncs:
        remedy = f"{SYNC_KEY}={syncs} divides it into updates; use a multiple."
        yield CastConfigError("data.train_batch_size", config.data.train_batch_size, remedy)
        return
    if actor.use_dynamic_bsz != rollout.log_prob_use_dynamic_bsz:
        key = "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz"
        remedy = f"verl's workers want it as actor.use_dynamic_bsz; use {key}={actor.use_dynamic_bsz}."
        yield CastConfigError(key, rollout.log_prob_use_dynamic_bsz, remedy)
        return
    update = actor.ppo_mini_batch_size * rollout.n
    if update % ranks:
        remedy = f"{ranks} ranks cannot share an update's {update} rows ({rollout.n} responses per prompt)."
        yield CastConfigError("actor_rollout_ref.actor.ppo_mini_batch_size", actor.ppo_mini_batch_size, remedy)
    step = config.data.train_batch_size // syncs * rollout.n
    multiple = math.lcm(ranks, update)
    step = -(-step // multiple) * multiple  # verl adds padding rows
    sizes = []
    if not actor.use_dynamic_bsz:
        sizes.append(("rollout.log_prob_micro_batch_size_per_gpu", "a step", step))
        sizes.append(("actor.ppo_micro_batch_size_per_gpu", "an update", update))
    if actor.use_kl_loss and not config.actor_rollout_ref.ref.log_prob_use_dynamic_bsz:
        sizes.append(("ref.log_prob_micro_batch_size_per_gpu", "a step", step))
    for name, what, rows in sizes:
        key, here = f"actor_rollout_ref.{name}", rows // ranks
        size = OmegaConf.select(config, key)
        if size and here % size:
            remedy = f"a rank has {here} rows of {what}, which fill no whole number of such micro-batches; use "
            yield CastConfigError(key, size, f"{remedy}{key}={math.gcd(here, size)}.")


def _data_parallel_ranks(config: DictConfig) -> int:
    actor = config.actor_rollout_ref.actor
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    if actor.strategy == "megatron":
        sizes = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
        return ranks // math.prod(actor.megatron[size] for size in sizes)
    if actor.strategy in ("fsdp", "fsdp2"):
        return ranks // max(actor.ulysses_sequence_parallel_size, actor.fsdp_config.ulysses_sequence_parallel_size)
    return 0  # another engine's layout is not known here


def summary(config: DictConfig) -> str:
    """One line for the log: the method that this run trains, with every setting that differs from its default."""
    method, actor = method_config(config), config.actor_rollout_ref.actor
    title, note = method.TITLE, ""
    if isinstance(method, CastConfig):
        chosen = [key for key, _, value in METHOD_DEFAULTS if OmegaConf.select(config, key) != value]
        note = f" | not the method's own: {', '.join(chosen)}" if chosen else ""
    else:
        teacher = method.teacher
        title += " (a baseline, not CAST)"
        note = f" | PRIVILEGED teacher (reads {'a peer' if teacher.context == 'peer' else teacher.reference_key})"
    return (
        f"[verl_cast {verl_cast.__version__}] {title} is active: {narration(method)} | "
        f"teacher: {method.teacher.weights} weights, context {method.teacher.context} | "
        f"loss={actor.policy_loss.loss_mode} clip=[{actor.clip_ratio_low}, {actor.clip_ratio_high}] "
        f"{actor.loss_agg_mode} | {config.actor_rollout_ref.rollout.n} responses per prompt{note}"
    )
