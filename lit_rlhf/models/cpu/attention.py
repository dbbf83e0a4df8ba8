"""Attention that runs fast on a CPU, with the numbers PyTorch's own gives up to rounding.

Three things (measured in docs/performance.md) are behind this file, and nothing changes on a GPU:

- Under bf16 autocast PyTorch runs attention in bf16 as well, which at the lengths and head sizes of small models is
  slower than fp32 by up to four times. Here it is always fp32.
- PyTorch's causal attention computes all keys for every query of a row of up to 512 tokens and throws half of that
  away. In parts of 64 queries, each with the keys up to its end, a row of three parts is two thirds of the arithmetic.
  Below 160 tokens the additional calls cost as much as they save.
- Of a last layer (``last_layer.py``) nobody reads more than some queries.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SDPA_NAME = "lit_sdpa"
SDPA_NAMES = ("sdpa", SDPA_NAME)
"""Attention implementations that take a bool mask, as `scaled_dot_product_attention` does."""
PART = 64
"""Queries of a part: of 32 to 256, what took the least time."""
FEWEST_KEYS, MOST_KEYS = 160, 1024
"""Rows that are worth taking apart: of longer ones PyTorch itself leaves out most of what nobody sees."""

_States = tuple[Tensor, Tensor, Tensor]
_LENGTHS: ContextVar[Sequence[int] | None] = ContextVar("lengths", default=None)


@contextmanager
def rows_packed(lengths: Sequence[int]) -> Iterator[None]:
    """Passes of the block have rows of so many tokens, one after the other in ``(1, N)``: :func:`sdpa_attention`."""
    token = _LENGTHS.set(lengths)
    try:
        yield
    finally:
        _LENGTHS.reset(token)


def sdpa_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> Any:
    """The attention that transformers calls "sdpa", always in fp32 on a CPU (the result has the query's dtype).

    In a pass of packed rows (``packed_rows.py``) each row attends to itself alone, causally. Where ``module.asked``
    has positions in the flattened ``(B, L)``, ascending, ``(M,)`` int64, nobody reads the others, which may be zero.

    Args:
        module: The layer's attention.
        query: ``(B, heads, L, head size)``.
        key: ``(B, key-value heads, keys, head size)``; with a cache there are more keys than queries.
        value: The same.
        mask: ``(B or 1, 1, L, keys)``, bool or added; None where causality alone counts.
        **kwargs: What transformers passes on.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    lengths, asked = _LENGTHS.get(), getattr(module, "asked", None)
    with torch.autocast("cpu", enabled=False):
        states = (query.float(), key.float(), value.float())
        if lengths is None:
            states, mask, asked = _only_asked(states, mask, asked)
            out, _ = sdpa_attention_forward(module, *states, mask, **kwargs)
        else:
            attend = functools.partial(
                F.scaled_dot_product_attention,
                dropout_p=kwargs.get("dropout", 0.0),
                scale=kwargs.get("scaling"),
                enable_gqa=query.size(1) != key.size(1),
            )
            rows = zip(*(torch.split(state, list(lengths), dim=2) for state in states), strict=True)
            apart = zip(rows, _asked_of_each(lengths, asked), strict=True)
            outs = [out for row, at in apart for out in _causal(attend, row, at)]
            out = torch.cat([out.transpose(1, 2) for out in outs], dim=1)
        if asked is not None:
            out = put_at(out.flatten(0, 1), asked, (query.size(0), query.size(2)))
    return out.to(query.dtype), None


def put_at(values: Tensor, at: Tensor, shape: Sequence[int]) -> Tensor:
    """``values (M, ...)`` at flat positions ``(M,)`` of a tensor of zeros ``(*shape, ...)``; each position once."""
    zeros = values.new_zeros(math.prod(shape), *values.shape[1:])
    return zeros.index_copy(0, at, values).view(*shape, *values.shape[1:])


def _only_asked(
    states: _States, mask: Tensor | None, asked: Tensor | None
) -> tuple[_States, Tensor | None, Tensor | None]:
    """The queries asked for and what they see, of rows that are asked equally often; else everything as it is.

    Returns:
        The states with a query of ``(B, heads, M / B, head size)``, its mask, and ``asked``; None for the last where
        everything was left as it is.
    """
    if asked is None:
        return states, mask, None
    (query, key, value), length = states, states[0].size(2)
    keys = key.size(2)
    of_each = torch.bincount(asked // length, minlength=len(query))
    # A mask is made where there was none only for few queries: its fp32 copy is kept for the backward pass.
    few = keys == length and of_each[0] <= PART
    known = few if mask is None else mask.shape[1:] == (1, length, keys)
    if not known or (of_each != of_each[0]).any():
        return states, mask, None
    at = (asked % length).view(len(query), 1, -1, 1)
    if mask is None:
        seen = at >= torch.arange(keys)
    else:
        seen = mask.expand(len(query), -1, -1, -1).gather(2, at.expand(-1, -1, -1, keys))
    return (query.gather(2, at.expand(-1, query.size(1), -1, query.size(3))), key, value), seen, asked


def _asked_of_each(lengths: Sequence[int], asked: Tensor | None) -> list[Sequence[int]]:
    """Positions in each of some packed rows, a `range` where they are a run. Of every row the last one is asked for."""
    if asked is None:
        return [range(length) for length in lengths]
    each: list[Sequence[int]] = []
    positions, taken, start = asked.tolist(), 0, 0
    for length in lengths:
        end = bisect_left(positions, start + length, taken)
        columns = [position - start for position in positions[taken:end]]
        run = columns[-1] - columns[0] + 1 == len(columns)
        each.append(range(columns[0], length) if run else columns)
        taken, start = end, start + length
    return each


def _causal(attend: Callable[..., Tensor], row: _States, at: Sequence[int]) -> list[Tensor]:
    """Causal attention of one row's queries at ``at``; the results ``(1, heads, n, head size)`` by part."""
    query, key, value = row
    keys = key.size(2)
    if len(at) == keys and not FEWEST_KEYS <= keys <= MOST_KEYS:
        return [attend(query, key, value, is_causal=True)]
    if keys > MOST_KEYS and len(at) > PART:  # PyTorch keeps each part's mask for the backward pass, in fp32
        return [attend(query, key, value, is_causal=True).index_select(2, torch.tensor(at))]
    outs = []
    for here in _parts(at):
        end = here[-1] + 1
        if isinstance(here, range):
            part = query[:, :, here[0] : end] if len(here) < keys else query
        else:
            part = query.index_select(2, torch.tensor(here))
        seen = (key, value) if end == keys else (key[:, :, :end], value[:, :, :end])
        outs.append(attend(part, *seen, **_seen(here, end)))
    return outs


def _parts(at: Sequence[int]) -> list[Sequence[int]]:
    """In `PART` each; a rest of less than half of that goes with the part before it."""
    starts = list(range(0, len(at), PART))
    if len(starts) > 1 and len(at) - starts[-1] < PART // 2:
        starts.pop()
    return [at[start:stop] for start, stop in zip(starts, [*starts[1:], len(at)], strict=True)]


def _seen(at: Sequence[int], keys: int) -> dict[str, Any]:
    """What queries at these positions, the last of ``keys`` among them, see of so many keys, as arguments."""
    if len(at) == keys:
        return {"is_causal": True}
    if len(at) == 1:
        return {}
    if isinstance(at, range) and keys <= MOST_KEYS and len(at) <= 2 * PART:
        return {"attn_mask": _triangle()[: len(at), MOST_KEYS - at[0] : MOST_KEYS - at[0] + keys]}
    return {"attn_mask": torch.tensor(at)[:, None] >= torch.arange(keys)}


@functools.cache
def _triangle() -> Tensor:
    """What is added to scores: row i sees columns up to ``MOST_KEYS + i``. Any run of queries finds its mask in it."""
    with torch.inference_mode(mode=False):  # made once, for passes with gradients as well
        seen = torch.ones(2 * PART, MOST_KEYS + 2 * PART, dtype=torch.bool, device="cpu").tril(MOST_KEYS)
        return torch.zeros(seen.shape, dtype=torch.float32, device="cpu").masked_fill_(~seen, -math.inf)


@functools.cache
def register() -> None:
    """Let transformers know the attention above by the name `SDPA_NAME`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    AttentionInterface.register(SDPA_NAME, sdpa_attention)
    AttentionMaskInterface.register(SDPA_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
