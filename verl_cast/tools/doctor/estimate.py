"""What the teacher's copy takes: host memory, bytes in a checkpoint, seconds on the bus.

The numbers are estimates from the config and the model's shapes; no weight is loaded.
"""

import math
from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from verl_cast.config.cast import TeacherConfig

BUS_GB = 25.0  # GB/s between host and GPU that PCIe 4 x16 gives in practice; one direction at a time

_DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


def lora_rank(config: DictConfig) -> int:
    """Rank of the policy's adapter under FSDP or Megatron; 0: all parameters are trained."""
    model = config.actor_rollout_ref.model
    return model.lora_rank or model.lora.get("rank", 0)


@dataclass(frozen=True)
class Memory:
    """The teacher's copy on the host, for the rank with the largest part.

    Attributes:
        trained: number of trained parameters in the whole model.
        ranks: number of ranks over which a parameter is sharded.
        shards: number of distinct shards, a file of a checkpoint each.
        copy_bytes: size of that rank's copy, in the policy's type.
        host_bytes: the same with ema's float32 average, which stays on the host.
        exact: the run will print exactly this number; if False, only the engine knows the layout.
    """

    trained: int
    ranks: int
    shards: int
    dtype: torch.dtype
    copy_bytes: int
    host_bytes: int
    exact: bool

    @property
    def checkpoint_bytes(self) -> int:
        """Of the teacher's files in a checkpoint."""
        return self.shards * self.host_bytes

    @property
    def swap_seconds(self) -> float:
        """Of bringing the teacher in and the policy back: the copy crosses the bus four times."""
        return 4 * self.copy_bytes / (BUS_GB * 1e9)


def needs_copy(config: DictConfig, teacher: TeacherConfig) -> bool:
    """Whether the teacher needs a copy (method section 8).

    `current` is the policy itself, and `initial` with LoRA is the base model: neither is copied.
    """
    return teacher.weights != "current" and not (teacher.weights == "initial" and lora_rank(config) > 0)


def memory(config: DictConfig, teacher: TeacherConfig, hf_config) -> Memory | None:
    """The host memory of the teacher's copy.

    Args:
        hf_config: the model's config, as verl loads it.

    Returns:
        None if it is not known: adapters in Megatron.
    """
    actor = config.actor_rollout_ref.actor
    is_megatron = actor.strategy == "megatron"
    if is_megatron and lora_rank(config) > 0:
        return None
    shapes = trained_shapes(config, hf_config)
    trained = sum(math.prod(shape) for _, shape in shapes)
    if is_megatron:
        # Data parallelism shards the optimizer, not the live parameters.
        settings = actor.megatron
        ranks = settings.tensor_model_parallel_size * settings.pipeline_model_parallel_size
        expert_tensor = settings.get("expert_tensor_parallel_size") or settings.tensor_model_parallel_size
        expert_ranks = settings.pipeline_model_parallel_size * settings.expert_model_parallel_size * expert_tensor
        # A rank's place among the dense parts repeats with the first period, among the experts with the second.
        shards = math.lcm(ranks, expert_ranks)
        experts = sum(math.prod(shape) for name, shape in shapes if ".experts." in name)
        dtype = _DTYPES[settings.dtype]
        local = math.ceil((trained - experts) / ranks + experts / expert_ranks)
        exact = False
    else:
        settings = actor.fsdp_config
        world_size = config.trainer.nnodes * config.trainer.n_gpus_per_node
        shards = ranks = settings.fsdp_size if 0 < settings.fsdp_size < world_size else world_size
        dtype = _DTYPES[settings.model_dtype or "fp32"]
        exact = actor.strategy == "fsdp2" or ranks == 1
        # FSDP2 shards the first dimension, and the first rank has most rows. FSDP1 shards flat, padded buffers.
        local = sum(math.ceil(shape[0] / ranks) * math.prod(shape[1:]) for _, shape in shapes)
        local = local if exact else math.ceil(trained / ranks)
    with_average = teacher.weights == "ema" and dtype != torch.float32
    copy_bytes, host_bytes = local * dtype.itemsize, local * (dtype.itemsize + 4 * with_average)
    return Memory(trained, ranks, shards, dtype, copy_bytes, host_bytes, exact)


def trained_shapes(config: DictConfig, hf_config) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every trained parameter, from a model without storage."""
    from verl.utils.model import get_hf_auto_model_class

    model = config.actor_rollout_ref.model
    with torch.device("meta"):
        # The attention's implementation has no parameters, and the configured one need not be installed here.
        module = get_hf_auto_model_class(hf_config).from_config(
            hf_config, attn_implementation="eager", trust_remote_code=model.trust_remote_code
        )
    if model.lora_rank > 0:
        module = _with_adapter(module, model)
    return [(name, tuple(p.shape)) for name, p in module.named_parameters() if p.requires_grad]


def _with_adapter(module: torch.nn.Module, model: DictConfig) -> torch.nn.Module:
    """The model with the adapter that verl's FSDP engine makes or loads."""
    from peft import LoraConfig, PeftConfig, TaskType, get_peft_model
    from verl.utils.py_functional import convert_to_regular_types

    if model.lora_adapter_path is not None:
        adapter = PeftConfig.from_pretrained(model.lora_adapter_path)
        adapter.inference_mode = False
    else:
        adapter = LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=model.lora_rank,
            target_modules=convert_to_regular_types(model.target_modules),
            target_parameters=convert_to_regular_types(model.get("target_parameters")),
            exclude_modules=convert_to_regular_types(model.exclude_modules),
        )
    return get_peft_model(module, adapter, low_cpu_mem_usage=True)


def readable(num_bytes: float) -> str:
    """In MiB, as the run prints it; in GiB from 10 GiB on."""
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes < 10 * 2**30 else f"{num_bytes / 2**30:.1f} GiB"
