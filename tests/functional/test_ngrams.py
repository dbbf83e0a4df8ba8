from __future__ import annotations

import math

import pytest
import torch

from lit_rlhf.functional import ngram_hashes, prefix_hashes, response_ngrams, row_hashes, variety

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


def responses(
    seed: int, lengths: list[int], words: int = 6
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, ...]]]:
    ids = torch.randint(3, 3 + words, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = response_mask(lengths, max(lengths))
    return ids.masked_fill(~mask, 99), mask, [tuple(row[:n]) for row, n in zip(ids.tolist(), lengths, strict=True)]


def variety_of(ids: torch.Tensor, mask: torch.Tensor, prompts: torch.Tensor, order: int) -> float:
    grams, rows = response_ngrams(ids, mask, order)
    weights = 1 / torch.bincount(rows)[rows].double()
    return float(variety(grams, weights, prompts[rows], prompts))


def by_pairs(texts: list[tuple[int, ...]], prompts: list[int], order: int) -> float:
    """The definition: over all pairs of responses to different prompts."""
    sets = [{t[i : i + order] for i in range(len(t) - order + 1)} or {t} for t in texts]
    means = []
    for i, mine in enumerate(sets):
        others = [sets[j] for j in range(len(sets)) if prompts[j] != prompts[i]]
        means.append(sum(len(mine & other) / len(mine) for other in others) / len(others))
    return 1 - sum(means) / len(means)


def test_variety_is_one_minus_the_mean_overlap_of_all_pairs_of_other_prompts():
    lengths = [1, 2, 3, 3, 5, 8, 12, 12, 2, 7]
    for order in (1, 2, 3):
        for prompts in (list(range(10)), [0, 0, 1, 1, 1, 2, 2, 3, 4, 4]):
            ids, mask, texts = responses(order, lengths, words=3)
            want = by_pairs(texts, prompts, order)
            assert 0.1 < want < 0.99
            assert variety_of(ids, mask, torch.tensor(prompts), order) == pytest.approx(want, abs=1e-12)


def test_one_answer_to_all_prompts_has_no_variety_however_short_it_is():
    for length in (1, 2, 3, 9):
        ids, mask = torch.arange(5, 5 + length).expand(6, -1), torch.ones(6, length, dtype=torch.bool)
        assert variety_of(ids, mask, torch.arange(6), 3) == 0
        assert math.isnan(variety_of(ids, mask, torch.zeros(6, dtype=torch.int64), 3))  # one prompt: nothing to compare


def test_answers_that_have_nothing_in_common_have_all_of_it_also_where_one_repeats_itself():
    ids = torch.tensor([[1, 1, 1, 1, 1], [2, 3, 4, 5, 6], [7, 8, 0, 0, 0]])
    mask = response_mask([5, 5, 2], 5)
    assert variety_of(ids, mask, torch.arange(3), 3) == 1
    assert response_ngrams(ids, mask, 3)[1].tolist() == [0, 1, 1, 1, 2]
    assert variety_of(ids[:, :2], mask[:, :2], torch.arange(3), 3) == 1  # narrower than an n-gram


def test_a_row_is_known_again_wherever_its_padding_is():
    left, right = torch.tensor([[0, 0, 4, 5], [0, 6, 0, 5]]), torch.tensor([[4, 5, 9], [6, 0, 5]])
    one = row_hashes(left, torch.tensor([[False, False, True, True], [False, True, True, True]]))
    other = row_hashes(right, torch.tensor([[True, True, False], [True, True, True]]))
    assert torch.equal(one, other)
    assert one.unique().numel() == 2
    assert row_hashes(left, left > 0)[1] != one[1]  # a zero is a token, too
