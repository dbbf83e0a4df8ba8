from __future__ import annotations

import torch

from lit_rlhf.functional import ngram_hashes, prefix_hashes

from .cases import response_mask


def test_ngrams_are_counted_like_a_set_over_a_large_vocabulary():
    ids = torch.randint(0, 150_000, (64, 200), generator=torch.Generator().manual_seed(2))
    ids[:, 100:] = ids[:, :100]
    mask = response_mask([200 - 3 * k for k in range(64)], 200)
    hashes = ngram_hashes(ids, mask, 3)
    grams = [tuple(row[i : i + 3]) for k, row in enumerate(ids.tolist()) for i in range(198 - 3 * k)]
    assert len(hashes) == len(grams)
    assert hashes.unique().numel() == len(set(grams))
    same = {}
    for gram, value in zip(grams, hashes.tolist(), strict=True):
        assert same.setdefault(gram, value) == value


def test_order_of_tokens_and_their_number_matter():
    one, other, ones = torch.tensor([[3, 5, 8]]), torch.tensor([[5, 3, 8]]), torch.ones(1, 3, dtype=torch.bool)
    assert ngram_hashes(one, ones, 3) != ngram_hashes(other, ones, 3)
    assert prefix_hashes(one, ones, 2) != prefix_hashes(other, ones, 2)
    assert prefix_hashes(one, ones, 3) != prefix_hashes(one, response_mask([2], 3), 3)


def test_a_prefix_is_of_the_first_tokens_and_a_short_response_its_own():
    ids = torch.tensor([[1, 2, 7, 8], [1, 2, 9, 9], [1, 2, 3, 5]])
    first, second, third = prefix_hashes(ids, response_mask([4, 2, 4], 4), 2).tolist()
    assert first == second == third
    longer = prefix_hashes(ids, response_mask([4, 2, 4], 4), 3)
    assert longer.unique().numel() == 3
    assert torch.equal(prefix_hashes(ids, response_mask([4, 4, 4], 4), 6)[:1], prefix_hashes(ids[:1], ids[:1] > 0, 6))


def test_garbage_after_the_end_changes_nothing():
    ids, mask = torch.tensor([[1, 2, 7, 8], [3, 4, 5, 6]]), response_mask([2, 4], 4)
    spoiled = torch.where(mask, ids, 99)
    assert torch.equal(ngram_hashes(ids, mask, 2), ngram_hashes(spoiled, mask, 2))
    assert torch.equal(prefix_hashes(ids, mask, 3), prefix_hashes(spoiled, mask, 3))
    assert ngram_hashes(ids, mask, 2).numel() == 1 + 3


def test_no_response_is_long_enough():
    ids, mask = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)
    assert ngram_hashes(ids, mask, 4).shape == (0,)
