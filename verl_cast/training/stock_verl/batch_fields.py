"""Batch fields for the estimators on a verl whose registry takes none."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

_laid_out: contextvars.ContextVar[Mapping[str, torch.Tensor] | None] = contextvars.ContextVar(
    "cast_batch_fields", default=None
)


@contextlib.contextmanager
def batch_fields_laid_out(fields: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The BATCH_FIELDS (B, T) of the estimator calls inside."""
    token = _laid_out.set(fields)
    try:
        yield
    finally:
        _laid_out.reset(token)


def with_fields_laid_out(estimator: Callable[..., Any]) -> Callable[..., Any]:
    """The estimator as verl calls it without those fields."""

    @functools.wraps(estimator)
    def with_fields(**arguments: Any) -> Any:
        return estimator(**arguments, **(_laid_out.get() or {}))

    return with_fields
