"""A copy of a rank's tensors in host memory that trades places with them, without a third set of them anywhere.

The copies of all tensors of one type lie in one buffer, and beside them a gap as long as the largest piece:

    at home      [ gap    ][ copy 0 ][ copy 1 ] ... [ copy n ]
    exchanged    [ live 0 ][ live 1 ] ... [ live n ][    gap ]

Going in, from the left, a live piece is written into the gap and the copy's piece, which lies behind the gap, into the
live tensor; what it leaves is the next gap. Going out, from the right, the same way back. So every byte is copied once
in each direction, nothing is allocated, on the accelerator least of all, and of two overlapping places the one that is
written is always the one that is no longer needed. On a CPU the gap was read just before and is still in the cache.
With an accelerator the buffers are page-locked, and all copies are queued on one stream: wait() after them.

Left out: going in and out on two streams at a time. It would at best halve the seconds of an exchange.
"""

import contextlib
import logging
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import torch

logger = logging.getLogger(__name__)

# Measured on a CPU (tests/measure_snapshot.py): larger ones leave the cache, smaller ones pay for more calls. On an
# accelerator's bus it takes about 0.1 ms, ten times as long as the call.
PIECE_BYTES = 4 * 2**20


class Piece(NamedTuple):
    """A part of one tensor: rows of at most PIECE_BYTES, or one row."""

    name: str
    first: int  # its first element within the tensor
    live: torch.Tensor
    home: torch.Tensor  # the copy's piece, while the copy is not exchanged
    away: torch.Tensor  # the live tensor's piece, while the copy is exchanged

    def part_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same part of a contiguous tensor of the same shape."""
        return _part(tensor.view(-1), self.first, self.live)


class HostCopy:
    """Uninitialized host memory for a copy of these tensors. Their names, shapes and types are fixed here."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())  # of the copy, the gaps not included
        lengths, gaps = {}, {}  # elements, by type
        for tensor in tensors.values():
            lengths[tensor.dtype] = lengths.get(tensor.dtype, 0) + tensor.numel()
            gaps[tensor.dtype] = max(gaps.get(tensor.dtype, 0), *(part.numel() for part in _parts(tensor)), 0)
        self._buffers = {dtype: torch.empty(gaps[dtype] + lengths[dtype], dtype=dtype) for dtype in lengths}
        self._on_accelerator = any(tensor.device.type != "cpu" for tensor in tensors.values())
        if any(tensor.device.type == "cuda" for tensor in tensors.values()):
            for buffer in self._buffers.values():
                _page_lock(buffer)
        self.tensors: dict[str, torch.Tensor] = {}  # the copy, while it is not exchanged: views of the buffers
        self._places: dict[str, list[tuple[int, torch.Tensor, torch.Tensor]]] = {}  # first, home, away of the pieces
        ends = dict.fromkeys(lengths, 0)
        for name, tensor in tensors.items():
            gap, buffer, away = gaps[tensor.dtype], self._buffers[tensor.dtype], ends[tensor.dtype]
            self.tensors[name] = _part(buffer, gap + away, tensor)
            self._places[name], first = [], 0
            for part in _parts(tensor):
                places = (_part(buffer, start + first, part) for start in (gap + away, away))
                self._places[name].append((first, *places))
                first += part.numel()
            ends[tensor.dtype] += tensor.numel()

    def pieces(self, tensors: dict[str, torch.Tensor]) -> Iterator[Piece]:
        """What is copied, in the order of going in. `tensors`: of the names, shapes and types of the first ones."""
        for name, places in self._places.items():
            for live, place in zip(_parts(tensors[name]), places, strict=True):
                yield Piece(name, place[0], live, *place[1:])

    def in_gap(self, piece: Piece) -> torch.Tensor:
        """A place for the live piece that is free while the copy is not exchanged."""
        return _part(self._buffers[piece.live.dtype], 0, piece.live)

    def wait(self) -> None:
        """Until everything is where it was copied to."""
        if self._on_accelerator:
            torch.accelerator.current_stream().synchronize()


def _part(flat: torch.Tensor, first: int, like: torch.Tensor) -> torch.Tensor:
    return flat[first : first + like.numel()].view(like.shape)


def _parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensor in pieces, in the order of its elements."""
    if tensor.nbytes <= PIECE_BYTES or tensor.dim() == 0:
        return (tensor,) if tensor.numel() else ()
    return tensor.split(max(1, PIECE_BYTES * len(tensor) // tensor.nbytes))


def _page_lock(buffer: torch.Tensor) -> None:
    """Lock the buffer where it is: PyTorch's allocator of pinned memory would round it up to a power of two."""
    if buffer.nbytes == 0:
        return
    cudart = torch.cuda.cudart()
    address = buffer.data_ptr()
    error = int(cudart.cudaHostRegister(address, buffer.nbytes, 0))
    if error:
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device="cuda")  # CUDA's last error would else be raised by the next kernel
        logger.warning("CAST: host memory for the teacher cannot be page-locked (CUDA error %d): slower copies.", error)
    else:
        weakref.finalize(buffer, cudart.cudaHostUnregister, address).atexit = False
