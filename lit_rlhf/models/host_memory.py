"""One copy a machine of frozen weights that wait in host memory, whatever the number of its ranks.

Eight ranks with a 7B reference and a 7B reward model in bf16 would pin 213 GB; together they pin 27.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.distributed import all_gather_object, any_rank, rank, world_size
from lit_rlhf.models.frozen import FrozenModel, HostWeights

ALIGNMENT = 4096
"""Each tensor begins on a page of its own."""


def share_host_memory(models: Sequence[FrozenModel[Any]]) -> bool:
    """Let the ranks of a machine keep the weights of ``models`` in one piece of memory. A collective.

    The first rank of each machine puts its weights into memory without a file (``memfd_create``: the kernel frees it
    with the last process, however that ends), the others map it and let go of their own. Where a GPU is, each rank
    locks the pages for its copies to the device.

    Args:
        models: Those of a run that wait in host memory, in the same order on all ranks.

    Returns:
        Whether they are shared. Not with one process, where ranks hold different models, or where one rank may not look
        into another's memory (containers with process numbers of their own); each then keeps its own.
    """
    if world_size() == 1:
        return False
    tensors = [tensor for model in models for tensor in HostWeights(model.model).tensors()]
    layout = hashlib.sha256(repr([(tuple(t.shape), t.dtype) for t in tensors]).encode()).hexdigest()
    ranks = all_gather_object((_machine(), layout))
    if not tensors or len({layout for _, layout in ranks}) > 1:
        return False
    leader = [machine for machine, _ in ranks].index(_machine())
    leads = leader == rank()
    places, total = _places(tensors)
    fd = _filled(tensors, places, total) if leads else None
    owners = all_gather_object((os.getpid(), fd))
    process, descriptor = owners[leader]
    memory = _mapped(process, descriptor, total)
    failed = any_rank(memory is None)  # also keeps the leader's descriptor open until all have mapped it
    if fd is not None:
        os.close(fd)
    if failed or memory is None:
        return False
    _lock_pages(memory)
    views = iter([_view(memory, place, tensor) for place, tensor in zip(places, tensors, strict=True)])
    for model in models:
        model.keep_in([next(views) for _ in HostWeights(model.model).tensors()])
    return True


def _machine() -> str:
    """The same for processes of one running machine alone."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text(encoding='ascii') if boot.is_file() else ''}"


def _places(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where each tensor begins, and bytes of all."""
    places, end = [], 0
    for tensor in tensors:
        places.append(end)
        end += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
    return places, end


def _filled(tensors: Sequence[Tensor], places: Sequence[int], total: int) -> int | None:
    """A descriptor of new memory that holds the tensors; None where the system has no such memory, or not enough."""
    if not hasattr(os, "memfd_create"):
        return None
    fd = os.memfd_create("lit_rlhf")
    try:
        os.posix_fallocate(fd, 0, total)  # now, rather than a SIGBUS when a page is first touched
    except OSError:
        os.close(fd)
        return None
    memory = _mapped(os.getpid(), fd, total)
    assert memory is not None
    for place, tensor in zip(places, tensors, strict=True):
        _view(memory, place, tensor).copy_(tensor)
    return fd


def _mapped(process: int, fd: int | None, total: int) -> Tensor | None:
    """All of the memory behind another process's descriptor as bytes; None where it may not be opened."""
    if fd is None:
        return None
    try:
        return torch.from_file(f"/proc/{process}/fd/{fd}", shared=True, size=total, dtype=torch.uint8)
    except (OSError, RuntimeError):
        return None


def _view(memory: Tensor, place: int, like: Tensor) -> Tensor:
    size = like.numel() * like.element_size()
    return memory[place : place + size].view(like.dtype).view(like.shape)


def _lock_pages(memory: Tensor) -> None:
    """Page-locked for CUDA, so that copies to the device do not stop the host; without that they are slower only."""
    if torch.cuda.is_available():
        runtime: Any = torch.cuda
        runtime.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)
