"""Attention in parts, and of the queries that somebody asks for: the numbers of the whole, for less work."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_rlhf.models.cpu import attention
from lit_rlhf.models.cpu.attention import FEWEST_KEYS, MOST_KEYS, PART, rows_packed, sdpa_attention

HEADS, GROUPS, SIZE = 4, 2, 8


class Layer(torch.nn.Module):
    """What the function asks of a layer's attention."""

    num_key_value_groups = HEADS // GROUPS
    is_causal = True

    def __init__(self, asked=None) -> None:
        super().__init__()
        if asked is not None:
            self.asked = asked


class PairsComputed(TorchFunctionMode):
    """Pairs of a query and a key that PyTorch's attention is called for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            self.count += args[0].size(2) * args[1].size(2)
        return function(*args, **(kwargs or {}))


def states(length, rows=1, keys=None):
    make = torch.Generator().manual_seed(length)
    shapes = ((rows, length, HEADS, SIZE), *((rows, keys or length, GROUPS, SIZE),) * 2)
    return [torch.randn(*shape, generator=make).transpose(1, 2).requires_grad_() for shape in shapes]


def whole(query, key, value, mask=None):
    key, value = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None).transpose(1, 2)


def grads(out, inputs):
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad((out * probe).sum(), inputs, retain_graph=True)


def assert_equal(got, expected, inputs):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-6)
    for one, other in zip(grads(got, inputs), grads(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


LENGTHS = (1, 2, PART, PART + 1, 128, FEWEST_KEYS, 191, 200, MOST_KEYS, MOST_KEYS + 30)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_row_in_parts_is_the_row(length):
    inputs = states(length)
    with rows_packed([length]):
        out, weights = sdpa_attention(Layer(), *inputs, None, scaling=SIZE**-0.5)
    assert weights is None
    assert out.is_contiguous()
    assert_equal(out, whole(*inputs), inputs)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("asked", ["the last", "a tail", "most", "all", "here and there"])
def test_queries_asked_for_get_what_the_whole_row_has(length, asked):
    last = length - 1
    at = {
        "the last": [last],
        "a tail": range(max(0, length - 40), length),
        "most": range(length // 4, length),
        "all": range(length),
        "here and there": sorted({0, length // 3, length // 2, *range(max(0, length - 90), length, 3), last}),
    }[asked]
    at, inputs = torch.tensor(list(at)), states(length)
    with rows_packed([length]):
        out, _ = sdpa_attention(Layer(at), *inputs, None, scaling=SIZE**-0.5)
    assert out.shape == (1, length, HEADS, SIZE)
    assert_equal(out[:, at], whole(*inputs)[:, at], inputs)


def test_rows_of_a_pass_are_told_apart():
    lengths = [7, 170, 1, 70]
    inputs = states(sum(lengths))
    at = torch.tensor([3, 6, 50, *range(100, 177), 177, 180, 200, 247])
    with rows_packed(lengths):
        every, _ = sdpa_attention(Layer(), *inputs, None, scaling=SIZE**-0.5)
        some, _ = sdpa_attention(Layer(at), *inputs, None, scaling=SIZE**-0.5)
    expected = torch.cat([whole(*row) for row in zip(*(x.split(lengths, dim=2) for x in inputs), strict=True)], dim=1)
    assert_equal(every, expected, inputs)
    assert_equal(some[:, at], expected[:, at], inputs)


def test_what_nobody_sees_is_not_computed():
    def pairs(length, at=None):
        with PairsComputed() as seen, rows_packed([length]):
            sdpa_attention(Layer(at), *states(length), None)
        return seen.count

    assert pairs(150) == 150 * 150  # two calls more would cost as much
    assert pairs(191) == 64 * 64 + 64 * 128 + 63 * 191
    assert (
        pairs(200) == 64 * 64 + 64 * 128 + (64 + 8) * 200
    )  # a rest of under half a part stays with the part before it
    assert pairs(2000) == 2000 * 2000  # PyTorch itself leaves out blocks of so long a row
    assert pairs(191, torch.arange(171, 191)) == 20 * 191
    assert pairs(191, torch.tensor([190])) == 191
    assert pairs(2000, torch.arange(1970, 2000)) == 30 * 2000
    assert pairs(2000, torch.arange(1800, 2000)) == 2000 * 2000  # masks of parts would take more memory than time


def test_the_mask_that_a_pass_without_gradients_made_serves_one_with_them():
    attention._triangle.cache_clear()
    length = 3 * PART
    with torch.inference_mode(), rows_packed([length]):
        scored, _ = sdpa_attention(Layer(), *states(length), None)
    inputs = states(length)
    with rows_packed([length]):
        out, _ = sdpa_attention(Layer(), *inputs, None)
    assert torch.equal(out, scored)
    assert grads(out, inputs)[0].abs().max() > 0


@pytest.mark.parametrize("masked", [False, True])
def test_rows_side_by_side_that_are_asked_equally_often(masked):
    """As in a prefill, or preference pairs: with padding, a mask of the caller's, and columns of a cache."""
    rows, length, keys = 3, 12, 17 if masked else 12
    inputs = states(length, rows, keys)
    mask = None
    if masked:
        mask = torch.ones(length, keys, dtype=torch.bool).tril(keys - length).expand(rows, 1, -1, -1).clone()
        mask[1, :, 4:, :4] = False
    at = torch.tensor([4, 11, 12, 23, 31, 35])
    with PairsComputed() as seen:
        out, _ = sdpa_attention(Layer(at), *inputs, mask, scaling=SIZE**-0.5)
    assert seen.count == 2 * keys
    expected = whole(*inputs, mask)
    assert_equal(out.flatten(0, 1)[at], expected.flatten(0, 1)[at], inputs)


@pytest.mark.parametrize(("at", "keys"), [([4, 11, 12, 31, 32, 35], 12), ([11, 23, 35], 17), ([11, 35], 12)])
def test_where_it_is_not_known_how_all_queries_are_answered(at, keys):
    inputs = states(12, 3, keys)
    with PairsComputed() as every:
        expected, _ = sdpa_attention(Layer(), *inputs, None, scaling=SIZE**-0.5)
    with PairsComputed() as seen:
        out, _ = sdpa_attention(Layer(torch.tensor(at)), *inputs, None, scaling=SIZE**-0.5)
    assert torch.equal(out, expected)
    assert seen.count == every.count > 0


def test_no_large_mask_is_made_where_there_was_none():
    """PyTorch turns it into fp32 and keeps that: of rows side by side, as much as the activations."""
    saved = []
    at = torch.cat([torch.arange(100, 200), torch.arange(300, 400)])
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        out, _ = sdpa_attention(Layer(at), *states(200, 2), None, scaling=SIZE**-0.5)
    assert max(saved) <= 2 * 200 * HEADS * SIZE
    torch.testing.assert_close(out, whole(*states(200, 2)), rtol=1e-4, atol=2e-6)


def test_bf16_is_fp32_inside_and_dropout_is_drawn():
    inputs = [x.detach() for x in states(80)]
    with rows_packed([80]):
        full, _ = sdpa_attention(Layer(), *inputs, None)
        low, _ = sdpa_attention(Layer(), *(x.bfloat16() for x in inputs), None)
        torch.manual_seed(0)
        dropped, _ = sdpa_attention(Layer(), *inputs, None, dropout=0.5)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), full, rtol=2e-2, atol=2e-2)
    assert (dropped - full).abs().max() > 0.1
