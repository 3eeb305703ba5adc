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
from verl_cast.teacher.context import TeacherContext
from verl_cast.teacher.limits import max_positions
from verl_cast.teacher.weights import SelfTeacher


class TeacherPass:
    """The pass of one rank's teacher.

    Args:
        actor: verl's TrainingWorker of the policy.
        teacher: the weights.
        context: what stands before the responses; CAST's, or a privileged one of a baseline.
        routing_replay: the engine replays a MoE's routes.

    Attributes:
        seconds: of the latest pass.
        peak_raised_by: bytes by which it raised the peak of the accelerator's memory.
    """

    def __init__(self, actor: Any, teacher: SelfTeacher, context: TeacherContext, routing_replay: bool):
        self._actor = actor
        self._teacher = teacher
        self.context = context
        teacher.context = context.identity
        self._routing_replay = routing_replay
        # The rollout's routes belong to the student's own tokens.
        self._replays_routes = routing_replay and context.is_same and replays_the_rollout(actor.engine_config)
        self.seconds = 0.0
        self.peak_raised_by = 0

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
        engine_config, scored = self._actor.engine_config, data[wire.SCORED].cpu()
        virtual_stages = getattr(engine_config, "virtual_pipeline_model_parallel_size", None) or 1
        if self.context.is_same or virtual_stages > 1:  # virtual stages restrict the number of micro-batches further
            return torch.arange(len(scored))
        wanted = self._largest(int(scored.sum()))
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
            tu.assign_non_tensor(data, enable_routing_replay=self._replays_routes)
        with self._actor.engine.eval_mode(), self._teacher.swapped_in():
            output = self._actor.infer_batch(data)
        return response_log_probs(output, data)

    def _in_teacher_context(self, data: TensorDict) -> TensorDict:
        """The same responses after the teacher's prompts, with lengths, positions and token budget of their own.

        Raises:
            ValueError: rows hold images or videos, or are longer than the model's positions.
        """
        if any(map(_has_images, tu.get(data, "multi_modal_inputs", default=[]))):
            raise ValueError(
                f"CAST: rows hold images or videos; {self._teacher.config.who_can_score} can score their responses."
            )
        prompts = data["prompts"].unbind()
        responses = data["responses"].unbind()
        # Beside the messages a privileged teacher reads what the trainer laid out, the others the student's prompt.
        field = self.context.reads_field
        beside = [tuple(prompt.tolist()) for prompt in prompts] if field is None else list(tu.get(data, field))
        ids_of_prompt: dict[tuple, torch.Tensor] = {}  # the rows of a group share one prompt
        teacher_prompts, input_ids = [], []
        rows = zip(prompts, responses, list(tu.get(data, "raw_prompt")), beside, strict=True)
        for prompt, response, messages, shown in rows:
            key = (tuple(prompt.tolist()), shown)
            if key not in ids_of_prompt:
                ids_of_prompt[key] = prompt.new_tensor(self.context.prompt_ids(messages, shown))
            teacher_prompts.append(ids_of_prompt[key])
            input_ids.append(torch.cat([ids_of_prompt[key], response]))
        lengths = [len(ids) for ids in input_ids]
        self._check_length(max(lengths))

        def nested(rows: list[torch.Tensor]) -> torch.Tensor:
            return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

        fields = {"prompts": nested(teacher_prompts), "input_ids": nested(input_ids)}
        fields["position_ids"] = _text_positions(lengths, data["position_ids"])
        for key in ("responses", "response_mask", "loss_mask"):
            fields[key] = data[key]
        result = TensorDict(fields, batch_size=data.batch_size)
        if self._actor.engine_config.use_dynamic_bsz:
            tu.assign_non_tensor(result, max_token_len_per_gpu=self._token_budget(max(lengths)))
        return result

    def _check_length(self, length: int) -> None:
        limit = max_positions(self._actor.model_config.hf_config.get_text_config())
        if limit is not None and length > limit:
            raise ValueError(
                f"CAST: teacher context plus response is {length} tokens, max_position_embeddings allows {limit}. Use "
                "a shorter context or a smaller data.max_response_length."
            )

    def _token_budget(self, longest: int) -> int:
        """Tokens of a micro-batch on a device: the run's setting, or what the longest row of all ranks needs.

        The setting may be made for the student's prompts. The pass is forward only, so there is room.
        """
        engine_config = self._actor.engine_config
        # A sequence is cut into parts: by Ulysses (FSDP) or context parallelism (Megatron).
        parts = getattr(engine_config, "ulysses_sequence_parallel_size", 1)
        parts *= getattr(engine_config, "context_parallel_size", 1)
        return max(engine_config.infer_max_token_len_per_gpu, self._largest(-(-longest // parts)))

    def _largest(self, number: int) -> int:
        """Of all data-parallel ranks. A collective call."""
        largest, group = torch.tensor([number], device=get_device_id()), self._actor.engine.get_data_parallel_group()
        if group is not None:
            torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=group)
        return int(largest)


def replays_the_rollout(engine_config: Any) -> bool:
    """Whether verl's pass for old log-probs takes a MoE's routes from the rollout (R3). Under R2 it routes anew, and
    records its routes for the update.

    Args:
        engine_config: of an engine with routing replay.
    """
    return engine_config.router_replay.mode == "R3"


def _has_images(multi_modal_inputs: Any) -> bool:
    """Whether verl's `multi_modal_inputs` of a row hold anything. Those of a text row are None, empty or all None."""
    return any(value is not None for value in (multi_modal_inputs or {}).values())


def _text_positions(lengths: list[int], like: torch.Tensor) -> torch.Tensor:
    """Positions of text rows, nested: 0, 1, 2, ... in every dimension that the positions of `like` have.

    Models with multi-dimensional rope (Qwen3.5, Qwen3-VL) have several: (B, 3 or 4, length). Those of text are equal.
    """
    dtype = like.dtype
    if like.dim() == 2:
        return torch.nested.as_nested_tensor([torch.arange(n, dtype=dtype) for n in lengths], layout=torch.jagged)
    num_dimensions = like.values().shape[0]
    rows = [torch.arange(n, dtype=dtype).expand(num_dimensions, n) for n in lengths]
    return tu.nested_tensor_from_tensor_list(rows, ragged_idx=2)


def response_log_probs(output: TensorDict | None, data: TensorDict) -> torch.Tensor | None:
    """The response's part of the log-probs that `infer_batch` returned: float32, on the host. None without outputs."""
    if output is None:
        return None
    return response_from_nested(output["log_probs"], data["response_mask"]).cpu().float()
