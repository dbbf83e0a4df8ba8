"""Sequences of tokens as numbers that can be counted: one int64 hash per n-gram, opening or row.

Conventions: ``ids (B, T)`` int64, ``mask (B, T)`` bool, True first. Equal sequences have equal hashes, on every rank;
different ones collide about as often as random 64-bit numbers do.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Odd multiplier of a polynomial hash modulo 2^64 (Knuth's MMIX constant): int64 products wrap, which is what we want.
_MULTIPLIER = 6364136223846793005


def ngram_hashes(ids: Tensor, mask: Tensor, order: int) -> Tensor:
    """Every window of ``order`` kept tokens, ``(N,)``; none where no response is that long."""
    if ids.size(1) < order:
        return ids.new_zeros(0)
    windows, whole = ids.unfold(1, order, 1), mask.unfold(1, order, 1).all(-1)
    return _hashed(windows)[whole]


def prefix_hashes(ids: Tensor, mask: Tensor, length: int) -> Tensor:
    """The first ``length`` tokens of each response, ``(B,)``; a shorter response is its own prefix."""
    head = ids[:, :length].masked_fill(~mask[:, :length], -1)
    return _hashed(torch.nn.functional.pad(head, (0, length - head.size(1)), value=-1))


def row_hashes(ids: Tensor, mask: Tensor) -> Tensor:
    """The kept tokens of each row, ``(B,)``; ``mask`` may be False on either side."""
    value = ids.new_zeros(ids.size(0))
    for k in range(ids.size(1)):
        value = torch.where(mask[:, k], _mixed(value, ids[:, k], 0), value)
    return value


def response_ngrams(ids: Tensor, mask: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """The *distinct* n-grams of each response; one of fewer than ``order`` tokens is its own n-gram.

    Returns:
        Hashes ``(N,)`` and the row of each, ``(N,)`` int64.
    """
    ids, mask = (torch.nn.functional.pad(x, (0, max(0, order - x.size(1)))) for x in (ids, mask))
    hashes, valid = _hashed(ids.unfold(1, order, 1)), mask.unfold(1, order, 1).all(-1)
    short = mask.sum(1) < order
    hashes[:, 0] = torch.where(short, prefix_hashes(ids, mask, order), hashes[:, 0])
    valid[:, 0] |= short
    hashes, places = hashes.masked_fill(~valid, torch.iinfo(torch.int64).max).sort(1)
    new = valid.gather(1, places)
    new[:, 1:] &= hashes[:, 1:] != hashes[:, :-1]
    return hashes[new], new.nonzero()[:, 0]


def variety(grams: Tensor, weights: Tensor, owners: Tensor, prompts: Tensor) -> Tensor:
    r"""How little the responses to *different* prompts have in common, in ``[0, 1]``; 0 when all are the same.

    .. math:: 1 - \frac{1}{R} \sum_i \frac{1}{|G_i|} \sum_{g \in G_i}
        \frac{\#\{j: g \in G_j,\, p_j \ne p_i\}}{\#\{j: p_j \ne p_i\}}

    with :math:`G_i` the distinct n-grams of response i and :math:`p_i` its prompt: one minus the probability that an
    n-gram of one response is in a response to another prompt. Every response weighs the same, however short it is.

    Args:
        grams: The distinct n-grams of every response (:func:`response_ngrams`), ``(N,)`` int64.
        weights: One over their number in the response, ``(N,)``.
        owners: The prompt of each n-gram's response, ``(N,)`` int64.
        prompts: The prompt of each response, ``(R,)`` int64.

    Returns:
        Scalar, float64; NaN where there are not two prompts.
    """
    known, responses = torch.unique(prompts, return_counts=True)
    others = prompts.numel() - responses[torch.searchsorted(known, owners)]
    own = _counts(_hashed(torch.stack([grams, owners], -1)))
    shared = (_counts(grams) - own).double() / others
    overlap: Tensor = (weights.double() * shared).sum() / prompts.numel()
    return 1 - overlap


def _counts(values: Tensor) -> Tensor:
    """How often each of ``values`` is among them."""
    _, places, counts = torch.unique(values, return_inverse=True, return_counts=True)
    found: Tensor = counts[places]
    return found


def _hashed(windows: Tensor) -> Tensor:
    """Polynomial hash of the last dimension of int64 ``windows``."""
    value = torch.zeros_like(windows[..., 0])
    for k in range(windows.size(-1)):
        value = _mixed(value, windows[..., k], k)
    return value


def _mixed(value: Tensor, token: Tensor, place: int) -> Tensor:
    value = (value + token + 1) * _MULTIPLIER + (place + 1)
    return value ^ (value >> 29)  # low bits of a product alone never see high bits; mix them down
