"""Logits in chunks of bytes: how many tokens, that the chunk tells nothing in the numbers, that invariant 1 holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_rlhf.config import ModelConfig
from lit_rlhf.models.compact import CompactRows, compact_rows
from lit_rlhf.models.cpu import tune
from lit_rlhf.models.scoring import logits_chunk, response_logprobs, text_logprobs
from lit_rlhf.rollout.engine import assemble
from lit_rlhf.types import PromptBatch, TextBatch
from tests.models.tiny import tiny_config

VOCABULARY = 96
SMALL = 64 * 8 * VOCABULARY / 2**30
"""GiB for 64 tokens, fewer than the responses below have."""


def model_of(vocabulary: int) -> Any:
    config = SimpleNamespace(vocab_size=vocabulary)
    config.get_text_config = lambda: config
    return SimpleNamespace(config=config)


@pytest.mark.parametrize(
    ("vocabulary", "device", "gib", "tokens"),
    [
        (32_000, "cpu", None, 4096),  # 4,194 would fit
        (32_000, "cuda", None, 4096),
        (128_256, "cuda", None, 2048),  # 2^31 / (8 * 128,256) = 2,093
        (256_000, "cuda", None, 1024),
        (256_000, "cpu", None, 512),
        (256_000, "cuda", 8.0, 4096),
        (256_000, "cuda", 1e-6, 64),
    ],
)
def test_the_chunk_is_tokens_times_vocabulary(vocabulary, device, gib, tokens):
    assert logits_chunk(model_of(vocabulary), device, gib=gib) == tokens
    assert logits_chunk(model_of(vocabulary), device, gib=gib, most=100) == min(tokens, 100)


def test_the_option_is_checked():
    with pytest.raises(ValueError, match=r"`logits_gib` \(0\) must be positive"):
        ModelConfig(logits_gib=0)


@pytest.fixture(params=["llama", "cohere"])
def model(request) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(request.param, VOCABULARY))
    tune(model, "cpu")
    return model


def some_rows(rows: int = 12, prompt: int = 5, response: int = 30) -> CompactRows:
    g = torch.Generator().manual_seed(3)
    prompts = PromptBatch(
        prompt_ids=torch.randint(4, VOCABULARY, (rows, prompt), generator=g),
        prompt_mask=torch.ones(rows, prompt, dtype=torch.bool),
        records=({},) * rows,
    )
    rollout = assemble(
        prompts,
        response_ids=torch.randint(4, VOCABULARY, (rows, response), generator=g),
        response_lengths=torch.randint(1, response + 1, (rows,), generator=g),
        ended=torch.zeros(rows, dtype=torch.bool),
    )
    return compact_rows(rollout, torch.arange(rows))


def run(model: Any, rows: CompactRows, gib: float | None, *, entropy: bool) -> list[torch.Tensor]:
    model.zero_grad()
    logprobs, entropies = response_logprobs(model, rows, logits_gib=gib, with_entropy=entropy)
    weights = torch.linspace(-1, 1, logprobs.numel()).view_as(logprobs)
    loss = (logprobs * weights).sum() + (0 if entropies is None else (entropies * weights).sum() / 10)
    loss.backward()
    return [logprobs.detach(), *[p.grad.clone() for p in model.parameters()]]


@pytest.mark.parametrize("entropy", [False, True])
def test_the_chunk_changes_no_bit_of_the_values_and_only_the_order_of_the_gradients_sum(model, entropy):
    rows = some_rows()
    assert int(rows.response_mask.sum()) > 2 * 64, "at least three chunks"
    whole, parts = run(model, rows, None, entropy=entropy), run(model, rows, SMALL, entropy=entropy)
    assert torch.equal(whole[0], parts[0])
    for a, b in zip(whole[1:], parts[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gib", [None, SMALL])
@pytest.mark.parametrize("autocast", [False, True])
def test_scoring_and_update_agree_to_the_bit_whatever_the_chunk(model, gib, autocast):
    """Invariant 1: the ratio of the first update is exactly 1."""
    rows = some_rows()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            scored, _ = response_logprobs(model, rows, logits_gib=gib, with_entropy=True)
        for entropy in (False, True):
            updated, _ = response_logprobs(model, rows, logits_gib=gib, with_entropy=entropy)
            assert updated.requires_grad
            assert torch.equal(scored, updated)


def test_text_is_chunked_by_the_same_budget(model, monkeypatch):
    sizes: list[int] = []
    from lit_rlhf.functional import logprobs

    plain = logprobs._TokenColumns.apply
    monkeypatch.setattr(
        logprobs._TokenColumns, "apply", lambda logits, *rest: (sizes.append(len(logits)), plain(logits, *rest))[1]
    )
    ids = torch.randint(4, VOCABULARY, (4, 40), generator=torch.Generator().manual_seed(0))
    text = TextBatch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        loss_mask=torch.ones_like(ids, dtype=torch.bool),
    )
    with torch.no_grad():
        text_logprobs(model, text)
        text_logprobs(model, text, logits_gib=SMALL)
    assert sizes == [156, 64, 64, 28]
