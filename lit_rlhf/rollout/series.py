"""Which prompts share a key-value cache, and how large it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lit_rlhf.models.uses import EngineLimits

CPU_SLOTS, ACCELERATOR_CACHE_BYTES = 65536, 8 * 2**30
CPU_PREFILL_TOKENS, ACCELERATOR_PREFILL_TOKENS = 2048, 16384
COLUMN_STEP, FEWEST_ROWS = 128, 8
"""Fixed shapes: columns in steps of the one, rows in powers of two from the other on."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Prompts that share one cache.

    Attributes:
        prompts: Their indices, longest first. The first ones start together; the others wait for a row to end.
        lengths: Their tokens.
        rows: Rows of the cache.
        columns: Columns of the cache. Where prompts wait, more than the longest row needs: rows walk to the right, and
            the more there are, the more seldom all have to be moved back.
    """

    prompts: list[int]
    lengths: list[int]
    rows: int
    columns: int


def engine_limits(
    device: torch.device | str, *, cache_slots: int | None = None, prefill_tokens: int | None = None
) -> EngineLimits:
    """What was said, and for None what suits the kind of device: 65,536 slots on a CPU, 8 GiB on an accelerator."""
    on_cpu = torch.device(device).type == "cpu"
    if prefill_tokens is None:
        prefill_tokens = CPU_PREFILL_TOKENS if on_cpu else ACCELERATOR_PREFILL_TOKENS
    if cache_slots is None and not on_cpu:
        return EngineLimits(cache_bytes=ACCELERATOR_CACHE_BYTES, prefill_tokens=prefill_tokens)
    return EngineLimits(cache_slots=CPU_SLOTS if cache_slots is None else cache_slots, prefill_tokens=prefill_tokens)


def cache_budget(limits: EngineLimits, *, bytes_per_slot: int) -> int:
    """Slots (rows x columns) of a cache within :func:`engine_limits`.

    Args:
        limits: With a bound on slots or bytes.
        bytes_per_slot: Keys and values of one token in all layers; half a MiB in a 7B model without grouped heads.
    """
    if limits.cache_slots is not None:
        return limits.cache_slots
    assert limits.cache_bytes is not None
    return max(1, limits.cache_bytes // bytes_per_slot)


def growing_series(lengths: Sequence[int], *, steps: int, budget: int) -> Iterator[Series]:
    """All prompts in series whose caches are as wide as their longest row.

    Prompts that find no row at the start wait in the series, unless their own rows would leave half of its columns
    empty: those get a cache of their own, with more rows.

    Args:
        lengths: Tokens of each prompt.
        steps: Most tokens of a response.
        budget: Slots of a cache; one row is always taken.
    """
    order = sorted(range(len(lengths)), key=lambda prompt: -lengths[prompt])
    while order:
        width = lengths[order[0]] + steps
        rows, columns = max(1, budget // width), width
        count = max(rows, sum(2 * (lengths[prompt] + steps) > width for prompt in order))
        if min(count, len(order)) > rows:
            columns = width + width // 8 + 1
            rows = max(1, budget // columns)
        prompts, order = order[:count], order[count:]
        taken = [lengths[prompt] for prompt in prompts]
        yield Series(prompts=prompts, lengths=taken, rows=min(rows, len(prompts)), columns=columns)


def fixed_series(lengths: Sequence[int], *, columns: int, budget: int) -> Series:
    """All prompts in one series, in a cache of ``columns`` columns and a power of two of rows."""
    order = sorted(range(len(lengths)), key=lambda prompt: -lengths[prompt])
    fitting = 1 << (max(1, budget // columns).bit_length() - 1)
    rows = min(fitting, max(FEWEST_ROWS, 1 << (len(order) - 1).bit_length()))
    return Series(prompts=order, lengths=[lengths[prompt] for prompt in order], rows=rows, columns=columns)


def fixed_columns(longest: int) -> int:
    """Columns for rows of at most ``longest`` tokens: with room to walk, in steps of ``COLUMN_STEP``."""
    return -(-(longest + COLUMN_STEP // 2) // COLUMN_STEP) * COLUMN_STEP


def row_counts(rows: int) -> list[int]:
    """Numbers of rows a decode step over a cache of ``rows`` rows may have, where shapes are fixed."""
    counts = [rows]
    while counts[0] % 2 == 0 and counts[0] // 2 >= FEWEST_ROWS:
        counts.insert(0, counts[0] // 2)
    return counts
