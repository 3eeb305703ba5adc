"""Section "Memory": what the teacher's copy takes of the host and of a checkpoint, from the config and the model's."""

import math
from typing import Any

import torch
from omegaconf import DictConfig
from verl.utils.torch_dtypes import PrecisionType

from verl_cast.config.cast import TeacherConfig
from verl_cast.tools.doctor.lines import Line, note


def has_adapter(config: DictConfig) -> bool:
    """Whether the policy is an adapter (LoRA), under FSDP or Megatron."""
    model = config.actor_rollout_ref.model
    return bool(model.lora_rank or model.lora.get("rank", 0))


def needs_copy(config: DictConfig, teacher: TeacherConfig) -> bool:
    """Whether the teacher needs a copy: neither `current`, the policy itself, nor `initial` below an adapter does."""
    return teacher.weights != "current" and not (teacher.weights == "initial" and has_adapter(config))


def check(config: DictConfig, teacher: TeacherConfig, hf_config: Any) -> list[Line]:
    """Two lines in the words of the run's start line."""
    if not needs_copy(config, teacher):
        return [note("host memory", f"none: teacher.weights={teacher.weights} needs no copy")]
    if has_adapter(config):
        return [note("host memory", "a copy of the adapter on every rank, and one more in each checkpoint")]
    rank_bytes, shards = host_bytes(config, teacher, hf_config)
    rank, node = rank_bytes / 2**20, rank_bytes * config.trainer.n_gpus_per_node / 2**20
    saves = "" if config.trainer.save_freq > 0 else "; this run saves none"
    return [
        note("host memory", f"about {rank:.1f} MiB on each rank, {node:.1f} MiB a node"),
        note("checkpoints", f"about {shards * rank:.1f} MiB more in each, in {shards} file(s){saves}"),
    ]


def host_bytes(config: DictConfig, teacher: TeacherConfig, hf_config: Any) -> tuple[int, int]:
    """Bytes of the teacher's copy on a rank, and the number of different shards, a file of a checkpoint each.

    Args:
        hf_config: the model's config, as verl loads it. All parameters are trained.
    """
    from verl.utils.model import get_hf_auto_model_class

    with torch.device("meta"):  # eager: the run's attention need not be installed here
        model = get_hf_auto_model_class(hf_config).from_config(hf_config, attn_implementation="eager")
    experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    rest = model.num_parameters() - experts
    actor, world_size = config.actor_rollout_ref.actor, config.trainer.nnodes * config.trainer.n_gpus_per_node
    if actor.strategy == "megatron":  # data parallelism shards the optimizer, not the parameters
        sizes, pipeline = actor.megatron, actor.megatron.pipeline_model_parallel_size
        dtype, ranks = sizes.dtype, pipeline * sizes.tensor_model_parallel_size
        expert_tensor = sizes.get("expert_tensor_parallel_size") or sizes.tensor_model_parallel_size
        expert_ranks = pipeline * sizes.expert_model_parallel_size * expert_tensor
    else:
        sizes = actor.fsdp_config
        dtype, ranks = sizes.model_dtype or "fp32", sizes.fsdp_size if 0 < sizes.fsdp_size < world_size else world_size
        expert_ranks = ranks
    itemsize = PrecisionType.to_dtype(dtype).itemsize
    average = 4 if teacher.weights == "ema" and itemsize < 4 else 0  # in float32, beside a copy in a shorter type
    local = math.ceil(rest / ranks + experts / expert_ranks)
    return local * (itemsize + average), math.lcm(ranks, expert_ranks)
