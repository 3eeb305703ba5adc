"""The self-teacher's weights: a host copy of the policy's trainable shard, and its exchange with the live parameters.

* `snapshot`  a copy of the policy before the first step, renewed every `refresh_interval` training steps (section 8).
* `ema`       the same first copy; before every later step it moves to decay · teacher + (1 − decay) · policy.
* `initial`   the first copy for the whole run; with LoRA the base model (adapter disabled), which needs no copy.
* `current`   the policy itself, which needs none either.

For the teacher's forward the copy and the live parameters trade places, piece by piece (host_copy.py). The accelerator
holds no second set of parameters, the host one. Afterwards the policy's own bits are back, also after an exception.
Every method that touches parameters must run inside the engine's `eval_mode()`, which loads offloaded parameters.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from verl_cast.config.cast import TeacherConfig
from verl_cast.teacher.host_copy import HostCopy, Piece
from verl_cast.teacher.shards import EngineModule, reshard, trainable_shards

STATE_VERSION = 2
NO_COST = {"refresh_seconds": 0.0, "refresh_bytes": 0, "swap_seconds": 0.0, "swap_bytes": 0}


class SelfTeacher:
    """The teacher of one rank.

    Args:
        config: `algorithm.cast.teacher`.
        module: the engine's module: wrapped by FSDP, or Megatron's list of model chunks.
        has_adapter: the policy is a LoRA adapter on a frozen base model.
        adapter_is_new: that adapter was made for this run, not loaded.

    Attributes:
        pins_memory: on an accelerator the copy is page-locked. To be set before the first copy.
        noise_floor: the engine's, nats, as it was measured last; None: not yet. Saved with the teacher, since a resumed
            run goes on with the dead zone that it had.
    """

    def __init__(
        self, config: TeacherConfig, module: EngineModule, has_adapter: bool = False, adapter_is_new: bool = False
    ):
        self.config = config
        self.noise_floor: float | None = None
        self.pins_memory = True
        self._module = module
        self._adapter_is_new = adapter_is_new
        # The teacher's forward runs without the adapter: the base model is the initial policy.
        self.without_adapter = config.weights == "initial" and has_adapter
        self.holds_copy = config.weights != "current" and not self.without_adapter
        self._host = HostCopy({})  # in the live dtype: it trades places with the live parameters
        # ema of parameters below float32, where a step of (1 − decay) would be rounded away: the float32 average.
        self._average: dict[str, torch.Tensor] = {}
        self._taken_at: int | None = None  # completed training steps when the first or latest copy was taken
        self._averaged_at: int | None = None  # completed training steps when the average was last moved
        self._is_live = config.weights == "current"  # the live parameters are the teacher's
        self._is_home = True  # the copy is on the host, the policy in the model
        self._cost = dict(NO_COST)

    @property
    def host_bytes(self) -> int:
        """Bytes of the copy on this rank's host, without the slack beside it (a few MiB: its largest piece)."""
        return self._host.nbytes + sum(tensor.nbytes for tensor in self._average.values())

    @property
    def is_pinned(self) -> bool:
        """Whether the copy is page-locked."""
        return self._host.is_pinned

    def take_cost(self) -> dict[str, float]:
        """What following and swapping have cost on this rank since the last call of this method.

        Returns:
            {"refresh_seconds", "refresh_bytes": of `follow` (a new copy, or a move of the average), "swap_seconds",
            "swap_bytes": of `swapped_in`, in and out}. Seconds are of the wall clock, until the last copy has arrived.
            Bytes are those that were read. A refresh reads the trainable shard once; a swap reads it four times (the
            policy out, the teacher in; and back). All are 0 where nothing was to be done.
        """
        cost, self._cost = self._cost, dict(NO_COST)
        return cost

    @property
    def taken_at(self) -> int | None:
        """Completed training steps when the first or latest copy was taken; None before that."""
        return self._taken_at

    def age(self, completed_steps: int) -> int | None:
        """Training steps since the teacher's weights were the policy's; None where they never were."""
        if self.config.weights == "ema" or (self.without_adapter and not self._adapter_is_new):
            return None
        return 0 if self._taken_at is None else completed_steps - self._taken_at

    def is_policy(self, completed_steps: int) -> bool:
        """Whether the teacher is the policy that `completed_steps` training steps made.

        That policy gives the step's old log-probs. With several updates between two weight syncs (separate_async) it
        is no longer the live one after the first update.
        """
        never_moved = self._taken_at == self._averaged_at == completed_steps
        if self.without_adapter:
            # A new adapter adds exactly nothing: the base model is the policy until the first update.
            never_moved = self._adapter_is_new and completed_steps == 0
        return self._is_live or never_moved

    def follow_due(self, completed_steps: int) -> bool:
        """Whether `follow` has something to do before the step that comes after `completed_steps` training steps."""
        if not self.holds_copy:
            return self.without_adapter and self._taken_at is None
        if self._taken_at is None:
            return True
        if self.config.weights == "snapshot":
            interval = self.config.refresh_interval
            return completed_steps // interval > self._taken_at // interval
        return self.config.weights == "ema" and completed_steps > self._averaged_at

    @torch.no_grad()
    def follow(self, completed_steps: int) -> None:
        """Bring the teacher up to date with the policy, where `follow_due` says so."""
        self._require_home()
        if self.without_adapter:
            self._taken_at = 0
            return
        with self._counted("refresh", copies=1):
            if self.config.weights == "ema" and self._taken_at is not None:
                self._move_average()
                self._averaged_at = completed_steps
            else:
                self._copy(completed_steps)

    def _copy(self, completed_steps: int) -> None:
        """Take the policy's weights: a copy, never an alias. On a CPU a plain move would be one."""
        shards = trainable_shards(self._module)
        if self._taken_at is None:
            self._host = HostCopy(shards, self.pins_memory)
        self._check_same(shards)
        for piece in self._host.pieces(shards):
            piece.home.copy_(piece.live, non_blocking=True)
        self._host.wait()
        if self.config.weights == "ema":
            self._average = {
                name: tensor.float()
                for name, tensor in self._host.tensors.items()
                if tensor.is_floating_point() and tensor.dtype != torch.float32
            }
        self._taken_at = self._averaged_at = completed_steps
        self._is_live = True

    def _move_average(self) -> None:
        shards = trainable_shards(self._module)
        self._check_same(shards)
        for piece in self._host.pieces(shards):
            policy = piece.live if piece.live.device.type == "cpu" else self._host.in_slack(piece).copy_(piece.live)
            rounded = piece.name in self._average
            average = piece.part_of(self._average[piece.name]) if rounded else piece.home
            average.lerp_(policy.to(average.dtype), 1 - self.config.ema_decay)
            if rounded:
                piece.home.copy_(average)

    def policy_moved(self) -> None:
        """The policy's weights have changed (an optimizer step, a loaded checkpoint)."""
        self._is_live = self.config.weights == "current"

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the module computes with the teacher's weights; afterwards with the policy's, bit for bit."""
        if self._is_live or not self.holds_copy:
            yield
            return
        if self._taken_at is None:
            raise RuntimeError("CAST: the self-teacher has no weights yet; follow() comes before the first pass.")
        shards = trainable_shards(self._module)
        self._check_same(shards)
        self._require_home()
        self._is_home = False
        swapped: list[Piece] = []
        try:
            with self._counted("swap", copies=2):
                for piece in self._host.pieces(shards):
                    self._exchange(piece.live, (piece.away, piece.home))
                    swapped.append(piece)
            yield
        finally:
            # Into the very tensors that were taken out: after an exception inside a forward the module's parameters can
            # be gathered copies. In reverse, so that the slack comes back. To the end, whatever happens.
            with self._counted("swap", copies=2), contextlib.ExitStack() as exchanges:
                exchanges.callback(reshard, self._module)
                for piece in swapped:
                    exchanges.callback(self._exchange, piece.live, (piece.home, piece.away))
            self._is_home = True

    def _require_home(self) -> None:
        if not self._is_home:
            raise RuntimeError(
                "CAST: the teacher's weights are in the model: its pass is running, or the policy could not be put "
                "back after an error."
            )

    @staticmethod
    def _exchange(live: torch.Tensor, host: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Write `live` to the first place on the host, and the second to `live`; or leave `live` as it was."""
        # Both places are on the host: an accelerator that is out of memory must still get its policy back. copy_, never
        # `.data =`: engines alias the live tensor.
        outgoing, incoming = host
        outgoing.copy_(live, non_blocking=True)
        try:
            live.copy_(incoming, non_blocking=True)
        except BaseException:
            live.copy_(outgoing)
            raise

    @contextlib.contextmanager
    def _counted(self, what: str, copies: int) -> Iterator[None]:
        """Count what is copied inside, `copies` times the trainable shard, and wait for it."""
        start = time.perf_counter()
        try:
            with torch.no_grad():
                yield
        finally:
            self._host.wait()
            self._cost[f"{what}_seconds"] += time.perf_counter() - start
            self._cost[f"{what}_bytes"] += copies * self._host.nbytes

    def _check_same(self, shards: dict[str, torch.Tensor]) -> None:
        """The live parameters are those that the copy was taken of. A copy in another type would round the policy."""
        copies = self._host.tensors
        for name in sorted(shards.keys() | copies.keys()):
            live, host = shards.get(name), copies.get(name)
            if live is None or host is None or (live.shape, live.dtype) != (host.shape, host.dtype):
                described = ["missing" if t is None else f"{tuple(t.shape)} {t.dtype}" for t in (live, host)]
                raise RuntimeError(
                    f"CAST: parameter {name} is {described[0]}, the teacher's copy of it {described[1]}."
                )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to compute the same teacher log-probs: weights, and when they were taken."""
        self._require_home()
        return {
            "version": STATE_VERSION,
            "weights": self.config.weights,
            "taken_at": self._taken_at,
            "averaged_at": self._averaged_at,
            "is_live": self._is_live,
            "noise_floor": self.noise_floor,
            "parameters": dict(self._host.tensors),
            "average": self._average,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved teacher.

        Raises:
            ValueError: the state is of another version or kind of teacher, or its parameters are not those of this
                rank's module (another model, LoRA setting, or layout of ranks).
        """
        for key, expected in (("version", STATE_VERSION), ("weights", self.config.weights)):
            if state.get(key) != expected:
                raise ValueError(f"its {key} is {state.get(key)!r}, this run's is {expected!r}")
        if self.holds_copy and state["taken_at"] is not None:
            self._copy(state["taken_at"])
            copies = self._host.tensors
            described = {name: (tuple(t.shape), t.dtype) for name, t in state["parameters"].items()}
            if described != {name: (tuple(t.shape), t.dtype) for name, t in copies.items()}:
                raise ValueError("its parameters are not those of this rank (other model, LoRA or layout of ranks)")
            for own, saved in ((copies, state["parameters"]), (self._average, state["average"])):
                for name, tensor in own.items():
                    tensor.copy_(saved[name])
        self._taken_at, self._averaged_at = state["taken_at"], state["averaged_at"]
        self._is_live = state["is_live"]
