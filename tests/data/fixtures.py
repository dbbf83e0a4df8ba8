"""A small byte-level tokenizer made here, and writers of data files."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<|Human|>", "<|MOSS|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer(
    chat_template: str | None = None, merges: list[tuple[str, str]] | None = None, **special: Any
) -> Any:
    """Bytes as tokens, with the merges asked for (a merge over a seam is what exact boundaries must survive)."""
    merges = merges or []
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *alphabet, *("".join(m) for m in merges)]
    backend = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | special
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    return make_tokenizer(CHAT_TEMPLATE)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON lines (``.jsonl``), a JSON list (``.json``), or bytes as they are; returns the path."""

    def write_file(name: str, rows: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, bytes):
            data = rows
        elif ".jsonl" in name:
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        else:
            data = json.dumps(rows).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") and not isinstance(rows, bytes) else data)
        return str(path)

    return write_file


def hh(prompt: str, response: str) -> str:
    return f"\n\nHuman: {prompt}\n\nAssistant: {response}"


@pytest.fixture
def hh_rows() -> list[dict[str, str]]:
    return [{"chosen": hh(f"Q{i}", f"good {i}"), "rejected": hh(f"Q{i}", f"bad {i}")} for i in range(10)]


@pytest.fixture
def hh_sample() -> str:
    """Real HH-RLHF pairs, which are not part of the project."""
    sibling = Path(__file__).parents[2] / ".." / "shared" / "data" / "hh_harmless_sample.jsonl.gz"
    path = Path(os.environ.get("LIT_RLHF_HH_SAMPLE", sibling))
    if not path.is_file():
        pytest.skip("needs the HH-RLHF sample: set LIT_RLHF_HH_SAMPLE")
    return str(path)
