"""Weights for an engine's copy: names of a checkpoint, adapters merged without touching a base that others share."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.config import AdapterConfig
from lit_rlhf.models.adapters import new_adapter
from lit_rlhf.models.plain_weights import plain_weights
from lit_rlhf.models.scalar import merged
from tests.models.tiny import tiny_config


def fresh(architecture: str):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(architecture, 40), dtype=torch.float32).eval()


def adapted(architecture: str, *, dora: bool = False):
    config = AdapterConfig(r=3, alpha=6.0, dora=dora, target_modules=None if architecture == "gpt2" else "all-linear")
    policy = new_adapter(fresh(architecture), config, base="")
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    return policy


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_plain_model_gives_its_own_tensors(architecture) -> None:
    model = fresh(architecture)
    own, found = model.state_dict(), dict(plain_weights(model))
    assert found.keys() == own.keys()
    assert "lm_head.weight" in found
    assert all(value.data_ptr() == own[name].data_ptr() for name, value in found.items())


@pytest.mark.parametrize(("architecture", "dora"), [("llama", False), ("gpt2", False), ("llama", True)])
def test_an_adapter_is_merged_as_peft_merges_a_copy_and_the_base_keeps_its_bits(architecture, dora) -> None:
    pytest.importorskip("peft")
    policy = adapted(architecture, dora=dora)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    found, expected = dict(plain_weights(policy)), merged(policy).state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(found[name], value) for name, value in fresh(architecture).state_dict().items())
    assert all(torch.equal(policy.state_dict()[name], value) for name, value in before.items())


def test_fused_experts_have_the_names_of_a_checkpoint() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    found = dict(plain_weights(model))
    experts = [name for name in found if ".experts." in name]
    assert len(experts) == 6
    assert all(name.endswith((".w1.weight", ".w2.weight", ".w3.weight")) for name in experts)
    assert sum(value.numel() for value in found.values()) == sum(p.numel() for p in model.parameters())


def test_a_base_of_other_numbers_is_refused() -> None:
    pytest.importorskip("peft")
    policy = adapted("llama")
    layer = next(m for m in policy.modules() if hasattr(m, "lora_A")).get_base_layer()
    layer.weight = torch.nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"`adapter.base` .* \(torch.uint8\) must be in 16 or 32 bits"):
        dict(plain_weights(policy))
