"""The model fixtures serve the reward tests too."""

from __future__ import annotations

from tests.models.conftest import causal_folder, reward_folder, tokenizer

__all__ = ["causal_folder", "reward_folder", "tokenizer"]
