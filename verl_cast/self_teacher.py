"""The self-teacher's weights: a host copy of the policy's trainable shard, and its exchange with the live parameters.

* `snapshot`  a copy of the policy before the first step, renewed every `refresh_interval` training steps (section 8).
* `ema`       the same first copy; before every later step it moves to decay · teacher + (1 − decay) · policy.
* `initial`   the first copy for the whole run; with LoRA the base model (adapter disabled), which needs no copy.
* `current`   the policy itself, which needs none either.

For the teacher's forward the copy and the live parameters trade places, tensor by tensor: no second set of parameters
on the accelerator, one on the host, and afterwards the policy's own bits are back, also after an exception.
Every method that touches parameters must run inside the engine's `eval_mode()`, which loads offloaded parameters.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from verl_cast.config import TeacherConfig
from verl_cast.shards import EngineModule, reshard, trainable_shards

STATE_VERSION = 2


class SelfTeacher:
    """The teacher of one rank.

    Args:
        config: `algorithm.cast.teacher`.
        module: the engine's module: wrapped by FSDP, or Megatron's list of model chunks.
        has_adapter: the policy is a LoRA adapter on a frozen base model.
        adapter_is_new: that adapter was made for this run, not loaded.
    """

    def __init__(
        self, config: TeacherConfig, module: EngineModule, has_adapter: bool = False, adapter_is_new: bool = False
    ):
        self._config = config
        self._module = module
        self._adapter_is_new = adapter_is_new
        # The teacher's forward runs without the adapter: the base model is the initial policy.
        self.without_adapter = config.weights == "initial" and has_adapter
        self.holds_copy = config.weights != "current" and not self.without_adapter
        self._host: dict[str, torch.Tensor] = {}  # in the live dtype: these trade places with the live parameters
        # ema of parameters below float32, where a step of (1 − decay) would be rounded away: the float32 average.
        self._average: dict[str, torch.Tensor] = {}
        self._taken_at: int | None = None  # completed training steps when the first or latest copy was taken
        self._averaged_at: int | None = None  # completed training steps when the average was last moved
        self._is_live = config.weights == "current"  # the live parameters are the teacher's

    @property
    def host_bytes(self) -> int:
        """Bytes of the copy on this rank's host."""
        return sum(tensor.nbytes for tensors in (self._host, self._average) for tensor in tensors.values())

    def age(self, completed_steps: int) -> int | None:
        """Training steps since the teacher's weights were the policy's; None for an average, which never was."""
        if self._config.weights == "ema":
            return None
        return 0 if self._taken_at is None else completed_steps - self._taken_at

    def is_policy(self, completed_steps: int) -> bool:
        """Whether the teacher is the policy that `completed_steps` training steps made.

        That policy gives the step's old log-probs. In separate_async with several updates between two weight syncs it
        is no longer the live one after the first.
        """
        return self._is_live or (self._config.weights == "snapshot" and self._taken_at == completed_steps)

    def follow_due(self, completed_steps: int) -> bool:
        """Whether `follow` has something to do before the step that comes after `completed_steps` training steps."""
        if not self.holds_copy:
            return self.without_adapter and self._taken_at is None
        if self._taken_at is None:
            return True
        if self._config.weights == "snapshot":
            interval = self._config.refresh_interval
            return completed_steps // interval > self._taken_at // interval
        return self._config.weights == "ema" and completed_steps > self._averaged_at

    @torch.no_grad()
    def follow(self, completed_steps: int) -> None:
        """Bring the teacher up to date with the policy, where `follow_due` says so."""
        if self.without_adapter:
            # A new adapter adds exactly nothing, so that the base model is the policy until the first update.
            self._taken_at = completed_steps
            self._is_live = self._adapter_is_new and completed_steps == 0
        elif self._config.weights == "ema" and self._taken_at is not None:
            self._move_average()
            self._averaged_at = completed_steps
        else:
            self._copy(completed_steps)

    def _copy(self, completed_steps: int) -> None:
        """Take the policy's weights. The copy is cloned, never an alias: on a CPU a plain move would be one."""
        shards = trainable_shards(self._module)
        if not self._host:
            self._host = {
                name: torch.empty_like(shard, device="cpu", pin_memory=shard.device.type == "cuda")
                for name, shard in shards.items()
            }
        for name, shard in shards.items():
            self._host[name].copy_(shard)
        if self._config.weights == "ema":
            self._average = {
                name: tensor.float()
                for name, tensor in self._host.items()
                if tensor.is_floating_point() and tensor.dtype != torch.float32
            }
        self._taken_at = self._averaged_at = completed_steps
        self._is_live = True

    def _move_average(self) -> None:
        for name, shard in trainable_shards(self._module).items():
            average = self._average.get(name, self._host[name])
            average.lerp_(shard.to("cpu", average.dtype), 1 - self._config.ema_decay)
            if average is not self._host[name]:
                self._host[name].copy_(average)

    def policy_moved(self) -> None:
        """The policy's weights have changed (an optimizer step, a loaded checkpoint)."""
        self._is_live = self._config.weights == "current"

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The module computes with the teacher's weights inside, with the policy's before and after, bit for bit."""
        if self._is_live or not self.holds_copy:
            yield
            return
        if self._taken_at is None:
            raise RuntimeError("CAST: the self-teacher has no weights yet; follow() comes before the first pass.")
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
            "taken_at": self._taken_at,
            "averaged_at": self._averaged_at,
            "is_live": self._is_live,
            "parameters": self._host,
            "average": self._average,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved teacher.

        Raises:
            ValueError: the state is of another version or kind of teacher, or its parameters are not those of this
                rank's module (another model, LoRA setting, or layout of ranks).
        """
        for key, expected in (("version", STATE_VERSION), ("weights", self._config.weights)):
            if state.get(key) != expected:
                raise ValueError(f"its {key} is {state.get(key)!r}, this run's is {expected!r}")
        if self.holds_copy and state["taken_at"] is not None:
            shards = trainable_shards(self._module)
            described = {name: (tuple(t.shape), t.dtype) for name, t in state["parameters"].items()}
            if described != {name: (tuple(t.shape), t.dtype) for name, t in shards.items()}:
                raise ValueError("its parameters are not those of this rank (other model, LoRA or layout of ranks)")
            self._copy(state["taken_at"])
            for own, saved in ((self._host, state["parameters"]), (self._average, state["average"])):
                for name, tensor in own.items():
                    tensor.copy_(saved[name])
        self._taken_at, self._averaged_at = state["taken_at"], state["averaged_at"]
        self._is_live = state["is_live"]
