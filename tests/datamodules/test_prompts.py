"""Prompts as they wait for their iteration."""

from __future__ import annotations

import tracemalloc

import torch

from lit_rlhf.datamodules.prompts import EncodedPrompt, prompt_batch


def test_a_batch_of_prompts_is_padded_on_the_left():
    prompts = [EncodedPrompt(ids=[70_000, 2, 3], record={"a": 1}), EncodedPrompt(ids=(9,), record={})]
    batch = prompt_batch(prompts, pad_token_id=5)
    assert batch.prompt_ids.tolist() == [[70_000, 2, 3], [5, 5, 9]]
    assert batch.prompt_ids.dtype == torch.int64
    assert batch.prompt_mask.tolist() == [[True] * 3, [False, False, True]]
    assert batch.records == ({"a": 1}, {})


def test_a_prompt_costs_four_bytes_a_token():
    """A tuple of Python integers takes 36 and more, on each rank: 7 GB for a million prompts of 200 tokens."""
    count, length, record = 200, 500, {}
    tracemalloc.start()
    prompts = [EncodedPrompt(ids=[1000 + i for i in range(length)], record=record) for _ in range(count)]
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(prompts) == count
    assert used / count / length < 5
