"""Attention of one query token that leaves grouped keys and values where they are.

Where several query heads share a key-value head, transformers repeats keys and values for every query head before it
calls PyTorch's attention under a mask (``integrations/sdpa_attention.py``, ``repeat_kv``): in a decode step that is a
copy of the whole cache, for each layer and token. The newest releases avoid it (``pack_gqa``), though not inside
`torch.compile`. A single query needs no copy: its heads are put where the query positions of their group would be,
which is the same product.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lit_rlhf.models.cpu import SDPA_NAMES


class _Ungrouped:
    """What the attention function asks of its module, once the groups are gone."""

    num_key_value_groups = 1
    is_causal = False


_UNGROUPED = _Ungrouped()


def _one_query(attention: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """``attention`` of ``query (B, H, 1, D)`` with ``key (B, G, L, D)``; anything else goes through as it is."""
    (rows, heads, length, size), groups = query.shape, key.size(1)
    if length != 1 or groups == heads or mask is None or mask.size(1) != 1:
        return attention(module, query, key, value, mask, **kwargs)
    packed = query.reshape(rows, groups, heads // groups, size)
    out, weights = attention(_UNGROUPED, packed, key, value, mask, **kwargs)  # (B, H / G, G, D)
    return out.transpose(1, 2).reshape(rows, 1, heads, -1), weights


@functools.cache
def _registered(name: str) -> str:
    """The name under which transformers finds attention ``name`` with :func:`_one_query` around it."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    packed = f"{name}_one_query"
    AttentionInterface.register(packed, functools.partial(_one_query, ALL_ATTENTION_FUNCTIONS[name]))
    AttentionMaskInterface.register(packed, ALL_MASK_ATTENTION_FUNCTIONS[name])
    return packed


@contextmanager
def grouped_heads_in_place(trunk: nn.Module) -> Iterator[None]:
    """Have a trunk's decode steps inside the block not copy the cache.

    Args:
        trunk: A transformers base model; left alone where its heads are not grouped or its attention is not "sdpa".
    """
    config: Any = trunk.config
    name, heads = config._attn_implementation, config.num_attention_heads
    grouped = getattr(config, "num_key_value_heads", None) not in (None, heads)
    if not grouped or name not in SDPA_NAMES:
        yield
        return
    config._attn_implementation = _registered(name)
    try:
        yield
    finally:
        config._attn_implementation = name
