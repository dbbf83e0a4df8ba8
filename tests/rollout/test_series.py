"""Which prompts share a cache, and how large it is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.rollout.series import (
    COLUMN_STEP,
    cache_budget,
    engine_limits,
    fixed_columns,
    fixed_series,
    growing_series,
    row_counts,
)


def test_what_fits_is_one_series_without_spare_columns():
    (series,) = growing_series([3, 9, 5], steps=10, budget=57)
    assert (series.prompts, series.lengths) == ([1, 2, 0], [9, 5, 3])
    assert (series.rows, series.columns) == (3, 19)


def test_what_does_not_fit_waits_in_a_wider_cache():
    (series,) = growing_series([9, 8, 7, 6], steps=10, budget=57)  # 57 // 19 = 3 rows would start
    assert (series.rows, series.columns) == (2, 19 + 19 // 8 + 1)
    assert series.prompts == [0, 1, 2, 3]


def test_short_prompts_do_not_wait_for_a_cache_that_is_half_empty():
    series = list(growing_series([100, 100, *[5] * 8], steps=10, budget=110))
    assert [len(s.prompts) for s in series] == [2, 8]
    assert [s.rows for s in series] == [1, 6]


def test_one_row_is_always_taken():
    (series,) = growing_series([50, 50], steps=10, budget=1)
    assert series.rows == 1


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=60),
    st.integers(1, 100),
    st.integers(1, 4000),
)
def test_every_prompt_is_in_one_series_and_no_cache_breaks_the_budget(lengths, steps, budget):
    series = list(growing_series(lengths, steps=steps, budget=budget))
    assert sorted(prompt for s in series for prompt in s.prompts) == list(range(len(lengths)))
    for s in series:
        assert s.lengths == sorted((lengths[prompt] for prompt in s.prompts), reverse=True)
        assert s.rows == 1 or s.rows * s.columns <= budget
        assert s.rows == len(s.prompts) or s.columns > s.lengths[0] + steps
        assert s.columns >= s.lengths[0] + steps


@given(st.lists(st.integers(1, 200), min_size=1, max_size=300), st.integers(1, 30_000))
def test_fixed_series_have_rows_in_powers_of_two(lengths, budget):
    columns = fixed_columns(max(lengths) + 50)
    assert columns % COLUMN_STEP == 0
    assert max(lengths) + 50 < columns <= max(lengths) + 50 + 1.5 * COLUMN_STEP
    series = fixed_series(lengths, columns=columns, budget=budget)
    assert series.rows.bit_count() == 1
    assert series.rows == 1 or series.rows * columns <= budget
    assert series.rows < 2 * len(lengths) or series.rows <= 8
    assert series.lengths == sorted(lengths, reverse=True)


def test_row_counts_are_few():
    assert row_counts(256) == [8, 16, 32, 64, 128, 256]
    assert row_counts(8) == [8]
    assert row_counts(2) == [2]
    assert len(row_counts(1024)) == 8


@pytest.mark.parametrize(
    ("device", "bytes_per_slot", "said", "slots"),
    [
        ("cpu", 2**19, None, 65536),
        ("cuda", 2**19, None, 16384),  # 7B without grouped heads: 65,536 would be 32 GiB
        ("cuda", 2**17, None, 65536),  # Llama-3-8B
        ("cuda", 2**19, 32768, 32768),
        (torch.device("cuda", 1), 2**40, None, 1),
    ],
)
def test_the_cache_is_sized_by_bytes_where_nothing_is_said(device, bytes_per_slot, said, slots):
    limits = engine_limits(device, cache_slots=said)
    assert cache_budget(limits, bytes_per_slot=bytes_per_slot) == slots
    assert limits.prefill_tokens == (2048 if device == "cpu" else 16384)
    assert engine_limits(device, prefill_tokens=7).prefill_tokens == 7
