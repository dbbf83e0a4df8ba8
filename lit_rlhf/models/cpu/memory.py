"""Memory on a CPU: what the C library keeps after it was freed."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

SMALL_PASS = 768
"""Tokens of a forward pass up to which its activations leave holes that the buffers of a rollout do not fit into."""


def trim() -> bool:
    """Give the pages back that are free inside the C library's heap; whether there were any.

    Activations of many sizes leave holes, in which the large buffers of the next phase have no room, so that the
    process grows by them. Pages given back cost a page fault when they are used again: worth it once per iteration, not
    once a step (docs/performance.md). Does nothing where the C library is not glibc.
    """
    trim = _malloc_trim()
    return trim is not None and bool(trim(0))


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows has no handle of the process itself
        return None
