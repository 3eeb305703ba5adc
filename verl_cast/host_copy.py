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
    """A part of one tensor, of at most PIECE_BYTES (one row, where a row of a strided tensor is larger)."""

    name: str
    first: int  # its first element within the tensor
    live: torch.Tensor
    home: torch.Tensor  # the copy's piece, while the copy is not exchanged
    away: torch.Tensor  # the live tensor's piece, while the copy is exchanged
    gap: torch.Tensor  # free while the copy is not exchanged

    def part_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same part of a contiguous tensor of the same shape."""
        return _part(tensor.view(-1), self.first, self.live)


class HostCopy:
    """Uninitialized host memory for a copy of these tensors. Their names, shapes and types are fixed here."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())  # of the copy, the gaps not included
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self._dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        self._first: dict[str, int] = {}
        self._gaps = dict.fromkeys(self._dtypes.values(), 0)  # elements
        lengths = dict.fromkeys(self._dtypes.values(), 0)
        for name, tensor in tensors.items():
            self._first[name] = lengths[tensor.dtype]
            lengths[tensor.dtype] += tensor.numel()
            largest = max((part.numel() for part in _parts(tensor)), default=0)
            self._gaps[tensor.dtype] = max(self._gaps[tensor.dtype], largest)
        self._buffers = {dtype: torch.empty(self._gaps[dtype] + lengths[dtype], dtype=dtype) for dtype in lengths}
        self._on_accelerator = any(tensor.device.type != "cpu" for tensor in tensors.values())
        if any(tensor.device.type == "cuda" for tensor in tensors.values()):
            for buffer in self._buffers.values():
                _page_lock(buffer)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The copy, by name, while it is not exchanged: views of the buffers."""
        found = {}
        for name, shape in self._shapes.items():
            dtype = self._dtypes[name]
            first = self._gaps[dtype] + self._first[name]
            found[name] = self._buffers[dtype][first : first + shape.numel()].view(shape)
        return found

    def pieces(self, tensors: dict[str, torch.Tensor]) -> Iterator[Piece]:
        """What is copied, in the order of going in. `tensors`: of the names, shapes and types of the first ones."""
        for name, dtype in self._dtypes.items():
            buffer, away, first = self._buffers[dtype], self._first[name], 0
            home = away + self._gaps[dtype]
            for live in _parts(tensors[name]):
                places = [_part(buffer, start + first, live) for start in (home, away)]
                yield Piece(name, first, live, *places, gap=_part(buffer, 0, live))
                first += live.numel()

    def wait(self) -> None:
        """Until everything is where it was copied to."""
        if self._on_accelerator:
            torch.accelerator.current_stream().synchronize()


def _part(flat: torch.Tensor, first: int, like: torch.Tensor) -> torch.Tensor:
    return flat[first : first + like.numel()].view(like.shape)


def _parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensor in pieces, in the order of its elements."""
    if tensor.is_contiguous():
        tensor = tensor.view(-1)
    elif tensor.dim() == 0:
        tensor = tensor.view(1)
    if tensor.numel() == 0:
        return ()
    return tensor.split(max(1, PIECE_BYTES // (tensor.nbytes // tensor.shape[0])))


def _page_lock(buffer: torch.Tensor) -> None:
    """Lock the buffer where it is: PyTorch's allocator of pinned memory would round it up to a power of two."""
    cudart = torch.cuda.cudart()
    address = buffer.data_ptr()
    error = int(cudart.cudaHostRegister(address, buffer.nbytes, 0))
    if error:
        logger.warning("CAST: host memory for the teacher cannot be page-locked (CUDA error %d): slower copies.", error)
    else:
        weakref.finalize(buffer, cudart.cudaHostUnregister, address).atexit = False
