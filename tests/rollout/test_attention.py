"""Decode steps of models with grouped heads: the same numbers, and no copy of the cache."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_rlhf.models.cpu import tune
from lit_rlhf.rollout import decoding
from lit_rlhf.rollout.attention import _one_query, grouped_heads_in_place
from tests.rollout.test_transformers_engine import ENDS, batch_of, generate, llama, some_prompts, some_uniforms

ROWS, HEADS, GROUPS, WIDTH, SIZE = 3, 8, 2, 11, 16


class Plain:
    num_key_value_groups = HEADS // GROUPS
    is_causal = True


def tensors(length: int, dtype: torch.dtype = torch.float32):
    g = torch.Generator().manual_seed(0)
    query = torch.randn(ROWS, HEADS, length, SIZE, generator=g).to(dtype)
    key, value = (torch.randn(ROWS, GROUPS, WIDTH, SIZE, generator=g).to(dtype) for _ in range(2))
    mask = torch.arange(WIDTH) >= torch.tensor([0, 4, 9])[:, None]
    return query, key, value, mask[:, None, None].expand(-1, -1, length, -1)


@pytest.mark.parametrize("length", [1, 3])
def test_equals_attention_over_repeated_keys_and_values(length):
    query, key, value, mask = tensors(length)
    out, weights = _one_query(sdpa_attention_forward, Plain(), query, key, value, mask, scaling=0.3)
    repeated = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (key, value))
    keys, values = repeated
    scores = (query @ keys.transpose(2, 3) * 0.3).masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(out, (scores @ values).transpose(1, 2))
    assert weights is None


class LargestCopy(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("old_release", [False, True])
def test_no_operation_of_a_decode_step_makes_anything_as_large_as_a_layers_cache(tuned, old_release, monkeypatch):
    """With long prompts nothing is larger than the cache, which transformers up to 5.16 copied in each layer."""
    from transformers.integrations import sdpa_attention

    model, rows, width = llama(), 6, 400
    if tuned:
        tune(model, "cpu")
    if old_release:  # what `pack_gqa` replaced
        monkeypatch.setattr(sdpa_attention, "is_torchdynamo_compiling", lambda: True)
    prompts = [[3 + (i + j) % 40 for j in range(width)] for i in range(rows)]
    largest = []
    plain = decoding.Decoder._decode

    def decode(self):
        with LargestCopy() as mode:
            out = plain(self)
        largest.append(mode.elements)
        return out

    monkeypatch.setattr(decoding.Decoder, "_decode", decode)
    generate(model, batch_of(prompts), some_uniforms(rows), drop_every=1000)
    config = model.config
    cache = rows * config.num_key_value_heads * (width + 1) * (config.hidden_size // config.num_attention_heads)
    assert largest
    assert max(largest) < cache
    monkeypatch.setattr(decoding, "grouped_heads_in_place", lambda trunk: contextlib.nullcontext())
    largest.clear()
    generate(model, batch_of(prompts), some_uniforms(rows), drop_every=1000)
    assert (max(largest) >= 2 * cache) == old_release, "the test must see what it is there to see"


def test_the_models_own_attention_is_back_afterwards():
    model = llama()
    with contextlib.suppress(KeyError), grouped_heads_in_place(model.model):
        assert model.config._attn_implementation == "sdpa_one_query"
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
    whole = llama(attn_implementation="eager")
    with grouped_heads_in_place(whole.model):
        assert whole.config._attn_implementation == "eager"
    generate(model, batch_of(some_prompts()), some_uniforms(9), eos=ENDS)
    assert model.config._attn_implementation == "sdpa"
