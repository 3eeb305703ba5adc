"""The sections on a verl command: would it train, with which settings, data and prompts, and what does it take?

The checks read config, files, tokenizer and shapes, before the run starts. They start no Ray and load no weights. They
call the reward function for a few made-up responses, in a child process (rewards.py).
"""

import copy
import inspect
from collections.abc import Iterator
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_cast.checks import advice
from verl_cast.checks.run import check_run, summary
from verl_cast.checks.spelling import TWIN, flat, settings_of_a_twin
from verl_cast.checks.stack import stack_warnings
from verl_cast.config.cast import CastConfig, CastConfigError, MethodConfig
from verl_cast.config.methods import ESTIMATOR_KEY, is_cast_run, method_class, method_config
from verl_cast.tools.cli import UserError, cause_of
from verl_cast.tools.doctor import contexts, data, memory, rewards, start
from verl_cast.tools.doctor.lines import Line, Section, error, note, ok, warning
from verl_cast.tools.run_parts import load_model_config
from verl_cast.training.passes import why_two_passes

# Groups of verl's old config, each key null, which its V1 trainer ignores.
OLD_GROUPS = ("custom_reward_function", "reward_model", "sandbox_fusion")


def subject(config: DictConfig) -> str:
    """What the run trains, in words."""
    method = method_class(config)
    if method is None:
        return "GRPO, a CAST run's twin"
    return method.TITLE if method is CastConfig else f"{method.TITLE}, a baseline, not CAST"


def sections(config: DictConfig) -> Iterator[Section]:
    """All sections on the composed config of a run."""
    refused, estimator = _refusals(config), OmegaConf.select(config, ESTIMATOR_KEY)
    if method_class(config) is None and estimator != TWIN:
        other = error("estimator", f"this command would train {estimator}, not CAST: add {ESTIMATOR_KEY}=cast.")
        yield "Command", [line for line in refused if line.text.startswith(ESTIMATOR_KEY)] or [other]
        return
    yield "Command", refused or [ok("settings", "accepted by verl_cast and by verl")]
    method = None if refused or method_class(config) is None else method_config(config)
    model_config, found = None, data.Data()
    try:
        model_config = load_model_config(config)
        found = data.check(config, model_config, is_accepted=not refused)
    except UserError as problem:
        found.lines.append(error("model", str(problem)))
    if not refused:
        threshold = CastConfig.correct_threshold if method is None else method.correct_threshold
        tokenizer = None if model_config is None else model_config.tokenizer
        found.lines += rewards.check(config, tokenizer, list(found.of_source.values()), threshold)
    yield "Data and verifier", found.lines
    if refused:  # the other checks need valid settings; data can be checked without
        yield "Everything else", [note("", "skipped: these checks need a command that verl_cast and verl accept")]
        return
    steps, counted = start.steps(config, found.total)
    title = "GRPO" if method is None else method.TITLE
    yield f"What {title} will do", [*_settings(config, method), *counted, *start.resume(config, method, steps)]
    if found.chats:
        cast = method if isinstance(method, CastConfig) else None
        yield "Prompts", contexts.check(config, cast, model_config, found.chats)
    if model_config is not None and method is not None:
        yield "Memory", memory.check(config, method.teacher, model_config.hf_config)
    warnings = _warnings(config, steps, None if model_config is None else model_config.hf_config)
    yield "Warnings", [warning("", text) for text in warnings] or [ok("", "none")]


def _refusals(config: DictConfig) -> list[Line]:
    """Errors of verl_cast's checks and of verl's own; empty if both accept the command."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    lines, engine = [], "actor_rollout_ref.rollout.name"
    if OmegaConf.is_missing(config.actor_rollout_ref.rollout, "name"):  # verl has no default
        OmegaConf.update(config, engine, "vllm")  # so that all other checks can run
        lines.append(error("rollout", f"{engine} is not set; use {engine}=vllm, for example."))
    # A twin is refused by verl in its first step, or not at all; a run of ours at its start.
    try:
        check_run(config, twin_as_well=True)
    except CastConfigError as problem:
        lines += [error("settings", complaint) for complaint in problem.complaints]
    # verl's own function: the plugin's wrapper around it would repeat the checks above.
    stock = inspect.unwrap(validate_config)
    try:
        stock(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    except (AssertionError, ValueError, TypeError, HydraException, OmegaConfBaseException) as problem:
        lines.append(error("verl", f"verl refuses this command: {cause_of(problem)}"))
    return lines


def _settings(config: DictConfig, method: MethodConfig | None) -> list[Line]:
    actor, prompts, n = config.actor_rollout_ref.actor, config.data.train_batch_size, config.actor_rollout_ref.rollout.n
    updates = max(prompts // actor.ppo_mini_batch_size, 1) * actor.ppo_epochs
    batch = note("batch", f"{prompts} prompts x {n} responses, {updates} optimizer step{'s' * (updates > 1)} each time")
    if method is None:
        return [batch, *(note("settings", sentence) for sentence in settings_of_a_twin(config))]
    because = why_two_passes(config, method)
    passes = f"two before an update: {because}" if because else "one before an update, unless the model has dropout"
    return [note("settings", summary(config)), batch, note("passes", passes)]


def _warnings(config: DictConfig, steps: int | None, hf_config: Any) -> list[str]:
    """Those of a run's start, for the steps that follow from the data, and what the model and old keys add."""
    if steps is not None:
        config = copy.deepcopy(config)
        config.trainer.total_training_steps = steps
    found = advice.warnings_of(config) if is_cast_run(config) else []
    old = {group: OmegaConf.to_container(config[group]) for group in OLD_GROUPS if group in config}
    places = "reward.custom_reward_function, reward.reward_manager.name, reward.reward_kwargs, reward.sandbox_fusion"
    ignored = f"is an old key of verl, which its V1 trainer ignores; use {places}."
    found += [f"{key}={value} {ignored}" for key, value in flat(old) if value is not None]
    return [*found, *stack_warnings(config, hf_config)]
