"""The few collectives the library needs; every one is the identity in a single process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether a process group with more than one rank is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's rank, 0 when alone."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes, 1 when alone."""
    return dist.get_world_size() if is_distributed() else 1


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of ``x`` over ranks (a new tensor, same shape and dtype)."""
    out = x.clone()
    if is_distributed():
        dist.all_reduce(out)
    return out


def all_reduce_max(x: Tensor) -> Tensor:
    """Maximum of ``x`` over ranks (a new tensor, same shape and dtype)."""
    out = x.clone()
    if is_distributed():
        dist.all_reduce(out, op=dist.ReduceOp.MAX)
    return out


def all_gather_object(value: Any) -> list[Any]:
    """``value`` of every rank, in rank order."""
    if not is_distributed():
        return [value]
    out: list[Any] = [None] * world_size()
    dist.all_gather_object(out, value)
    return out


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:  # noqa: FBT001
    """Whether ``flag`` holds on at least one rank: the same answer on all of them."""
    return bool(all_reduce_max(torch.tensor(int(flag), device=device)).item())
