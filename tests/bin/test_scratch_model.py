"""bin/scratch_model.py: a folder that transformers loads, the same for the same seed and text."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import scratch_model
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20


@pytest.fixture
def data(tmp_path: Path) -> list[Path]:
    plain, packed = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    plain.write_text(TEXT)
    packed.write_bytes(gzip.compress(TEXT.encode()))
    return [plain, packed]


def test_the_folder_is_a_model_with_its_tokenizer(data: list[Path], tmp_path: Path) -> None:
    scratch_model.write("1m", data, tmp_path / "out", context=64, seed=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (model.config.hidden_size, model.config.num_hidden_layers) == scratch_model.PRESETS["1m"][:2]
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 64
    special = {name: getattr(model.config, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    assert special == {name: getattr(tokenizer, f"{name}_token_id") for name in special}
    ids = tokenizer("quick foxes, dogs!")["input_ids"]
    assert tokenizer.decode(ids) == "quick foxes, dogs!"
    assert len(tokenizer) <= model.config.vocab_size


def test_weights_are_the_seeds(data: list[Path], tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        scratch_model.write("1m", data, tmp_path / name, context=64, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
