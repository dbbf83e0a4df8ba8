"""What the hardware allows: bytes a decode step must read, and the arithmetic of an update.

Notation: h hidden size, l layers, f feed-forward width, V vocabulary, d head size, q and k query and key-value heads;
a Llama's layer has ``h d q + 2 h d k + d q h + 3 h f`` weights in its products.
"""

from __future__ import annotations

from typing import Any


def layer_weights(config: Any) -> int:
    """Weights of a layer that take part in matrix products."""
    head = config.head_dim
    attention = config.hidden_size * head * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    return attention + 3 * config.hidden_size * config.intermediate_size


def decode_bytes(config: Any, *, rows: int, context: float, itemsize: int) -> float:
    """Bytes one decode step reads: every weight but the embedding table's, and keys and values of all rows.

    Args:
        config: A Llama configuration.
        rows: Responses decoded together.
        context: Tokens that each attends to, on average.
        itemsize: Bytes of a weight, and of a cached number.
    """
    weights = config.num_hidden_layers * layer_weights(config) + config.vocab_size * config.hidden_size
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return itemsize * (weights + rows * context * cached)


def decode_limit(config: Any, *, rows: int, context: float, itemsize: int, bandwidth: float) -> float:
    """Tokens a second that a memory of ``bandwidth`` bytes a second allows: nobody decodes faster, most do slower."""
    return rows * bandwidth / decode_bytes(config, rows=rows, context=context, itemsize=itemsize)


def forward_flops(config: Any, *, rows: int, width: int, outputs: int, per_output: int) -> float:
    """Floating-point operations of a forward pass over right-padded rows; a multiply-add counts as two.

    Args:
        config: A Llama configuration.
        rows: Rows of the pass.
        width: Tokens of each.
        outputs: Tokens whose hidden state goes through a head.
        per_output: The head's outputs: the vocabulary for a policy, 1 for a critic.
    """
    products = 2 * rows * width * config.num_hidden_layers * layer_weights(config)
    # Causal attention: half of all pairs of tokens, scores and weighted sum.
    pairs = rows * width * (width + 1) / 2
    attention = 4 * pairs * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return products + attention + 2 * outputs * config.hidden_size * per_output


def update_flops(config: Any, *, rows: int, prompt: int, response: int) -> float:
    """Of one pass of updates over a rollout: policy and critic, forward and twice as much backward."""
    shape = {"rows": rows, "width": prompt + response, "outputs": rows * response}
    policy = forward_flops(config, **shape, per_output=config.vocab_size)
    return 3 * (policy + forward_flops(config, **shape, per_output=1))
