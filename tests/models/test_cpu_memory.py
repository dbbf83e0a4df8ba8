import ctypes
import platform

import pytest
import torch

from lit_rlhf.models import cpu_memory
from lit_rlhf.models.cpu_memory import release_freed_memory


@pytest.fixture(autouse=True)
def _look_for_the_function_anew():
    cpu_memory._malloc_trim.cache_clear()
    yield
    cpu_memory._malloc_trim.cache_clear()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can give memory back")
def test_holes_go_back_to_the_system():
    kept = []
    for _ in range(64):  # each block too small for a mapping of its own; every other one becomes a hole
        hole = torch.ones(16_000)
        kept.append(torch.ones(16_000))
        del hole
    del kept
    assert release_freed_memory()
    release_freed_memory()
    assert torch.ones(16_000).sum() == 16_000


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch, error):
    def missing(_):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not release_freed_memory()
