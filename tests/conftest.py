"""Shared fixtures: one thread, no hub, no accelerator."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU the tests of one are skipped, and counted; ``CHECK_GPU_DEVICE=cpu`` runs them on the CPU."""
    if torch.cuda.is_available() or os.environ.get("CHECK_GPU_DEVICE") == "cpu":
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """A trainer may set ``LOCAL_RANK`` for its whole process: a later test's launch would wait for ranks for ever."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policy, reward model and files of a few letters: see ``tests.modules.tiny_ppo``."""
    from tests.modules.tiny_ppo import write_world

    return write_world(tmp_path_factory.mktemp("world"))
