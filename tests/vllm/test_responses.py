"""Responses of vLLM are those of the transformers engine, whatever is drawn, in whatever order, after every update."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.types import PromptBatch
from tests.vllm.worlds import STEPS, answered, changed, model, prompts_of, request, same_rows, vllm_engine

LENGTHS = [3, 5, 9, 20, 40, 7, 1, 2, 11, 30, 4, 6]
SAMPLINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"temperature": 0.0},
    "warm": {"temperature": 1.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.6},
    "min_length": {"min_response_length": 6},
    "penalty": {"repetition_penalty": 1.5},
    "penalty_with_prompt": {"repetition_penalty": 1.5, "penalize_prompt": True},
    "greedy_penalty": {"temperature": 0.0, "repetition_penalty": 1.5},
    "everything": {
        "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_response_length": 4, "repetition_penalty": 1.2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    return model()


@pytest.fixture(scope="module")
def exact():
    engine = vllm_engine()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def seeded():
    engine = vllm_engine(draws="seed")
    yield engine
    engine.close()


def parts(prompts: PromptBatch, rows: list[int]) -> PromptBatch:
    index = torch.tensor(rows)
    return PromptBatch(
        prompt_ids=prompts.prompt_ids[index],
        prompt_mask=prompts.prompt_mask[index],
        records=tuple(prompts.records[row] for row in rows),
    )


@pytest.mark.parametrize("name", SAMPLINGS)
def test_rows_and_log_probabilities_are_those_of_the_transformers_engine(policy, exact, name) -> None:
    wanted = request(prompts_of(LENGTHS), SamplingConfig(max_response_length=STEPS, **SAMPLINGS[name]))
    ours, theirs = answered(TransformersEngine(sampler_logprobs=True), policy, wanted), answered(exact, policy, wanted)
    assert same_rows(ours, theirs) == [True] * len(LENGTHS)
    assert torch.equal(ours.ended, theirs.ended)
    assert name == "min_length" or ours.ended.any()
    assert not ours.ended.all()
    torch.testing.assert_close(ours.sampler_logprobs, theirs.sampler_logprobs, atol=2e-5, rtol=1e-5)


def test_rows_follow_every_update(exact) -> None:
    policy, wanted, before = model(seed=3), request(prompts_of(LENGTHS)), None
    for update in range(3):
        ours, theirs = answered(TransformersEngine(), policy, wanted), answered(exact, policy, wanted)
        assert same_rows(ours, theirs) == [True] * len(LENGTHS)
        assert before is None or not all(same_rows(before, theirs))
        before = theirs
        changed(policy, seed=update)


def test_long_prompts_meet_no_keys_of_the_old_weights(exact) -> None:
    """Longer than a block of 128, the prefix of a prompt is kept in vLLM's cache from one rollout to the next."""
    policy, wanted = model(seed=4), request(prompts_of([300, 270, 300, 260]))
    for seed in range(2):
        ours, theirs = answered(TransformersEngine(), policy, wanted), answered(exact, policy, wanted)
        assert same_rows(ours, theirs) == [True] * 4
        changed(policy, seed=seed)


@pytest.mark.parametrize("draws", ["exact", "seeded"])
def test_a_row_depends_on_nothing_but_its_prompt_and_its_numbers(policy, draws, request: pytest.FixtureRequest) -> None:
    engine, count = request.getfixturevalue(draws), len(LENGTHS)
    whole = _request()
    engine.sync(policy)
    all_rows = engine.generate(whole)
    for rows in (list(range(count)), list(range(count))[::-1], [4], list(range(6)), list(range(6, count))):
        some = replace(whole, prompts=parts(whole.prompts, rows), uniforms=whole.uniforms[rows])
        found = engine.generate(some)
        width = all_rows.prompt_length
        assert torch.equal(found.input_ids[:, width:], all_rows.input_ids[rows][:, width:])
        assert torch.equal(found.ended, all_rows.ended[rows])


def _request() -> Any:
    return request(prompts_of(LENGTHS), SamplingConfig(max_response_length=STEPS, temperature=0.9, top_k=30))


def test_chunked_prefill_and_preemption_change_no_row(policy) -> None:
    """A cache of ten blocks under sixteen rows of two blocks each: rows are thrown out and begun again."""
    prompts = prompts_of([124 - i % 3 for i in range(16)])
    wanted = request(prompts, SamplingConfig(max_response_length=24, min_response_length=24))
    engine = vllm_engine(kv_gib=10 * 128 * 512 / 2**30, options={"max_num_batched_tokens": 512})
    engine.sync(policy)
    scheduler = engine._llm.llm_engine.engine_core.engine_core.scheduler
    preempted, preempt = [], scheduler._preempt_request

    def counted(row: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(row.request_id)
        return preempt(row, *args, **kwargs)

    scheduler._preempt_request = counted
    theirs = engine.generate(wanted)
    engine.close()
    assert preempted
    assert same_rows(answered(TransformersEngine(), policy, wanted), theirs) == [True] * 16


def test_seeded_draws_survive_long_prompts_and_repeat(policy, seeded) -> None:
    """More prompt tokens than one step takes: with chunked prefill vLLM would rewind a CPU generator and fail."""
    wanted = request(prompts_of([300] * 16), SamplingConfig(max_response_length=4))
    first, second = answered(seeded, policy, wanted), answered(seeded, policy, wanted)
    assert torch.equal(first.input_ids, second.input_ids)
    others = answered(seeded, policy, request(wanted.prompts, wanted.sampling, seed=2))
    assert not torch.equal(first.input_ids, others.input_ids)


@pytest.mark.parametrize("name", ["greedy", "penalty_with_prompt"])
def test_seeded_settings_mean_the_same(policy, seeded, name) -> None:
    settings = {**SAMPLINGS[name], "temperature": 0.0, "min_response_length": 3}
    wanted = request(prompts_of(LENGTHS), SamplingConfig(max_response_length=STEPS, **settings))
    ours, theirs = answered(TransformersEngine(), policy, wanted), answered(seeded, policy, wanted)
    assert same_rows(ours, theirs) == [True] * len(LENGTHS)
    assert theirs.response_lengths.min() >= 3


def test_seeded_draws_have_the_frequencies_of_the_distribution(policy, seeded) -> None:
    sampling = SamplingConfig(max_response_length=1, temperature=0.8, top_k=8)
    prompt, rows = prompts_of([5]), 3000
    many = parts(prompt, [0] * rows)
    drawn = answered(seeded, policy, request(many, sampling)).input_ids[:, -1]
    with torch.no_grad():
        logits = policy(input_ids=prompt.prompt_ids).logits[0, -1]
    kept = logits.topk(8)
    expected = rows * (kept.values / 0.8).softmax(-1)
    found = torch.stack([(drawn == token).sum() for token in kept.indices])
    assert found.sum() == rows
    assert ((found - expected) ** 2 / expected).sum() < 24.3  # 99.9 % of chi squared with 7 degrees of freedom


def test_a_penalty_that_vllm_counts_otherwise_is_refused(policy, seeded) -> None:
    seeded.sync(policy)
    wanted = request(prompts_of([3]), SamplingConfig(max_response_length=4, repetition_penalty=1.2))
    with pytest.raises(ValueError, match=r"`sampling.penalize_prompt` \(False\) must be True with `draws: seed`"):
        seeded.generate(wanted)


def test_a_row_beyond_max_length_is_refused(policy, exact) -> None:
    exact.sync(policy)
    with pytest.raises(ValueError, match=r"`max_length` \(512\) must be at least .* \(515\)"):
        exact.generate(request(prompts_of([505])))


def test_no_response_without_a_sync(policy, exact) -> None:
    exact.sync(policy)
    exact.rest()
    with pytest.raises(RuntimeError, match=r"call `sync\(policy\)` first"):
        exact.generate(request(prompts_of([5])))


def test_without_log_probabilities(policy) -> None:
    engine, wanted = vllm_engine(sampler_logprobs=False), request(prompts_of(LENGTHS))
    rollout = answered(engine, policy, wanted)
    engine.close()
    assert not engine.gives_logprobs
    assert rollout.sampler_logprobs is None
    assert all(same_rows(answered(TransformersEngine(), policy, wanted), rollout))
