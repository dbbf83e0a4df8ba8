import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

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


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ONE_TENSOR = """
import re
from pathlib import Path
import lit_rlhf
import torch
tensor = torch.ones(8 << 20)
print(re.search(r"AnonHugePages: +([0-9]+)", Path("/proc/self/smaps_rollup").read_text())[1])
"""


@pytest.mark.skipif(not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(), reason="not to be asked for")
@pytest.mark.parametrize("said", [None, "0"])
def test_large_tensors_lie_in_huge_pages_unless_somebody_says_otherwise(said):
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    environment |= {} if said is None else {"THP_MEM_ALLOC_ENABLE": said}
    done = subprocess.run(
        [sys.executable, "-c", ONE_TENSOR], env=environment, capture_output=True, text=True, check=True
    )
    # The system may have no huge page left; of 32 MiB at least one is had where any is.
    assert (int(done.stdout) > 0) is (said is None)
