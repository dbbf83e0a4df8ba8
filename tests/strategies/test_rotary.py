"""Rotary frequencies under ZeRO: what casts them is refused."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import LlamaForCausalLM

from lit_rlhf.strategies.deepspeed import require_fp32_rotary
from tests.models.tiny import tiny_config


def test_bf16_weights_with_fp32_frequencies_pass() -> None:
    model = LlamaForCausalLM(tiny_config("llama", 32))
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    require_fp32_rotary(nn.ModuleDict({"policy": model}))
    require_fp32_rotary(nn.BatchNorm1d(3).bfloat16())  # other buffers are none of its business


def test_a_module_cast_as_a_whole_is_refused() -> None:
    """As deepspeed 0.18 casts it (``module.bfloat16()``)."""
    model = LlamaForCausalLM(tiny_config("llama", 32)).bfloat16()
    with pytest.raises(
        ValueError, match=r"`policy\.model\.rotary_emb\.inv_freq` is bfloat16.*deepspeed before 0\.19\.8"
    ):
        require_fp32_rotary(nn.ModuleDict({"policy": model}))


def test_bf16_frequencies_are_far_off_at_long_positions() -> None:
    """Why: the largest error of an angle at position 2,048, in radians."""
    frequencies = LlamaForCausalLM(tiny_config("llama", 32, head_dim=128)).model.rotary_emb.inv_freq
    error = 2048 * (frequencies - frequencies.bfloat16().float()).abs()
    assert error.max() > 1
    assert (error > 0.1).sum() > 10
