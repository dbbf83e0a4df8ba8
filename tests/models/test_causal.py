"""Hidden states and logits apart: equal to the whole model, padding changes nothing."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.models.causal import projector, trunk_hidden
from lit_rlhf.models.loading.causal import load_causal_lm

ARCHITECTURES = ["llama", "gpt2", "gemma2", "qwen2", "cohere", "granite"]


def _ids(rows=3, length=14, seed=0):
    return torch.randint(4, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_equal_the_models(causal_folder, architecture):
    model = load_causal_lm(causal_folder(architecture))
    ids = _ids()
    expected = model(input_ids=ids).logits
    assert expected.std() > 1e-3
    torch.testing.assert_close(projector(model)(trunk_hidden(model, ids)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "scale", "cap"), [("gemma2", 1.0, 3.0), ("cohere", 0.25, None), ("granite", 0.25, None)]
)
def test_scale_and_cap_are_found(causal_folder, architecture, scale, cap):
    found = projector(load_causal_lm(causal_folder(architecture)))
    assert (found.scale, found.softcap) == (scale, cap)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_right_padding_garbage_changes_nothing(causal_folder, architecture):
    model = load_causal_lm(causal_folder(architecture))
    ids, lengths = _ids(), [14, 9, 3]
    one, other = ids.clone(), ids.clone()
    for row, length in enumerate(lengths):
        one[row, length:] = 0
        other[row, length:] = torch.randint(4, 60, (14 - length,))
    first, second = trunk_hidden(model, one), trunk_hidden(model, other)
    for row, length in enumerate(lengths):
        assert torch.equal(first[row, :length], second[row, :length])
        alone = trunk_hidden(model, ids[row : row + 1, :length])[0]
        torch.testing.assert_close(first[row, :length], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_left_padding_with_a_mask(causal_folder, architecture):
    model = load_causal_lm(causal_folder(architecture))
    ids = _ids(1, 9)
    padded = torch.cat([torch.full((1, 5), 7), ids], 1)
    mask = torch.cat([torch.zeros(1, 5), torch.ones(1, 9)], 1).bool()
    hidden = trunk_hidden(model, padded, attention_mask=mask)[:, 5:]
    torch.testing.assert_close(hidden, trunk_hidden(model, ids), rtol=1e-4, atol=1e-5)


def test_no_mask_takes_the_causal_path_of_sdpa(causal_folder, monkeypatch):
    seen = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(*args, **kwargs):
        seen.append((kwargs.get("attn_mask"), kwargs.get("is_causal")))
        return original(*args, **kwargs)

    model = load_causal_lm(causal_folder())
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    trunk_hidden(model, _ids())
    assert seen == [(None, True)] * 2


def test_unknown_transform_is_refused(causal_folder):
    model = load_causal_lm(causal_folder())
    head = model.lm_head.forward
    model.lm_head.forward = head
    original = model.forward

    def squared(*args, **kwargs):
        output = original(*args, **kwargs)
        output.logits = output.logits.square()
        return output

    model.forward = squared
    with pytest.raises(ValueError, match="computes its logits in a way that is not known here"):
        projector(model)


def test_base_model_has_no_projection(causal_folder):
    model = load_causal_lm(causal_folder())
    with pytest.raises(ValueError, match="no output embedding"):
        projector(model.model)


def test_check_runs_once(causal_folder, monkeypatch):
    model = load_causal_lm(causal_folder())
    projector(model)
    monkeypatch.setattr("lit_rlhf.models.causal._find_transform", lambda *_: pytest.fail("checked twice"))
    projector(model)


def test_bf16_and_autocast(causal_folder):
    model = load_causal_lm(causal_folder("cohere"), dtype="bfloat16")
    assert projector(model).scale == 0.25
    model = load_causal_lm(causal_folder("gemma2", name="other"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert projector(model).softcap == 3.0


def test_check_inside_a_training_step_costs_no_gradient(causal_folder, monkeypatch):
    """Weights cast in the check, without a graph, must not stay in autocast's cache for the step around it."""
    from lit_rlhf.models import causal

    original, caching = causal._matching_transform, []

    def spy(*arguments):
        caching.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
        return original(*arguments)

    monkeypatch.setattr(causal, "_matching_transform", spy)
    model = load_causal_lm(causal_folder()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projection = projector(model)
        assert torch.is_autocast_cache_enabled()
        projection(trunk_hidden(model, _ids())).float().square().mean().backward()
    assert caching == [(True, False)]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


class TestAdapters:
    def test_lora(self, causal_folder):
        peft = pytest.importorskip("peft")
        model = load_causal_lm(causal_folder())
        ids = _ids()
        plain = model(input_ids=ids).logits.detach()
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        expected = wrapped(input_ids=ids).logits
        assert not torch.allclose(expected, plain, atol=1e-3)
        logits = projector(wrapped)(trunk_hidden(wrapped, ids))
        torch.testing.assert_close(logits, expected)
        logits.sum().backward()
        assert all(p.grad is not None for n, p in wrapped.named_parameters() if "lora" in n)

    def test_virtual_tokens_are_refused(self, causal_folder):
        peft = pytest.importorskip("peft")
        config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
        wrapped = peft.get_peft_model(load_causal_lm(causal_folder()), config)
        with pytest.raises(ValueError, match="virtual tokens are not supported"):
            trunk_hidden(wrapped, _ids())
