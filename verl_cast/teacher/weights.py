"""The self-teacher's weights: a host copy of the policy's trainable shard, which is swapped with the live parameters.

* `Snapshot`     a copy of the policy before the first step, renewed every `refresh_interval` steps (section 8).
* `Average`      `ema`: the same first copy; before every later step decay · teacher + (1 − decay) · policy.
* `Initial`      the first copy for the whole run.
* `BaseModel`    `initial` with LoRA: the model without its adapter, which needs no copy.
* `SelfTeacher`  `current`: the policy itself, which needs none either.

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


def build_teacher(
    config: TeacherConfig, module: EngineModule, has_adapter: bool = False, adapter_is_new: bool = False
) -> "SelfTeacher":
    """The teacher of one rank.

    Args:
        config: `algorithm.cast.teacher`.
        module: the engine's module: wrapped by FSDP, or Megatron's list of model chunks.
        has_adapter: the policy is a LoRA adapter on a frozen base model.
        adapter_is_new: that adapter was made for this run, not loaded.
    """
    if config.weights == "initial" and has_adapter:
        return BaseModel(config, adapter_is_new)
    if config.weights == "current":
        return SelfTeacher(config)
    return {"snapshot": Snapshot, "ema": Average, "initial": Initial}[config.weights](config, module)


class SelfTeacher:
    """The policy itself (`current`), and what all kinds of teachers share.

    Attributes:
        holds_copy: the teacher's weights are a copy on the host.
        without_adapter: the teacher's forward runs without the LoRA adapter.
        pins_memory: on an accelerator the copy is page-locked. To be set before the first copy.
        is_pinned: the copy is page-locked.
        host_bytes: of the copy on this rank's host, without the slack beside it (a few MiB: its largest piece).
        taken_at: completed training steps when the first or latest copy was taken; None before that.
        noise_floor: the engine's, nats, as it was measured last; None: not yet. Saved with the teacher, since a resumed
            run goes on with the dead zone that it had.
        context: `identity` of what stands before the responses; None: not known. Saved too.
    """

    holds_copy = False
    without_adapter = False
    is_pinned = False
    host_bytes = 0

    def __init__(self, config: TeacherConfig):
        self.config = config
        self.noise_floor: float | None = None
        self.context: str | None = None
        self.pins_memory = True
        self.taken_at: int | None = None
        self._cost = dict(NO_COST)

    def take_cost(self) -> dict[str, float]:
        """What refreshing and swapping have cost on this rank since the last call of this method.

        Returns:
            {"refresh_seconds", "refresh_bytes": of `refresh` (a new copy, or a move of the average), "swap_seconds",
            "swap_bytes": of `swapped_in`, in and out}. Seconds are of the wall clock, until the last copy has arrived.
            Bytes are those that were read. A refresh reads the trainable shard once; a swap reads it four times (the
            policy out, the teacher in; and back). All are 0 where nothing was to be done.
        """
        cost, self._cost = self._cost, dict(NO_COST)
        return cost

    def age(self, completed_steps: int) -> int | None:
        """Training steps since the teacher's weights were the policy's; None where they never were."""
        return 0

    def is_policy(self, completed_steps: int) -> bool:
        """Whether the teacher is the policy that `completed_steps` training steps made.

        That policy gives the step's old log-probs. With several updates between two weight syncs (separate_async) it
        is no longer the live one after the first update.
        """
        return True

    def refresh_due(self, completed_steps: int) -> bool:
        """Whether `refresh` has something to do before the step that comes after `completed_steps` training steps."""
        return False

    def refresh(self, completed_steps: int) -> None:
        """Bring the teacher up to date with the policy, where `refresh_due` says so."""

    def policy_moved(self) -> None:
        """The policy's weights have changed (an optimizer step, a loaded checkpoint)."""

    def swapped_in(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the module computes with the teacher's weights; afterwards with the policy's, bit for bit."""
        return contextlib.nullcontext()

    def needs_marker_only(self, completed_steps: int) -> bool:
        """Whether a run that resumes after `completed_steps` would throw the saved copy away at once."""
        return False

    def state_dict(self, completed_steps: int) -> dict[str, Any]:
        """What a run that resumes after `completed_steps` needs to compute the same teacher log-probs."""
        return {
            "version": STATE_VERSION,
            "weights": self.config.weights,
            "taken_at": self.taken_at,
            "noise_floor": self.noise_floor,
            "context": self.context,
        }


class BaseModel(SelfTeacher):
    """The initial policy under LoRA: the frozen base model, if the adapter is new. A new adapter adds nothing to it."""

    without_adapter = True

    def __init__(self, config: TeacherConfig, adapter_is_new: bool):
        super().__init__(config)
        self._adapter_is_new = adapter_is_new
        self.taken_at = 0

    def age(self, completed_steps: int) -> int | None:
        return completed_steps if self._adapter_is_new else None

    def is_policy(self, completed_steps: int) -> bool:
        return self._adapter_is_new and completed_steps == 0


class HostTeacher(SelfTeacher):
    """A teacher whose weights are a copy on the host, in the live type: it trades places with the live parameters."""

    holds_copy = True

    def __init__(self, config: TeacherConfig, module: EngineModule):
        super().__init__(config)
        self._module = module
        self._host = HostCopy({})
        self._is_live = False  # the live parameters equal the copy, so a swap would change nothing
        self._is_home = True  # the copy is on the host, the policy in the model

    @property
    def host_bytes(self) -> int:
        return self._host.nbytes

    @property
    def is_pinned(self) -> bool:
        return self._host.is_pinned

    def age(self, completed_steps: int) -> int | None:
        return 0 if self.taken_at is None else completed_steps - self.taken_at

    def is_policy(self, completed_steps: int) -> bool:
        return self._is_live or self.taken_at == completed_steps

    def refresh_due(self, completed_steps: int) -> bool:
        return self.taken_at is None

    @torch.no_grad()
    def refresh(self, completed_steps: int) -> None:
        self._require_home()
        with self._counted("refresh", copies=1):
            self._refresh(completed_steps)

    def _refresh(self, completed_steps: int) -> None:
        """Take the policy's weights: a copy, never an alias. On a CPU a plain move would be one."""
        shards = trainable_shards(self._module)
        if self.taken_at is None:
            self._host = HostCopy(shards, self.pins_memory)
        self._check_same(shards)
        for piece in self._host.pieces(shards):
            piece.home.copy_(piece.live, non_blocking=True)
        self._host.wait()
        self.taken_at = completed_steps
        self._is_live = True

    def policy_moved(self) -> None:
        self._is_live = False

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        if self._is_live:
            yield
            return
        if self.taken_at is None:
            raise RuntimeError("CAST: the self-teacher has no weights yet; refresh() comes before the first pass.")
        shards = trainable_shards(self._module)
        self._check_same(shards)
        self._require_home()
        self._is_home = False
        swapped: list[Piece] = []
        try:
            with self._counted("swap", copies=2):
                for piece in self._host.pieces(shards):
                    self._swap(piece.live, (piece.away, piece.home))
                    swapped.append(piece)
            yield
        finally:
            # Into the very tensors that were taken out: after an exception inside a forward the module's parameters can
            # be gathered copies. In reverse, so that the slack comes back. To the end, whatever happens.
            with self._counted("swap", copies=2), contextlib.ExitStack() as swaps:
                swaps.callback(reshard, self._module)
                for piece in swapped:
                    swaps.callback(self._swap, piece.live, (piece.home, piece.away))
            self._is_home = True

    def _require_home(self) -> None:
        if not self._is_home:
            raise RuntimeError(
                "CAST: the teacher's weights are in the model: its pass is running, or the policy could not be put "
                "back after an error."
            )

    @staticmethod
    def _swap(live: torch.Tensor, host: tuple[torch.Tensor, torch.Tensor]) -> None:
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

    def state_dict(self, completed_steps: int) -> dict[str, Any]:
        self._require_home()
        return {**super().state_dict(completed_steps), "is_live": self._is_live, "parameters": dict(self._host.tensors)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved teacher.

        Raises:
            ValueError: its parameters are not those of this rank's module (another model, LoRA setting, or layout of
                ranks).
        """
        if state["taken_at"] is None:
            return
        HostTeacher._refresh(self, state["taken_at"])
        copies = self._host.tensors
        described = {name: (tuple(t.shape), t.dtype) for name, t in state["parameters"].items()}
        if described != {name: (tuple(t.shape), t.dtype) for name, t in copies.items()}:
            raise ValueError("its parameters are not those of this rank (other model, LoRA or layout of ranks)")
        for name, tensor in copies.items():
            tensor.copy_(state["parameters"][name])
        self._is_live = state["is_live"]


class Initial(HostTeacher):
    """The policy before the first step."""


class Snapshot(HostTeacher):
    """The policy of the latest multiple of `refresh_interval`."""

    def refresh_due(self, completed_steps: int) -> bool:
        return self.taken_at is None or self._is_outdated(self.taken_at, completed_steps)

    def _is_outdated(self, taken_at: int, completed_steps: int) -> bool:
        interval = self.config.refresh_interval
        return completed_steps // interval > taken_at // interval

    def needs_marker_only(self, completed_steps: int) -> bool:
        return self.refresh_due(completed_steps)

    def state_dict(self, completed_steps: int) -> dict[str, Any]:
        state = super().state_dict(completed_steps)
        if self.needs_marker_only(completed_steps):
            del state["parameters"]
            state |= {"renewed_at": completed_steps, "refresh_interval": self.config.refresh_interval}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved teacher. A marker leaves it without a copy, so the first refresh takes one.

        Raises:
            ValueError: as for all teachers; or a marker, and this run's interval would keep the snapshot it lacks.
        """
        if "renewed_at" not in state:
            super().load_state_dict(state)
        elif not self._is_outdated(state["taken_at"], state["renewed_at"]) and self.config.missing_state == "error":
            raise ValueError(
                f"the run that saved it renewed its snapshot after step {state['renewed_at']}, so it holds no "
                f"parameters; {self.config.KEY}.refresh_interval={self.config.refresh_interval} would keep that of "
                f"step {state['taken_at']}. Set ++{self.config.KEY}.refresh_interval={state['refresh_interval']}"
            )


class Average(HostTeacher):
    """The moving average of the policies. Where parameters are below float32 the average is kept in float32 beside
    them: a step of (1 − decay) would be rounded away."""

    def __init__(self, config: TeacherConfig, module: EngineModule):
        super().__init__(config, module)
        self._average: dict[str, torch.Tensor] = {}
        self._averaged_at: int | None = None  # completed training steps when the average was last moved

    @property
    def host_bytes(self) -> int:
        return super().host_bytes + sum(tensor.nbytes for tensor in self._average.values())

    def age(self, completed_steps: int) -> None:
        return None

    def is_policy(self, completed_steps: int) -> bool:
        return self._is_live or self.taken_at == self._averaged_at == completed_steps

    def refresh_due(self, completed_steps: int) -> bool:
        return self.taken_at is None or completed_steps > self._averaged_at

    def _refresh(self, completed_steps: int) -> None:
        if self.taken_at is None:
            super()._refresh(completed_steps)
            self._average = {name: t.float() for name, t in self._host.tensors.items() if _is_rounded(t)}
        else:
            self._move_average()
        self._averaged_at = completed_steps

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

    def state_dict(self, completed_steps: int) -> dict[str, Any]:
        return {**super().state_dict(completed_steps), "averaged_at": self._averaged_at, "average": self._average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._average = {name: tensor.clone() for name, tensor in state["average"].items()}
        self._averaged_at = state["averaged_at"]


def _is_rounded(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32
