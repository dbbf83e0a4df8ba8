"""Rows of a split: in memory as they are, or made from those of the token cache when they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import torch

from lit_rlhf.data.arrow_rows import ArrowRows
from lit_rlhf.data.encoding import EncodedRow
from lit_rlhf.data.token_cache import Tokenized

RowT = TypeVar("RowT", covariant=True)


class StoredRows(Sequence[RowT]):
    """Rows that lie in the token cache, in an order of their own.

    Attributes:
        lengths: Tokens of each.
        learned: Learned tokens of each.
    """

    def __init__(self, rows: ArrowRows, make: Callable[[EncodedRow], RowT], index: Any = None) -> None:
        self._rows, self._make, self._index = rows, make, index
        self.lengths, self.learned = (self._picked(numbers) for numbers in (rows.lengths, rows.learned))

    @classmethod
    def of(cls, data: Tokenized, make: Callable[[EncodedRow], RowT], index: Any = None) -> Sequence[RowT]:
        """The rows at ``index`` (int64; None for all, in the order of the data): a list where they are one already."""
        if isinstance(data.rows, ArrowRows):
            return cls(data.rows, make, index)
        return [make(data.rows[i]) for i in (range(len(data.rows)) if index is None else index.tolist())]

    def _picked(self, numbers: array[int]) -> array[int]:
        if self._index is None:
            return numbers
        out = array("i")
        out.frombytes(np.frombuffer(numbers, np.int32)[self._index].tobytes())
        return out

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> RowT: ...
    @overload
    def __getitem__(self, index: slice) -> list[RowT]: ...
    def __getitem__(self, index: int | slice) -> RowT | list[RowT]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return self._make(self._rows[at if self._index is None else int(self._index[at])])


def splits(groups: Any, counts: Any, fractions: Mapping[str, float], *, seed: int) -> dict[str, Any]:
    """Which rows are held out, whole groups at a time, and which are left to train on.

    Args:
        groups: Of each record, ``(R,)`` uint64: records of one group stay on one side.
        counts: Rows of each record, ``(R,)`` int32.
        fractions: Share of the records that each held-out split gets.
        seed: Of the order of the groups.

    Returns:
        Indices of rows, ``(n,)`` int64, by split; "train" has what is left.

    Raises:
        ValueError: Nothing is left.
    """
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    total = len(first)
    number = np.empty(total, np.int64)  # of a group, in the order in which they first appear
    number[np.argsort(first)] = np.arange(total)
    place = np.empty(total, np.int64)  # of a group after the shuffle
    place[torch.randperm(total, generator=torch.Generator().manual_seed(seed)).numpy()] = np.arange(total)
    places = place[number[inverse]]
    sizes = np.bincount(places, minlength=total)
    out, end = {}, total
    for split, fraction in fractions.items():
        wanted = round(fraction * len(groups))
        if wanted:
            held = np.cumsum(sizes[:end][::-1])  # groups are taken from the end
            start = max(0, end - 1 - int(np.searchsorted(held, wanted)))
            out[split] = _rows_of(np.flatnonzero((places >= start) & (places < end)), -places, counts)
            end = start
    if not end:
        raise ValueError(f"Nothing is left to train on: {len(groups)} rows, {total} distinct prompts.")
    return {**out, "train": _rows_of(np.flatnonzero(places < end), places, counts)}


def _rows_of(records: Any, order: Any, counts: Any) -> Any:
    """Rows of the records, sorted by ``order`` and then as they are in the data."""
    records = records[np.argsort(order[records], kind="stable")]
    many = counts[records]
    starts = np.cumsum(counts, dtype=np.int64) - counts
    within = np.arange(many.sum()) - np.repeat(np.cumsum(many, dtype=np.int64) - many, many)
    return np.repeat(starts[records], many) + within
