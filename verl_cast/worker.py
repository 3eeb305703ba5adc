"""The actor worker with a self-teacher: a mixin over verl's ActorRolloutRefWorker (and its detached variant).

Its remote methods are `init_self_teacher`, `prepare_self_teacher` and `compute_teacher_log_probs`, and two that only
measure: `self_teacher_memory` and `compute_log_probs_again`. It lets the teacher follow the policy through updates and
checkpoints. The forward is verl's own `TrainingWorker.infer_batch`, on the teacher's tokens with the teacher's weights;
rollouts and weight sync are untouched.
"""

import functools
import glob
import logging
import os
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_torch_device
from verl.utils.profiler import DistProfiler
from verl.workers.utils.padding import response_from_nested

import verl_cast
from verl_cast.config import MethodConfig, TeacherConfig
from verl_cast.context import TeacherContext, length_limits, rope_settings
from verl_cast.self_teacher import SelfTeacher

logger = logging.getLogger(__name__)


class SelfTeacherWorkerMixin:
    """Goes before a class of verl that has `self.actor` (a TrainingWorker) and the methods overridden here."""

    self_teacher: SelfTeacher | None = None
    _resumed_from: str | None = None
    _peak_raised_by: int = 0  # bytes

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_self_teacher(
        self, config: MethodConfig, template: str | None, chat_template_kwargs: dict[str, Any], completed_steps: int
    ) -> dict[str, Any]:
        """Build the teacher, after the model and its checkpoint are loaded; restores a saved teacher.

        Returns:
            {"version": of this package on this rank, "host_bytes": of the teacher's copy, "taken_at": completed steps
            when the copy was taken, "restored": whether it is a saved one}.
        """
        engine, model_config = self.actor.engine, self.actor.model_config
        if config.teacher.PRIVILEGED:
            from verl_cast.baselines.privileged import PrivilegedContext

            self.teacher_context = PrivilegedContext(
                config.teacher.context, model_config.tokenizer, chat_template_kwargs
            )
        else:
            self.teacher_context = TeacherContext(
                config.teacher.context, template, model_config.tokenizer, chat_template_kwargs
            )
        has_mrope = any("mrope_section" in rope for rope in rope_settings(model_config.hf_config.get_text_config()))
        if not self.teacher_context.is_same and model_config.processor is not None and has_mrope:
            raise ValueError(_not_scored(config.teacher, "the model has multi-dimensional positions (vision-language)"))
        has_adapter = model_config.lora_rank > 0 or model_config.lora.get("rank", 0) > 0
        adapter_is_new = model_config.lora_rank > 0 and model_config.lora_adapter_path is None
        self.self_teacher = SelfTeacher(config.teacher, engine.module, has_adapter, adapter_is_new)
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
        """log π_φ of the response tokens, with the teacher's weights and context.

        Args:
            data: this rank's rows, as for verl's `compute_log_prob`: prompts, responses, input_ids, position_ids,
                response_mask, loss_mask (nested), raw_prompt, and the sampling `temperature`.

        Returns:
            {"teacher_log_probs": nested (B, response length)}; None on ranks that hold no outputs.
        """
        teacher_data = data if self.teacher_context.is_same else self._in_teacher_context(data)
        # Set here what other passes over the same batch may have left in it: the reference pass under LoRA asks for
        # the adapter to be disabled, as does our own teacher of the initial weights; old log-probs ask for entropy.
        tu.assign_non_tensor(
            teacher_data,
            temperature=tu.get(data, "temperature"),
            calculate_entropy=False,
            compute_loss=False,
            no_lora_adapter=self.self_teacher.without_adapter,
            disable_auto_offload=True,
        )
        if self.enable_routing_replay:
            tu.assign_non_tensor(teacher_data, enable_routing_replay=False)
        peak_before = get_torch_device().max_memory_allocated()
        with self.actor.engine.eval_mode(), self.self_teacher.swapped_in():
            output = self.actor.infer_batch(teacher_data)
        self._peak_raised_by = get_torch_device().max_memory_allocated() - peak_before
        return _response_log_probs("teacher_log_probs", output, data)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def self_teacher_memory(self) -> dict[str, int]:
        """Bytes: {"host": of the teacher's copy, "peak": by which the latest pass raised the peak of the accelerator}.

        The peak is the process's, as in verl's perf/max_memory_allocated_gb, which a reset would falsify.
        """
        return {"host": self.self_teacher.host_bytes, "peak": self._peak_raised_by}

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
        return _response_log_probs("log_probs_again", self.actor.infer_batch(data), data)

    def _in_teacher_context(self, data: TensorDict) -> TensorDict:
        """The same responses after the teacher's prompts, with lengths and positions of their own."""
        if data["position_ids"].dim() == 3:
            reason = "the rows have multi-dimensional positions (images)"
            raise ValueError(_not_scored(self.self_teacher.config, reason))
        prompts = data["prompts"].unbind()
        responses = data["responses"].unbind()
        # Beside the messages: a privileged teacher reads what the trainer laid out, the others the student's prompt.
        field = self.teacher_context.reads_field
        beside = [tuple(prompt.tolist()) for prompt in prompts] if field is None else list(tu.get(data, field))
        ids_of_prompt: dict[tuple, torch.Tensor] = {}  # the rows of a group share one prompt
        teacher_prompts, input_ids, position_ids = [], [], []
        rows = zip(prompts, responses, list(tu.get(data, "raw_prompt")), beside, strict=True)
        for prompt, response, messages, shown in rows:
            key = (tuple(prompt.tolist()), shown)
            if key not in ids_of_prompt:
                ids_of_prompt[key] = prompt.new_tensor(self.teacher_context.prompt_ids(messages, shown))
            teacher_prompts.append(ids_of_prompt[key])
            input_ids.append(torch.cat([ids_of_prompt[key], response]))
            position_ids.append(torch.arange(len(input_ids[-1]), dtype=prompt.dtype))
        self._check_length(max(map(len, input_ids)))

        def nested(rows: list[torch.Tensor]) -> torch.Tensor:
            return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

        fields = {"prompts": nested(teacher_prompts), "input_ids": nested(input_ids)}
        fields["position_ids"] = nested(position_ids)
        for key in ("responses", "response_mask", "loss_mask"):
            fields[key] = data[key]
        return TensorDict(fields, batch_size=data.batch_size)

    def _check_length(self, length: int) -> None:
        engine, text_config = self.actor.engine_config, self.actor.model_config.hf_config.get_text_config()
        # A sequence is cut into parts: by Ulysses (FSDP) or context parallelism (Megatron).
        parts = getattr(engine, "ulysses_sequence_parallel_size", 1) * getattr(engine, "context_parallel_size", 1)
        budget = engine.infer_max_token_len_per_gpu if engine.use_dynamic_bsz else None
        limits = length_limits(text_config, budget, parts)
        for key, limit in limits.items():
            if length > limit:
                raise ValueError(
                    f"CAST: teacher context plus response is {length} tokens, {key} allows {limit}. Use a shorter "
                    "context or data.max_response_length, or raise the limit where it is a setting."
                )

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_actor(self, data: TensorDict) -> TensorDict:
        """verl's update; afterwards a snapshot is no longer the policy."""
        output = super().update_actor(data)
        if self.self_teacher is not None:
            self.self_teacher.policy_moved()
        return output

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


def _response_log_probs(name: str, output: TensorDict | None, data: TensorDict) -> TensorDict | None:
    """The response's part of what `infer_batch` returned, float32, in host memory; None on ranks without outputs."""
    if output is None:
        return None
    log_probs = response_from_nested(output["log_probs"], data["response_mask"])
    return TensorDict({name: log_probs.cpu().float()}, batch_size=data.batch_size)


def _not_scored(teacher: TeacherConfig, reason: str) -> str:
    """What to say of responses that a teacher with a context of its own cannot score."""
    return f"CAST: {reason}; {teacher.who_can_score} can score such responses."


def _teacher_path(local_path: str, rank: str | None = None, world_size: str | None = None) -> str:
    rank = rank or str(torch.distributed.get_rank())
    world_size = world_size or str(torch.distributed.get_world_size())
    return os.path.join(local_path, f"cast_self_teacher_world_size_{world_size}_rank_{rank}.pt")


@functools.cache
def with_self_teacher(worker_cls: type) -> type:
    """verl's worker class with the self-teacher mixed in."""
    return type(f"SelfTeacher{worker_cls.__name__}", (SelfTeacherWorkerMixin, worker_cls), {})
