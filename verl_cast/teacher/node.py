"""What a rank must know of the others: who holds the same shard, and how much memory a node's teachers take."""

import os
import socket
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

# Page-locked memory is scarce where hundreds of processes share a node's pool, and the kernel cannot take it back.
PINNED_SHARE = 0.25
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Place(NamedTuple):
    """Where this rank's teacher stands.

    Attributes:
        node: name of the node.
        first_with_shard: the lowest rank that holds the same part of the parameters.
        node_bytes: of all copies on this node.
    """

    node: str
    first_with_shard: int
    node_bytes: int


def place_of(engine: Any, copy_bytes: int) -> Place:
    """Ask all ranks. A collective call.

    Args:
        engine: verl's, initialized.
        copy_bytes: of this rank's copy.
    """
    own = (socket.gethostname(), shard_position(engine), copy_bytes)
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, own)
    first = next(rank for rank, (_, position, _) in enumerate(ranks) if position == own[1])
    return Place(own[0], first, sum(num_bytes for node, _, num_bytes in ranks if node == own[0]))


def shard_position(engine: Any) -> tuple[int, ...]:
    """Equal on ranks that hold the same part of the parameters, and on no others: data-parallel replicas."""
    if engine.engine_config.strategy == "megatron":
        from megatron.core import parallel_state

        return (
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_pipeline_model_parallel_rank(),
            parallel_state.get_expert_model_parallel_rank(),
            parallel_state.get_expert_tensor_parallel_rank(),
        )
    return (engine.device_mesh["fsdp"].get_local_rank(),)


def pins(setting: bool | str, strategy: str, node_bytes: int, node_memory: int) -> bool:
    """Whether copies are page-locked on an accelerator (`teacher.pin_memory`).

    Args:
        setting: True, False or auto.
        strategy: verl's name of the engine. Its Megatron engine page-locks shard-sized copies of its own.
        node_bytes: of all copies on the node.
        node_memory: of the node, bytes.
    """
    if setting != "auto":
        return bool(setting)
    return strategy != "megatron" and node_bytes <= PINNED_SHARE * node_memory


def node_memory() -> int:
    """Bytes of memory that this machine, or this container, has."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return memory if limit == "max" else min(memory, int(limit))


def copies_that_verl_pins(config: DictConfig) -> dict[str, int]:
    """Copies of the trained shard that verl itself page-locks on every rank: by the setting that asks for them.

    Args:
        config: verl's.
    """
    actor = "actor_rollout_ref.actor"
    strategy = OmegaConf.select(config, f"{actor}.strategy")
    sync_step = "trainer.v1.separate_async.parameter_sync_step"
    pinned = {}
    if strategy == "megatron":
        pinned[f"{actor}.megatron.param_offload"] = int(OmegaConf.select(config, f"{actor}.megatron.param_offload"))
        is_async = OmegaConf.select(config, "trainer.v1.trainer_mode") == "separate_async"
        pinned[sync_step] = 2 * int(is_async and OmegaConf.select(config, sync_step) > 1)
    if strategy == "fsdp2":
        key = f"{actor}.fsdp_config.offload_policy"
        pinned[key] = int(bool(OmegaConf.select(config, key)))
    return {key: count for key, count in pinned.items() if count}
