"""verl's platform `cpu`: each process has one logical device, the CPU."""

import contextlib
import os
import types

import psutil
import torch
from verl.plugin.platform.platform_base import PlatformBase


def _no_device_memory(*args, **kwargs) -> int:
    return 0


class CPUDeviceModule(types.ModuleType):
    """`torch.cpu` plus the `torch.cuda` functions that verl calls. Memory is the host's, and none is allocated."""

    def __init__(self):
        super().__init__("verl_cast.platform.device.device_module")

    # torch.cpu lacks these functions. verl calls them for metrics, clean-up and weight transfer.
    empty_cache = ipc_collect = reset_peak_memory_stats = reset_accumulated_memory_stats = staticmethod(
        _no_device_memory
    )
    memory_allocated = memory_reserved = max_memory_allocated = max_memory_reserved = staticmethod(_no_device_memory)

    # Loading a checkpoint also restores the device's random generator, which is the host's here.
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
    """One logical device per process, called "cpu"."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = CPUDeviceModule()

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check=False) -> bool:
        return False  # never chosen by verl's own detection, only by VERL_PLATFORM=cpu

    def current_device(self) -> str:
        return "cpu"  # verl passes this to Tensor.to(), where an index would mean an accelerator

    def device_count(self) -> int:
        return 1

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def _nothing(self, *args, **kwargs) -> None:
        """What a CPU does not need."""

    set_device = synchronize = set_allocator_settings = empty_cache = _nothing
    profiler_start = profiler_stop = cudart = _nothing

    def nvtx_range(self, msg: str):
        return contextlib.nullcontext()

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"  # Ray sets it for its logical GPUs; nothing on a CPU reads it

    def ray_resource_name(self) -> str:
        return "GPU"  # logical GPUs (ray_init.num_gpus): verl's resource pools count only GPU and NPU

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False  # weights travel through shared memory

    def rollout_env_vars(self) -> dict[str, str]:
        # GiB. Without it, vLLM takes rollout.gpu_memory_utilization (0.5) of the host's memory. It refuses to start if
        # less is free, which is usual beside a training process.
        return {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE") or "1"}
