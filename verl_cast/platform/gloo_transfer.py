"""The checkpoint engine `gloo` for separate_async on the CPU. It sends weights to standalone rollouts over TCP.

verl's own engines (nccl, nixl, mooncake, ...) need an accelerator or a library that needs one. The first actor rank
sends one tensor at a time. Names, shapes and dtypes go through the group's store. Importing this module registers the
engine.
Left out: buckets, several senders, transfer while the rollouts generate.
"""

import asyncio
import datetime
import pickle

import ray
import torch
from torch.distributed import ProcessGroupGloo, TCPStore
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

TIMEOUT = datetime.timedelta(minutes=10)
END = pickle.dumps(None)


@CheckpointEngineRegistry.register("gloo")
class GlooCheckpointEngine(CheckpointEngine):
    """verl makes a new group for every transfer: prepare, build_topology, init_process_group, transfer, finalize."""

    def __init__(self, bucket_size: int, is_master: bool = False):
        self.is_master = is_master

    def prepare(self) -> tuple[str, int] | None:
        """Address and port of the group's store, from the first actor rank; None from the others."""
        if not self.is_master:
            return None
        address = ray.util.get_node_ip_address().strip("[]")
        self._store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        return address, self._store.port

    @classmethod
    def build_topology(cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list):
        def arguments(ranks: list[int]) -> dict[str, list]:
            return {
                "rank": ranks,
                "world_size": [1 + rollout_world_size] * len(ranks),
                "address": [metadata[0]] * len(ranks),
            }

        outside = [-1] * (actor_wg_world_size - 1)
        return arguments([0] + outside), arguments(list(range(1, 1 + rollout_world_size)))

    def init_process_group(self, rank: int, world_size: int, address: tuple[str, int]) -> None:
        self._rank = rank
        if rank < 0:
            return
        if not self.is_master:
            self._store = TCPStore(*address, is_master=False, timeout=TIMEOUT)
        self._group = ProcessGroupGloo(self._store, rank, world_size, TIMEOUT)

    def finalize(self) -> None:
        self._group = self._store = None

    async def send_weights(self, weights, global_steps: int | None = None) -> None:
        index = 0
        for name, weight in weights:  # on every rank: gathering a full tensor is a collective of the actors
            if self._rank < 0:
                continue
            weight = weight.detach().contiguous()
            self._store.set(str(index), pickle.dumps((name, weight.shape, weight.dtype)))
            await asyncio.to_thread(self._broadcast, weight)
            index += 1
        if self._rank == 0:
            self._store.set(str(index), END)
            await asyncio.to_thread(self._barrier)

    async def receive_weights(self, global_steps: int | None = None):
        index = 0
        while (described := await asyncio.to_thread(self._store.get, str(index))) != END:
            name, shape, dtype = pickle.loads(described)
            weight = torch.empty(shape, dtype=dtype)
            await asyncio.to_thread(self._broadcast, weight)
            yield name, weight
            index += 1
        await asyncio.to_thread(self._barrier)

    def _broadcast(self, weight: torch.Tensor) -> None:
        self._group.broadcast(weight.view(-1).view(torch.uint8), 0).wait()

    def _barrier(self) -> None:
        self._group.barrier().wait()  # the store must outlive its last reader
