"""The self-teacher's forward on one rank: which rows, in which context, with which weights.

The forward is verl's own `TrainingWorker.infer_batch`, without entropy and without gradient state. It reads the
student's responses after the teacher's prompts. Rows whose advantage does not depend on the gap are left out.
"""

import time
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_torch_device
from verl.workers.utils.padding import response_from_nested

from verl_cast import wire
from verl_cast.config import TeacherConfig
from verl_cast.teacher.context import TeacherContext
from verl_cast.teacher.limits import length_limits, rope_settings
from verl_cast.teacher.weights import SelfTeacher


class TeacherPass:
    """The pass of one rank's teacher.

    Args:
        actor: verl's TrainingWorker of the policy.
        teacher: the weights.
        context: what stands before the responses; CAST's, or a privileged one of a baseline.
        routing_replay: the engine replays a MoE's routes, which are the student's.

    Attributes:
        seconds: of the latest pass.
        peak_raised_by: bytes by which it raised the peak of the accelerator's memory.

    Raises:
        ValueError: the model's positions are multi-dimensional and the context is not the student's own.
    """

    def __init__(self, actor: Any, teacher: SelfTeacher, context: TeacherContext, routing_replay: bool):
        self._actor = actor
        self._teacher = teacher
        self.context = context
        self._routing_replay = routing_replay
        self.seconds = 0.0
        self.peak_raised_by = 0
        model = actor.model_config
        has_mrope = any("mrope_section" in rope for rope in rope_settings(model.hf_config.get_text_config()))
        if not context.is_same and model.processor is not None and has_mrope:
            raise ValueError(_not_scored(teacher.config, "the model has multi-dimensional positions (vision-language)"))

    def log_probs(self, data: TensorDict) -> torch.Tensor | None:
        """log π_φ of the response tokens: nested (B, response length), float32, on the host.

        Rows that are not scored hold 0. None on ranks without outputs.

        Args:
            data: see `compute_teacher_log_probs` of the worker.
        """
        started, peak_before = time.perf_counter(), get_torch_device().max_memory_allocated()
        log_probs = self._log_probs(data)
        self.seconds = time.perf_counter() - started
        self.peak_raised_by = get_torch_device().max_memory_allocated() - peak_before
        return log_probs

    def _log_probs(self, data: TensorDict) -> torch.Tensor | None:
        rows = self._rows_to_score(data)
        log_probs = [torch.zeros(length) for length in data["response_mask"].offsets().diff().tolist()]
        if len(rows) > 0:
            part = data if len(rows) == len(data) else tu.index_select_tensor_dict(data, rows)
            if not self.context.is_same:
                part = self._in_teacher_context(part)
                if not self._actor.engine_config.use_dynamic_bsz:  # fixed micro-batches are padded to their longest row
                    order = torch.argsort(part["input_ids"].offsets().diff(), descending=True, stable=True)
                    part, rows = tu.index_select_tensor_dict(part, order), rows[order]
            scores = self._score(part, tu.get(data, "temperature"))
            if scores is None:
                return None
            for row, row_log_probs in zip(rows.tolist(), scores.unbind(), strict=True):
                log_probs[row] = row_log_probs
        elif not self._actor.engine.is_mp_src_rank_with_outputs():
            return None
        return torch.nested.as_nested_tensor(log_probs, layout=torch.jagged)

    def _rows_to_score(self, data: TensorDict) -> torch.Tensor:
        """The rows that the teacher's pass takes: those that are scored, and as many more as the engine needs.

        Every data-parallel rank must run as many micro-batches as the others, and fixed micro-batches must be full. The
        rows that fill them up are the shortest ones; the estimator ignores their log-probs.

        In the student's own context it is all rows or none. There teacher and policy can agree to the last bit, but
        only in the same micro-batches: kernel rounding depends on the batch, and flipping turns that rounding into
        signs (method section 7).
        """
        engine, engine_config = self._actor.engine, self._actor.engine_config
        scored = data[wire.SCORED].cpu()
        virtual_stages = getattr(engine_config, "virtual_pipeline_model_parallel_size", None) or 1
        if self.context.is_same or virtual_stages > 1:  # virtual stages restrict the number of micro-batches further
            return torch.arange(len(scored))
        wanted = torch.tensor([int(scored.sum())], device=get_device_id())
        group = engine.get_data_parallel_group()
        if group is not None:
            torch.distributed.all_reduce(wanted, op=torch.distributed.ReduceOp.MAX, group=group)
        wanted = int(wanted)
        if not engine_config.use_dynamic_bsz:
            size = engine_config.infer_micro_batch_size_per_gpu
            wanted = -(-wanted // size) * size
        lengths = data["input_ids"].offsets().diff().cpu()
        others = (~scored).nonzero().squeeze(-1)
        others = others[torch.argsort(lengths[others], stable=True)][: wanted - int(scored.sum())]
        return torch.cat([scored.nonzero().squeeze(-1), others]).sort().values

    def _score(self, data: TensorDict, temperature: float) -> torch.Tensor | None:
        """The teacher's forward on its own tokens: nested (rows, response length); None on ranks without outputs."""
        # Other passes over the same batch may have left their settings in it: the reference pass under LoRA disables
        # the adapter, the pass for old log-probs asks for entropy.
        tu.assign_non_tensor(
            data,
            temperature=temperature,
            calculate_entropy=False,
            compute_loss=False,
            no_lora_adapter=self._teacher.without_adapter,
            disable_auto_offload=True,
        )
        if self._routing_replay:
            tu.assign_non_tensor(data, enable_routing_replay=False)
        with self._actor.engine.eval_mode(), self._teacher.swapped_in():
            output = self._actor.infer_batch(data)
        return response_log_probs(output, data)

    def _in_teacher_context(self, data: TensorDict) -> TensorDict:
        """The same responses after the teacher's prompts, with lengths and positions of their own."""
        if data["position_ids"].dim() == 3:
            reason = "the rows have multi-dimensional positions (images)"
            raise ValueError(_not_scored(self._teacher.config, reason))
        prompts = data["prompts"].unbind()
        responses = data["responses"].unbind()
        # Beside the messages a privileged teacher reads what the trainer laid out, the others the student's prompt.
        field = self.context.reads_field
        beside = [tuple(prompt.tolist()) for prompt in prompts] if field is None else list(tu.get(data, field))
        ids_of_prompt: dict[tuple, torch.Tensor] = {}  # the rows of a group share one prompt
        teacher_prompts, input_ids, position_ids = [], [], []
        rows = zip(prompts, responses, list(tu.get(data, "raw_prompt")), beside, strict=True)
        for prompt, response, messages, shown in rows:
            key = (tuple(prompt.tolist()), shown)
            if key not in ids_of_prompt:
                ids_of_prompt[key] = prompt.new_tensor(self.context.prompt_ids(messages, shown))
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
        engine, text_config = self._actor.engine_config, self._actor.model_config.hf_config.get_text_config()
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


def response_log_probs(output: TensorDict | None, data: TensorDict) -> torch.Tensor | None:
    """The response's part of the log-probs that `infer_batch` returned: float32, on the host. None without outputs."""
    if output is None:
        return None
    return response_from_nested(output["log_probs"], data["response_mask"]).cpu().float()


def _not_scored(teacher: TeacherConfig, reason: str) -> str:
    """The message about responses that a teacher with a context of its own cannot score."""
    return f"CAST: {reason}; {teacher.who_can_score} can score such responses."
