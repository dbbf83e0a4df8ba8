"""The last layer only where somebody looks: the same numbers and gradients, less work, and only where that is so."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lit_rlhf.models.causal import run_trunk, trunk_hidden
from lit_rlhf.models.cpu import kernels, seen_at, tune
from lit_rlhf.models.cpu.last_layer import MOST_LAYERS, PLAIN
from lit_rlhf.models.loading.causal import load_causal_lm

OTHER = ["gpt2", "gemma2", "cohere", "stablelm", "granite"]
AT = torch.tensor([3, 4, 17, 41])
EACH = torch.tensor([3, 13, 17, 25, 30, 41])  # two of each row


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
        # Weighed at random: the plain sum of squares of normalized rows is a constant, its gradient all rounding.
        probe = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
        (hidden.float() * probe).sum().backward()
        results.append(
            (hidden.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    return results


def _assert_same_gradients(gradients, expected):
    """Up to rounding, which CPUs do differently: a millionth of a tensor's largest number is what sums of it lose."""
    for name, gradient in gradients.items():
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=max(1e-5, 2e-6 * largest))


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("architecture", [*PLAIN, *OTHER])
def test_numbers_and_gradients_are_those_of_a_whole_pass(causal_folder, architecture, tuned):
    model = load_causal_lm(causal_folder(architecture))
    if tuned:
        tune(model, "cpu")
    (whole, whole_gradients), (some, gradients) = _both(model)
    assert whole.std() > 1e-3
    torch.testing.assert_close(some, whole, rtol=1e-5, atol=5e-6)
    assert gradients.keys() == whole_gradients.keys()
    assert all(gradient.abs().max() > 1e-3 for gradient in whole_gradients.values())
    _assert_same_gradients(gradients, whole_gradients)


@pytest.mark.parametrize("architecture", [*PLAIN, *OTHER])
def test_only_a_plain_last_layer_is_trimmed(causal_folder, architecture):
    model = load_causal_lm(causal_folder(architecture))
    assert (seen_at(model.base_model, AT) is not None) == (architecture in PLAIN)
    assert (seen_at(model, AT) is not None) == (architecture in PLAIN)


class QueriesSeen(TorchFunctionMode):
    """Rows of every product and queries of every attention, pass by pass."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[int] = []
        self.queries: list[int] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear:
            self.products.append(args[0].shape[:-1].numel())
        if function is F.scaled_dot_product_attention:
            self.queries.append(args[0].size(0) * args[0].size(2))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("hooked", [False, True])
def test_queries_that_nobody_reads_are_not_asked(causal_folder, monkeypatch, hooked):
    """A hook on the query's map sees all of them; attention is asked as little."""
    monkeypatch.setenv("LIT_RLHF_CPU_PRODUCTS", "torch")
    kernels.prefers_onednn.cache_clear()
    model = load_causal_lm(causal_folder())
    tune(model, "cpu")
    mask, positions = torch.ones(3, 1, 14, 14, dtype=torch.bool).tril(), torch.arange(14).expand(3, 14)
    seen_by_hook = []
    if hooked:
        q_proj = model.base_model.layers[-1].self_attn.q_proj
        q_proj.register_forward_pre_hook(lambda _, x: seen_by_hook.append(x[0].shape[:-1].numel()))
    with QueriesSeen() as seen:
        some = run_trunk(model.base_model, _ids(), mask, position_ids=positions, at=EACH)
    kernels.prefers_onednn.cache_clear()
    assert seen.products == [42] * 7 + [42 if hooked else 6, 42, 42] + [6] * 4
    assert seen.queries == [42, 6]
    assert seen_by_hook == ([42] if hooked else [])
    torch.testing.assert_close(some, trunk_hidden(model, _ids()).flatten(0, 1)[EACH], rtol=1e-5, atol=1e-6)


def test_a_position_that_is_read_twice(causal_folder):
    """As preference pairs do whose responses end alike."""
    model = load_causal_lm(causal_folder())
    tune(model, "cpu")
    at = torch.tensor([17, 3, 41, 3, 17])
    results = []
    for give in (lambda: trunk_hidden(model, _ids(), at=at), lambda: trunk_hidden(model, _ids()).flatten(0, 1)[at]):
        model.zero_grad()
        hidden = give()
        (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        results.append(
            (hidden.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    (some, gradients), (whole, expected) = results
    torch.testing.assert_close(some, whole, rtol=1e-5, atol=5e-6)
    _assert_same_gradients(gradients, expected)


def test_the_mlp_sees_the_wanted_positions_alone(causal_folder):
    model = load_causal_lm(causal_folder())
    seen = _mlp_rows(model)
    trunk_hidden(model, _ids(), at=AT)
    trunk_hidden(model, _ids())
    trunk_hidden(model, _ids(), at=AT[:0])
    assert seen == [4, 42, 42]


@pytest.mark.parametrize(("layers", "rows"), [(MOST_LAYERS, 4), (MOST_LAYERS + 1, 42)])
def test_the_last_of_many_layers_is_left_whole(causal_folder, layers, rows):
    model = load_causal_lm(causal_folder(num_hidden_layers=layers))
    assert (seen_at(model, AT) is None) == (layers > MOST_LAYERS)
    seen = _mlp_rows(model)
    some = trunk_hidden(model, _ids(), at=AT)
    assert seen == [rows]
    torch.testing.assert_close(some, trunk_hidden(model, _ids()).flatten(0, 1)[AT], rtol=1e-4, atol=1e-5)


def test_nothing_of_it_runs_on_another_device(causal_folder):
    model = load_causal_lm(causal_folder()).to("meta")
    seen, ids = _mlp_rows(model), _ids().to("meta")
    assert seen_at(model, AT.to("meta")) is None
    # A mask as attention takes it: to make one transformers would look at values, which there are none of on "meta".
    mask, positions = torch.ones(3, 1, 14, 14, dtype=torch.bool, device="meta"), torch.zeros_like(ids)
    assert run_trunk(model.base_model, ids, mask, position_ids=positions, at=AT.to("meta")).shape == (4, 32)
    assert seen == [42]


def test_a_causal_model_gives_logits_at_the_positions(causal_folder):
    model = load_causal_lm(causal_folder())
    some = seen_at(model, AT)(input_ids=_ids(), use_cache=False).logits
    assert some.shape[:2] == (1, 4)
    torch.testing.assert_close(some[0], model(input_ids=_ids()).logits.flatten(0, 1)[AT], rtol=1e-5, atol=1e-6)


def _another_forward(part):
    forward = part.forward
    part.forward = lambda *args, **kwargs: forward(*args, **kwargs)


CHANGES = {
    "forward": lambda trunk: _another_forward(trunk.layers[-1]),
    "attention's forward": lambda trunk: _another_forward(trunk.layers[-1].self_attn),
    "hook": lambda trunk: trunk.layers[-1].register_forward_hook(lambda *_: None),
    "hook before": lambda trunk: trunk.layers[-1].register_forward_pre_hook(lambda *_: None),
    "attention's hook": lambda trunk: trunk.layers[-1].self_attn.register_forward_hook(lambda *_: None),
    "attention to both sides": lambda trunk: setattr(trunk.layers[-1].self_attn, "is_causal", False),
    "compiled": lambda trunk: trunk.layers[-1].compile(backend="eager", dynamic=True),
    "checkpointing": lambda trunk: trunk.gradient_checkpointing_enable({"use_reentrant": False}),
    "last layer left out": lambda trunk: setattr(trunk.config, "num_hidden_layers", 1),
    "a list": lambda trunk: setattr(trunk, "layers", torch.nn.Sequential(*trunk.layers)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_layer_that_was_changed_is_left_whole(causal_folder, change):
    model = load_causal_lm(causal_folder())
    assert seen_at(model, AT) is not None
    change(model.base_model)
    assert seen_at(model, AT) is None
    torch.testing.assert_close(trunk_hidden(model, _ids(), at=AT), trunk_hidden(model, _ids()).flatten(0, 1)[AT])


class _Louder(LlamaDecoderLayer):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) * 1.5


class _Named(LlamaDecoderLayer):
    pass


@pytest.mark.parametrize(("kind", "plain"), [(_Louder, False), (_Named, True)])
def test_a_derived_layer_is_plain_while_it_computes_the_same(causal_folder, kind, plain):
    model = load_causal_lm(causal_folder())
    trunk = model.base_model
    layer = kind(trunk.config, 1)
    layer.load_state_dict(trunk.layers[-1].state_dict())
    trunk.layers[-1] = layer
    assert (seen_at(model, AT) is not None) == plain
    torch.testing.assert_close(trunk_hidden(model, _ids(), at=AT), trunk_hidden(model, _ids()).flatten(0, 1)[AT])


def test_no_positions(causal_folder):
    model = load_causal_lm(causal_folder())
    assert trunk_hidden(model, _ids(), at=AT[:0]).shape == (0, 32)


def test_gradient_checkpointing_gives_the_same_gradients(causal_folder):
    model = load_causal_lm(causal_folder()).train()
    expected = _both(model)[1][1]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _assert_same_gradients(_both(model)[1][1], expected)


def test_the_model_is_what_it_was(causal_folder):
    model = load_causal_lm(causal_folder(attention_dropout=0.5)).train()
    model.base_model.layers[0].eval()

    def state():
        return [(id(m), type(m), m.training, sorted(vars(m)), list(m._modules.items())) for m in model.modules()]

    before, randomness = state(), torch.get_rng_state()
    view = seen_at(model, AT)
    view(input_ids=_ids(), use_cache=False).logits.sum().backward()
    assert state() == before
    assert torch.equal(torch.get_rng_state(), randomness)
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}
    with pytest.raises(IndexError):
        view(input_ids=_ids()[:, :2])
    assert state() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bf16_weights_and_autocast(causal_folder, dtype):
    model = load_causal_lm(causal_folder()).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32), torch.no_grad():
        whole, some = trunk_hidden(model, _ids()).flatten(0, 1)[AT], trunk_hidden(model, _ids(), at=AT)
    assert some.dtype == whole.dtype
    torch.testing.assert_close(some, whole, rtol=2e-2, atol=2e-2)


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
    _assert_same_gradients(gradients, whole_gradients)
