"""Tokens that do not fit the configuration are refused."""

from __future__ import annotations

import pytest

from lit_rlhf.models.loading.checks import check_context, check_embeddings
from tests.models.tiny import tiny_config


def test_context_and_embeddings(tokenizer):
    config = tiny_config("gpt2", len(tokenizer))
    check_context(config, 128)
    with pytest.raises(ValueError, match=r"together \(129 tokens\) must fit the model's context \(128 tokens\)"):
        check_context(config, 129)
    check_embeddings(config, tokenizer)
    with pytest.raises(ValueError, match=r"largest id \(\d+\) must be below the model's vocabulary size \(10\)"):
        check_embeddings(tiny_config("llama", 10), tokenizer)
