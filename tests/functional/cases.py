"""What the tests of this room share: random cases, and sums written out as loops over Python floats."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

# the same examples on every machine, and no deadline: this is about values, not about time
settings.register_profile("values", deadline=None, derandomize=True, database=None)
settings.load_profile("values")

GARBAGE = (math.nan, math.inf, -math.inf, 3.0e38)
garbage = pytest.mark.parametrize("junk", GARBAGE)

masks = st.integers(1, 4).flatmap(
    lambda rows: st.integers(1, 6).flatmap(
        lambda cols: st.lists(st.lists(st.booleans(), min_size=cols, max_size=cols), min_size=rows, max_size=rows).map(
            torch.tensor
        )
    )
)
seeds = st.integers(0, 2**31 - 1)
# 1e30 is far beyond any score or advantage, and its square does not fit into fp32
scales = st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e3, 1e15, 1e30])


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def like(mask: Tensor, seed: int, scale: float = 1.0) -> Tensor:
    return normal(*mask.shape, seed=seed, scale=scale)


def response_mask(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def spoil(x: Tensor, mask: Tensor, junk: float) -> Tensor:
    """`x` with `junk` outside the mask."""
    return torch.where(mask, x.detach(), torch.full_like(x, junk))


def kept_floats(mask: Tensor, *tensors: Tensor) -> list[tuple[float, ...]]:
    """The kept elements of all tensors as tuples of Python floats, row by row."""
    where = [(b, t) for b in range(mask.size(0)) for t in range(mask.size(1)) if bool(mask[b, t])]
    return [tuple(float(x.detach()[b, t]) for x in tensors) for b, t in where]


def close(actual: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64).detach(),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=rtol,
        atol=atol,
    )


def finite(*tensors: Tensor) -> bool:
    return all(bool(torch.isfinite(x).all()) for x in tensors)
