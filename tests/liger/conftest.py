"""Liger's kernels on a GPU, or in Triton's interpreter on a CPU: `bin/test-liger`. Skipped where neither is there."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from tests.models.conftest import causal_folder  # noqa: F401  (a fixture)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="package", autouse=True)
def kernels() -> None:
    """Skip without them; let Triton's interpreter run what Liger asks of it."""
    if DEVICE == "cpu" and not INTERPRETED:
        pytest.skip("no GPU, and no TRITON_INTERPRET=1; see bin/test-liger")
    pytest.importorskip("triton")
    pytest.importorskip("liger_kernel")
    if INTERPRETED:
        _complete_interpreter()


def _complete_interpreter() -> None:
    """Two gaps of Triton 3.9's interpreter: plain floats are no scalars of Triton's there, and libdevice gives None."""
    import numpy as np
    import triton.language as tl
    from liger_kernel.transformers import _apply_liger_kernel_to_instance  # noqa: F401  (imports all of its kernels)
    from triton.runtime import interpreter

    plain = interpreter._implicit_cvt

    def with_floats(argument):
        if isinstance(argument, float):
            return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)
        return plain(argument)

    interpreter._implicit_cvt = with_floats
    instead = {"rsqrt": lambda x: tl.rsqrt(x), "tanh": lambda x: 2 * tl.sigmoid(2 * x) - 1}
    for name, module in list(sys.modules.items()):
        if name.startswith("liger_kernel.ops."):
            for function, own in instead.items():
                if hasattr(module, function):
                    setattr(module, function, own)
