"""Freed rows go to waiting prompts, columns move, and no response notices."""

import pytest
import torch

from lit_rlhf.rollout import decoding
from lit_rlhf.rollout.kv_cache import RowCache
from tests.rollout.test_transformers_engine import (
    ENDS,
    SAMPLINGS,
    STEPS,
    batch_of,
    gemma2,
    generate,
    gpt2,
    llama,
    one_by_one,
    responses_of,
    some_prompts,
    some_uniforms,
)


@pytest.fixture
def steps(monkeypatch):
    """(rows, whether it is the first after an admission) of every decode step."""
    seen = []
    plain = decoding.Decoder._decode

    def decode(self):
        seen.append(len(self.slots))
        return plain(self)

    monkeypatch.setattr(decoding.Decoder, "_decode", decode)
    return seen


@pytest.fixture
def shifts(monkeypatch):
    """By how many columns the cache was moved, each time."""
    seen = []
    plain = RowCache.shift
    monkeypatch.setattr(RowCache, "shift", lambda self, by, **where: (seen.append(by), plain(self, by, **where))[1])
    return seen


@pytest.mark.parametrize("drop_every", [1, 4])
@pytest.mark.parametrize("static_cache", [False, True])
@pytest.mark.parametrize("name", ["plain", "paper", "prompt"])
@pytest.mark.parametrize("make_model", [llama, gpt2, gemma2], ids=lambda f: f.__name__)
def test_refilled_rows_draw_what_they_draw_alone(make_model, name, static_cache, drop_every, shifts):
    """Thirty prompts through a cache of a few rows: late rows start in any column, and all move to the left again."""
    model, prompts, sampling = make_model(), some_prompts(rows=30), SAMPLINGS[name]
    uniforms = some_uniforms(len(prompts))
    expected = one_by_one(model, prompts, uniforms, sampling, ENDS)
    options = {"static_cache": static_cache, "drop_every": drop_every}
    budget = 4 * 128 if static_cache else 5 * 25
    rollout = generate(
        model, batch_of(prompts), uniforms, sampling=sampling, eos=ENDS, max_batch_tokens=budget, **options
    )
    assert responses_of(rollout) == expected
    assert rollout.ended.tolist() == [r[-1] in ENDS for r in expected]
    assert static_cache or shifts, "columns must run out for this to test moving them"
    assert all(by > 0 for by in shifts)


def test_a_static_cache_moves_its_columns_too(shifts):
    model, prompts = llama(), some_prompts(rows=400)
    uniforms = some_uniforms(len(prompts))
    plain = generate(model, batch_of(prompts), uniforms, eos=ENDS)
    other = generate(model, batch_of(prompts), uniforms, eos=ENDS, static_cache=True, max_batch_tokens=8 * 128)
    assert shifts
    assert torch.equal(plain.input_ids, other.input_ids)


def test_few_rows_stay_full(steps):
    """Batches that wait for their longest response take half as many steps again."""
    model, prompts = llama(), some_prompts(rows=64)
    uniforms = some_uniforms(len(prompts))
    rollout = generate(model, batch_of(prompts), uniforms, eos=ENDS, max_batch_tokens=8 * 24)
    rows = max(steps)
    lengths = rollout.response_lengths
    batches = lengths[torch.tensor(sorted(range(64), key=lambda i: -len(prompts[i])))].split(rows)
    assert rows <= 8
    assert len(steps) < 0.75 * sum(int(batch.max()) - 1 for batch in batches)


def test_sampler_columns_of_refilled_rows_are_those_of_one_batch():
    model, prompts = llama(), some_prompts(rows=30)
    uniforms = some_uniforms(len(prompts))
    one, many = (
        generate(model, batch_of(prompts), uniforms, eos=ENDS, sampler_logprobs=True, max_batch_tokens=budget)
        for budget in (65536, 100)
    )
    assert torch.equal(one.input_ids, many.input_ids)
    torch.testing.assert_close(one.sampler_logprobs, many.sampler_logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.sampler_entropies, many.sampler_entropies, rtol=1e-5, atol=1e-5)
    assert (many.sampler_logprobs[~many.response_mask] == 0).all()


@pytest.mark.parametrize("drop_every", [1, 1000])
def test_responses_of_one_token(drop_every):
    model, prompts = llama(), some_prompts(rows=12)
    uniforms = some_uniforms(len(prompts), steps=1)
    one, many = (
        generate(model, batch_of(prompts), uniforms, eos=ENDS, max_batch_tokens=budget, drop_every=drop_every)
        for budget in (65536, 1)
    )
    assert torch.equal(one.input_ids, many.input_ids)
    assert (many.response_lengths == 1).all()


def test_a_late_row_that_is_not_finite_is_named():
    model, prompts = llama(), [[5, 6], [7, 5], [5, 8], [9, 9]]
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = float("nan")
    with pytest.raises(FloatingPointError, match=r"prompts \[3\].*response token 0"):
        generate(model, batch_of(prompts), some_uniforms(4, steps=1), max_batch_tokens=1)


def test_the_minimum_length_counts_from_each_rows_own_start():
    model, prompts = llama(), some_prompts(rows=25)
    sampling = SAMPLINGS["top-k"]
    rollout = generate(
        model, batch_of(prompts), some_uniforms(25), sampling=sampling, eos=ENDS, max_batch_tokens=4 * 24
    )
    assert int(rollout.response_lengths.min()) == sampling.min_response_length
    assert int(rollout.response_lengths.max()) <= STEPS
