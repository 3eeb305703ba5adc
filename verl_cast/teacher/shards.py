"""The policy's trainable parameters on one rank, as the engine holds them: live storage, by name.

For FSDP2, FSDP1 and Megatron (verl's engines `fsdp2`, `fsdp`, `megatron`); checks/run.py refuses the others. The
tensors are views of the storage that the forward reads and that updates are written to. Writing into them with `copy_`
changes the model; `p.data = t` would cut a parameter off from Megatron's flat buffers. Offloaded parameters have no
storage: everything here must run inside the engine's `eval_mode()`, which loads them.
"""

from collections.abc import Iterator

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP1
from torch.distributed.fsdp._runtime_utils import _lazy_init
from torch.distributed.tensor import DTensor

# An engine's module: one module, or Megatron's list of model chunks (one per virtual pipeline stage).
EngineModule = torch.nn.Module | list[torch.nn.Module]


def trainable_shards(module: EngineModule) -> dict[str, torch.Tensor]:
    """This rank's part of every trainable parameter, by name.

    Pipeline stages reuse local layer names, so the names are unique on this rank only; chunks are numbered.

    Raises:
        RuntimeError: a parameter is offloaded. Megatron leaves its shape and device as they were, and a copy from its
            freed memory would end the process.
    """
    reshard(module)
    shards = {}
    for chunk_name, chunk in _chunks(module):
        for name, tensor in _trained(chunk):
            tensor = tensor.detach()
            tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if tensor.numel() > 0 and tensor.untyped_storage().size() == 0:
                raise RuntimeError(f"CAST: parameter {name} is offloaded; load it with the engine's eval_mode() first.")
            shards[chunk_name + name] = tensor
    return shards


def set_up(module: EngineModule) -> None:
    """Do what FSDP1 would do in its first forward. verl's `eval_mode()` needs it done at its exit.

    verl itself does the same where it loads offloaded parameters.
    """
    for _, chunk in _chunks(module):
        if isinstance(chunk, FSDP1):
            _lazy_init(chunk, chunk)


def reshard(module: EngineModule) -> None:
    """Let go of gathered parameters. One that a forward left gathered would hide a change of its shard."""
    for _, chunk in _chunks(module):
        for submodule in chunk.modules():
            if isinstance(submodule, FSDPModule):
                submodule.reshard()
            elif isinstance(submodule, FSDP1) and submodule._is_root is not None:  # None: no forward yet, none gathered
                if submodule._handle is not None and submodule._handle.uses_sharded_strategy:
                    submodule._handle.reshard(True)


def _chunks(module: EngineModule) -> Iterator[tuple[str, torch.nn.Module]]:
    if isinstance(module, torch.nn.Module):
        yield "", module
    else:
        for number, chunk in enumerate(module):
            yield f"chunk{number}.", chunk


def _trained(chunk: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in chunk.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
    # Megatron's MoE router: training moves this bias too, though it is a buffer that no gradient reaches. Its type is
    # float32 from the first forward on; here already.
    for module in chunk.modules():
        if hasattr(module, "_maintain_float32_expert_bias"):
            module._maintain_float32_expert_bias()
    for name, buffer in chunk.named_buffers():
        if name.rpartition(".")[2] == "expert_bias" and buffer is not None:
            yield name, buffer
