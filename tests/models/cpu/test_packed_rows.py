"""Rows in one pass without padding: the same numbers, fewer tokens, and only where that is so.

Equality with whole passes, for every architecture and with gradients, is in ``test_last_layer.py`` (the tuned models).
"""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers.models.llama.modeling_llama import LlamaAttention

from lit_rlhf.models.causal import run_trunk, trunk_hidden
from lit_rlhf.models.cpu import hidden_at, tune
from lit_rlhf.models.cpu.last_layer import MOST_LAYERS, PLAIN
from lit_rlhf.models.loading.causal import load_causal_lm

LENGTHS = (9, 0, 4, 14, 1)  # of the second row nothing is read
WIDTH = 14
AT = torch.tensor([3, 8, 28, 31, 42, 55, 56])


def ids():
    return torch.randint(4, 60, (len(LENGTHS), WIDTH), generator=torch.Generator().manual_seed(0))


def tuned(folder):
    model = load_causal_lm(folder)
    tune(model, "cpu")
    return model


class TokensSeen(TorchFunctionMode):
    """Tokens that go through each MLP's activation, in order; a hook would be seen, and the pass be another."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.silu:
            self.counts.append(args[0].shape[:-1].numel())
        return function(*args, **(kwargs or {}))


def test_no_token_of_padding_is_computed(causal_folder):
    model = tuned(causal_folder())
    with TokensSeen() as seen:
        packed = trunk_hidden(model, ids(), at=AT)
        whole = trunk_hidden(model, ids()).flatten(0, 1)[AT]
    assert seen.counts == [sum(LENGTHS), len(AT), len(LENGTHS) * WIDTH, len(LENGTHS) * WIDTH]  # of two layers each
    torch.testing.assert_close(packed, whole, rtol=1e-5, atol=1e-6)


def test_many_layers_are_packed_to_the_last(causal_folder):
    """There the last layer is whole, and what is read is taken from the packed rows' end."""
    model = tuned(causal_folder(num_hidden_layers=MOST_LAYERS + 1))
    with TokensSeen() as seen:
        packed = trunk_hidden(model, ids(), at=AT)
    assert seen.counts == [sum(LENGTHS)] * (MOST_LAYERS + 1)
    torch.testing.assert_close(packed, trunk_hidden(model, ids()).flatten(0, 1)[AT], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", PLAIN)
def test_a_row_alone_and_among_others(causal_folder, architecture):
    """What attention takes apart is taken apart at the right places."""
    model = tuned(causal_folder(architecture))
    together = hidden_at(model.base_model, ids(), AT)
    assert together is not None
    with torch.no_grad():
        for i, length in enumerate(LENGTHS):
            mine = (AT // WIDTH).eq(i)
            if length:
                alone = model.base_model(input_ids=ids()[i : i + 1, :length]).last_hidden_state[0]
                torch.testing.assert_close(together[mine], alone[AT[mine] % WIDTH], rtol=1e-5, atol=1e-6)


def test_what_nobody_reads_changes_no_bit(causal_folder):
    model = tuned(causal_folder())
    other = ids()
    for i, length in enumerate(LENGTHS):
        other[i, length:] = 5
    assert torch.equal(trunk_hidden(model, ids(), at=AT), trunk_hidden(model, other, at=AT))


@pytest.mark.parametrize("width", [WIDTH, 230])
def test_the_same_bits_with_and_without_gradients(causal_folder, width):
    """Of scoring and the first update, so that the first ratio is exactly 1."""
    model = tuned(causal_folder())
    rows = torch.randint(4, 60, (3, width), generator=torch.Generator().manual_seed(0))
    at = torch.cat([torch.arange(width // 3, width - 2 * i) + i * width for i in range(3)])
    with torch.no_grad():
        scored = trunk_hidden(model, rows, at=at)
    assert torch.equal(trunk_hidden(model, rows, at=at), scored)


def test_under_autocast(causal_folder):
    model = tuned(causal_folder())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        packed, whole = trunk_hidden(model, ids(), at=AT), trunk_hidden(model, ids()).flatten(0, 1)[AT]
    torch.testing.assert_close(packed, whole, rtol=2e-2, atol=2e-2)


def test_adapters(causal_folder):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_causal_lm(causal_folder()), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    tune(model, "cpu")
    whole = trunk_hidden(model, ids()).flatten(0, 1)[AT]
    packed = hidden_at(model.get_base_model().base_model, ids(), AT)
    torch.testing.assert_close(packed, whole, rtol=1e-5, atol=1e-6)


class OwnMLP(torch.nn.Module):
    def forward(self, x):
        return x.roll(1, dims=1)


class OwnAttention(LlamaAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def _of_another_class(part, kind):
    part.__class__ = kind


CHANGES = {
    "an attention of one's own": lambda trunk: _of_another_class(trunk.layers[0].self_attn, OwnAttention),
    "an MLP of one's own": lambda trunk: setattr(trunk.layers[0], "mlp", OwnMLP()),
    "a hook on an MLP": lambda trunk: trunk.layers[0].mlp.register_forward_hook(lambda *_: None),
    "a hook on the embeddings": lambda trunk: trunk.embed_tokens.register_forward_pre_hook(lambda *_: None),
    "a backward hook": lambda trunk: trunk.layers[1].mlp.up_proj.register_full_backward_hook(lambda *_: None),
    "a hook on the trunk": lambda trunk: trunk.register_forward_hook(lambda *_: None),
    "a hook on the first layer": lambda trunk: trunk.layers[0].register_forward_hook(lambda *_: None),
    "eager attention": lambda trunk: trunk.set_attn_implementation("eager"),
    "attention to both sides": lambda trunk: setattr(trunk.layers[0].self_attn, "is_causal", False),
    "a compiled layer": lambda trunk: trunk.layers[0].compile(backend="eager", dynamic=True),
    "a window": lambda trunk: setattr(trunk.config, "sliding_window", 4),
    "a layer of another kind": lambda trunk: setattr(
        trunk.config, "layer_types", ["full_attention", "linear_attention"]
    ),
    "checkpointing": lambda trunk: trunk.gradient_checkpointing_enable({"use_reentrant": False}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_not_known_to_be_plain_keeps_its_padding(causal_folder, change):
    model = tuned(causal_folder())
    assert hidden_at(model.base_model, ids(), AT) is not None
    change(model.base_model)
    assert hidden_at(model.base_model, ids(), AT) is None


def test_an_attention_that_was_patched_in_its_class_keeps_its_padding(causal_folder, monkeypatch):
    model = tuned(causal_folder())
    forward = LlamaAttention.forward
    monkeypatch.setattr(LlamaAttention, "forward", lambda self, *args, **kwargs: forward(self, *args, **kwargs))
    assert hidden_at(model.base_model, ids(), AT) is None


@pytest.mark.parametrize(("window", "packed"), [(13, False), (14, True)])
def test_a_window_that_holds_the_longest_row_hides_nothing(causal_folder, window, packed):
    model = tuned(causal_folder("mistral", sliding_window=window))
    found = hidden_at(model.base_model, ids(), AT)
    assert (found is not None) is packed
    if packed:
        torch.testing.assert_close(found, model.base_model(input_ids=ids()).last_hidden_state.flatten(0, 1)[AT])


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "gpt_neox", "stablelm"])
def test_other_architectures_keep_their_padding(causal_folder, architecture):
    assert hidden_at(tuned(causal_folder(architecture)).base_model, ids(), AT) is None


def test_rows_without_padding_are_packed_as_well(causal_folder):
    """For attention in parts, and of what is asked alone."""
    model = tuned(causal_folder())
    ends = torch.arange(1, len(LENGTHS) + 1) * WIDTH - 1
    expected = model.base_model(input_ids=ids()).last_hidden_state[:, -1]
    torch.testing.assert_close(hidden_at(model.base_model, ids(), ends), expected, rtol=1e-5, atol=1e-6)


def test_rows_of_several_parts_alone_and_among_others(causal_folder):
    model = tuned(causal_folder())
    make = torch.Generator().manual_seed(0)
    rows = torch.randint(4, 60, (3, 200), generator=make)
    read = [torch.arange(90, 199), torch.arange(20, 110), torch.arange(139, 200, 2)]
    every = hidden_at(model.base_model, rows, torch.cat([at + i * 200 for i, at in enumerate(read)]))
    assert every is not None
    for i, found in enumerate(every.split([len(at) for at in read])):
        alone = hidden_at(model.base_model, rows[i : i + 1, : int(read[i].max()) + 1], read[i])
        torch.testing.assert_close(alone, found, rtol=1e-5, atol=2e-6)
        whole = model.base_model(input_ids=rows[i : i + 1]).last_hidden_state[0]
        torch.testing.assert_close(found, whole[read[i]], rtol=1e-5, atol=2e-6)


def test_off_a_cpu_it_is_an_ordinary_pass(causal_folder):
    model = tuned(causal_folder()).to("meta")
    assert hidden_at(model.base_model, ids().to("meta"), AT.to("meta")) is None


def test_a_mask_or_positions_of_the_callers_are_kept(causal_folder):
    model = tuned(causal_folder())
    mask = torch.ones_like(ids())
    mask[:, 0] = 0
    with TokensSeen() as seen:
        run_trunk(model.base_model, ids(), mask, at=AT)
        run_trunk(model.base_model, ids(), position_ids=torch.arange(WIDTH).expand_as(ids()), at=AT)
    assert seen.counts == [len(LENGTHS) * WIDTH, len(AT)] * 2
