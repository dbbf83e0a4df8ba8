"""The last layer only where somebody looks: the same numbers and gradients, less work, and only where that is so."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.models.causal import trunk_hidden
from lit_rlhf.models.cpu.kernels import tune_for_cpu
from lit_rlhf.models.cpu.last_layer import last_layer_at
from lit_rlhf.models.loading.causal import load_causal_lm

PLAIN = ["llama", "qwen2", "qwen3", "mistral"]
OTHER = ["gpt2", "gemma2", "cohere", "stablelm"]
AT = torch.tensor([3, 4, 17, 41])


def _ids():
    return torch.randint(4, 60, (3, 14), generator=torch.Generator().manual_seed(0))


def _mlp_rows(model):
    """Rows that go through the last layer's MLP, pass by pass."""
    seen: list[int] = []
    model.base_model.layers[-1].mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[:-1].numel()))
    return seen


def _both(model):
    """Hidden states at some positions and their gradients: by a whole pass, and by one that is told the positions."""
    results = []
    for at in (None, AT):
        model.zero_grad()
        hidden = trunk_hidden(model, _ids(), at=at)
        hidden = hidden.flatten(0, 1)[AT] if at is None else hidden
        hidden.float().square().sum().backward()
        results.append(
            (hidden.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    return results


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("architecture", [*PLAIN, *OTHER])
def test_numbers_and_gradients_are_those_of_a_whole_pass(causal_folder, architecture, tuned):
    model = load_causal_lm(causal_folder(architecture))
    if tuned:
        tune_for_cpu(model)
    (whole, whole_gradients), (some, gradients) = _both(model)
    assert whole.std() > 1e-3
    torch.testing.assert_close(some, whole, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == whole_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, whole_gradients[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", [*PLAIN, *OTHER])
def test_only_a_plain_last_layer_is_trimmed(causal_folder, architecture):
    model = load_causal_lm(causal_folder(architecture))
    with last_layer_at(model.base_model, AT) as trimmed:
        assert trimmed == (architecture in PLAIN)


def test_the_mlp_sees_the_wanted_positions_alone(causal_folder):
    model = load_causal_lm(causal_folder())
    trunk_hidden(model, _ids(), at=AT)  # the first call looks at 8 tokens of its own
    seen = _mlp_rows(model)
    trunk_hidden(model, _ids(), at=AT)
    trunk_hidden(model, _ids())
    trunk_hidden(model, _ids(), at=AT[:0])
    assert seen == [4, 42, 42]


@pytest.mark.parametrize("multiplier", [1.0, 0.5])
@pytest.mark.parametrize("low", ["", "autocast", "weights"])
def test_a_layer_that_computes_otherwise_is_found_out(causal_folder, multiplier, low):
    """Granite's layer has a plain one's parts, and scales what it adds; an outlier would hide that in bf16."""
    model = load_causal_lm(causal_folder("granite", residual_multiplier=multiplier))
    with torch.no_grad():
        model.base_model.embed_tokens.weight[:, 0] *= 50
    if low == "weights":
        model.to(torch.bfloat16)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=low == "autocast"),
        last_layer_at(model.base_model, AT) as trimmed,
    ):
        assert trimmed == (multiplier == 1.0)


@pytest.mark.parametrize("kind", ["parameter", "buffer", "dropout", "hook", "hook on attention", "trunk's checkpoints"])
def test_a_layer_that_was_changed_is_left_whole(causal_folder, kind):
    model = load_causal_lm(causal_folder())
    layer = model.base_model.layers[-1]
    if kind == "parameter":
        layer.scale = torch.nn.Parameter(torch.ones(32))
    elif kind == "buffer":
        layer.register_buffer("scale", torch.ones(32))
    elif kind == "dropout":
        layer.hidden_dropout = 0.1
    elif kind == "trunk's checkpoints":
        model.base_model.gradient_checkpointing = True
    else:
        (layer if kind == "hook" else layer.self_attn).register_forward_hook(lambda *_: None)
    with last_layer_at(model.base_model, AT) as trimmed:
        assert not trimmed


def test_a_trunk_that_leaves_its_last_layer_out(causal_folder):
    model = load_causal_lm(causal_folder())
    trunk_hidden(model, _ids(), at=AT)
    model.config.num_hidden_layers = 1
    torch.testing.assert_close(trunk_hidden(model, _ids(), at=AT), trunk_hidden(model, _ids()).flatten(0, 1)[AT])


class _Otherwise(torch.nn.Module):
    """A plain layer's parts in a layer that is called, or answers, in another way."""

    def __init__(self, layer, answer):
        super().__init__()
        for name, part in list(layer.named_children()):
            self.add_module(name, part)
        self.plain, self.answer = [layer], answer

    def forward(self, hidden_states, **kwargs):
        return self.answer(self.plain[0](hidden_states, **kwargs))


@pytest.mark.parametrize(
    "answer", [lambda out: (out,), lambda out: out * 1.5, lambda out: out], ids=["tuple", "more", "same"]
)
def test_a_layer_that_answers_otherwise_is_found_out(causal_folder, answer):
    model = load_causal_lm(causal_folder())
    trunk = model.base_model
    trunk.layers[-1] = _Otherwise(trunk.layers[-1], answer)
    trunk.norm = torch.nn.Identity()
    with last_layer_at(trunk, AT) as trimmed:
        assert trimmed == (answer(1.0) == 1.0)


def test_attention_that_answers_otherwise_is_found_out(causal_folder):
    model = load_causal_lm(causal_folder())
    layer = model.base_model.layers[-1]
    attend = layer.self_attn.forward
    layer.self_attn.forward = lambda **kwargs: (*attend(**kwargs), None)
    trunk = model.base_model
    trunk.layers[-1] = _Otherwise(layer, lambda out: out)
    layer.forward = lambda hidden_states, **kwargs: hidden_states
    with last_layer_at(trunk, AT) as trimmed:
        assert not trimmed


def test_no_positions(causal_folder):
    model = load_causal_lm(causal_folder())
    assert trunk_hidden(model, _ids(), at=AT[:0]).shape == (0, 32)


def test_gradient_checkpointing_runs_whole_layers(causal_folder):
    model = load_causal_lm(causal_folder()).train()
    trunk_hidden(model, _ids(), at=AT)
    expected = _both(model)[1][1]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with last_layer_at(model.base_model, AT) as trimmed:
        assert not trimmed
    for name, gradient in _both(model)[1][1].items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_the_look_leaves_the_model_as_it_was(causal_folder):
    model = load_causal_lm(causal_folder(attention_dropout=0.5)).train()
    model.base_model.layers[0].eval()
    state = torch.get_rng_state()
    with last_layer_at(model.base_model, AT) as trimmed:
        assert trimmed
    assert torch.equal(torch.get_rng_state(), state)
    assert "forward" not in vars(model.base_model.layers[-1])
    assert model.base_model.layers[-1].self_attn.training
    assert not model.base_model.layers[0].self_attn.training
    assert not model.base_model.layers[-1].self_attn.o_proj._forward_pre_hooks
    assert all(p.grad is None for p in model.parameters())


def test_an_error_inside_leaves_the_layer_as_it_was(causal_folder):
    model = load_causal_lm(causal_folder())
    with pytest.raises(RuntimeError, match="stop"), last_layer_at(model.base_model, AT):
        raise RuntimeError("stop")
    assert trunk_hidden(model, _ids()).shape == (3, 14, 32)


def test_a_forward_that_somebody_else_put_there_is_kept(causal_folder):
    model = load_causal_lm(causal_folder())
    layer = model.base_model.layers[-1]
    mine = layer.forward
    layer.forward = mine
    with last_layer_at(model.base_model, AT) as trimmed:
        assert not trimmed
    assert vars(layer)["forward"] is mine


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bf16_weights_and_autocast(causal_folder, dtype):
    model = load_causal_lm(causal_folder()).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32), torch.no_grad():
        whole, some = trunk_hidden(model, _ids()).flatten(0, 1)[AT], trunk_hidden(model, _ids(), at=AT)
    assert some.dtype == whole.dtype
    torch.testing.assert_close(some, whole, rtol=2e-2, atol=2e-2)
    with last_layer_at(model.base_model, AT) as trimmed:
        assert trimmed


def test_adapters_on_the_trimmed_parts(causal_folder):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["o_proj", "down_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_causal_lm(causal_folder()), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    (whole, whole_gradients), (some, gradients) = _both(model)
    torch.testing.assert_close(some, whole, rtol=1e-5, atol=1e-6)
    assert sum("layers.1" in name for name in gradients) == 6
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, whole_gradients[name], rtol=1e-4, atol=1e-5)
