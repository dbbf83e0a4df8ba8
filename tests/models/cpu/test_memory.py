import ctypes
import platform

import pytest
import torch

from lit_rlhf.models.cpu import memory as cpu_memory
from lit_rlhf.models.cpu import release_freed_memory


@pytest.fixture(autouse=True)
def _look_for_the_function_anew():
    cpu_memory._malloc_trim.cache_clear()
    yield
    cpu_memory._malloc_trim.cache_clear()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can give memory back")
def test_holes_go_back_to_the_system():
    kept = []
    for _ in range(64):  # each block is too small for a mapping of its own
        kept += [torch.ones(16_000), torch.ones(16_000)]
    del kept[::2]
    assert release_freed_memory("cpu", pass_tokens=64)
    assert all(block.sum() == 16_000 for block in kept)


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch, error):
    def missing(_):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not release_freed_memory("cpu", pass_tokens=64)
