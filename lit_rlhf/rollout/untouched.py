"""What an engine in the training process must leave as it was: random states, threads, variables, process groups."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch

from lit_rlhf.distributed import is_distributed, rank


@contextlib.contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """VLLM reseeds and consumes every random state of the process, and must not run under autocast."""
    numpy: Any = sys.modules.get("numpy")
    states = random.getstate(), None if numpy is None else numpy.random.get_state()
    devices = [] if device.type == "cpu" else [device]
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices), torch.autocast(device.type, enabled=False):
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy is not None:
                numpy.random.set_state(states[1])
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


@contextlib.contextmanager
def ranks_named() -> Iterator[None]:
    """The variables of torchrun that vLLM reads and Lightning's own launcher does not all set."""
    wanted = {"RANK": str(rank()), "LOCAL_RANK": os.environ.get("LOCAL_RANK", str(rank()))} if is_distributed() else {}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def group_kept(had_group: bool) -> Iterator[None]:  # noqa: FBT001
    """VLLM's shutdown destroys the default process group: not one that it has not made."""
    destroy = torch.distributed.destroy_process_group

    def only_others(group: Any = None) -> None:
        if group is not None:
            destroy(group)

    torch.distributed.destroy_process_group = only_others if had_group else destroy
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = destroy
