from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_rlhf.functional import chunked_logprobs
from lit_rlhf.functional import logprobs as logprobs_module
from tests.live_bytes import LiveBytes

from .cases import close, finite, normal, seeds

N, H, V = 23, 8, 17


def of_logits(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies where the hidden states are the logits already."""
    logprobs, entropies = chunked_logprobs(logits, nn.Identity(), ids, with_entropy=True)
    assert entropies is not None
    return logprobs, entropies


def entropy(logits: Tensor) -> Tensor:
    return of_logits(logits.unsqueeze(0), torch.tensor([0]))[1].squeeze(0)


def world(dtype: torch.dtype = torch.float32, rows: int = N) -> tuple[Tensor, nn.Linear, Tensor]:
    head = nn.Linear(H, V, bias=False)
    head.weight.data = normal(V, H, seed=1)
    ids = torch.randint(V, (rows,), generator=torch.Generator().manual_seed(2))
    return normal(rows, H, seed=0).to(dtype).requires_grad_(), head.to(dtype), ids


def reference(logits: Tensor, ids: Tensor) -> tuple[list[float], list[float]]:
    logprobs, entropies = [], []
    for row, token in zip(logits.tolist(), ids.tolist(), strict=True):
        top = max(row)
        log_z = top + math.log(sum(math.exp(z - top) for z in row))
        logprobs.append(row[token] - log_z)
        entropies.append(sum(-math.exp(z - log_z) * (z - log_z) for z in row if z != -math.inf))
    return logprobs, entropies


def test_selected_and_entropy_term_by_term():
    logits, ids = normal(5, V, seed=0, scale=3.0), torch.tensor([0, 16, 3, 3, 9])
    for got, want in zip(of_logits(logits, ids), reference(logits, ids), strict=True):
        close(got, want)


def test_entropy_of_known_distributions():
    close(entropy(torch.zeros(V)), math.log(V))
    close(entropy(torch.tensor([0.0, -math.inf, 0.0, -math.inf])), math.log(2))
    close(entropy(torch.tensor([1e4, 0.0, 0.0])), 0.0)


@pytest.mark.parametrize("with_entropy", [False, True])
def test_forbidden_tokens_have_no_gradient_and_no_nan(with_entropy):
    logits = normal(4, V, seed=0)
    logits[:, 5:] = -math.inf
    logits.requires_grad_()
    ids = torch.tensor([0, 1, 2, 4])
    logprobs, entropies = reference(logits.detach(), ids)
    out = of_logits(logits, ids)[with_entropy]
    close(out, entropies if with_entropy else logprobs)
    out.sum().backward()
    assert finite(logits.grad)
    assert torch.all(logits.grad[:, 5:] == 0)
    assert torch.any(logits.grad[:, :5] != 0)


def test_forbidden_choice_has_probability_zero():
    logits = torch.tensor([[0.0, -math.inf]])
    assert of_logits(logits, torch.tensor([1]))[0].item() == -math.inf


@given(seeds, st.sampled_from([0.0, 1.0, 1e4, 1e30]))
def test_finite_at_extreme_logits(seed, scale):
    logits = normal(6, V, seed=seed, scale=scale).requires_grad_()
    ids = logits.argmax(-1)
    logprobs, entropies = of_logits(logits, ids)
    (logprobs.sum() + entropies.sum()).backward()
    assert finite(logprobs.detach(), entropies.detach(), logits.grad)
    assert torch.all(logprobs <= 0)
    assert torch.all(entropies >= -1e-6)
    assert torch.all(entropies <= math.log(V) + 1e-5)


@pytest.mark.parametrize("chunk_size", [1, 5, 22, 23, 1000])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_chunked_equals_log_softmax_over_everything(chunk_size, with_entropy):
    hidden, head, ids = world()
    logprobs, entropies = chunked_logprobs(hidden, head, ids, chunk_size=chunk_size, with_entropy=with_entropy)
    logp = torch.log_softmax(head(hidden), -1)
    want = logp[torch.arange(N), ids]
    want_entropy = -(logp.exp() * logp).sum(-1)
    torch.testing.assert_close(logprobs, want)
    weights = normal(N, seed=3)
    loss, want_loss = (logprobs * weights).sum(), (want * weights).sum()
    if with_entropy:
        torch.testing.assert_close(entropies, want_entropy)
        loss, want_loss = loss + (entropies * weights).sum() / 2, want_loss + (want_entropy * weights).sum() / 2
    else:
        assert entropies is None
    got = torch.autograd.grad(loss, [hidden, head.weight])
    for g, w in zip(got, torch.autograd.grad(want_loss, [hidden, head.weight]), strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_size", [5, 1000])
def test_the_same_bits_with_and_without_gradient_and_entropy(dtype, chunk_size):
    hidden, head, ids = world(dtype)
    runs = []
    for grad in (True, False):
        for with_entropy in (True, False):
            with torch.set_grad_enabled(grad):
                runs.append(chunked_logprobs(hidden, head, ids, chunk_size=chunk_size, with_entropy=with_entropy))
    assert all(torch.equal(runs[0][0], logprobs) for logprobs, _ in runs[1:])
    assert torch.equal(runs[0][1], runs[2][1])
    assert runs[0][0].requires_grad
    assert not runs[2][0].requires_grad


@pytest.mark.parametrize("chunk_size", [5, 1000])
def test_bf16_hidden_states_give_fp32_log_probabilities(chunk_size):
    hidden, head, ids = world(torch.bfloat16)
    logprobs, entropies = chunked_logprobs(hidden, head, ids, chunk_size=chunk_size, with_entropy=True)
    assert logprobs.dtype == entropies.dtype == torch.float32
    # the logits are bf16; from there on nothing more is lost
    want, want_entropy = reference(head(hidden).detach().float(), ids)
    close(logprobs, want, rtol=1e-5)
    close(entropies, want_entropy, rtol=1e-5)
    logprobs.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16
    assert finite(hidden.grad, head.weight.grad)


def test_autocast_is_the_same_in_the_recomputation():
    hidden, head, ids = world()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, _ = chunked_logprobs(hidden, head, ids, chunk_size=1000)
        parts, _ = chunked_logprobs(hidden, head, ids, chunk_size=5)
    assert torch.equal(whole, parts)
    torch.testing.assert_close(
        torch.autograd.grad(parts.sum(), hidden)[0], torch.autograd.grad(whole.sum(), hidden)[0], rtol=2e-2, atol=2e-2
    )


def saved_elements(chunk_size: int, rows: int) -> int:
    """Elements of the largest tensor that forward keeps for backward, parameters aside."""
    hidden, head, ids = world(rows=rows)
    sizes = [0]

    def pack(x: Tensor) -> Tensor:
        sizes.append(0 if x is head.weight else x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logprobs, entropies = chunked_logprobs(hidden, head, ids, chunk_size=chunk_size, with_entropy=True)
    assert logprobs.requires_grad
    assert entropies is not None
    return max(sizes)


def test_no_logits_are_kept_beyond_the_chunk():
    rows = 10 * V
    assert saved_elements(rows, rows) == rows * V  # one chunk: kept, and the probe sees it
    assert saved_elements(rows // 10, rows) <= rows * H


def test_backward_makes_the_logits_of_one_chunk_at_a_time():
    hidden, head, ids = world()
    widths: list[int] = []

    def project(states: Tensor) -> Tensor:
        widths.append(len(states))
        return head(states)

    logprobs, _ = chunked_logprobs(hidden, project, ids, chunk_size=10)
    assert widths == [10, 10, 3]
    logprobs.sum().backward()
    assert sorted(widths[3:]) == [3, 10, 10]
    widths.clear()
    chunked_logprobs(hidden, project, ids, chunk_size=N)[0].sum().backward()
    assert widths == [N]  # nothing to save: no recomputation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_blocks_of_rows_tell_nothing_not_even_in_the_last_bit(dtype, with_entropy, monkeypatch):
    """Against autograd through the formulas as they stand, on all rows at once."""
    logits = normal(N, V, seed=4, scale=3.0).to(dtype)
    logits[:, 5] = -math.inf
    ids = torch.randint(5, (N,), generator=torch.Generator().manual_seed(2))
    weights, runs = normal(N, seed=3), []
    for block in (1, 5 * V, 2**18):
        monkeypatch.setattr(logprobs_module, "CPU_BLOCK", block)
        z = logits.clone().requires_grad_()
        logprobs, entropies = chunked_logprobs(z, lambda x: x, ids, with_entropy=with_entropy)
        loss = (logprobs * weights).sum() + ((entropies * weights.flip(0)).sum() if with_entropy else 0)
        runs.append([logprobs.detach(), entropies, torch.autograd.grad(loss, z)[0]])
    z = logits.clone().requires_grad_()
    logp = torch.log_softmax(z, -1, dtype=torch.promote_types(dtype, torch.float32))
    logprobs, bounded = logp.gather(1, ids[:, None])[:, 0], logp.clamp(min=-1000.0)
    entropies = -(bounded.exp() * bounded).sum(-1)
    loss = (logprobs * weights).sum() + ((entropies * weights.flip(0)).sum() if with_entropy else 0)
    runs.append([logprobs.detach(), entropies, torch.autograd.grad(loss, z)[0]])
    for run in runs[1:]:
        assert torch.equal(runs[0][0], run[0])
        assert not with_entropy or torch.equal(runs[0][1], run[1])
        assert torch.equal(runs[0][2], run[2])


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize(("grad", "copies"), [(False, 1), (True, logprobs_module.LOGIT_COPIES)])
@pytest.mark.parametrize("chunk_size", [256, 2048])
def test_bytes_of_a_logit(with_entropy, dtype, size, grad, copies, chunk_size, monkeypatch):
    """One copy in scoring, two in an update, entropy or not, in the head's own dtype; the rest is blocks of rows."""
    rows, words = 1024, 512
    head = nn.Linear(H, words, bias=False).to(dtype)
    monkeypatch.setattr(logprobs_module, "CPU_BLOCK", 8 * words)
    hidden = normal(rows, H, seed=0).to(dtype).requires_grad_(grad)
    ids = torch.randint(words, (rows,), generator=torch.Generator().manual_seed(2))
    with LiveBytes() as memory, torch.set_grad_enabled(grad):
        logprobs, entropies = chunked_logprobs(hidden, head, ids, chunk_size=chunk_size, with_entropy=with_entropy)
        if grad:
            (logprobs.sum() + (entropies.sum() if with_entropy else 0)).backward()
    per_logit = memory.peak / (min(chunk_size, rows) * words)
    assert copies * size <= per_logit < 1.25 * copies * size + 0.1


def test_no_tokens():
    hidden, head, ids = world(rows=0)
    logprobs, entropies = chunked_logprobs(hidden, head, ids, with_entropy=True)
    assert logprobs.shape == entropies.shape == (0,)
    logprobs.sum().backward()
    assert hidden.grad.shape == (0, H)


def test_gradcheck():
    hidden, head, ids = world(torch.float64, rows=4)
    assert torch.autograd.gradcheck(lambda h: chunked_logprobs(h, head, ids, chunk_size=2, with_entropy=True), hidden)


def test_refusals():
    hidden, head, ids = world()
    with pytest.raises(ValueError, match=r"`hidden` \(23, 8\) must be \(N, H\) and `ids` \(22,\) \(N,\)"):
        chunked_logprobs(hidden, head, ids[1:])
    with pytest.raises(ValueError, match=r"`chunk_size` \(0\) must be at least 1"):
        chunked_logprobs(hidden, head, ids, chunk_size=0)
