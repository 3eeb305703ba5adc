"""The actor worker with a self-teacher: a mixin over verl's ActorRolloutRefWorker (and its detached variant).

Its remote methods are `init_self_teacher`, `prepare_self_teacher` and `compute_teacher_log_probs`, and two that only
measure: `self_teacher_cost` and `compute_log_probs_again`. It lets the teacher follow the policy through updates and
checkpoints. The forward is verl's own `TrainingWorker.infer_batch`, on the teacher's tokens with the teacher's weights;
rollouts and weight sync are untouched. verl's own `compute_log_prob` runs the teacher's pass too where the batch asks
for it (TEACHER_TOO), and `update_actor` forms the gap inside the update where it says ONE_PASS.
"""

import functools
import glob
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.profiler import DistProfiler

import verl_cast
from verl_cast.config import MethodConfig, TeacherConfig
from verl_cast.context import TeacherContext
from verl_cast.one_pass import ROW_FIELD, OnePassLoss, entropy_function, training_noise
from verl_cast.self_teacher import SelfTeacher
from verl_cast.teacher_pass import TeacherPass, response_log_probs

logger = logging.getLogger(__name__)

# What a batch can ask of verl's own methods (KVBatchMeta.extra_info). TEACHER_TOO, AFTER_UPDATE: True. ONE_PASS:
# completed_steps and gap_is_zero of OnePassLoss.
TEACHER_TOO, ONE_PASS, AFTER_UPDATE = "cast_teacher_too", "cast_one_pass", "cast_after_update"


class SelfTeacherWorkerMixin:
    """Goes before a class of verl that has `self.actor` (a TrainingWorker) and the methods overridden here."""

    self_teacher: SelfTeacher | None = None
    _resumed_from: str | None = None
    _update_outputs: TensorDict | None = None  # of the latest one-pass update, until they are asked for

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_self_teacher(
        self, config: MethodConfig, template: str | None, chat_template_kwargs: dict[str, Any], completed_steps: int
    ) -> dict[str, Any]:
        """Build the teacher, after the model and its checkpoint are loaded; restores a saved teacher.

        Returns:
            {"version": of this package on this rank, "host_bytes": of the teacher's copy, "taken_at": completed steps
            when the copy was taken, "restored": whether it is a saved one, "noise": settings of this rank's model that
            make a forward in training mode another one}.
        """
        self._method = config
        engine, model_config = self.actor.engine, self.actor.model_config
        if config.teacher.PRIVILEGED:
            from verl_cast.baselines.privileged import PrivilegedContext

            context = PrivilegedContext(config.teacher.context, model_config.tokenizer, chat_template_kwargs)
        else:
            context = TeacherContext(config.teacher.context, template, model_config.tokenizer, chat_template_kwargs)
        has_adapter = model_config.lora_rank > 0 or model_config.lora.get("rank", 0) > 0
        adapter_is_new = model_config.lora_rank > 0 and model_config.lora_adapter_path is None
        self.self_teacher = SelfTeacher(config.teacher, engine.module, has_adapter, adapter_is_new)
        self.teacher_pass = TeacherPass(self.actor, self.self_teacher, context, self.enable_routing_replay)
        restored = False
        with engine.eval_mode():
            if self._resumed_from is not None and self.self_teacher.holds_copy:
                restored = self._load_self_teacher(self._resumed_from, config.teacher)
            if self.self_teacher.follow_due(completed_steps):
                self.self_teacher.follow(completed_steps)
        return {
            "version": verl_cast.__version__,
            "host_bytes": self.self_teacher.host_bytes,
            "taken_at": self.self_teacher.taken_at,
            "restored": restored,
            "noise": training_noise(engine, model_config.hf_config),
        }

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def prepare_self_teacher(self, completed_steps: int) -> dict[str, Any]:
        """Bring the teacher's weights up to date, before the step that follows `completed_steps` training steps.

        Returns:
            {"is_policy": teacher and policy are the same weights, "age": training steps since they were, or None}.
        """
        teacher = self.self_teacher
        if teacher.follow_due(completed_steps):
            with self.actor.engine.eval_mode():
                teacher.follow(completed_steps)
        return {"is_policy": teacher.is_policy(completed_steps), "age": teacher.age(completed_steps)}

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    @DistProfiler.annotate(color="cyan", role="actor_compute_teacher_log_probs")
    def compute_teacher_log_probs(self, data: TensorDict) -> TensorDict | None:
        """log π_φ of the response tokens, with the teacher's weights and context, before a one-pass update.

        Args:
            data: this rank's rows, as for verl's `compute_log_prob`: prompts, responses, input_ids, position_ids,
                response_mask, loss_mask (nested), raw_prompt, the sampling `temperature`, and SCORED_FIELD (B,) bool.

        Returns:
            {"teacher_log_probs": nested (B, response length)}, 0 in rows that are not scored; None on ranks that hold
            no outputs.
        """
        log_probs = self.teacher_pass.log_probs(data, like_update=True)
        return None if log_probs is None else TensorDict({"teacher_log_probs": log_probs}, batch_size=data.batch_size)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: TensorDict) -> TensorDict | None:
        """verl's log-probs and entropy; with TEACHER_TOO also what `compute_teacher_log_probs` returns.

        Both passes then share one loading of offloaded parameters. With AFTER_UPDATE the log-probs and entropy of the
        one-pass update's own forward are returned, and there is no pass at all.

        Raises:
            RuntimeError: AFTER_UPDATE, and there was none, or the reverse.
        """
        after_update = tu.pop(data, AFTER_UPDATE, default=False)
        if after_update != (self._update_outputs is not None):
            raise RuntimeError("CAST: log-probs of a one-pass update were asked for without one, or not asked for.")
        if after_update:
            outputs, self._update_outputs = self._update_outputs, None
            return outputs if self.actor.engine.is_mp_src_rank_with_outputs() else None
        if not tu.pop(data, TEACHER_TOO, default=False):
            return super().compute_log_prob(data)
        with self.actor.engine.eval_mode():
            tu.assign_non_tensor(data, disable_auto_offload=True)
            output = super().compute_log_prob(data)
            teacher_log_probs = self.teacher_pass.log_probs(data, like_update=False)
        if output is not None:
            output["teacher_log_probs"] = teacher_log_probs
        return output

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def self_teacher_cost(self) -> dict[str, float]:
        """What the teacher has cost this rank.

        Returns:
            {"host_bytes": of the teacher's copy, "peak_bytes": by which the latest pass raised the peak of the
            accelerator, "seconds": of that pass}, and, since this was asked last, the seconds and bytes of
            `SelfTeacher.take_cost`. The peak is the process's, as in verl's perf/max_memory_allocated_gb, which a reset
            would falsify.
        """
        return {
            "host_bytes": self.self_teacher.host_bytes,
            "peak_bytes": self.teacher_pass.peak_raised_by,
            "seconds": self.teacher_pass.seconds,
            **self.self_teacher.take_cost(),
        }

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    @DistProfiler.annotate(color="cyan", role="actor_compute_log_probs_again")
    def compute_log_probs_again(self, data: TensorDict) -> TensorDict | None:
        """log π_old of the same tokens by the same weights, in micro-batches of one row: what differs is noise.

        Args, returns: as `compute_teacher_log_probs`, with the field `log_probs_again`.
        """
        tu.assign_non_tensor(
            data,
            calculate_entropy=False,
            compute_loss=False,
            no_lora_adapter=False,
            use_dynamic_bsz=False,
            micro_batch_size_per_gpu=1,
        )
        if self.enable_routing_replay:
            tu.assign_non_tensor(data, enable_routing_replay=False)
        log_probs = response_log_probs(self.actor.infer_batch(data), data)
        return None if log_probs is None else TensorDict({"log_probs_again": log_probs}, batch_size=data.batch_size)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_actor(self, data: TensorDict) -> TensorDict:
        """verl's update, with ONE_PASS under the loss that forms the gap; afterwards a snapshot is not the policy."""
        one_pass = tu.pop(data, ONE_PASS, default=None)
        if one_pass is None:
            output = super().update_actor(data)
        else:
            stock_loss = self.actor.loss_fn
            loss = self._one_pass_loss(stock_loss, data, one_pass)
            self.actor.set_loss_fn(loss)
            try:
                output = super().update_actor(data)
            finally:
                self.actor.set_loss_fn(stock_loss)
            if self.actor.engine.is_mp_src_rank_with_outputs():
                self._update_outputs = loss.outputs(len(data))
            else:
                self._update_outputs = TensorDict({}, batch_size=[len(data)])
        if self.self_teacher is not None:
            self.self_teacher.policy_moved()
        return output

    def _one_pass_loss(self, stock_loss: Callable[..., Any], data: TensorDict, one_pass: dict[str, Any]) -> OnePassLoss:
        """The loss of this update, and in `data` what it asks of the engine."""
        data[ROW_FIELD] = torch.arange(len(data))
        keeps_entropy = tu.get(data, "calculate_entropy", default=False)
        entropy = None
        if self.actor.engine_config.use_fused_kernels:
            tu.assign_non_tensor(data, calculate_entropy=True)  # they hand out no logits, and know the entropy anyway
        elif not keeps_entropy:
            # verl's engines give the logits to the loss function under this flag: so the entropy costs no graph.
            # (Megatron's then also empties the allocator's cache before its optimizer step.)
            tu.assign_non_tensor(data, distillation_use_topk=True)
            entropy = entropy_function(self.actor.engine_config.strategy)
        return OnePassLoss(stock_loss, self._method, **one_pass, entropy=entropy, keeps_entropy=keeps_entropy)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, local_path, hdfs_path=None, global_step=0, max_ckpt_to_keep=None):
        """verl's checkpoint, and this rank's teacher beside its shard.

        The teacher comes first, on all ranks: verl's save also removes old checkpoints, and a disk that is full must be
        found before that. A half-written file never bears the teacher's name.
        """
        if self.self_teacher is not None:
            path = _teacher_path(local_path)
            os.makedirs(local_path, exist_ok=True)
            torch.save(self.self_teacher.state_dict(), f"{path}.tmp")
            os.replace(f"{path}.tmp", path)
            torch.distributed.barrier()
        super().save_checkpoint(local_path, hdfs_path, global_step, max_ckpt_to_keep)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path, hdfs_path=None, del_local_after_load=False):
        """verl's checkpoint; the teacher beside it is restored by `init_self_teacher`."""
        super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
        self._resumed_from = local_path

    def _load_self_teacher(self, local_path: str, teacher: TeacherConfig) -> bool:
        """Restore this rank's teacher; False where there is none and a new one may start."""
        path = _teacher_path(local_path)
        if not os.path.exists(path):
            if teacher.missing_state == "snapshot":
                logger.warning("CAST: %s is missing; the restored policy is the teacher's first copy.", path)
                return False
            others = sorted(glob.glob(_teacher_path(local_path, rank="0", world_size="*")))
            found = (
                f" It holds the teacher of another number of ranks ({os.path.basename(others[0])})." if others else ""
            )
            raise FileNotFoundError(
                f"CAST: {path} is missing, so the run cannot go on with the teacher that it had.{found} Resume with "
                "the ranks that saved it. If the checkpoint is of a run without CAST, or the teacher may start anew "
                f"from the restored policy, set ++{teacher.KEY}.missing_state=snapshot."
            )
        try:
            self.self_teacher.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            return True
        except Exception as error:
            raise RuntimeError(
                f"CAST: the self-teacher in {path} cannot be restored: {error}. Resume with the model, teacher.weights "
                "and number of ranks that saved it, or move all cast_self_teacher_* files of the checkpoint away and "
                f"set ++{teacher.KEY}.missing_state=snapshot to start the teacher anew."
            ) from error


def _teacher_path(local_path: str, rank: str | None = None, world_size: str | None = None) -> str:
    rank = rank or str(torch.distributed.get_rank())
    world_size = world_size or str(torch.distributed.get_world_size())
    return os.path.join(local_path, f"cast_self_teacher_world_size_{world_size}_rank_{rank}.pt")


@functools.cache
def with_self_teacher(worker_cls: type) -> type:
    """verl's worker class with the self-teacher mixed in."""
    return type(f"SelfTeacher{worker_cls.__name__}", (SelfTeacherWorkerMixin, worker_cls), {})
