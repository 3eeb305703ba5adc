"""verl without an accelerator (VERL_PLATFORM=cpu): FSDP or Megatron training on gloo, rollouts from vLLM's CPU build.

plugin.py calls `install()` in every process that imports verl. It registers a platform (device.py) and the departures
from stock verl, torch, vLLM and Megatron (fsdp.py, vllm.py, megatron.py). A departure is a function that patches one
module when that module is imported. It first checks that the code is still what it was written for (expect.py).
cpu_config.py refuses settings that cannot work here.

Environment: VLLM_CPU_KVCACHE_SPACE is the size of each vLLM replica's KV cache in GiB; it is 1 unless set.
Left out: critics (value models), verl's SFT trainers, SGLang.
"""

import functools
import sys

import wrapt
from verl.plugin.platform.platform_manager import PlatformRegistry

from verl_cast.platform import fsdp, megatron, vllm
from verl_cast.platform.device import PlatformCPU
from verl_cast.platform.expect import expect_parameters


def install() -> None:
    """Make this process ready to run verl on the CPU. Cheap; a second call changes nothing."""
    if PlatformRegistry.get("cpu") is PlatformCPU:
        return
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
    sys.meta_path.append(vllm.VllmDistributionName())
    for module_name, departure in (*DEPARTURES, *megatron.DEPARTURES):
        wrapt.register_post_import_hook(departure, module_name)


def name_gloo_once(module) -> None:
    """verl asks torch for "cpu:gloo,<device>:<backend>". If the device is the CPU, torch refuses the repeated entry."""
    original = expect_parameters(module, "initialize_global_process_group_ray", ["timeout_second", "backend"])

    @functools.wraps(original)
    def initialize_global_process_group_ray(timeout_second=None, backend=None):
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    module.initialize_global_process_group_ray = initialize_global_process_group_ray


# All departures except Megatron's: megatron-core is not installed everywhere.
DEPARTURES = (("verl.utils.distributed", name_gloo_once), *fsdp.DEPARTURES, *vllm.DEPARTURES)
