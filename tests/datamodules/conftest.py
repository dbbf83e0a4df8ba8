"""A tokenizer folder and data files for the data modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.fixtures import hh_sample, make_tokenizer, write

__all__ = ["hh_sample", "write"]


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(path)
    return str(path)
