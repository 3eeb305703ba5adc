"""The actor worker with a self-teacher: a mixin over verl's ActorRolloutRefWorker (and its detached variant).

Every forward is verl's own `TrainingWorker.infer_batch` or `train_mini_batch`; rollouts and weight sync are untouched.
wire.STAGE, which the trainer sets, selects the variant of verl's remote methods. The mixin adds others:

* `init_self_teacher`, `prepare_self_teacher`: build the teacher; bring it up to date before a step.
* two passes: verl's `compute_log_prob`, with the teacher's log-probs; on the steps that measure the noise
  `compute_log_probs_again` and `keep_noise_floor`.
* one pass: `compute_teacher_log_probs`; verl's `update_actor`, forming the gap; then verl's `compute_log_prob`, which
  gives the log-probs of that update.
* `self_teacher_cost`: what the teacher has cost.
"""

import functools
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.profiler import DistProfiler

import verl_cast
from verl_cast import wire
from verl_cast.advantage.compute import rule_of
from verl_cast.config import MethodConfig
from verl_cast.teacher import node, saved
from verl_cast.teacher.context import TeacherContext
from verl_cast.teacher.forward import TeacherPass, replays_the_rollout, response_log_probs
from verl_cast.teacher.limits import max_positions
from verl_cast.teacher.shards import reshard, set_up, trainable_shards
from verl_cast.teacher.weights import SelfTeacher, build_teacher
from verl_cast.training.entropy import entropy_function
from verl_cast.training.one_pass_loss import ROW, OnePassLoss, OnePassLossOnLogits
from verl_cast.training.passes import training_only_settings


class SelfTeacherWorkerMixin:
    """Goes before a class of verl that has `self.actor` (a TrainingWorker) and the methods overridden here."""

    self_teacher: SelfTeacher | None = None
    _place: node.Place  # of this rank's teacher among the others
    _resumed_from: str | None = None
    _outputs_of_update: TensorDict | None = None  # of the latest one-pass update, until they are asked for

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_self_teacher(
        self, config: MethodConfig, template: str | None, chat_template_kwargs: dict[str, Any], completed_steps: int
    ) -> dict[str, Any]:
        """Build the teacher, after the model and its checkpoint are loaded; restores a saved teacher.

        Args:
            config: the method's settings.
            template: the source of the context's template; None without one.
            chat_template_kwargs: what verl passes to the chat template.
            completed_steps: training steps that the run has behind it.

        Returns:
            {"version": of this package on this rank, "host_bytes": of the teacher's copy, "node": the rank's node,
            "is_pinned": the copy is page-locked, "taken_at": completed steps when the copy was taken, "restored":
            whether it is a saved one, "training_only": settings of this rank's model that act in training mode only,
            "max_positions": tokens that the model allows, or None}.
        """
        self._method = config
        engine, model_config = self.actor.engine, self.actor.model_config
        if config.teacher.PRIVILEGED:
            from verl_cast.teacher.privileged import PrivilegedContext

            context = PrivilegedContext(config.teacher.context, model_config.tokenizer, chat_template_kwargs)
        else:
            context = TeacherContext(config.teacher.context, template, model_config.tokenizer, chat_template_kwargs)
        has_adapter = model_config.lora_rank > 0 or model_config.lora.get("rank", 0) > 0
        adapter_is_new = model_config.lora_rank > 0 and model_config.lora_adapter_path is None
        teacher = self.self_teacher = build_teacher(config.teacher, engine.module, has_adapter, adapter_is_new)
        self.teacher_pass = TeacherPass(self.actor, teacher, context, self.enable_routing_replay)
        restored = False
        with engine.eval_mode():
            set_up(engine.module)
            shards = trainable_shards(engine.module) if teacher.holds_copy else {}
            self._place = node.place_of(engine, sum(shard.nbytes for shard in shards.values()))
            setting, strategy = config.teacher.pin_memory, engine.engine_config.strategy
            teacher.pins_memory = node.pins(setting, strategy, self._place.node_bytes, node.node_memory())
            if self._resumed_from is not None:
                restored = saved.load(teacher, self._resumed_from, self._place.first_with_shard)
            if teacher.refresh_due(completed_steps):
                teacher.refresh(completed_steps)
        return {
            "version": verl_cast.__version__,
            "host_bytes": teacher.host_bytes,
            "node": self._place.node,
            "is_pinned": teacher.is_pinned,
            "taken_at": teacher.taken_at,
            "restored": restored,
            "training_only": training_only_settings(engine, model_config.hf_config),
            "max_positions": max_positions(model_config.hf_config.get_text_config()),
        }

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def prepare_self_teacher(self, completed_steps: int) -> dict[str, Any]:
        """Bring the teacher's weights up to date, before the step that follows `completed_steps` training steps.

        Returns:
            {"is_policy": teacher and policy are the same weights, "age": training steps since they were, or None,
            "noise_floor": the latest that was measured, nats, or None}.
        """
        teacher = self.self_teacher
        if teacher.refresh_due(completed_steps):
            with self.actor.engine.eval_mode():
                teacher.refresh(completed_steps)
        return {
            "is_policy": teacher.is_policy(completed_steps),
            "age": teacher.age(completed_steps),
            "noise_floor": teacher.noise_floor,
        }

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def keep_noise_floor(self, noise_floor: float) -> None:
        """Hold the measured noise floor (nats), for one-pass updates and for checkpoints."""
        self.self_teacher.noise_floor = noise_floor

    # ------------------------------------------------------------------------------------- verl's stages (wire.STAGE)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: TensorDict) -> TensorDict | None:
        """verl's log-probs, with the teacher's; or those of the latest one-pass update. wire.STAGE selects."""
        stage = tu.pop(data, wire.STAGE)
        if stage is None:
            return super().compute_log_prob(data)
        if stage == wire.WITH_TEACHER:
            return self.compute_log_prob_with_teacher(data)
        if stage == wire.OF_UPDATE:
            return self.log_probs_of_update(data)
        raise KeyError(stage)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_actor(self, data: TensorDict) -> TensorDict | None:
        """verl's update, or the one-pass update (wire.STAGE). Afterwards a snapshot is no longer the policy."""
        stage = tu.pop(data, wire.STAGE)
        if stage is None:
            output = super().update_actor(data)
        elif stage == wire.ONE_PASS:
            output = self.update_actor_in_one_pass(data)
        else:
            raise KeyError(stage)
        if self.self_teacher is not None:
            self.self_teacher.policy_moved()
        return output

    # ------------------------------------------------------------------------------------------------------ two passes

    def compute_log_prob_with_teacher(self, data: TensorDict) -> TensorDict | None:
        """verl's log-probs and entropy, and the teacher's log-probs of the response tokens beside them.

        Both passes share one loading of offloaded parameters.

        Args:
            data: this rank's rows, as for verl's `compute_log_prob`, with raw_prompt and SCORED (B,) bool.

        Returns:
            what verl's method returns, and TEACHER_LOG_PROBS: nested (B, response length), 0 in rows that are not
            scored. None on ranks that hold no outputs.
        """
        with self.actor.engine.eval_mode():
            tu.assign_non_tensor(data, disable_auto_offload=True)
            output = super().compute_log_prob(data)
            teacher_log_probs = self.teacher_pass.log_probs(data)
        if output is not None:
            output[wire.TEACHER_LOG_PROBS] = teacher_log_probs
        return output

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    @DistProfiler.annotate(color="cyan", role="actor_compute_log_probs_again")
    def compute_log_probs_again(self, data: TensorDict) -> TensorDict | None:
        """log π_old of the same tokens by the same weights, in micro-batches of one row: what differs is noise.

        Returns:
            {LOG_PROBS_AGAIN: nested (B, response length)}; None on ranks that hold no outputs.
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
            replays = replays_the_rollout(self.actor.engine_config)
            tu.assign_non_tensor(data, enable_routing_replay=replays)
        return _as_field(wire.LOG_PROBS_AGAIN, response_log_probs(self.actor.infer_batch(data), data), data)

    # -------------------------------------------------------------------------------------------------------- one pass

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    @DistProfiler.annotate(color="cyan", role="actor_compute_teacher_log_probs")
    def compute_teacher_log_probs(self, data: TensorDict) -> TensorDict | None:
        """log π_φ of the response tokens, before a one-pass update.

        Args:
            data: this rank's rows: prompts, responses, input_ids, position_ids, response_mask, loss_mask (nested),
                raw_prompt, the sampling `temperature`, and SCORED (B,) bool.

        Returns:
            {TEACHER_LOG_PROBS: nested (B, response length)}, 0 in rows that are not scored; None on ranks that hold no
            outputs.
        """
        if self.teacher_pass.context.is_same:
            # log π_old will be the update's own. Equal weights give equal log-probs in equal micro-batches only.
            config = self.actor.engine_config
            tu.assign_non_tensor(
                data,
                max_token_len_per_gpu=config.max_token_len_per_gpu,
                micro_batch_size_per_gpu=config.micro_batch_size_per_gpu,
            )
        return _as_field(wire.TEACHER_LOG_PROBS, self.teacher_pass.log_probs(data), data)

    def update_actor_in_one_pass(self, data: TensorDict) -> TensorDict | None:
        """verl's update under the loss that forms the gap itself.

        Args:
            data: this rank's rows, as for verl's `update_actor` but for old log-probs and advantages. In their place:
                TEACHER_LOG_PROBS (unless GAP_IS_ZERO), BASE, CORRECT, KIND and SCORED (B,), COMPLETED_STEPS and
                GAP_IS_ZERO.

        Returns:
            what verl's `update_actor` returns.
        """
        rule = rule_of(self._method, tu.pop(data, wire.COMPLETED_STEPS), self.self_teacher.noise_floor)
        stock_loss = self.actor.loss_fn
        loss = self._one_pass_loss(data, rule)
        self.actor.set_loss_fn(loss)
        try:
            output = super().update_actor(data)
        finally:
            self.actor.set_loss_fn(stock_loss)
        if self.actor.engine.is_mp_src_rank_with_outputs():
            self._outputs_of_update = loss.outputs(len(data))
        else:
            self._outputs_of_update = TensorDict({}, batch_size=[len(data)])
        return output

    def _one_pass_loss(self, data: TensorDict, rule: Any) -> OnePassLoss:
        """The loss of this update, and in `data` what it needs from the engine."""
        data[ROW] = torch.arange(len(data))
        keeps_entropy = tu.get(data, "calculate_entropy", default=False)
        gap_is_zero, engine = tu.pop(data, wire.GAP_IS_ZERO), self.actor.engine_config
        if engine.use_fused_kernels:
            tu.assign_non_tensor(data, calculate_entropy=True)  # they return no logits, and compute the entropy anyway
        elif not keeps_entropy:
            entropy = entropy_function(engine.strategy)
            return OnePassLossOnLogits(self.actor.loss_fn, rule, gap_is_zero, entropy_function=entropy)
        return OnePassLoss(self.actor.loss_fn, rule, gap_is_zero, keeps_entropy)

    def log_probs_of_update(self, data: TensorDict) -> TensorDict | None:
        """Log-probs and entropy of the latest one-pass update's own forward, once; no forward is run.

        Returns:
            what verl's `compute_log_prob` would have returned before that update.

        Raises:
            RuntimeError: there was no such update, or its outputs were returned before.
        """
        outputs, self._outputs_of_update = self._outputs_of_update, None
        if outputs is None:
            raise RuntimeError("CAST: log-probs of a one-pass update were asked for without such an update.")
        return outputs if self.actor.engine.is_mp_src_rank_with_outputs() else None

    # ---------------------------------------------------------------------------------------------------- checkpoints

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, local_path, hdfs_path=None, global_step=0, max_ckpt_to_keep=None):
        """verl's checkpoint, and the teacher beside the ranks' shards.

        The teacher comes first, on all ranks: verl's save also removes old checkpoints, and a full disk must be found
        before that.
        """
        if self.self_teacher is not None:
            saved.save(self.self_teacher, local_path, self._place.first_with_shard, global_step)
        super().save_checkpoint(local_path, hdfs_path, global_step, max_ckpt_to_keep)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path, hdfs_path=None, del_local_after_load=False):
        """verl's checkpoint; the teacher beside it is restored by `init_self_teacher`."""
        super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
        self._resumed_from = local_path

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def restore_model_from_cpu(self, n: int) -> None:
        """verl's swap of old and new policy (separate_async with several updates between two weight syncs).

        A forward may have left parameters gathered, which would hide the restored shards from the next forward.
        """
        super().restore_model_from_cpu(n)
        reshard(self.actor.engine.module)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def self_teacher_cost(self) -> dict[str, float]:
        """What the teacher has cost this rank.

        Returns:
            {"host_bytes": of the teacher's copy, "peak_bytes": by which the latest pass raised the accelerator's peak
            memory, "seconds": of that pass}, and, since this was asked last, the seconds and bytes of
            `SelfTeacher.take_cost`. The peak is the process's, as in verl's perf/max_memory_allocated_gb, which a reset
            would falsify.
        """
        return {
            "host_bytes": self.self_teacher.host_bytes,
            "peak_bytes": self.teacher_pass.peak_raised_by,
            "seconds": self.teacher_pass.seconds,
            **self.self_teacher.take_cost(),
        }


def _as_field(name: str, values: torch.Tensor | None, data: TensorDict) -> TensorDict | None:
    return None if values is None else TensorDict({name: values}, batch_size=data.batch_size)


@functools.cache
def with_self_teacher(worker_cls: type) -> type:
    """verl's worker class with the self-teacher mixed in."""
    return type(f"SelfTeacher{worker_cls.__name__}", (SelfTeacherWorkerMixin, worker_cls), {})
