"""The trainer with a self-teacher: one mixin over verl's V1 trainers (sync, colocate_async, separate_async).

It changes three stages of verl's step and nothing else: the actor workers carry a self-teacher, its pass runs with the
pass for old log-probs or in its place (verl_cast/passes.py), and the advantage stage sees its log-probs. In a one-pass
step the update forms the gap, and verl's own bookkeeping of old log-probs and advantages follows it. What was asked for
to look at (noise floor, trajectory dump) is measured there too. The method is CAST or one of the baselines, whose
privileged teachers are shown more of a row than its prompt. Trainers of runs with another estimator are verl's own.
"""

import contextlib
import functools
import time
import warnings
from collections.abc import Iterator
from typing import Any

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import tensordict_utils as tu

import verl_cast
from verl_cast.check import check_run, summary
from verl_cast.config import MethodConfig
from verl_cast.context import TeacherContext, load_template
from verl_cast.dump import FIELDS, TrajectoryDump
from verl_cast.estimator import EstimatorInputs, estimator_inputs
from verl_cast.methods import method_class, method_config
from verl_cast.metrics import noise_metrics
from verl_cast.one_pass import BASE_FIELD, CORRECT_FIELD
from verl_cast.passes import why_two_passes
from verl_cast.seams import SEAMS, check_seams
from verl_cast.step import REWARD_FIELDS, Step, plan_step
from verl_cast.teacher_pass import SCORED_FIELD
from verl_cast.worker import AFTER_UPDATE, ONE_PASS, TEACHER_TOO, with_self_teacher

_ACTOR_ROLES = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef)


class SelfTeacherTrainerMixin:
    """Goes before a subclass of verl's PPOTrainer."""

    def __init__(self, config: DictConfig):
        check_run(config)  # again: not every entry point passes through verl's main
        check_seams(*SEAMS)  # all of them, as everything is imported here
        self.method = method_config(config)
        self._dump = TrajectoryDump(config, self.method)
        super().__init__(config)
        print(summary(config), flush=True)

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        for role in _ACTOR_ROLES:
            if role in self.role_worker_mapping:
                worker_cls = self.role_worker_mapping[role].__ray_metadata__.modified_class.__ray_actor_class__
                self.role_worker_mapping[role] = ray.remote(with_self_teacher(worker_cls))

    def _setup(self):
        super()._setup()
        if not hasattr(self.actor_rollout_wg, "init_self_teacher"):
            raise RuntimeError(
                "CAST: the actor workers do not run verl_cast's worker class, so there is no self-teacher. Stopping: "
                "without it the run would be GRPO."
            )
        teacher = self.method.teacher
        template = None if teacher.PRIVILEGED else load_template(teacher.context)
        kwargs = self.config.data.get("apply_chat_template_kwargs", None) or {}
        kwargs = OmegaConf.to_container(OmegaConf.create(kwargs), resolve=True)
        if not teacher.PRIVILEGED:
            self._teacher_context = TeacherContext(teacher.context, template, self.tokenizer, kwargs)  # for the dump
        ranks = self.actor_rollout_wg.init_self_teacher(
            config=self.method,
            template=template,
            chat_template_kwargs=kwargs,
            completed_steps=self.global_steps,
        )
        _check_one_teacher(ranks)
        host_mib = max(rank["host_bytes"] for rank in ranks) / 2**20
        print(f"[verl_cast] self-teacher ready on {len(ranks)} rank(s), {host_mib:.1f} MiB of host memory each")
        because = why_two_passes(self.config, self.method)
        noise = sorted({setting for rank in ranks for setting in rank["noise"]})
        if because is None and noise:
            because = f"{', '.join(noise)}: the update's forward is another one"
        own = [cls for cls in type(self).__mro__ if "_compute_old_log_prob" in vars(cls) and not _is_known(cls)]
        if because is None and own:
            because = f"{own[0].__module__}.{own[0].__name__} has a _compute_old_log_prob of its own"
        self._two_passes_because = because
        origin = "of the update's own forward (one pass)" if because is None else f"of a pass of their own ({because})"
        print(f"[verl_cast] old log-probs: {origin}")

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """verl's pass with the teacher's; in a one-pass step the teacher's alone."""
        batch, self._step = self._begin_step(batch)
        if self._step.one_pass:
            if self._step.teacher_runs:
                batch.extra_info["temperature"] = self.config.actor_rollout_ref.rollout.temperature
                output = self.actor_rollout_wg.compute_teacher_log_probs(batch)
                if len(output) != len(batch):
                    raise RuntimeError(f"CAST: teacher log-probs for {len(output)} of {len(batch)} responses.")
            self._count_teacher_cost()
            return batch
        batch.extra_info[TEACHER_TOO] = self._step.teacher_runs
        result = super()._compute_old_log_prob(batch, metrics)
        for meta in (batch, result):
            meta.extra_info.pop(TEACHER_TOO, None)  # the reference pass may use the same method
        self._count_teacher_cost()
        return result

    def _begin_step(self, batch: KVBatchMeta) -> tuple[KVBatchMeta, Step]:
        """Bring the teacher up to date, decide what the step needs, and lay it out for the workers."""
        status = self.actor_rollout_wg.prepare_self_teacher(completed_steps=self.global_steps - 1)
        if any(rank != status[0] for rank in status):
            raise RuntimeError(f"CAST: the ranks' self-teachers are not at the same step: {status}.")
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(REWARD_FIELDS))
        step = plan_step(
            self.config,
            self.method,
            batch.keys,
            data,
            self.global_steps,
            status[0],
            # After the first of several updates in a step the live weights are no longer those of π_old.
            live_is_old=self.local_trigger_step == 0,
            may_be_one_pass=self._two_passes_because is None,
        )
        if step.teacher_runs or step.one_pass:
            fields = {SCORED_FIELD: step.scored}
            if step.one_pass:
                fields |= {BASE_FIELD: step.base.value, CORRECT_FIELD: step.base.correct}
            fields = TensorDict(fields, batch_size=len(batch))
            if step.teacher_runs and self.method.teacher.PRIVILEGED:
                from verl_cast.baselines.shown import shown_to_teacher

                fields.update(shown_to_teacher(batch, self.method, self.tokenizer))
            batch = tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        return batch, step

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """verl's stage around the estimator; in a one-pass step it comes after the update."""
        if not self._step.one_pass:
            return self._compute_token_advantage(batch, metrics, inside="adv")
        batch.fields = None  # the update takes all that is stored: the teacher's and the reference's log-probs too
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """verl's update; after a one-pass update verl's stages before it, with the log-probs that it computed."""
        if not self._step.one_pass:
            return super()._update_actor(batch, metrics)
        batch.extra_info[ONE_PASS] = {
            "completed_steps": self.global_steps - 1,
            "gap_is_zero": self._step.gap_is_zero,
        }
        batch = super()._update_actor(batch, metrics)
        with self._stage("cast_after_update", inside="update_actor"):
            # The workers need the rows' lengths and nothing else, and run no forward.
            rows = KVBatchMeta(
                keys=batch.keys,
                tags=batch.tags,
                partition_id=batch.partition_id,
                fields=["response_mask"],
                extra_info={AFTER_UPDATE: True},
            )
            batch = PPOTrainer._compute_old_log_prob(self, rows, metrics)
            return self._compute_token_advantage(batch, metrics, inside="cast_after_update")

    def _compute_token_advantage(self, batch: KVBatchMeta, metrics: dict, inside: str) -> KVBatchMeta:
        """verl's advantage stage with the estimator's inputs laid out, and what looks on.

        Args:
            inside: the stage of verl's timing in which this runs.
        """
        step = self._step
        fields = ["old_log_probs", "entropy"]
        if step.teacher_runs:
            fields.append("teacher_log_probs")
        if step.measures_noise:
            with self._stage("cast_noise", inside):
                batch.extra_info["temperature"] = self.config.actor_rollout_ref.rollout.temperature
                self.actor_rollout_wg.compute_log_probs_again(batch)
            fields.append("log_probs_again")
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        if step.teacher_runs and "teacher_log_probs" not in data:
            raise RuntimeError(
                "CAST: the actor workers returned no teacher log-probs. Stopping: without them the run would be GRPO."
            )
        data = data.to_padded_tensor()
        if data["old_log_probs"].dtype in (torch.bfloat16, torch.float16):
            warnings.warn(  # once: Python shows a warning once per place
                f"CAST: the engine returns log-probs in {data['old_log_probs'].dtype}, so their rounding decides the "
                "sign of small gaps. Install flash-attn, whose cross entropy keeps float32, or set "
                "actor.fsdp_config.mixed_precision.param_dtype=fp32 (CAST also has algorithm.cast.gap_deadzone).",
                stacklevel=2,
            )
        inputs = EstimatorInputs(
            self.method,
            data["old_log_probs"],
            data["teacher_log_probs" if step.teacher_runs else "old_log_probs"],
            step.final_row,
            entropy=data["entropy"],
            completed_steps=self.global_steps - 1,
            scored=step.scored,
        )
        with estimator_inputs(inputs):
            batch = super()._compute_advantage(batch, metrics)
        if not inputs.metrics:
            raise RuntimeError(
                f"CAST: verl's advantage stage did not call the estimator `{self.method.NAME}`. Stopping: the run "
                "would be another method's."
            )
        own_metrics = {**step.metrics, **inputs.metrics}
        if step.measures_noise:
            again, old = data["log_probs_again"], inputs.old_log_probs
            own_metrics.update(noise_metrics(again, old, inputs.result.gap, inputs.response_mask))
        # Named after the method, so that no baseline's number says CAST.
        metrics.update({name.replace("cast/", f"{self.method.NAME}/", 1): own_metrics[name] for name in own_metrics})
        if self._dump.due(self.global_steps):
            with self._stage("cast_dump", inside), self._dump.looking_on(self.global_steps):
                self._dump_trajectories(batch, inputs, own_metrics)
        return batch

    @contextlib.contextmanager
    def _stage(self, name: str, inside: str) -> Iterator[None]:
        """A stage of its own in verl's timing, taken out of the one that it runs in."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._add_seconds(name, inside, time.perf_counter() - started)

    def _add_seconds(self, name: str, inside: str, seconds: float) -> None:
        self.timing_raw[name] = self.timing_raw.get(name, 0.0) + seconds
        self.timing_raw[inside] = self.timing_raw.get(inside, 0.0) - seconds

    def _count_teacher_cost(self) -> None:
        """The teacher's cost in this step, whose pass ran in verl's stage of the old log-probs: seconds and memory."""
        ranks = self.actor_rollout_wg.self_teacher_cost()
        cost = {name: max(rank[name] for rank in ranks) for name in ranks[0]}
        if self._step.teacher_runs:
            self._add_seconds("cast_teacher", "old_log_prob", cost["seconds"])
            self._step.metrics["cast/teacher/peak_memory_gib"] = cost["peak_bytes"] / 2**30
        for name in ("host", "refresh", "swap"):
            self._step.metrics[f"cast/teacher/{name}_gib"] = cost[f"{name}_bytes"] / 2**30
        for name in ("refresh", "swap"):
            self._step.metrics[f"cast/teacher/{name}_seconds"] = cost[f"{name}_seconds"]

    def _dump_trajectories(self, batch: KVBatchMeta, inputs: EstimatorInputs, metrics: dict) -> None:
        rows = self._dump.choose(batch.keys, inputs)
        if not rows:
            raise ValueError("no response of the batch counts")
        data = tq.kv_batch_get(
            keys=[batch.keys[row] for row in rows], partition_id=batch.partition_id, select_fields=list(FIELDS)
        )
        age = metrics.get("cast/teacher/age")
        self._dump.write(
            self.global_steps,
            batch.keys,
            rows,
            {name: list(tu.get(data, name)) for name in FIELDS if name in data},
            inputs,
            self.tokenizer,
            self._teacher_context,
            None if age is None else int(age),
        )


def _is_known(trainer_cls: type) -> bool:
    return trainer_cls.__module__.split(".")[0] in ("verl", "verl_cast")


def _check_one_teacher(ranks: list[dict[str, Any]]) -> None:
    """What `init_self_teacher` returned on every rank makes one teacher.

    Raises:
        RuntimeError: another version of this package on a rank, or a saved teacher on some ranks only.
    """
    versions = {rank["version"] for rank in ranks}
    if versions != {verl_cast.__version__}:
        raise RuntimeError(
            f"CAST: verl_cast {verl_cast.__version__} in the trainer, {', '.join(sorted(versions))} in the actor "
            "workers; install one version on every node."
        )
    if len({(rank["restored"], rank["taken_at"]) for rank in ranks}) > 1:
        new = [number for number, rank in enumerate(ranks) if not rank["restored"]]
        raise RuntimeError(
            f"CAST: some ranks restored the checkpoint's self-teacher, others (ranks {new}) have none of it or another "
            "one. Bring the missing cast_self_teacher_* files back, or move all of them away to start the teacher anew."
        )


@functools.cache
def with_method(trainer_cls: type, method: type[MethodConfig]) -> type:
    """A V1 trainer class with a self-teacher, named after its method."""
    title = "".join(part.capitalize() for part in method.NAME.split("_"))
    return type(f"{title}{trainer_cls.__name__}", (SelfTeacherTrainerMixin, trainer_cls), {})


def install(trainer_base: Any) -> None:
    """Let verl build the variant of a trainer class with a self-teacher, in every mode, where the estimator is ours.

    verl's registry maps a mode to a class and refuses a second one, and a new mode name would change the replay buffer.
    So the choice is made where an instance is made: `PPOTrainer(config)` gives an instance of the class itself, or of
    its variant.
    """
    ppo_trainer = trainer_base.PPOTrainer

    def __new__(cls, *args: Any, **kwargs: Any):
        config = kwargs.get("config", args[0] if args else None)
        method = None if config is None else method_class(config)
        if method is not None and not issubclass(cls, SelfTeacherTrainerMixin):
            cls = with_method(cls, method)
        return object.__new__(cls)

    ppo_trainer.__new__ = staticmethod(__new__)
