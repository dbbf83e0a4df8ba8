"""Rows into batches: by token budget, balanced over ranks, padded.

A *global* batch is one optimizer step's rows over all ranks. Every rank computes the same list of global batches from
the seed and takes its own part of each, so all ranks take the same number of steps and nothing is communicated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.config import check_whole, require

_BATCHES_PER_BUCKET = 16
_FEWEST_BUCKETS = 4


class PassTokens(NamedTuple):
    """Most tokens of one forward pass where nothing is said: small on a CPU, whose caches then hold the activations."""

    cpu: int
    accelerator: int

    def on(self, device: torch.device | str, configured: int | None) -> int:
        """What is configured, or what suits the kind of ``device``."""
        if configured is not None:
            return configured
        return self.cpu if torch.device(device).type == "cpu" else self.accelerator


def check_pass_tokens(name: str, value: int | None) -> None:
    """Refuse, with ``ValueError``, an option ``name`` that is neither None nor a whole number of at least 1."""
    check_whole({}, {name: value})
    require(value is None or value >= 1, name, value, "must be at least 1")


def token_budget_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    min_rows: int = 4,
    max_rows: int = 128,
    shuffle_seed: int | None = None,
    world_size: int = 1,
    rank: int | None = 0,
    num_batches: int | None = None,
) -> list[list[int]]:
    """This rank's row indices of every global batch, rows per batch set by a token budget.

    Rows are shuffled, sorted by length inside buckets of about 16 batches, cut into batches whose padded size (rows x
    longest row) stays within ``max_tokens``, and the batches are shuffled. ``min_rows`` goes before the budget. Every
    row is in exactly one batch. Source: paper, section 2 (pairs per batch vary so that tokens balance; 4 to 128).

    Args:
        lengths: Tokens of each row.
        max_tokens: Budget of a global batch, padding included.
        min_rows: Fewest rows of a global batch (fewer only if there are fewer rows at all).
        max_rows: Most rows of a global batch.
        shuffle_seed: None keeps the order of the data and sorts nothing.
        world_size: Number of ranks.
        rank: This rank; None for the global batches, unsplit.
        num_batches: Exactly this many batches, so that epochs with other seeds are equally long: the largest batches
            are halved, or the budget is raised in steps of 2 % until few enough are left. See :func:`plan_steps`.

    Raises:
        ValueError: ``max_tokens`` < 1, ``min_rows`` < ``world_size``, ``max_rows`` < 2 ``min_rows`` - 1, or fewer rows
            than ranks.
    """
    if max_tokens < 1:
        raise ValueError(f"`max_tokens` ({max_tokens}) must be positive.")
    if min_rows < world_size:
        raise ValueError(f"`min_rows` ({min_rows}) must be at least the number of ranks ({world_size}).")
    if max_rows < 2 * min_rows - 1:
        raise ValueError(f"`max_rows` ({max_rows}) must be at least 2 x `min_rows` - 1 ({2 * min_rows - 1}).")
    per_batch = min(max(max_tokens * len(lengths) // max(sum(lengths), 1), min_rows), max_rows)
    order = _bucketed_order(lengths, per_batch * _BATCHES_PER_BUCKET, shuffle_seed)
    batches = _fill_and_fix(order, lengths, max_tokens, min_rows, max_rows)
    if num_batches is not None:
        for extra in range(1, 200):
            if len(batches) <= num_batches:
                break
            budget = int(max_tokens * (1 + 0.02 * extra))
            batches = _fill_and_fix(order, lengths, budget, min_rows, max_rows + extra)
        _halve(batches, lengths, num_batches, min_rows)
    return _parts(batches, lengths, shuffle_seed, world_size, rank)


def plan_steps(
    lengths: Sequence[int], *, max_tokens: int, min_rows: int = 4, max_rows: int = 128, shuffle_seed: int | None = None
) -> int:
    """A number of batches an epoch that any seed can be held to: what 97 % of the budget gives.

    Lightning asks the length of a loader once a fit; were it to change with the epoch, rows would be skipped.
    """
    budget = max_tokens if shuffle_seed is None else max(1, int(0.97 * max_tokens))
    batches = token_budget_batches(
        lengths, max_tokens=budget, min_rows=min_rows, max_rows=max_rows, shuffle_seed=shuffle_seed
    )
    return len(batches)


def fixed_size_batches(
    lengths: Sequence[int],
    *,
    batch_size: int,
    shuffle_seed: int | None = None,
    world_size: int = 1,
    rank: int | None = 0,
) -> list[list[int]]:
    """This rank's row indices of every global batch of ``batch_size`` rows.

    As :func:`token_budget_batches`, with the number of rows fixed; the last batch holds what is left (joined to the
    one before it where it has fewer rows than there are ranks).

    Raises:
        ValueError: ``batch_size`` is not a positive multiple of ``world_size``, or there are fewer rows than ranks.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"`batch_size` ({batch_size}) must be a positive multiple of the number of ranks ({world_size})."
        )
    order = _bucketed_order(lengths, batch_size * _BATCHES_PER_BUCKET, shuffle_seed)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) < world_size:
        tail = batches.pop()
        batches[-1] += tail
    return _parts(batches, lengths, shuffle_seed, world_size, rank)


def partition_rows(lengths: Sequence[int], num_parts: int) -> list[list[int]]:
    """Row indices split into ``num_parts`` parts of nearly equal token counts, none empty, ascending in each.

    Longest row first, each to the part with the fewest tokens so far.

    Raises:
        ValueError: Fewer rows than parts.
    """
    if len(lengths) < num_parts:
        raise ValueError(f"{len(lengths)} rows cannot be split into {num_parts} parts.")
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [0] * num_parts
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # at equal load the emptier part, so that rows of no tokens spread as well
        part = min(range(num_parts), key=lambda p: (bool(parts[p]), loads[p], len(parts[p]), p))
        parts[part].append(row)
        loads[part] += lengths[row]
    return [sorted(part) for part in parts]


def micro_batches(lengths: Sequence[int], max_tokens: int, num_parts: int | None = None) -> list[list[int]]:
    """Row indices sorted by length and cut so that rows x longest row stays within ``max_tokens``.

    As few parts as that allows, of sizes as equal as the cuts allow: the largest, which sets the memory of a pass, is
    as small as can be. A row longer than the budget is alone. Deterministic: equal lengths keep their order.

    Args:
        lengths: Tokens of each row.
        max_tokens: Budget, padding included.
        num_parts: Exactly this many parts, for ranks that must take equally many.

    Raises:
        ValueError: ``max_tokens`` < 1, or ``num_parts`` is below what the budget needs or above the number of rows.
    """
    if max_tokens < 1:
        raise ValueError(f"`max_tokens` ({max_tokens}) must be positive.")
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))

    def cut(budget: int) -> list[list[int]]:
        return _fill(order, lengths, budget, 1, len(order) or 1)

    fewest = len(cut(max_tokens))
    count = fewest if num_parts is None else num_parts
    if not fewest <= count <= len(lengths):
        raise ValueError(f"`num_parts` ({num_parts}) must be from {fewest} (budget) to {len(lengths)} (rows).")
    budgets = range(1, max_tokens + 1)
    parts = cut(budgets[bisect_left(budgets, -count, key=lambda budget: -len(cut(budget)))])
    _halve(parts, lengths, count, 1)
    return parts


def token_packs(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row indices, longest row first, cut so that rows x longest row stays within ``max_tokens``.

    As many rows a pack as fit, for passes that keep nothing: where activations are kept, :func:`micro_batches` cuts
    them evenly. A row longer than the budget is alone. Deterministic: equal lengths keep their order.

    Args:
        lengths: Tokens of each row.
        max_tokens: Budget, padding included.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return _fill(order, lengths, max_tokens, 1, len(order))


def pad_right(
    rows: Sequence[Sequence[int] | Tensor], pad_value: int, *, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rows of ids as one block, padding after each.

    Args:
        rows: B sequences of token ids.
        pad_value: The id put in the padding.
        length: Width of the block; None for the longest row.

    Returns:
        Ids ``(B, L)`` int64 and mask ``(B, L)`` bool, True at the rows' own ids.

    Raises:
        ValueError: No rows, or a row longer than ``length``.
    """
    return _pad(rows, pad_value, length, left=False)


def pad_left(
    rows: Sequence[Sequence[int] | Tensor], pad_value: int, *, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`pad_right`, with the padding before each row."""
    return _pad(rows, pad_value, length, left=True)


def _pad(
    rows: Sequence[Sequence[int] | Tensor], pad_value: int, length: int | None, *, left: bool
) -> tuple[Tensor, Tensor]:
    if not rows:
        raise ValueError("No rows to pad.")
    longest = max(len(row) for row in rows)
    width = longest if length is None else length
    if longest > width:
        raise ValueError(f"A row of {longest} ids does not fit in `length` ({width}).")
    ids = torch.full((len(rows), width), pad_value, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.as_tensor(row, dtype=torch.int64)
        mask[i, where] = True
    return ids, mask


def _bucketed_order(lengths: Sequence[int], bucket_rows: int, seed: int | None) -> list[int]:
    if seed is None:
        return list(range(len(lengths)))
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    # Few rows in one bucket would be sorted alike every epoch: the same rows would always meet in a batch.
    bucket_rows = min(bucket_rows, -(-len(order) // _FEWEST_BUCKETS))
    buckets: Iterable[list[int]] = (order[i : i + bucket_rows] for i in range(0, len(order), bucket_rows))
    return [i for bucket in buckets for i in sorted(bucket, key=lengths.__getitem__)]


def _fill(order: Sequence[int], lengths: Sequence[int], budget: int, min_rows: int, max_rows: int) -> list[list[int]]:
    """Rows in ``order``, cut where the next one would break the budget or ``max_rows``: every packer above is this."""
    batches: list[list[int]] = []
    longest = 0
    for row in order:
        longest = max(longest, lengths[row])
        size = len(batches[-1]) if batches else max_rows
        if size >= max_rows or (size >= min_rows and (size + 1) * longest > budget):
            batches.append([])
            longest = lengths[row]
        batches[-1].append(row)
    return batches


def _fill_and_fix(
    order: Sequence[int], lengths: Sequence[int], budget: int, min_rows: int, max_rows: int
) -> list[list[int]]:
    batches = _fill(order, lengths, budget, min_rows, max_rows)
    _fix_tail(batches, min_rows)
    return batches


def _halve(batches: list[list[int]], lengths: Sequence[int], num_batches: int, min_rows: int) -> None:
    """Halve the largest batches, by padded size, until there are ``num_batches`` or none has rows enough."""
    while len(batches) < num_batches:
        sizes = [len(b) * max(lengths[i] for i in b) if len(b) >= 2 * min_rows else -1 for b in batches]
        at = sizes.index(max(sizes))
        if sizes[at] < 0:
            return
        half = len(batches[at]) // 2
        batches[at : at + 1] = [batches[at][:half], batches[at][half:]]


def _fix_tail(batches: list[list[int]], min_rows: int) -> None:
    """Give a short last batch rows of the one before, or join the two where both cannot have ``min_rows``."""
    if len(batches) < 2 or len(batches[-1]) >= min_rows:
        return
    missing = min_rows - len(batches[-1])
    if len(batches[-2]) - missing >= min_rows:
        batches[-1] = batches[-2][-missing:] + batches[-1]
        del batches[-2][-missing:]
    else:
        tail = batches.pop()
        batches[-1] += tail


def _parts(
    batches: list[list[int]], lengths: Sequence[int], seed: int | None, world_size: int, rank: int | None
) -> list[list[int]]:
    if len(lengths) < world_size:
        raise ValueError(f"{len(lengths)} rows are fewer than the {world_size} ranks.")
    if seed is not None:
        generator = torch.Generator().manual_seed(seed + 1)
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    if world_size == 1 or rank is None:
        return batches
    parts = (partition_rows([lengths[i] for i in batch], world_size)[rank] for batch in batches)
    return [[batch[i] for i in part] for batch, part in zip(batches, parts, strict=True)]
