"""Tiny random models of several architectures and a small real tokenizer, as folders on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.models.tiny import make_tokenizer, tiny_config


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def causal_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with a random causal LM of the named architecture and the tokenizer."""

    def make(architecture: str = "llama", *, seed: int = 0, name: str = "causal", **overrides) -> Path:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        folder = tmp_path / name
        tokenizer = make_tokenizer()
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, len(tokenizer), **overrides))
        _spread(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def reward_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with a random third-party sequence-classification model."""

    def make(
        architecture: str = "llama", *, seed: int = 0, num_labels: int = 1, name: str = "reward", shard: str = "5GB"
    ) -> Path:
        from transformers import AutoModelForSequenceClassification

        torch.manual_seed(seed)
        folder = tmp_path / name
        tokenizer = make_tokenizer()
        config = tiny_config(architecture, len(tokenizer), num_labels=num_labels)
        model = AutoModelForSequenceClassification.from_config(config)
        _spread(model)
        model.save_pretrained(folder, max_shard_size=shard)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def _spread(model: torch.nn.Module) -> None:
    """Weights ten times larger than transformers' 0.02, so that logits and scores differ visibly between tokens."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(10)
