import dataclasses
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from lit_rlhf.models.cpu import tune
from lit_rlhf.rollout.engine import GenerationRequest
from lit_rlhf.rollout.sampling import SamplingConfig, inverse_cdf, token_weights
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.types import PromptBatch, Rollout

VOCABULARY, PAD, EOS = 48, 0, 2
STEPS = 12
# Several tokens end a response, so that rows end at different steps.
ENDS = (EOS, 7, 11, 19, 23, 31, 37, 41)


def llama(**kwargs) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        initializer_range=0.3,
        **kwargs,
    )
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, tie_word_embeddings=False
    )
    return GPT2LMHeadModel(config).eval()


def gemma2() -> Gemma2ForCausalLM:
    """Alternates full and sliding attention (window 4, far below the lengths here) and caps its logits."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        sliding_window=4,
        initializer_range=0.3,
    )
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config).eval()


def batch_of(prompts: list[list[int]], *, extra_padding: int = 0) -> PromptBatch:
    width = max(map(len, prompts)) + extra_padding
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    return PromptBatch(prompt_ids=ids, prompt_mask=mask, records=tuple({"row": i} for i in range(len(prompts))))


def some_prompts(seed: int = 0, rows: int = 9) -> list[list[int]]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (rows,), generator=g).tolist()
    return [torch.randint(3, VOCABULARY, (n,), generator=g).tolist() for n in lengths]


def some_uniforms(rows: int, steps: int = STEPS, seed: int = 1) -> torch.Tensor:
    return torch.rand(rows, steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generate(model, prompts: PromptBatch, uniforms: torch.Tensor, *, sampling=None, eos=(EOS,), **engine) -> Rollout:
    sampling = sampling or SamplingConfig(max_response_length=uniforms.size(1))
    return asked(TransformersEngine(**engine), model, prompts, uniforms, sampling, eos)


def asked(engine: TransformersEngine, model, prompts, uniforms, sampling, eos=(EOS,)) -> Rollout:
    engine.sync(model)
    return engine.generate(
        GenerationRequest(
            prompts=prompts, sampling=sampling, eos_token_ids=tuple(eos), pad_token_id=PAD, uniforms=uniforms
        )
    )


@torch.no_grad()
def one_by_one(
    model, prompts: list[list[int]], uniforms: torch.Tensor, sampling: SamplingConfig, eos
) -> list[list[int]]:
    """The slow meaning of generation: one prompt at a time, no cache, no padding, the whole text at every step."""
    responses = []
    for row, prompt in enumerate(prompts):
        drawn: list[int] = []
        while len(drawn) < sampling.max_response_length and not (drawn and drawn[-1] in eos):
            logits = model(input_ids=torch.tensor([prompt + drawn]), use_cache=False).logits[:, -1].float()
            seen = torch.tensor([(prompt if sampling.penalize_prompt else []) + drawn], dtype=torch.long)
            weights = token_weights(
                logits,
                sampling=sampling,
                eos_token_ids=list(eos),
                position=len(drawn),
                seen_ids=seen,
                seen_mask=torch.ones_like(seen, dtype=torch.bool),
            )
            uniform = uniforms[row, len(drawn)][None]
            drawn.append(int(weights.argmax() if sampling.greedy else inverse_cdf(weights, uniform)))
        responses.append(drawn)
    return responses


def responses_of(rollout: Rollout) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(rollout.response_ids, rollout.response_mask, strict=True)]


SAMPLINGS = {
    "plain": SamplingConfig(max_response_length=STEPS),
    "paper": SamplingConfig(max_response_length=STEPS, temperature=0.8, top_p=0.9, repetition_penalty=1.1),
    "prompt": SamplingConfig(max_response_length=STEPS, repetition_penalty=1.7, penalize_prompt=True),
    "top-k": SamplingConfig(max_response_length=STEPS, top_k=5, temperature=1.3, min_response_length=6),
    "greedy": SamplingConfig(max_response_length=STEPS, temperature=0.0),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
@pytest.mark.parametrize("make_model", [llama, gpt2, gemma2], ids=lambda f: f.__name__)
def test_equals_generation_one_by_one(make_model, sampling):
    model, prompts, eos = make_model(), some_prompts(), ENDS
    uniforms = some_uniforms(len(prompts))
    expected = one_by_one(model, prompts, uniforms, sampling, eos)
    rollout = generate(model, batch_of(prompts), uniforms, sampling=sampling, eos=eos)
    assert responses_of(rollout) == expected
    assert rollout.ended.tolist() == [r[-1] in eos for r in expected]
    lengths = {len(r) for r in expected}
    assert sampling.greedy or len(lengths) > 1, "rows must end at different steps for this to test dropping"


ENGINES = {
    "tiny batches": {"max_batch_tokens": 1},
    "small batches": {"max_batch_tokens": 60},
    "tiny prefill": {"prefill_tokens": 1},
    "small prefill": {"prefill_tokens": 16},
    "late drops": {"drop_every": 5},
    "never drops": {"drop_every": 1000},
    "static": {"static_cache": True},
    "static, late drops": {"static_cache": True, "drop_every": 3},
}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
@pytest.mark.parametrize("make_model", [llama, gemma2], ids=lambda f: f.__name__)
def test_batching_does_not_change_responses(make_model, engine):
    model, prompts, eos = make_model(), some_prompts(rows=17), ENDS
    uniforms = some_uniforms(len(prompts))
    plain = generate(model, batch_of(prompts), uniforms, eos=eos)
    other = generate(model, batch_of(prompts), uniforms, eos=eos, **engine)
    for name in ("input_ids", "attention_mask", "response_mask", "ended"):
        assert torch.equal(getattr(plain, name), getattr(other, name)), name


def test_order_and_padding_do_not_change_responses():
    model, prompts, eos = llama(), some_prompts(rows=13), ENDS
    uniforms = some_uniforms(len(prompts))
    plain = generate(model, batch_of(prompts), uniforms, eos=eos)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(3))
    shuffled = generate(model, batch_of([prompts[i] for i in order], extra_padding=5), uniforms[order], eos=eos)
    assert torch.equal(shuffled.response_ids, plain.response_ids[order])
    assert torch.equal(shuffled.response_mask, plain.response_mask[order])
    assert [r["row"] for r in plain.records] == list(range(len(prompts)))


def test_rollout_columns():
    model, prompts = llama(), some_prompts()
    batch, uniforms = batch_of(prompts), some_uniforms(len(prompts))
    rollout = generate(model, batch, uniforms, eos=ENDS)
    width = batch.prompt_ids.size(1)
    assert rollout.input_ids.shape == (len(prompts), width + STEPS)
    assert torch.equal(rollout.input_ids[:, :width], batch.prompt_ids)
    assert torch.equal(rollout.attention_mask, torch.cat([batch.prompt_mask, rollout.response_mask], 1))
    assert (rollout.response_ids[~rollout.response_mask] == PAD).all()
    assert rollout.sampler_logprobs is None
    assert rollout.sampler_entropies is None
    assert rollout.response_mask[:, 0].all()
    assert not (rollout.response_mask[:, 1:] & ~rollout.response_mask[:, :-1]).any()


@pytest.mark.parametrize("name", ["plain", "paper"])
def test_sampler_logprobs_are_of_the_raw_logits(name):
    model, prompts, eos = llama(), some_prompts(), ENDS
    rollout = generate(
        model, batch_of(prompts), some_uniforms(len(prompts)), sampling=SAMPLINGS[name], eos=eos, sampler_logprobs=True
    )
    assert rollout.sampler_logprobs is not None
    assert rollout.sampler_entropies is not None
    assert (rollout.sampler_logprobs[~rollout.response_mask] == 0).all()
    assert (rollout.sampler_entropies[~rollout.response_mask] == 0).all()
    for row, (prompt, response) in enumerate(zip(prompts, responses_of(rollout), strict=True)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(rollout.sampler_logprobs[row, : len(response)], expected, atol=2e-5, rtol=1e-5)
        expected = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(rollout.sampler_entropies[row, : len(response)], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("static_cache", [False, True])
@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("make_model", [llama, gpt2, gemma2], ids=lambda f: f.__name__)
def test_under_autocast_the_cache_serves_any_mix_of_dtypes(make_model, tuned, static_cache):
    model, prompts = make_model(), some_prompts()
    if tuned:
        tune(model, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rollout = generate(
            model, batch_of(prompts), some_uniforms(len(prompts)), sampler_logprobs=True, static_cache=static_cache
        )
    assert rollout.sampler_logprobs is not None
    for row, (prompt, response) in enumerate(zip(prompts, responses_of(rollout), strict=True)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(rollout.sampler_logprobs[row, : len(response)], expected, atol=0.1, rtol=0.05)


def test_model_mode_and_gradients_are_left_alone():
    model, prompts = llama(), some_prompts(rows=3)
    model.train()
    generate(model, batch_of(prompts), some_uniforms(3))
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_non_finite_logits_name_the_prompt():
    model, prompts = llama(), [[5, 6], [7, 9], [5, 8]]
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = float("nan")
    with pytest.raises(FloatingPointError, match=r"prompts \[1\].*response token 0"):
        generate(model, batch_of(prompts), some_uniforms(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_batch_tokens": 0}, r"`max_batch_tokens` \(0\) must be >= 1"),
        ({"prefill_tokens": -1}, r"`prefill_tokens` \(-1\) must be >= 1"),
        ({"drop_every": 0}, r"`drop_every` \(0\) must be >= 1"),
        ({"compile": True}, r"`compile` \(True\) needs `static_cache`"),
    ],
)
def test_engine_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        TransformersEngine(**arguments)


def test_requests_are_checked():
    model, batch = llama(), batch_of([[5, 6], [7]])
    with pytest.raises(ValueError, match=r"`uniforms` \(\(2, 3\), torch.float64\).*\(2, 12\)"):
        generate(model, batch, some_uniforms(2, 3), sampling=SAMPLINGS["plain"])
    with pytest.raises(ValueError, match=r"`uniforms`.*float32"):
        generate(model, batch, some_uniforms(2).float())
    with pytest.raises(ValueError, match="`eos_token_ids`"):
        generate(model, batch, some_uniforms(2), eos=())
    empty = dataclasses.replace(batch, prompt_mask=torch.tensor([[True, True], [False, False]]))
    with pytest.raises(ValueError, match=r"rows \[1\] have none"):
        generate(model, empty, some_uniforms(2))
    right = dataclasses.replace(batch, prompt_mask=torch.tensor([[True, True], [True, False]]))
    with pytest.raises(ValueError, match="left-padded"):
        generate(model, right, some_uniforms(2))


def test_static_cache_serves_models_that_build_their_mask_from_the_whole_width():
    """Bloom's alibi is as wide as the mask it is given, and has to be as wide as the keys."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    model, prompts = BloomForCausalLM(config).eval(), some_prompts(rows=11)
    uniforms = some_uniforms(len(prompts))
    plain = generate(model, batch_of(prompts), uniforms, eos=ENDS)
    static = generate(model, batch_of(prompts), uniforms, eos=ENDS, static_cache=True)
    assert torch.equal(plain.input_ids, static.input_ids)
    assert len(set(plain.response_lengths.tolist())) > 1


def test_what_is_not_said_depends_on_the_device_and_the_bytes_of_a_slot():
    engine, config = TransformersEngine(), llama().config  # 2 layers x 2 groups x 8, keys and values: 64 numbers
    for device, dtype, slots in (
        ("cpu", torch.float32, 65536),
        ("cuda", torch.float32, 2**33 // 256),
        ("cuda", torch.bfloat16, 2**33 // 128),
    ):
        policy = SimpleNamespace(device=torch.device(device), dtype=dtype, config=config)
        assert engine.cache_slots(policy) == slots
        assert TransformersEngine(max_batch_tokens=77).cache_slots(policy) == 77


def test_rest_gives_memory_back(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    engine = TransformersEngine(static_cache=True)
    asked(engine, llama(), batch_of(some_prompts()), some_uniforms(9), SAMPLINGS["plain"])
    assert engine._cache is not None
    assert not calls
    engine.rest()
    assert engine._cache is None
    assert calls == ["empty"]


def test_a_failed_generation_leaves_nothing_in_a_static_cache():
    """What is not finite in a buffer would stay so under any mask: 0 times NaN."""
    broken, prompts, engine = llama(), [[5, 6], [7, 9], [5, 8]], TransformersEngine(static_cache=True)
    with torch.no_grad():
        broken.model.embed_tokens.weight[9] = float("nan")
    sampling, uniforms = SAMPLINGS["greedy"], some_uniforms(3)
    with pytest.raises(FloatingPointError):
        asked(engine, broken, batch_of(prompts), uniforms, sampling)
    other = asked(engine, llama(), batch_of([[5, 6], [7, 8], [5, 8]]), uniforms, sampling)
    assert torch.equal(
        other.input_ids, generate(llama(), batch_of([[5, 6], [7, 8], [5, 8]]), uniforms, sampling=sampling).input_ids
    )


@pytest.mark.parametrize("make_model", [llama, gpt2, gemma2], ids=lambda f: f.__name__)
def test_an_adapter_policy_draws_the_tokens_of_generate(make_model):
    """A PEFT wrapper's `forward` does not say that positions are taken: left-padded rows would be read one off."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(make_model(), peft.LoraConfig(r=2, target_modules="all-linear")).eval()
    prompts = some_prompts(rows=16)
    batch = batch_of(prompts)
    sampling = SamplingConfig(max_response_length=STEPS, temperature=0.0)
    for spread in (0.0, 0.3):  # fresh, then as after training
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=spread or 1e-9)
        found = generate(model, batch, some_uniforms(16), sampling=sampling, eos=ENDS)
        lengths = [len(response) for response in responses_of(found)]
        assert len(set(lengths)) > 1, "rows that end early"
        for row, prompt in enumerate(prompts):
            whole = model.generate(
                input_ids=torch.tensor([prompt]), max_new_tokens=STEPS, do_sample=False, eos_token_id=list(ENDS),
                pad_token_id=PAD, attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            )  # fmt: skip
            assert responses_of(found)[row] == whole[0, len(prompt) :].tolist()
