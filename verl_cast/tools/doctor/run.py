"""The sections on a verl command: would it train, with which settings, data and prompts, and what does it take?

The checks read config, files, tokenizer and shapes, before the run starts. They start no Ray and load no weights. They
call the reward function for a few made-up responses, in a process of its own (rewards.py).
"""

import contextlib
import copy
import inspect
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_cast.checks import advice
from verl_cast.checks.run import check_micro_batches, check_run, summary
from verl_cast.checks.spelling import TWIN, settings_of_a_twin
from verl_cast.checks.stack import check_stack, stack_warnings
from verl_cast.config.cast import CastConfig, CastConfigError, DumpConfig, MethodConfig
from verl_cast.config.methods import ESTIMATOR_KEY, is_cast_run, method_class, method_config
from verl_cast.teacher.node import PINNED_SHARE, copies_that_verl_pins
from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor import contexts, data, estimate, rewards, start
from verl_cast.tools.doctor.lines import Line, Section, cause_of, error, note, ok, warning
from verl_cast.training.passes import why_two_passes
from verl_cast.trajectories import DIRECTORY

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
    refused = _rollout(config) + _refusals(config) + _dump_directory(config)
    estimator = OmegaConf.select(config, ESTIMATOR_KEY)
    if method_class(config) is None and estimator != TWIN:
        other = error("estimator", f"this command would train {estimator}, not CAST: add {ESTIMATOR_KEY}=cast.")
        yield "Command", [line for line in refused if line.text.startswith(ESTIMATOR_KEY)] or [other]
        return
    yield "Command", refused or [ok("settings", "accepted by verl_cast and by verl")]
    method = method_config(config) if method_class(config) is not None and not refused else None
    model_config, lines = _model(config)
    found = data.check(config, model_config, is_accepted=not refused) if model_config else data.Data()
    if not refused:
        threshold = CastConfig.correct_threshold if method is None else method.correct_threshold
        tokenizer = None if model_config is None else model_config.tokenizer
        found.lines += rewards.check(config, tokenizer, list(found.of_source.values()), threshold)
    yield "Data and verifier", [*lines, *found.lines]
    if refused:  # the other checks need valid settings; data can be checked without
        yield "Everything else", [note("", "skipped: these checks need a command that verl_cast and verl accept")]
        return
    steps, line = start.steps(config, found.total)
    yield (
        f"What {'GRPO' if method is None else method.TITLE} will do",
        [*_settings(config, method), *line, *start.resume(config, method, steps)],
    )
    if found.chats:
        teacher = method.teacher if isinstance(method, CastConfig) else None
        yield "Prompts", contexts.check(config, teacher, model_config, found.chats)
    if model_config is not None and method is not None:
        yield "Memory", _memory(config, method, model_config.hf_config)
    warnings = _warnings(config, steps, None if model_config is None else model_config.hf_config)
    yield "Warnings", [warning("", text) for text in warnings] or [ok("", "none")]


def _rollout(config: DictConfig) -> list[Line]:
    """verl has no default for it. Where it is missing, `config` gets one, so that all other checks can run."""
    if not OmegaConf.is_missing(config.actor_rollout_ref.rollout, "name"):
        return []
    config.actor_rollout_ref.rollout.name = "vllm"
    return [error("rollout", "actor_rollout_ref.rollout.name is not set; set it to vllm, for example.")]


def _refusals(config: DictConfig) -> list[Line]:
    """Errors of verl_cast's checks and of verl's own; empty if both accept the command."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    # A twin is refused by verl in its first step, or not at all; a run of ours at its start.
    checks = (check_run,) if method_class(config) is not None else (check_run, check_micro_batches, check_stack)
    lines = []
    for check in checks:
        try:
            check(config)
        except CastConfigError as problem:
            lines += [error("settings", complaint) for complaint in problem.complaints]
    # verl's own function: the plugin's wrapper around it would repeat the checks above.
    stock = inspect.unwrap(validate_config)
    try:
        stock(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    except (AssertionError, ValueError, TypeError, HydraException, OmegaConfBaseException) as problem:
        lines.append(error("verl", f"verl refuses this command: {cause_of(problem)}"))
    return lines


def _dump_directory(config: DictConfig) -> list[Line]:
    """The trainer makes the directory. Here only its nearest parent that exists is tried."""
    if not is_cast_run(config):
        return []
    with contextlib.suppress(CastConfigError):  # said above
        dump = method_config(config).dump
        directory = _dump_to(config, dump).absolute()
        parent = next(path for path in (directory, *directory.parents) if os.path.exists(path))
        try:
            if dump.interval:
                tempfile.TemporaryFile(dir=parent).close()  # root may write anywhere by the permissions alone
        except OSError as problem:
            key, reason = f"algorithm.cast.dump.directory={directory}", problem.strerror
            return [error("dump", f"{key}: {parent} cannot be written to ({reason}); name another directory.")]
    return []


def _dump_to(config: DictConfig, dump: DumpConfig) -> Path:
    return Path(dump.directory or Path(config.trainer.default_local_dir) / DIRECTORY).expanduser()


def _model(config: DictConfig) -> tuple[Any, list[Line]]:
    """verl's own HFModelConfig: tokenizer, processor and Hugging Face config of the policy; no weights."""
    from verl.utils.config import omega_conf_to_dataclass

    path = config.actor_rollout_ref.model.path
    if path.startswith(("/", ".", "~")) and not Path(path).expanduser().is_dir():
        return None, [error("model", f"actor_rollout_ref.model.path={path}: there is no such directory.")]
    try:
        return omega_conf_to_dataclass(config.actor_rollout_ref.model), []
    except HydraException as problem:  # hydra wraps everything that verl's HFModelConfig raises
        reason = first_line(cause_of(problem))
        key = f"actor_rollout_ref.model.path={path}"
        return None, [error("model", f"{key}: tokenizer or config cannot be loaded: {reason}")]


def _settings(config: DictConfig, method: MethodConfig | None) -> list[Line]:
    actor, rollout, trainer = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.trainer
    prompts, n = config.data.train_batch_size, rollout.n
    updates = max(prompts // actor.ppo_mini_batch_size, 1) * actor.ppo_epochs
    once = "the ratio is 1, as in the evaluated run" if updates == 1 else "the ratio leaves 1 after the first"
    lines = [
        note("batch", f"{prompts} prompts x {n} responses (the group) = {prompts * n} responses a training step"),
        note("updates", f"{updates} optimizer step{'s' * (updates > 1)} a training step; {once}"),
        note(
            "engine",
            f"{actor.strategy} on {trainer.nnodes * trainer.n_gpus_per_node} rank(s), rollouts by {rollout.name}, "
            f"trainer mode {trainer.v1.trainer_mode}",
        ),
    ]
    if method is None:
        return lines + [note("settings", sentence) for sentence in settings_of_a_twin(config)]
    because = why_two_passes(config, method)
    lines.insert(0, note("settings", summary(config)))
    lines.append(
        note(
            "passes",
            "one: the update forms the gap, and the teacher's pass is the only one before it (unless the model has "
            "dropout)"
            if because is None
            else f"two, old log-probs and teacher: {because}",
        )
    )
    if method.dump.interval:
        every = f"{method.dump.groups} groups every {method.dump.interval} steps"
        lines.append(note("dump", f"{every}, in {_dump_to(config, method.dump)}"))
    return lines


def _memory(config: DictConfig, method: MethodConfig, hf_config: Any) -> list[Line]:
    """The teacher's copy on the host, on disk, and on its way to the accelerator."""
    teacher = method.teacher
    if not estimate.needs_copy(config, teacher):
        return [note("host memory", f"none: teacher.weights={teacher.weights} needs no copy")]
    found = estimate.memory(config, teacher, hf_config)
    if found is None:
        return [note("host memory", "one copy of the adapter per rank; its size under Megatron is not estimated")]
    per_node = found.host_bytes * config.trainer.n_gpus_per_node
    what = "adapter parameters" if estimate.lora_rank(config) > 0 else "parameters"
    average = " and a float32 average" if teacher.weights == "ema" and found.dtype.itemsize < 4 else ""
    about = "" if found.exact else "about "
    pinned = ", ".join(f"{count} such for {key}" for key, count in copies_that_verl_pins(config).items())
    pins = f"teacher.pin_memory={teacher.pin_memory}"
    if teacher.pin_memory == "auto":
        least = estimate.readable(per_node / PINNED_SHARE)
        if config.actor_rollout_ref.actor.strategy == "megatron":
            pins = f"no ({pins}, Megatron)"
        else:
            pins = f"yes, on accelerators whose node has {least} of memory or more ({pins})"
    return [
        note(
            "host memory",
            f"{about}{estimate.readable(found.host_bytes)} on each rank, {estimate.readable(per_node)} a node: "
            f"{found.trained:,} {what} in {str(found.dtype).removeprefix('torch.')}{average}, sharded over "
            f"{found.ranks} rank(s)",
        ),
        note("page-locked", f"{pins}; beside it verl page-locks {pinned or 'no copy'}"),
        note(
            "swap",
            f"about {found.swap_seconds:.2g} s a step, in and out, on a GPU whose bus moves {estimate.BUS_GB:g} GB/s",
        ),
        note(
            "checkpoints",
            f"{about}{estimate.readable(found.checkpoint_bytes)} more in each, in {found.shards} file(s)"
            + ("" if config.trainer.save_freq > 0 else "; this run saves none"),
        ),
    ]


def _warnings(config: DictConfig, steps: int | None, hf_config: Any) -> list[str]:
    """Those of a run's start, for the steps that follow from the data, and what the model and old keys add."""
    if steps is not None:
        config = copy.deepcopy(config)
        config.trainer.total_training_steps = steps
    found = advice.warnings_of(config) if is_cast_run(config) else []
    return [*found, *stack_warnings(config, hf_config), *_old_keys(config)]


def _old_keys(config: DictConfig) -> list[str]:
    def set_keys(values: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if OmegaConf.is_dict(value):
                yield from set_keys(value, f"{prefix}.{key}")
            elif value is not None:
                yield f"{prefix}.{key}", value

    return [
        f"{key}={value} is an old key of verl, which its V1 trainer ignores; set its place below reward.* "
        "(reward.custom_reward_function, reward.reward_manager.name, reward.reward_kwargs, reward.sandbox_fusion)."
        for group in OLD_GROUPS
        if group in config
        for key, value in set_keys(config[group], group)
    ]
