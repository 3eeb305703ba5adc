"""The sections on a verl command: would it train CAST, with which settings, data and contexts, and at what cost?

The checks read config, files, tokenizer and shapes, before the run starts. They start no Ray and load no weights. They
call the reward function for a few made-up responses, in a process of its own (rewards.py).
"""

import contextlib
import copy
import glob
import inspect
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_cast.checks import advice
from verl_cast.checks.run import METHOD_DEFAULTS, check_run, summary
from verl_cast.config.cast import NOISE, CastConfig, CastConfigError, DumpConfig, TeacherConfig
from verl_cast.config.methods import ESTIMATOR_KEY, cast_config, is_cast_run, method_class, method_config
from verl_cast.teacher.node import PINNED_SHARE, copies_that_verl_pins
from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor import contexts, data, estimate, rewards
from verl_cast.tools.doctor.lines import BASELINE, Line, Section, cause_of, error, note, ok, warning
from verl_cast.training.passes import why_two_passes
from verl_cast.trajectories import DIRECTORY

_OF_A_BASELINE = "skipped for a baseline: its teacher's prompts, their lengths, memory and warnings"


def sections(config: DictConfig) -> Iterator[Section]:
    """All sections on the composed config of a run."""
    if method_class(config) is None:
        estimator = OmegaConf.select(config, ESTIMATOR_KEY)
        yield (
            "Command",
            [error("estimator", f"this command would train {estimator}, not CAST: add {ESTIMATOR_KEY}=cast.")],
        )
        return
    refused = _rollout(config) + _command(config) + _dump_directory(config)
    yield "Command", refused or [ok("settings", "accepted by verl_cast and by verl")]
    found = data.check(config)
    found.lines += rewards.check(config, list(found.of_source.values()), is_accepted=not refused)
    if refused:  # the other checks need valid settings; data and verifier can be checked without
        yield "Data and verifier", found.lines
        yield "Everything else", [note("", "skipped: these checks need a command that verl_cast and verl accept")]
        return
    if not is_cast_run(config):
        yield BASELINE, [note("", summary(config)), note("", _OF_A_BASELINE)]
        yield "Data and verifier", found.lines
        return
    method = cast_config(config)
    yield "What CAST will do", _method(config, method)
    steps, line = _steps(config, found)
    yield "Data and verifier", [*found.lines, *line]
    yield "Teacher", _teacher(config, method, found)
    yield "Warnings", [warning("", text) for text in _advice(config, steps)] or [ok("", "none")]


def _advice(config: DictConfig, steps: int | None) -> list[str]:
    """Warnings for the number of steps that follows from the data; a run's start does not have it yet."""
    if steps is not None:
        config = copy.deepcopy(config)
        config.trainer.total_training_steps = steps
    return advice.warnings_of(config)


def _rollout(config: DictConfig) -> list[Line]:
    """verl has no default for it. Where it is missing, `config` gets one, so that all other checks can run."""
    if not OmegaConf.is_missing(config.actor_rollout_ref.rollout, "name"):
        return []
    config.actor_rollout_ref.rollout.name = "vllm"
    return [error("rollout", "actor_rollout_ref.rollout.name is not set; set it to vllm, for example.")]


def _command(config: DictConfig) -> list[Line]:
    """Errors of verl_cast's checks and of verl's own; empty if both accept the command."""
    lines = []
    try:
        check_run(config)
    except CastConfigError as problem:
        lines += [error("settings", complaint) for complaint in problem.complaints]
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    # verl's own function: the plugin's wrapper around it would repeat the checks above.
    stock = inspect.unwrap(validate_config)
    try:
        stock(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    except (AssertionError, ValueError, TypeError, HydraException, OmegaConfBaseException) as problem:
        lines.append(error("verl", f"verl refuses this command: {cause_of(problem)}"))
    return lines


def _dump_directory(config: DictConfig) -> list[Line]:
    """The trainer makes the directory. Here only its nearest parent that exists is tried."""
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
    default = Path(config.trainer.default_local_dir) / DIRECTORY
    return Path(dump.directory or default).expanduser()


def _method(config: DictConfig, method: CastConfig) -> list[Line]:
    actor, rollout, trainer = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.trainer
    prompts, n = config.data.train_batch_size, rollout.n
    updates = max(prompts // actor.ppo_mini_batch_size, 1) * actor.ppo_epochs
    sync_step = trainer.v1.separate_async.parameter_sync_step if trainer.v1.trainer_mode == "separate_async" else 1
    once = updates == 1
    return [
        note("advantage", _advantage(method)),
        note("dead zone", _dead_zone(config, method)),
        note("teacher", _teacher_weights(config, method)),
        note("loss", _loss(config)),
        note("batch", f"{prompts} prompts x {n} responses (the group) = {prompts * n} responses a training step"),
        note(
            "updates",
            f"{updates} optimizer step{'' if once else 's'} a training step"
            + (" (the ratio is 1, as in the evaluated run)" if once else "; the ratio leaves 1 after the first")
            + (f"; weights are synced every {sync_step} of them" if sync_step > 1 else ""),
        ),
        note(
            "engine",
            f"{actor.strategy} on {trainer.nnodes * trainer.n_gpus_per_node} rank(s), rollouts by {rollout.name}, "
            f"trainer mode {trainer.v1.trainer_mode}",
        ),
        *_resume(config, method),
        *_dump(config, method),
    ]


def _advantage(method: CastConfig) -> str:
    default = CastConfig()
    names = ("gap_weight", "positive_clip", "negative_clip", "flip", "advantage_clip", "base_correct", "base_wrong")
    names += ("correct_threshold", "gap_deadzone")
    changed = [
        f"{name}={getattr(method, name)} (paper {getattr(default, name)})"
        for name in names
        if getattr(method, name) != getattr(default, name)
    ]
    rule = "; ".join(changed) if changed else "the rule of the evaluated run, all defaults"
    flips = {
        "both": "tokens flip where the gap disagrees with the verifier: their sign is the sign of the gap",
        "correct": "tokens of correct responses flip where the gap is negative",
        "wrong": "tokens of wrong responses flip where the gap is positive",
        "none": "no token flips: the verifier alone sets signs",
    }
    return f"{rule}. {flips[method.flip].capitalize()}"


def _dead_zone(config: DictConfig, method: CastConfig) -> str:
    """What is set, and what this run's engine would need."""
    key, dtype = advice.logits_type(config)
    if method.gap_deadzone == NOISE:
        interval = method.noise_floor_interval
        again = f"then every {interval} steps" if interval else "and held for the whole run"
        return f"the engine's noise floor, measured in the first step {again}; logits come in {dtype} ({key})"
    used = f"{method.gap_deadzone:g} nats" if method.gap_deadzone else "none: every gap decides a sign"
    if dtype == "fp32":
        return f"{used}. Logits come in fp32 ({key}), whose noise is far below a gap: 0 fits this run"
    return f"{used}. Logits come in {dtype} ({key}): ++algorithm.cast.gap_deadzone={NOISE} fits this run"


def _teacher_weights(config: DictConfig, method: CastConfig) -> str:
    teacher = method.teacher
    weights = {
        "snapshot": f"a copy of the policy, renewed every {teacher.refresh_interval} training steps",
        "ema": f"an exponential average of the policy (decay {teacher.ema_decay:g} a training step)",
        "initial": "the policy that the run starts with, for the whole run",
        "current": "the policy itself, as it is before each step's update",
    }[teacher.weights]
    if teacher.weights == "initial" and estimate.lora_rank(config) > 0:
        weights = "the base model without the adapter, for the whole run"
    context = {"plain": "plain text without chat template", "same": "the student's own prompt"}
    return f"{weights}; its context is {context.get(teacher.context, f'the template {teacher.context}')}"


def _loss(config: DictConfig) -> str:
    actor = config.actor_rollout_ref.actor
    others = [key for key, _, value in METHOD_DEFAULTS if OmegaConf.select(config, key) != value]
    text = f"{actor.policy_loss.loss_mode}, ratio within [1 - {actor.clip_ratio_low}, 1 + {actor.clip_ratio_high}]"
    text += f" (not the method's own: {', '.join(others)})" if others else ""
    text += f", {actor.loss_agg_mode}"
    return text if actor.loss_agg_mode == "seq-mean-token-mean" else f"{text} (evaluated run: seq-mean-token-mean)"


def _resume(config: DictConfig, method: CastConfig) -> list[Line]:
    """verl resumes by itself from a checkpoint in default_local_dir; it must hold the teacher, too."""
    trainer = config.trainer
    tracker = Path(trainer.default_local_dir) / "latest_checkpointed_iteration.txt"
    checkpoint = None
    if trainer.resume_mode == "auto" and tracker.exists():
        checkpoint = tracker.parent / f"global_step_{tracker.read_text().strip()}"
    elif trainer.resume_mode == "resume_path" and trainer.resume_from_path:
        checkpoint = Path(trainer.resume_from_path)
        if not checkpoint.is_dir():
            return [error("start", f"trainer.resume_from_path={checkpoint}: there is no such directory.")]
    if checkpoint is None or not checkpoint.is_dir():
        return [note("start", "from step 0; there is no checkpoint to resume from")]
    ranks = trainer.nnodes * trainer.n_gpus_per_node
    pattern = str(checkpoint / "actor" / f"cast_self_teacher_world_size_{ranks}_rank_*.pt")
    if glob.glob(pattern) or not estimate.needs_copy(config, method.teacher):
        return [ok("start", f"resumes from {checkpoint}")]
    text = f"resumes from {checkpoint}, which holds no self-teacher of {ranks} rank(s)"
    if method.teacher.missing_state == "snapshot":
        return [
            warning("start", f"{text}; a new one starts from the restored policy (teacher.missing_state=snapshot).")
        ]
    return [
        error(
            "start",
            f"{text}, so the run will stop. Resume with the number of ranks that saved it. To start anew, set "
            "trainer.resume_mode=disable or another trainer.default_local_dir. To take a new teacher from the restored "
            "policy, set ++algorithm.cast.teacher.missing_state=snapshot.",
        )
    ]


def _steps(config: DictConfig, found: data.Data) -> tuple[int | None, list[Line]]:
    """Training steps of the whole run, as verl's trainer counts them; None where the rows are not known."""
    if not found.total:
        return None, []
    limit, batch = config.data.get("train_max_samples", -1), config.data.train_batch_size
    total = min(found.total, limit) if limit > 0 else found.total
    if total < batch:
        problem = f"{total} training rows are fewer than data.train_batch_size={batch}: they never fill a batch."
        return None, [error("steps", problem)]
    steps = config.trainer.total_training_steps or total // batch * config.trainer.total_epochs
    return steps, [note("steps", f"{steps} training steps, {total // batch} an epoch (before verl filters rows)")]


def _dump(config: DictConfig, method: CastConfig) -> list[Line]:
    if method.dump.interval == 0:
        return []
    where = _dump_to(config, method.dump)
    return [note("dump", f"{method.dump.groups} groups every {method.dump.interval} steps, in {where}")]


def _teacher(config: DictConfig, method: CastConfig, found: data.Data) -> list[Line]:
    """Contexts, their fitness, and what the teacher costs."""
    path = config.actor_rollout_ref.model.path
    if path.startswith(("/", ".", "~")) and not Path(path).is_dir():
        return [error("model", f"actor_rollout_ref.model.path={path}: there is no such directory.")]
    try:
        model_config = contexts.load_model_config(config)
    except HydraException as problem:  # hydra wraps everything that verl's HFModelConfig raises
        found = first_line(cause_of(problem))
        return [error("model", f"actor_rollout_ref.model.path={path}: tokenizer or config cannot be loaded: {found}")]
    response = config.data.max_response_length
    rows, lines = _example_chats(config, model_config, found)
    if rows:
        seen = contexts.check(config, method.teacher, model_config, rows)
        lines += seen.lines
        if seen.teacher:
            if method.teacher.context != "same":
                lines.append(contexts.check_length(config, model_config, max(seen.teacher)))
            lines.append(_passes(config, method))
            lines.append(_compute(config, method, _mean(seen.student), _mean(seen.teacher), response))
    return [*lines, *_memory(config, method, model_config.hf_config), _fitness(config)]


def _example_chats(config: DictConfig, model_config, found: data.Data) -> tuple[list[list[dict]], list[Line]]:
    """Chat messages of the first rows, as verl's dataset class gives them to the agent loop."""
    key = config.data.prompt_key
    if config.data.custom_cls.path is None:
        return [row[key] for row in found.rows if data.is_chat(row.get(key))], []
    from verl.trainer.ppo.utils import create_rl_dataset

    tokenizer, processor = model_config.tokenizer, model_config.processor
    try:
        dataset = create_rl_dataset(
            config.data.train_files, config.data, tokenizer, processor, is_train=True, max_samples=data.ROWS
        )
        chats = [dataset[row]["raw_prompt"] for row in range(min(data.ROWS, len(dataset)))]
    except Exception as problem:  # the user's class may raise anything
        name = config.data.custom_cls.name
        return [], [error("data", f"data.custom_cls: {name} gives no rows: {first_line(problem)}")]
    return chats, []


def _mean(lengths: list[int]) -> float:
    return sum(lengths) / len(lengths)


def _compute(config: DictConfig, method: CastConfig, student: float, teacher: float, response: int) -> Line:
    """Estimates for responses of full and of quarter length: the shorter they are, the more the prompts weigh."""
    longest = estimate.compute(config, method, student + response, teacher + response)
    short = estimate.compute(config, method, student + response / 4, teacher + response / 4)
    low, high = sorted((longest, short), key=lambda compute: compute.teacher)

    def span(first: float, second: float, form: str) -> str:
        first, second = format(first, form), format(second, form)
        return first if first == second else f"{first} to {second}"

    return note(
        "extra compute",
        f"about {span(low.share, high.share, '+.0%')} of the training engine's FLOPs, or "
        f"{span(low.share_with_generation, high.share_with_generation, '+.0%')} if generation counts as one forward. "
        f"Counted in forwards, a step without CAST costs {longest.training:g}; the teacher costs "
        f"{span(low.teacher, high.teacher, '.2f')}{' and replaces one' if longest.saved else ''}. "
        "Attention's quadratic part is left out. The paper reports 1.25 x GRPO's wall-clock",
    )


def _passes(config: DictConfig, method: CastConfig) -> Line:
    because = why_two_passes(config, method)
    return note(
        "passes",
        "one: the update forms the gap, and the teacher's pass is the only one before it (unless the model has dropout)"
        if because is None
        else f"two, old log-probs and teacher: {because}",
    )


def _memory(config: DictConfig, method: CastConfig, hf_config) -> list[Line]:
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
    about, saves = "" if found.exact else "about ", config.trainer.save_freq > 0
    pinned = ", ".join(f"{count} such for {key}" for key, count in copies_that_verl_pins(config).items())
    return [
        note(
            "host memory",
            f"{about}{estimate.readable(found.host_bytes)} on each rank, {estimate.readable(per_node)} a node: "
            f"{found.trained:,} {what} in {str(found.dtype).removeprefix('torch.')}{average}, sharded over "
            f"{found.ranks} rank(s)",
        ),
        note(
            "page-locked",
            f"{_pinning(config, teacher, per_node)}; beside it verl page-locks {pinned or 'none of its own'}",
        ),
        note(
            "swap",
            f"about {found.swap_seconds:.2g} s a step, in and out, on a GPU whose bus moves {estimate.BUS_GB:g} GB/s",
        ),
        note(
            "checkpoints",
            f"{about}{estimate.readable(found.checkpoint_bytes)} more in each, in {found.shards} file(s)"
            + ("" if saves else "; this run saves none"),
        ),
    ]


def _pinning(config: DictConfig, teacher: TeacherConfig, node_bytes: int) -> str:
    if teacher.pin_memory != "auto":
        return f"teacher.pin_memory={teacher.pin_memory}"
    if config.actor_rollout_ref.actor.strategy == "megatron":
        return "no (teacher.pin_memory=auto, Megatron)"
    least = estimate.readable(node_bytes / PINNED_SHARE)
    return f"yes, on accelerators whose node has {least} of memory or more (teacher.pin_memory=auto)"


def _fitness(config: DictConfig) -> Line:
    from verl_cast.checks import evidence, fitness

    record = fitness.find(config)
    if record is None:
        return note(
            "fitness",
            "not measured yet; `verl-cast diagnose` measures whether the policy is better in the teacher's context",
        )
    teacher, student = record["teacher"]["accuracy"], record["student"]["accuracy"]
    text = (
        f"{fitness.verdict(record)}: {teacher:.2f} of the untrained policy's responses are correct in the teacher's "
        f"context, and {student:.2f} with the student's prompt ({record['problems']} problems x {record['samples']}, "
        f"{record['measured_at'][:10]})"
    )
    method = cast_config(config)
    if fitness.warning(record) is None:
        text = ". ".join([text, *evidence.about(fitness.verdict(record), method.flip, method.flip_groups)])
    # If it is worse, its warning is shown with the others.
    return ok("fitness", text) if fitness.warning(record) is None else note("fitness", text)
