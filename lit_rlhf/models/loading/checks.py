"""Whether tokens fit a model's configuration: its positions and its embedding rows."""

from __future__ import annotations

from typing import Any


def check_context(config: Any, total_length: int) -> None:
    """Require that prompt + response fit the positions a model was built for.

    Args:
        config: A Hugging Face configuration.
        total_length: Prompt and response tokens together.

    Raises:
        ValueError: They do not fit.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and total_length > limit:
        raise ValueError(
            f"Prompt and response together ({total_length} tokens) must fit the model's context ({limit} tokens)."
        )


def check_embeddings(config: Any, tokenizer: Any) -> None:
    """Require an embedding row for every token id.

    Raises:
        ValueError: The tokenizer has more tokens than the model has rows.
    """
    rows = config.get_text_config().vocab_size
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ValueError(f"The tokenizer's largest id ({largest}) must be below the model's vocabulary size ({rows}).")
