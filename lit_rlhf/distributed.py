"""The few collectives the library needs; every one is the identity in a single process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lit_rlhf.signals import Interrupted

ResultT = TypeVar("ResultT")


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


def run_together(call: Callable[[], ResultT]) -> ResultT:
    """``call()``, or an error on every rank where any rank's call fails: none is left waiting in the next collective.

    For what may fail on one rank alone (a service that does not answer, a prompt that breaks a reward). ``call`` must
    not communicate itself.

    Raises:
        Exception: See :func:`raise_together`.
    """
    if not is_distributed():
        return call()
    result: Any = None
    failure: Exception | None = None
    try:
        result = call()
    except Exception as error:
        failure = error
    raise_together(failure)
    return result  # type: ignore[no-any-return]


def raise_together(failure: Exception | None) -> None:
    """Raise ``failure``, this rank's own, or say which other rank has one; nothing where none has. A collective.

    Raises:
        Exception: The rank's own error; RuntimeError naming rank and error on the ranks that have none, or
            ``Interrupted`` on all of them where a signal asked one of them to stop.
    """
    told = all_gather_object(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    if any(problem is not None and problem.startswith(Interrupted.__name__) for problem in told):
        raise Interrupted
    others = [f"rank {number}: {problem}" for number, problem in enumerate(told) if problem is not None]
    if others:
        raise RuntimeError(f"Another process failed, so this one stops as well; {others[0]}")
