"""The dtype that a run's models are loaded in where their options name none.

It is what trained weights are kept in on the device: fp32 with mixed precision, bf16 under DeepSpeed's bf16, which
makes its fp32 masters from the bf16 values. A reference in the policy's dtype computes the policy's numbers, so that
their KL is exactly 0 before the first update; in another one it is not (0.005 measured).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_DTYPE = ContextVar("run_dtype", default=torch.float32)


def run_dtype() -> torch.dtype:
    """The dtype of weights inside :func:`loading_in`; fp32 outside."""
    return _DTYPE.get()


@contextmanager
def loading_in(dtype: torch.dtype) -> Iterator[None]:
    """Models that name no dtype are loaded in this one inside the block."""
    token = _DTYPE.set(dtype)
    try:
        yield
    finally:
        _DTYPE.reset(token)
