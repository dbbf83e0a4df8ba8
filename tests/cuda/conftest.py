"""Tests of what only a GPU shows. `bin/check-gpu` runs them; so does ``CUDA_VISIBLE_DEVICES=0 pytest -m cuda``.

With ``CHECK_GPU_DEVICE=cpu`` they run on the CPU, where they show little but that they run.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import pytest
import torch

PRECISIONS = ("32-true", "bf16-mixed")


@pytest.fixture(scope="session")
def accelerator() -> str:
    """The kind of device, `cuda` or `cpu`."""
    return os.environ.get("CHECK_GPU_DEVICE", "cuda")


@pytest.fixture(scope="session")
def device(accelerator: str) -> torch.device:
    """The first device of that kind."""
    return torch.device(accelerator, 0) if accelerator == "cuda" else torch.device("cpu")


@pytest.fixture
def gpu_only(accelerator: str) -> None:
    """For what has no meaning on a CPU."""
    if accelerator != "cuda":
        pytest.skip("has no meaning on a CPU")


def compute_in(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The autocast of a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False)
