"""The self-teacher's weights: a host copy of the policy's trainable shard, and its exchange with the live parameters.

`snapshot` copies the policy before the first step and every `refresh_interval` training steps (method section 8);
`current` is the policy itself and holds nothing. For the teacher's forward the copy and the live parameters trade
places, tensor by tensor: no second set of parameters on the accelerator, one on the host, and afterwards the policy's
own bits are back, also after an exception.

Every method that touches parameters must run inside the engine's `eval_mode()`, which loads offloaded parameters. Here
for FSDP1 and FSDP2; other engines are refused before the run (`verl_cast.check`).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP1
from torch.distributed.tensor import DTensor

from verl_cast.config import TeacherConfig

STATE_VERSION = 1


def reshard(module: torch.nn.Module) -> None:
    """Let go of gathered parameters: one that a forward left gathered would hide a change of its shard."""
    for submodule in module.modules():
        if isinstance(submodule, FSDPModule):
            submodule.reshard()
        elif isinstance(submodule, FSDP1) and submodule._is_root is not None:  # None: no forward yet, nothing gathered
            if submodule._handle is not None and submodule._handle.uses_sharded_strategy:
                submodule._handle.reshard(True)


def trainable_shards(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """This rank's part of every trainable parameter, by name: views of the live storage that the optimizer steps."""
    reshard(module)
    shards = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            tensor = parameter.detach()
            shards[name] = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return shards


class SelfTeacher:
    """The teacher of one rank.

    Args:
        config: `algorithm.cast.teacher`.
        module: the engine's module, wrapped by FSDP.
    """

    def __init__(self, config: TeacherConfig, module: torch.nn.Module):
        self._config = config
        self._module = module
        self._host: dict[str, torch.Tensor] = {}
        self._snapshot_step: int | None = None  # completed training steps when the snapshot was taken
        # True while teacher and policy are the same weights: the gap on the same tokens is 0 by construction.
        self.is_policy = config.weights == "current"

    @property
    def host_bytes(self) -> int:
        """Bytes of the copy on this rank's host."""
        return sum(tensor.nbytes for tensor in self._host.values())

    def age(self, completed_steps: int) -> int:
        """Training steps since the teacher's weights were the policy's."""
        return 0 if self._snapshot_step is None else completed_steps - self._snapshot_step

    def refresh_due(self, completed_steps: int) -> bool:
        """Whether a new snapshot is due before the step that follows `completed_steps` training steps."""
        if self._config.weights != "snapshot":
            return False
        interval = self._config.refresh_interval
        return self._snapshot_step is None or completed_steps // interval > self._snapshot_step // interval

    @torch.no_grad()
    def refresh(self, completed_steps: int) -> None:
        """Take a snapshot of the policy. The copy is cloned, never an alias: on a CPU a plain move would be one."""
        shards = trainable_shards(self._module)
        if not self._host:
            self._host = {
                name: torch.empty_like(shard, device="cpu", pin_memory=shard.device.type == "cuda")
                for name, shard in shards.items()
            }
        for name, shard in shards.items():
            self._host[name].copy_(shard)
        self._snapshot_step = completed_steps
        self.is_policy = True

    def policy_moved(self) -> None:
        """The policy's weights have changed (an optimizer step, a loaded checkpoint)."""
        self.is_policy = self._config.weights == "current"

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The module computes with the teacher's weights inside, with the policy's before and after, bit for bit."""
        if self.is_policy:
            yield
            return
        if self._snapshot_step is None:
            raise RuntimeError("CAST: the self-teacher has no snapshot yet; refresh() comes before the first pass.")
        shards = trainable_shards(self._module)
        swapped: list[str] = []
        try:
            for name, shard in shards.items():
                self._exchange(shard, self._host[name])
                swapped.append(name)
            yield
        finally:
            # Into the very tensors that were taken out: after an exception inside a forward the module's parameters can
            # be gathered copies.
            for name in swapped:
                self._exchange(shards[name], self._host[name])
            reshard(self._module)

    @staticmethod
    @torch.no_grad()
    def _exchange(live: torch.Tensor, host: torch.Tensor) -> None:
        # In this order a failure of any line leaves the live tensor whole. copy_, never `.data =`: engines alias it.
        incoming = host.to(live.device, copy=True)
        host.copy_(live)
        live.copy_(incoming)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to compute the same teacher log-probs: weights, and when they were taken."""
        return {
            "version": STATE_VERSION,
            "weights": self._config.weights,
            "snapshot_step": self._snapshot_step,
            "is_policy": self.is_policy,
            "parameters": self._host,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved teacher.

        Raises:
            ValueError: the state is of another version or kind of teacher, or its parameters are not those of this
                rank's module (another model, LoRA setting, or number of ranks).
        """
        for key, expected in (("version", STATE_VERSION), ("weights", self._config.weights)):
            if state[key] != expected:
                raise ValueError(f"its {key} is {state[key]!r}, this run's is {expected!r}")
        shards = trainable_shards(self._module)
        saved = state["parameters"]
        if state["snapshot_step"] is not None:
            described = {name: (tuple(t.shape), t.dtype) for name, t in saved.items()}
            if described != {name: (tuple(t.shape), t.dtype) for name, t in shards.items()}:
                raise ValueError("its parameters are not those of this rank (other model, LoRA or number of ranks)")
            self.refresh(state["snapshot_step"])
            for name, tensor in saved.items():
                self._host[name].copy_(tensor)
        self._snapshot_step = state["snapshot_step"]
        self.is_policy = state["is_policy"]
