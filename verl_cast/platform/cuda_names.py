"""A stand-in for torch: code that names "cuda" uses the CPU. megatron-core and mbridge get it (megatron.py).

torch itself is not changed permanently. A module gets TORCH_ON_CPU as its global `torch`. `Tensor.cuda` and
`Tensor.type` are replaced only while a function wrapped by `pass_for_cuda` runs.
"""

import contextlib
import functools
import types
from collections.abc import Callable, Iterator

import torch

from verl_cast.platform.expect import expect_attribute


def _on_cpu(factory: Callable) -> Callable:
    """Wrap a tensor factory: "cuda" means the CPU, and `pin_memory` is ignored."""

    @functools.wraps(factory)
    def make(*args, device=None, pin_memory=False, **kwargs):
        if device is not None and torch.device(device).type != "cuda":
            kwargs["device"] = device
        return factory(*args, **kwargs)

    return make


class CudaOnCPU(types.ModuleType):
    """`torch.cuda` for a process whose device is the CPU. Streams, events and graphs are missing: using them raises."""

    def __init__(self):
        super().__init__("torch.cuda")
        self.random = self  # torch.cuda.random.get_rng_state is another name of torch.cuda.get_rng_state
        self.nvtx = types.SimpleNamespace(range_push=lambda message: None, range_pop=lambda: None)

    current_device = staticmethod(lambda: torch.device("cpu"))
    synchronize = empty_cache = staticmethod(lambda device=None: None)
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: torch.set_rng_state(state))
    manual_seed = staticmethod(torch.manual_seed)

    def __getattr__(self, name: str):
        return getattr(torch.cuda, name)


class TorchOnCPU(types.ModuleType):
    """`torch` for modules that name "cuda": they use the CPU. `compile` does nothing, since it needs a C++ compiler."""

    def __init__(self):
        super().__init__("torch")
        self.cuda = CudaOnCPU()
        for name in ("arange", "empty", "empty_like", "full", "ones", "tensor", "zeros", "zeros_like"):
            setattr(self, name, _on_cpu(getattr(torch, name)))

    @staticmethod
    def compile(function: Callable | None = None, **kwargs) -> Callable:
        return function if function is not None else lambda function: function

    def __getattr__(self, name: str):
        return getattr(torch, name)


TORCH_ON_CPU = TorchOnCPU()


@contextlib.contextmanager
def tensors_pass_for_cuda() -> Iterator[None]:
    """In this block `Tensor.cuda()` is the tensor itself, and `Tensor.type()` is "torch.cuda.FloatTensor" etc."""
    stock = {name: torch.Tensor.__dict__.get(name) for name in ("cuda", "type")}
    plain_type = torch.Tensor.type

    def type_(self, *args, **kwargs):
        if args or kwargs:
            return plain_type(self, *args, **kwargs)
        return plain_type(self).replace("torch.", "torch.cuda.", 1)

    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.type = type_
    try:
        yield
    finally:
        for name, function in stock.items():
            if function is None:
                delattr(torch.Tensor, name)  # back to the inherited one
            else:
                setattr(torch.Tensor, name, function)


def pass_for_cuda(owner, name: str) -> None:
    """Make `owner.name` run inside tensors_pass_for_cuda()."""
    stock = expect_attribute(owner, name)

    @functools.wraps(stock)
    def function(*args, **kwargs):
        with tensors_pass_for_cuda():
            return stock(*args, **kwargs)

    setattr(owner, name, function)
