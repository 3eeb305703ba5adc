"""The trainer with a self-teacher: one mixin over verl's V1 trainers (sync, colocate_async, separate_async).

It changes three stages of verl's step and nothing else: the actor workers carry a self-teacher, the teacher's pass
runs just before the advantages, and the advantage stage sees its log-probs. What was asked for to look at (noise floor,
trajectory dump) is measured there too. The method is CAST or one of the baselines, whose privileged teachers are shown
more of a row than its prompt. Trainers of runs with another estimator are verl's own classes.
"""

import functools
import warnings
from typing import Any

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.utils import tensordict_utils as tu
from verl.utils.debug import marked_timer

import verl_cast
from verl_cast.check import check_run, summary
from verl_cast.config import MethodConfig
from verl_cast.context import TeacherContext, load_template
from verl_cast.dump import FIELDS, TrajectoryDump
from verl_cast.estimator import EstimatorInputs, estimator_inputs
from verl_cast.methods import method_class, method_config
from verl_cast.metrics import noise_metrics
from verl_cast.seams import check_seams
from verl_cast.trajectories import final_rows

# Of verl's timing_raw: the teacher's pass, and what only looks on.
_STAGES = ("cast_teacher", "cast_noise", "cast_dump")
_ACTOR_ROLES = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef)


class SelfTeacherTrainerMixin:
    """Goes before a subclass of verl's PPOTrainer."""

    def __init__(self, config: DictConfig):
        check_run(config)  # again: not every entry point passes through verl's main
        check_seams("verl.trainer.ppo.v1.trainer_base", "verl.workers.engine_workers", "verl.workers.utils.padding")
        self.method = method_config(config)
        self._dump = TrajectoryDump(config, self.method)
        super().__init__(config)
        print(summary(config), flush=True)

    def _init_resource_pool_mgr(self):
        from verl_cast.worker import with_self_teacher

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

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> KVBatchMeta:
        before = {stage: timing_raw.get(stage, 0.0) for stage in _STAGES}
        batch = super()._step_once(metrics, timing_raw, sample_batch_size)
        # Ours run inside verl's advantage stage; their seconds are shown as stages of their own.
        timing_raw["adv"] -= sum(timing_raw.get(stage, 0.0) - before[stage] for stage in _STAGES)
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        own_metrics: dict[str, float] = {}
        batch = self._compute_token_advantage(batch, own_metrics)
        # Named after the method, so that no baseline's number says CAST.
        metrics.update({name.replace("cast/", f"{self.method.NAME}/", 1): own_metrics[name] for name in own_metrics})
        return batch

    def _compute_token_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        final_row = self._final_rows(batch.keys)
        with marked_timer("cast_teacher", self.timing_raw, color="cyan"):
            teacher_field = self._compute_teacher_log_probs(batch, metrics)
        fields = ["old_log_probs", teacher_field, "entropy"]
        interval = self.method.noise_floor_interval
        # Not after the first of several updates in a step: the live weights are then no longer those of π_old.
        measures_noise = interval > 0 and self.global_steps % interval == 0 and self.local_trigger_step == 0
        if measures_noise:
            with marked_timer("cast_noise", self.timing_raw, color="cyan"):
                self.actor_rollout_wg.compute_log_probs_again(batch)
            fields.append("log_probs_again")
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        if teacher_field not in data:
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
            data[teacher_field],
            final_row,
            entropy=data["entropy"],
            completed_steps=self.global_steps - 1,
        )
        with estimator_inputs(inputs):
            batch = super()._compute_advantage(batch, metrics)
        if not inputs.metrics:
            raise RuntimeError(
                f"CAST: verl's advantage stage did not call the estimator `{self.method.NAME}`. Stopping: the run "
                "would be another method's."
            )
        metrics.update(inputs.metrics)
        if measures_noise:
            again, old = data["log_probs_again"], inputs.old_log_probs
            metrics.update(noise_metrics(again, old, inputs.result.gap, inputs.response_mask))
        if self._dump.due(self.global_steps):
            with marked_timer("cast_dump", self.timing_raw, color="cyan"), self._dump.looking_on(self.global_steps):
                self._dump_trajectories(batch, inputs, metrics)
        return batch

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

    def _compute_teacher_log_probs(self, batch: KVBatchMeta, metrics: dict) -> str:
        """Run the teacher's pass; returns the name of the field that holds its log-probs in TransferQueue."""
        status = self.actor_rollout_wg.prepare_self_teacher(completed_steps=self.global_steps - 1)
        if any(rank != status[0] for rank in status):
            raise RuntimeError(f"CAST: the ranks' self-teachers are not at the same step: {status}.")
        if status[0]["age"] is not None:
            metrics["cast/teacher/age"] = float(status[0]["age"])
        # The same weights on the same tokens: the gap is 0 by construction, and a forward would only add kernel noise
        # that the flip turns into signs (method section 7).
        gap_is_zero = status[0]["is_policy"] and self.method.teacher.context == "same"
        metrics["cast/teacher/forward"] = 0.0 if gap_is_zero else 1.0
        if gap_is_zero:
            return "old_log_probs"
        if self.method.teacher.PRIVILEGED:
            batch = self._show_privileged(batch)
        batch.extra_info["temperature"] = self.config.actor_rollout_ref.rollout.temperature
        output = self.actor_rollout_wg.compute_teacher_log_probs(batch)
        if len(output) != len(batch):
            raise RuntimeError(f"CAST: teacher log-probs for {len(output)} of {len(batch)} responses.")
        memory = self.actor_rollout_wg.self_teacher_memory()
        metrics["cast/teacher/host_gib"] = max(rank["host"] for rank in memory) / 2**30
        metrics["cast/teacher/peak_memory_gib"] = max(rank["peak"] for rank in memory) / 2**30
        return "teacher_log_probs"

    def _show_privileged(self, batch: KVBatchMeta) -> KVBatchMeta:
        """Lay out, for every row, what a privileged teacher is shown: the field PRIVILEGED_FIELD in TransferQueue."""
        from verl_cast.baselines.privileged import PRIVILEGED_FIELD
        from verl_cast.baselines.references import peers, references

        teacher = self.method.teacher
        if teacher.context == "peer":
            names = ["uid", "responses", "response_mask", "rm_scores"]
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
            masks = data["response_mask"].unbind()
            written = [ids[mask.bool()] for ids, mask in zip(data["responses"].unbind(), masks, strict=True)]
            scores = [float(row.sum()) for row in data["rm_scores"].unbind()]
            threshold = self.method.correct_threshold
            correct = [len(ids) > 0 and score > threshold for ids, score in zip(written, scores, strict=True)]
            texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
            shown = peers([str(uid) for uid in tu.get(data, "uid")], batch.keys, correct, texts)
        else:
            column = teacher.reference_key.split(".")[0]
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[column])
            shown = references({column: list(tu.get(data, column))}, teacher.reference_key, batch.keys)
        return tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=tu.get_tensordict({PRIVILEGED_FIELD: shown})
        )

    def _final_rows(self, keys: list[str]) -> torch.Tensor:
        """For every row the row of its session's final output."""
        teacher = self.method.teacher
        if teacher.context != "same" and any(key.rsplit("_", 1)[1] != "0" for key in keys):
            raise ValueError(
                "CAST: an agent loop gave several outputs for one session, each with a prompt of its own; "
                f"{teacher.who_can_score} can score them."
            )
        return torch.from_numpy(final_rows(keys))


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
