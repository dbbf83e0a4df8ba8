"""Weights on their way to a server: as files in memory of the same machine, or broadcast to its processes.

Knows nothing of vLLM: the trainer's side and the server's both use it, each in its own environment.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Named = Iterable[tuple[str, Tensor]]
Described = list[tuple[str, str, list[int]]]
"""Name, dtype and shape of each weight."""

FILE_BYTES = 2**30
"""A file of weights is written once it would hold more, so that no second copy of all of them is in memory."""

SHARED_MEMORY = Path("/dev/shm")


# ---------------------------------------------------------------------- files


def write_files(weights: Named, folder: Path) -> None:
    """Write weights as safetensors files, tied ones under each of their names."""
    from safetensors.torch import save_file

    part: dict[str, Tensor] = {}
    size = number = 0
    for name, weight in weights:
        taken = weight.detach().to("cpu").contiguous()
        # safetensors refuses two names for one memory
        shared = any(taken.data_ptr() == other.data_ptr() for other in part.values())
        part[name] = taken.clone() if shared else taken
        size += taken.nbytes
        if size >= FILE_BYTES:
            save_file(part, folder / f"{number:05d}.safetensors")
            part, size, number = {}, 0, number + 1
    if part:
        save_file(part, folder / f"{number:05d}.safetensors")


class SharedFolder:
    """A folder in shared memory (where the system has it) for one transfer; gone when it is left."""

    def __init__(self, parent: Path | None = None) -> None:
        self.parent = parent or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)

    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp(prefix="lit-rlhf-weights-", dir=self.parent))
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


# ---------------------------------------------------------------------- broadcasts


@dataclass(frozen=True)
class Meeting:
    """Where a group of the trainer (rank 0) and a server's workers meets.

    Attributes:
        host: Of the trainer, as the server sees it.
        port: Of its store.
        size: Members.
        backend: `gloo` or `nccl`.
        timeout: Seconds that any of them waits for the others.
    """

    host: str
    port: int
    size: int
    backend: str
    timeout: float


def join(address: str | Meeting, *, rank: int, store: Any = None) -> Any:
    """Join the group; returns when all have. No default process group is made or used.

    Args:
        address: A meeting, or its JSON.
        rank: 0 for the trainer, from 1 on for workers.
        store: The trainer's, which serves it.
    """
    meeting = address if isinstance(address, Meeting) else Meeting(**json.loads(address))
    patience = timedelta(seconds=meeting.timeout)
    if store is None:
        store = dist.TCPStore(meeting.host, meeting.port, meeting.size, is_master=False, timeout=patience)  # type: ignore[attr-defined]
    if meeting.backend == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = patience
        return dist.ProcessGroupNCCL(store, rank, meeting.size, options)
    return dist.ProcessGroupGloo(store, rank, meeting.size, patience)


def as_json(meeting: Meeting) -> str:
    """For the workers."""
    return json.dumps(asdict(meeting))


def described(weights: Named) -> Described:
    """What the receivers must know beforehand."""
    return [(name, str(w.dtype).removeprefix("torch."), list(w.shape)) for name, w in weights]


def sent(group: Any, weights: Named) -> None:
    """Broadcast weights, one after the other."""
    for _, weight in weights:
        group.broadcast([weight.detach().contiguous()], _from_first()).wait()


def received(group: Any, wanted: Described, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Weights as they are broadcast, on ``device``."""
    for name, dtype, shape in wanted:
        weight = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        group.broadcast([weight], _from_first()).wait()
        yield name, weight


def _from_first() -> Any:
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    return options
