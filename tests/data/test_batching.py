"""Batches: every row once, budgets kept, ranks in step, deterministic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf.data.batching import (
    fixed_size_batches,
    micro_batches,
    pad_left,
    pad_right,
    partition_rows,
    plan_steps,
    token_budget_batches,
    token_packs,
)

lengths_of = st.lists(st.integers(1, 60), min_size=8, max_size=120)


@settings(max_examples=80, deadline=None)
@given(lengths_of, st.integers(20, 400), st.integers(0, 5), st.integers(1, 3))
def test_budgeted_batches_hold_every_row_once_on_ranks_in_step(lengths, budget, seed, world):
    kwargs = {"max_tokens": budget, "min_rows": 4, "max_rows": 16, "shuffle_seed": seed}
    whole = token_budget_batches(lengths, **kwargs)
    ranks = [token_budget_batches(lengths, **kwargs, world_size=world, rank=r) for r in range(world)]
    assert sorted(i for batch in whole for i in batch) == list(range(len(lengths)))
    for i, batch in enumerate(whole):
        padded = len(batch) * max(lengths[j] for j in batch)
        assert 4 <= len(batch) <= 16
        assert padded <= budget or len(batch) < 8  # only batches near the fewest rows may exceed the budget
        assert sorted(j for r in ranks for j in r[i]) == sorted(batch)
        assert all(r[i] for r in ranks)
    assert {len(r) for r in ranks} == {len(whole)}


def test_epochs_are_equally_long_and_stay_near_the_budget():
    lengths = torch.randint(5, 300, (700,), generator=torch.Generator().manual_seed(1)).tolist()
    limits = {"max_tokens": 3000, "min_rows": 4, "max_rows": 128}
    steps = plan_steps(lengths, **limits, shuffle_seed=0)
    free = {len(token_budget_batches(lengths, **limits, shuffle_seed=seed)) for seed in range(12)}
    assert len(free) > 1  # without the fixed number epochs differ
    for seed in range(12):
        batches = token_budget_batches(lengths, **limits, shuffle_seed=seed, num_batches=steps)
        assert len(batches) == steps
        assert sorted(i for b in batches for i in b) == list(range(700))
        assert max(len(b) * max(lengths[i] for i in b) for b in batches) <= 3000 * 1.04


def test_order_depends_on_the_seed_alone_and_none_keeps_the_data_order():
    lengths = list(range(1, 60))
    first = token_budget_batches(lengths, max_tokens=200, shuffle_seed=3)
    assert first == token_budget_batches(lengths, max_tokens=200, shuffle_seed=3)
    assert first != token_budget_batches(lengths, max_tokens=200, shuffle_seed=4)
    plain = token_budget_batches(lengths, max_tokens=200)
    assert [i for b in plain for i in b] == list(range(59))


def test_buckets_pad_less_than_random_batches():
    lengths = torch.randint(1, 500, (512,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = fixed_size_batches(lengths, batch_size=16, shuffle_seed=0)
    slots = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert sum(lengths) / slots > 0.9
    random = sum(16 * max(lengths[i : i + 16]) for i in range(0, 512, 16))
    assert sum(lengths) / random < 0.6


@pytest.mark.parametrize(("rows", "world", "sizes"), [(10, 1, [4, 4, 2]), (10, 2, [4, 4, 2]), (9, 2, [4, 5])])
def test_fixed_batches_keep_the_rest_and_never_starve_a_rank(rows, world, sizes):
    whole = fixed_size_batches([1] * rows, batch_size=4, world_size=world, rank=None)
    assert [len(b) for b in whole] == sizes
    assert all(fixed_size_batches([1] * rows, batch_size=4, world_size=world, rank=world - 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixed_size_batches([1] * 9, batch_size=5, world_size=2), r"`batch_size` \(5\) must be .* ranks \(2\)"),
        (lambda: fixed_size_batches([1], batch_size=2, world_size=2), "1 rows are fewer than the 2 ranks"),
        (lambda: token_budget_batches([1], max_tokens=0), r"`max_tokens` \(0\)"),
        (lambda: token_budget_batches([1], max_tokens=9, min_rows=2, world_size=3), r"`min_rows` \(2\).*ranks \(3\)"),
        (lambda: token_budget_batches([1], max_tokens=9, min_rows=4, max_rows=6), r"`max_rows` \(6\) .* \(7\)"),
        (lambda: micro_batches([1, 1], 1, num_parts=3), r"`num_parts` \(3\) must be from 2 .* to 2"),
        (lambda: micro_batches([9, 9], 10, num_parts=1), r"`num_parts` \(1\) must be from 2"),
        (lambda: partition_rows([1], 2), "1 rows cannot be split into 2"),
        (lambda: pad_right([[1, 2]], 0, length=1), r"2 ids does not fit in `length` \(1\)"),
        (lambda: pad_left([], 0), "No rows"),
    ],
)
def test_errors_name_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 6))
def test_partition_balances_tokens(lengths, parts):
    if len(lengths) < parts:
        return
    split = partition_rows(lengths, parts)
    assert sorted(i for p in split for i in p) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in p) for p in split]
    assert all(split)
    assert max(loads) - min(loads) <= max(lengths)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 300), st.integers(0, 5))
def test_micro_batches_are_sorted_within_budget_and_of_the_number_asked(lengths, budget, more):
    parts = micro_batches(lengths, budget)
    flat = [i for p in parts for i in p]
    assert flat == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    assert all(len(p) == 1 or len(p) * max(lengths[i] for i in p) <= budget for p in parts)
    wanted = min(len(parts) + more, len(lengths))
    split = micro_batches(lengths, budget, num_parts=wanted)
    assert (len(split), [i for p in split for i in p]) == (wanted, flat)
    assert all(split)


@settings(max_examples=80, deadline=None)
@given(lengths_of, st.integers(60, 400))
def test_the_largest_micro_batch_is_as_small_as_that_many_allow(lengths, budget):
    parts = micro_batches(lengths, budget)
    largest = max((len(p) * max(lengths[i] for i in p) for p in parts if len(p) > 1), default=0)  # one row is never cut
    if largest > 1:
        assert len(micro_batches(lengths, largest)) == len(parts)
        assert len(micro_batches(lengths, largest - 1)) > len(parts)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 300))
def test_packs_take_the_longest_rows_first_and_as_many_as_fit(lengths, budget):
    packs = token_packs(lengths, budget)
    assert [i for pack in packs for i in pack] == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    assert all(len(pack) == 1 or len(pack) * lengths[pack[0]] <= budget for pack in packs)
    assert all((len(pack) + 1) * lengths[pack[0]] > budget for pack in packs[:-1])


def test_padding_on_either_side():
    ids, mask = pad_right([[5, 6], torch.tensor([7], dtype=torch.int32)], 9, length=3)
    assert ids.tolist() == [[5, 6, 9], [7, 9, 9]]
    assert mask.tolist() == [[True, True, False], [True, False, False]]
    ids, mask = pad_left([[5, 6], [7]], 9)
    assert ids.tolist() == [[5, 6], [9, 7]]
    assert (ids.dtype, mask.dtype, mask.tolist()) == (torch.int64, torch.bool, [[True, True], [False, True]])
