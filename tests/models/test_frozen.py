"""The holder: out of every state dict, same bits for ever, on the device only when asked."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from lit_rlhf.models.frozen import FrozenModel, HostWeights, cast_parameters
from lit_rlhf.models.loading.causal import load_causal_lm


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_is_not_registered_and_stays_eval(causal_folder):
    class Owner(nn.Module):
        def __init__(self, frozen):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.frozen = frozen

    owner = Owner(FrozenModel(load_causal_lm(causal_folder()).train()))
    owner.train()
    owner.to(torch.bfloat16)
    assert set(owner.state_dict()) == {"layer.weight", "layer.bias"}
    assert not owner.frozen.model.training
    assert owner.frozen.dtype == torch.float32


def test_no_gradient(causal_folder):
    frozen = FrozenModel(load_causal_lm(causal_folder()))
    assert not any(p.requires_grad for p in frozen.model.parameters())
    assert not frozen(input_ids=torch.arange(4, 9).unsqueeze(0)).logits.requires_grad


def test_cast_keeps_buffers_and_ties(causal_folder):
    model = load_causal_lm(causal_folder(tie_word_embeddings=True))
    frequencies = model.model.rotary_emb.inv_freq.clone()
    frozen = FrozenModel(model, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert frozen.model.lm_head.weight is frozen.model.model.embed_tokens.weight
    assert cast_parameters(model, torch.float32).dtype == torch.float32


def test_offload_moves_in_and_out_with_the_same_bits(causal_folder, monkeypatch):
    model = load_causal_lm(causal_folder(tie_word_embeddings=True))
    before = _digest(model)
    frozen = FrozenModel(model, placement="cpu")
    assert frozen.to("meta").device.type == "cpu"
    # A copy in other memory stands for an accelerator.
    monkeypatch.setattr("lit_rlhf.models.frozen._brought", lambda tensor, device: tensor.clone())

    def places():
        return [t.data_ptr() for t in [*model.parameters(), *model.buffers()]]

    home = places()
    for _ in range(2):
        with frozen.on("meta"):
            away = places()
            assert not set(away) & set(home)
            with frozen.on("meta"):
                pass
            assert places() == away
            assert _digest(model) == before
            assert model.lm_head.weight is model.model.embed_tokens.weight
        assert places() == home
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert _digest(model) == before


def test_offload_comes_back_after_an_error(causal_folder, monkeypatch):
    frozen = FrozenModel(load_causal_lm(causal_folder()), placement="cpu")
    monkeypatch.setattr("lit_rlhf.models.frozen._brought", lambda tensor, device: tensor.clone())
    home = [p.data_ptr() for p in frozen.model.parameters()]
    with pytest.raises(RuntimeError, match="boom"), frozen.on("meta"):
        raise RuntimeError("boom")
    assert [p.data_ptr() for p in frozen.model.parameters()] == home


def test_weights_that_are_on_a_device_come_home_before_they_are_pinned(monkeypatch):
    """Pinning is refused for anything but host memory."""
    model, pinned = nn.Linear(2, 2, device="meta"), []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: torch.zeros(tensor.shape))
    monkeypatch.setattr("lit_rlhf.models.frozen._pinned", lambda tensor: pinned.append(tensor.device.type) or tensor)
    HostWeights(model, pin=True)
    assert pinned == ["cpu", "cpu"]
    assert model.weight.device.type == "cpu"
    assert isinstance(model.weight, nn.Parameter)


def test_lent_weights_still_learn():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(requires_grad=False)
    before = model.weight
    with HostWeights(model).on("meta"):
        assert model.weight.device.type == "meta"
        assert (model.weight.requires_grad, model.bias.requires_grad) == (True, False)
    assert model.weight is before


def test_on_device_placement_stays():
    frozen = FrozenModel(nn.Linear(2, 2))
    with frozen.on("meta"):
        pass
    assert frozen.device.type == "meta"


def test_on_the_cpu_is_free(causal_folder):
    frozen = FrozenModel(load_causal_lm(causal_folder()), placement="cpu")
    with frozen.on("cpu") as held:
        assert held(input_ids=torch.arange(4, 9).unsqueeze(0)).logits.shape == (1, 5, 76)


def test_unknown_placement():
    with pytest.raises(ValueError, match="`placement` must be 'device' or 'cpu', not 'gpu'"):
        FrozenModel(nn.Linear(1, 1), placement="gpu")
