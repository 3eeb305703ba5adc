"""A copy of a rank's tensors in host memory that trades places with them. No third set of them exists anywhere.

The copies of all tensors of one type lie in one buffer. Beside them is some slack, as long as the largest piece:

    at home      [ slack  ][ copy 0 ][ copy 1 ] ... [ copy n ]
    swapped in   [ live 0 ][ live 1 ] ... [ live n ][  slack ]

Going in, from the left: a live piece is written into the slack, then the copy's piece behind it into the live tensor.
The place that this leaves is the next slack. Going out, from the right: the same way back. Every byte is copied once in
each direction, and nothing is allocated. Of two places that overlap, the one that is written is never needed any more.
On a CPU the slack was read just before and is still in the cache. With an accelerator all copies are queued on one
stream, and `wait` follows them; the buffers can be page-locked.

Left out: going in and out on two streams at a time. It would at best halve the seconds of a swap.
"""

import contextlib
import logging
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import torch

logger = logging.getLogger(__name__)

# Measured on a CPU (tests/benchmarks/measure_snapshot.py): larger pieces leave the cache, smaller ones pay for more
# calls. On an accelerator's bus a piece takes about 0.1 ms, ten times as long as the call.
PIECE_BYTES = 4 * 2**20


class Piece(NamedTuple):
    """A part of one tensor: rows of at most PIECE_BYTES, or one row.

    Attributes:
        name: of the tensor.
        first: the piece's first element within the tensor.
        live: the piece of the live tensor.
        home: the place of the copy's piece, while the copy is at home.
        away: the place of the live piece, while the copy is swapped in.
    """

    name: str
    first: int
    live: torch.Tensor
    home: torch.Tensor
    away: torch.Tensor

    def part_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same part of a contiguous tensor of the same shape."""
        return _part(tensor.view(-1), self.first, self.live)


class HostCopy:
    """Uninitialized host memory for a copy of these tensors. Their names, shapes and types are fixed here.

    Args:
        tensors: the live ones.
        pins_memory: page-lock the memory where the tensors are on an accelerator: faster copies, and memory that the
            operating system cannot take back.

    Attributes:
        nbytes: of the copy, the slack not included.
        is_pinned: the memory is page-locked.
        tensors: the copy, while it is at home; views of the buffers.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], pins_memory: bool = True):
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())
        lengths, slacks = {}, {}  # elements, by type
        for tensor in tensors.values():
            lengths[tensor.dtype] = lengths.get(tensor.dtype, 0) + tensor.numel()
            slacks[tensor.dtype] = max(slacks.get(tensor.dtype, 0), *(part.numel() for part in _parts(tensor)), 0)
        self._buffers = {dtype: torch.empty(slacks[dtype] + lengths[dtype], dtype=dtype) for dtype in lengths}
        self.is_pinned = False
        self._on_accelerator = any(tensor.device.type != "cpu" for tensor in tensors.values())
        if pins_memory and any(tensor.device.type == "cuda" for tensor in tensors.values()):
            self.is_pinned = all([_page_lock(buffer) for buffer in self._buffers.values()])
        self.tensors: dict[str, torch.Tensor] = {}
        self._places: dict[str, list[tuple[int, torch.Tensor, torch.Tensor]]] = {}  # first, home, away of the pieces
        ends = dict.fromkeys(lengths, 0)
        for name, tensor in tensors.items():
            slack, buffer, offset = slacks[tensor.dtype], self._buffers[tensor.dtype], ends[tensor.dtype]
            self.tensors[name] = _part(buffer, slack + offset, tensor)
            self._places[name], first = [], 0
            for part in _parts(tensor):
                home, away = (_part(buffer, start + first, part) for start in (slack + offset, offset))
                self._places[name].append((first, home, away))
                first += part.numel()
            ends[tensor.dtype] += tensor.numel()

    def pieces(self, tensors: dict[str, torch.Tensor]) -> Iterator[Piece]:
        """Every piece, in the order of going in.

        Args:
            tensors: the live ones; names, shapes and types as at the start.
        """
        for name, places in self._places.items():
            for live, (first, home, away) in zip(_parts(tensors[name]), places, strict=True):
                yield Piece(name, first, live, home, away)

    def in_slack(self, piece: Piece) -> torch.Tensor:
        """A place for the live piece that is free while the copy is at home."""
        return _part(self._buffers[piece.live.dtype], 0, piece.live)

    def wait(self) -> None:
        """Until every copy has arrived."""
        if self._on_accelerator:
            torch.accelerator.current_stream().synchronize()


def _part(flat: torch.Tensor, first: int, like: torch.Tensor) -> torch.Tensor:
    return flat[first : first + like.numel()].view(like.shape)


def _parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensor in pieces, in the order of its elements."""
    if tensor.nbytes <= PIECE_BYTES or tensor.dim() == 0:
        return (tensor,) if tensor.numel() else ()
    return tensor.split(max(1, PIECE_BYTES * len(tensor) // tensor.nbytes))


def _page_lock(buffer: torch.Tensor) -> bool:
    """Lock the buffer where it is; False where it cannot be locked.

    PyTorch's allocator of pinned memory would round it up to a power of two.
    """
    if buffer.nbytes == 0:
        return True
    cudart = torch.cuda.cudart()
    address = buffer.data_ptr()
    error = int(cudart.cudaHostRegister(address, buffer.nbytes, 0))
    if error:
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device="cuda")  # CUDA's last error would else be raised by the next kernel
        logger.warning("CAST: host memory for the teacher cannot be page-locked (CUDA error %d): slower copies.", error)
        return False
    weakref.finalize(buffer, cudart.cudaHostUnregister, address).atexit = False
    return True
