from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_rlhf import functional as f
from lit_rlhf.functional.masking import keep

from .cases import close, finite, garbage, kept_floats, like, masks, response_mask, scales, seeds, spoil

MASK = response_mask([5, 1, 0, 3], 5)
CLIP = 0.2


# What a module does with a loss: keep the tokens, ask per token, sum over the normalizer, and measure beside it.


def total(per_token: Tensor, mask: Tensor, normalizer: float | Tensor | None) -> dict[str, Tensor]:
    return {"loss": f.normalized_sum(per_token, mask, normalizer), "tokens": mask.sum().float()}


def kept(*args: Tensor) -> list[Tensor]:
    *cols, mask = args
    return [keep(x, mask) for x in cols]


def watched(new: Tensor, old: Tensor, mask: Tensor, clipped: Tensor) -> dict[str, Tensor]:
    sums = f.ratio_sums(new, old, mask)
    return {
        "clipped": keep(clipped, mask).sum(),
        "ratio": sums.ratio,
        "approx_kl": sums.approx_kl,
        "ratio_drift": sums.drift,
    }


def clipped_policy_loss(
    *args: Tensor, clip_range: float | None = 0.2, normalizer: float | Tensor | None = None
) -> SimpleNamespace:
    new, old, _, mask = args
    loss, clipped = f.clipped_policy_loss(*kept(*args), clip_range=clip_range)
    return SimpleNamespace(**total(loss, mask, normalizer), **watched(new, old, mask, clipped))


def kl_penalty_policy_loss(*args: Tensor, beta: float, normalizer: float | Tensor | None = None) -> SimpleNamespace:
    new, old, _, mask = args
    loss = f.kl_penalty_policy_loss(*kept(*args), beta=beta)
    return SimpleNamespace(**total(loss, mask, normalizer), **watched(new, old, mask, torch.zeros_like(mask)))


def value_loss(
    *args: Tensor, clip_range: float | None = 0.2, normalizer: float | Tensor | None = None
) -> SimpleNamespace:
    loss, clipped = f.value_loss(*kept(*args), clip_range=clip_range)
    return SimpleNamespace(**total(loss, args[-1], normalizer), clipped=keep(clipped, args[-1]).sum())


def entropy_term(
    entropy: Tensor,
    mask: Tensor,
    *,
    coef: float = 0.01,
    clip: float | None = None,
    mean_entropy: float | None = None,
    normalizer: float | Tensor | None = None,
) -> SimpleNamespace:
    if clip is not None and mean_entropy is None:  # one micro-batch: its own mean is the minibatch's
        mean_entropy = float(keep(entropy.detach(), mask).sum() / mask.sum().clamp(min=1))
    per_token = f.entropy_loss(keep(entropy, mask), clip=clip, mean_entropy=mean_entropy)
    out = total(per_token, mask, normalizer)
    return SimpleNamespace(loss=coef * out["loss"], tokens=out["tokens"], entropy=keep(entropy.detach(), mask).sum())


def lm_loss(logprobs: Tensor, mask: Tensor, normalizer: float | Tensor | None = None) -> SimpleNamespace:
    out = total(f.lm_loss(keep(logprobs, mask)), mask, normalizer)
    return SimpleNamespace(**out, nll=-keep(logprobs.detach(), mask).sum())


def columns(mask: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is trained, what it was, and what pulls at it; ratios on both sides of every clip."""
    old = -1.0 + like(mask, seed + 1)
    return (old + 0.5 * like(mask, seed)).requires_grad_(), old, like(mask, seed + 2)


def reference_policy(rows: list[tuple[float, ...]], clip: float | None) -> dict[str, float]:
    out = dict.fromkeys(("loss", "tokens", "clipped", "approx_kl", "ratio", "ratio_drift"), 0.0)
    for new, old, advantage in rows:
        rho = math.exp(new - old)
        gain = rho * advantage
        if clip is not None:
            held = (1 - clip if rho < 1 - clip else 1 + clip if rho > 1 + clip else rho) * advantage
            out["clipped"] += held < gain
            gain = min(gain, held)
        out["loss"] -= gain
        out["tokens"] += 1
        out["approx_kl"] += rho - 1 - (new - old)
        out["ratio"] += rho
        out["ratio_drift"] = max(out["ratio_drift"], abs(rho - 1))
    out["loss"] /= max(1, len(rows))
    return out


def reference_value(rows: list[tuple[float, ...]], clip: float | None) -> dict[str, float]:
    out = {"loss": 0.0, "tokens": float(len(rows)), "clipped": 0.0}
    for value, old, target in rows:
        error = (value - target) ** 2
        if clip is not None:
            held = (max(old - clip, min(old + clip, value)) - target) ** 2
            out["clipped"] += held > error
            error = max(error, held)
        out["loss"] += 0.5 * error / len(rows)
    return out


def assert_fields(got: Any, want: dict[str, float], rtol: float = 1e-4) -> None:
    for name, number in want.items():
        close(getattr(got, name), number, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("clip", [None, CLIP, 0.5])
@given(mask=masks, seed=seeds)
def test_clipped_policy_loss_term_by_term(clip, mask, seed):
    cols = columns(mask, seed)
    rows = kept_floats(mask, *cols)
    got = clipped_policy_loss(*cols, mask, clip_range=clip)
    want = reference_policy(rows, clip)
    # a ratio within rounding of the clip counts as clipped or not
    edge = clip is not None and any(abs(abs(math.exp(n - o) - 1) - clip) < 1e-5 for n, o, _ in rows)
    if edge:
        want.pop("clipped")
    assert_fields(got, want)


@given(mask=masks, seed=seeds, beta=st.floats(0.0, 3.0))
def test_kl_penalty_policy_loss_term_by_term(mask, seed, beta):
    cols = columns(mask, seed)
    rows = kept_floats(mask, *cols)
    want = reference_policy(rows, None)
    want["loss"] += beta * want["approx_kl"] / max(1, len(rows))
    assert_fields(kl_penalty_policy_loss(*cols, mask, beta=beta), want)


@pytest.mark.parametrize("clip", [None, CLIP])
@given(mask=masks, seed=seeds)
def test_value_loss_term_by_term(clip, mask, seed):
    cols = columns(mask, seed)
    assert_fields(value_loss(*cols, mask, clip_range=clip), reference_value(kept_floats(mask, *cols), clip))


@given(mask=masks, seed=seeds, level=st.sampled_from([None, 0.5, 35.0]))
def test_entropy_term_term_by_term(mask, seed, level):
    entropies = like(mask, seed).abs()
    kept = [h for (h,) in kept_floats(mask, entropies)]
    got = entropy_term(entropies, mask, coef=0.01, clip=level)
    close(got.entropy, sum(kept))
    close(got.tokens, len(kept))
    if not kept:
        assert got.loss == 0.0
        return
    mean = sum(kept) / len(kept)
    close(got.loss, -0.01 * mean if level is None else 0.01 * abs(mean - level))


@given(mask=masks, seed=seeds)
def test_lm_loss_term_by_term(mask, seed):
    logprobs = -like(mask, seed).abs()
    kept = [x for (x,) in kept_floats(mask, logprobs)]
    got = lm_loss(logprobs, mask)
    assert_fields(got, {"loss": -sum(kept) / max(1, len(kept)), "nll": -sum(kept), "tokens": len(kept)})
    close(lm_loss(logprobs, mask, 4.0).loss, -sum(kept) / 4)


# --- gradients, by hand ---


def test_policy_gradient_term_by_term():
    new, old, advantages = columns(MASK, 0)
    clipped_policy_loss(new, old, advantages, MASK, clip_range=CLIP).loss.backward()
    for b in range(MASK.size(0)):
        for t in range(MASK.size(1)):
            rho, advantage = float((new.detach() - old).exp()[b, t]), float(advantages[b, t])
            stopped = (rho > 1 + CLIP and advantage > 0) or (rho < 1 - CLIP and advantage < 0)
            close(new.grad[b, t], 0.0 if stopped or not MASK[b, t] else -rho * advantage / 9)


def test_value_gradient_term_by_term():
    values, old, returns = columns(MASK, 0)
    value_loss(values, old, returns, MASK, clip_range=CLIP).loss.backward()
    for b in range(MASK.size(0)):
        for t in range(MASK.size(1)):
            v, o, r = (float(x.detach()[b, t]) for x in (values, old, returns))
            held = max(o - CLIP, min(o + CLIP, v))
            stopped = (held - r) ** 2 > (v - r) ** 2
            close(values.grad[b, t], 0.0 if stopped or not MASK[b, t] else (v - r) / 9)


def test_the_penalty_gradient_holds_the_policy_back():
    new, old, _ = columns(MASK, 0)
    kl_penalty_policy_loss(new, old, torch.zeros_like(old), MASK, beta=2.0).loss.backward()
    close(new.grad, torch.where(MASK, 2.0 * ((new - old).exp() - 1) / 9, 0.0))


def test_entropy_gradient_points_to_the_level():
    for level, sign in ((None, -1), (35.0, -1), (0.01, 1)):
        entropies = (like(MASK, 0).abs() + 0.1).requires_grad_()
        entropy_term(entropies, MASK, coef=0.5, clip=level).loss.backward()
        close(entropies.grad, torch.where(MASK, sign * 0.5 / 9, 0.0))


# --- relations ---


def test_no_clip_equals_a_huge_clip():
    cols = columns(MASK, 0)
    assert torch.equal(
        clipped_policy_loss(*cols, MASK, clip_range=None).loss, clipped_policy_loss(*cols, MASK, clip_range=1e6).loss
    )
    assert torch.equal(value_loss(*cols, MASK, clip_range=None).loss, value_loss(*cols, MASK, clip_range=1e6).loss)


def test_clipping_only_ever_raises_a_loss():
    cols = columns(MASK, 0)
    free, held = (clipped_policy_loss(*cols, MASK, clip_range=c) for c in (None, CLIP))
    assert held.loss > free.loss
    assert held.clipped > 0
    assert free.clipped == 0
    free, held = (value_loss(*cols, MASK, clip_range=c) for c in (None, CLIP))
    assert held.loss > free.loss
    assert held.clipped > 0
    assert free.clipped == 0


def test_before_the_first_update_the_ratio_is_one_exactly():
    _, old, advantages = columns(MASK, 0)
    new = old.clone().requires_grad_()
    for loss in (
        clipped_policy_loss(new, old, advantages, MASK),
        kl_penalty_policy_loss(new, old, advantages, MASK, beta=1.0),
    ):
        assert loss.ratio_drift == 0.0
        assert loss.approx_kl == 0.0
        assert loss.clipped == 0.0
        assert loss.ratio == loss.tokens == 9.0
        close(loss.loss, -advantages[MASK].mean())
        (grad,) = torch.autograd.grad(loss.loss, new)
        close(grad, torch.where(MASK, -advantages / 9, 0.0))  # the plain policy gradient


def test_the_penalty_without_weight_is_the_free_surrogate():
    cols = columns(MASK, 0)
    assert torch.equal(
        kl_penalty_policy_loss(*cols, MASK, beta=0.0).loss, clipped_policy_loss(*cols, MASK, clip_range=None).loss
    )


def test_clipped_is_a_count_of_tokens_without_gradient():
    new, old, advantages = columns(MASK, 0)
    got = clipped_policy_loss(new, old, advantages, MASK, clip_range=CLIP)
    (grad,) = torch.autograd.grad(got.loss, new)
    assert got.clipped == (grad[MASK] == 0).sum()


# --- invariances of every loss ---

Loss = Callable[..., Any]


def _entropy(new: Tensor, old: Tensor, other: Tensor, mask: Tensor, **kw: Any) -> SimpleNamespace:
    return entropy_term(new, mask, clip=-0.5, mean_entropy=-0.9, **kw)


def _bonus(new: Tensor, old: Tensor, other: Tensor, mask: Tensor, **kw: Any) -> SimpleNamespace:
    return entropy_term(new, mask, **kw)


def _lm(new: Tensor, old: Tensor, other: Tensor, mask: Tensor, **kw: Any) -> SimpleNamespace:
    return lm_loss(new, mask, **kw)


def _penalty(*cols: Tensor, **kw: Any) -> SimpleNamespace:
    return kl_penalty_policy_loss(*cols, beta=0.3, **kw)


def _free_value(*cols: Tensor, **kw: Any) -> SimpleNamespace:
    return value_loss(*cols, clip_range=None, **kw)


LOSSES = [clipped_policy_loss, _penalty, value_loss, _free_value, _entropy, _bonus, _lm]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__.strip("_"))


def fields(out: Any) -> dict[str, Tensor]:
    return dict(vars(out))


def gradient(loss: Loss, cols: tuple[Tensor, Tensor, Tensor], mask: Tensor, **kw: Any) -> Tensor:
    leaf = cols[0].detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, *cols[1:], mask, **kw).loss, leaf)[0]


@every_loss
@garbage
def test_garbage_outside_the_mask_changes_nothing(loss: Loss, junk):
    cols = columns(MASK, 0)
    dirty = tuple(spoil(x, MASK, junk).requires_grad_() for x in cols)
    clean_out, dirty_out = fields(loss(*cols, MASK)), fields(loss(*dirty, MASK))
    assert all(torch.equal(clean_out[k], dirty_out[k]) for k in clean_out)
    assert torch.equal(gradient(loss, cols, MASK), gradient(loss, dirty, MASK))
    assert torch.all(gradient(loss, dirty, MASK)[~MASK] == 0)


@every_loss
@garbage
def test_garbage_does_not_leak_through_what_made_it(loss: Loss, junk):
    """The gradient at the mask is exactly zero, so also upstream nothing but `0 * inf` could go wrong."""
    cols = columns(MASK, 0)
    weight = torch.ones((), requires_grad=True)
    clean = torch.autograd.grad(loss(cols[0].detach() * weight, *cols[1:], MASK).loss, weight)[0]
    spoiled = torch.where(MASK, cols[0].detach() * weight, torch.tensor(junk))
    dirty = torch.autograd.grad(loss(spoiled, *cols[1:], MASK).loss, weight)[0]
    assert torch.equal(clean, dirty)


@every_loss
def test_padding_and_row_order_change_nothing(loss: Loss):
    cols = columns(MASK, 0)
    whole, grad = fields(loss(*cols, MASK)), gradient(loss, cols, MASK)
    wide = tuple(torch.nn.functional.pad(x.detach(), (2, 3), value=7.0) for x in cols)
    padded_mask = torch.nn.functional.pad(MASK, (2, 3))
    for name, number in fields(loss(*wide, padded_mask)).items():
        close(number, whole[name])
    close(gradient(loss, wide, padded_mask)[:, 2:-3], grad)
    order = torch.tensor([2, 0, 3, 1])
    for name, number in fields(loss(*(x[order] for x in cols), MASK[order])).items():
        close(number, whole[name])


@every_loss
@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_add_up_to_the_batch(loss: Loss, as_tensor):
    cols = columns(MASK, 0)
    normalizer: float | Tensor = MASK.sum() if as_tensor else float(MASK.sum())
    whole, grad = fields(loss(*cols, MASK, normalizer=normalizer)), gradient(loss, cols, MASK)
    cuts = [slice(0, 1), slice(1, 3), slice(3, 4)]
    parts = [fields(loss(*(x[c] for x in cols), MASK[c], normalizer=normalizer)) for c in cuts]
    for name in whole:
        together = torch.stack([p[name] for p in parts])
        close(together.max() if name == "ratio_drift" else together.sum(), whole[name])
    grads = [gradient(loss, tuple(x[c] for x in cols), MASK[c], normalizer=normalizer) for c in cuts]
    close(torch.cat(grads), grad)


@every_loss
def test_the_normalizer_divides_and_the_default_is_the_token_count(loss: Loss):
    cols = columns(MASK, 0)
    assert torch.equal(loss(*cols, MASK).loss, loss(*cols, MASK, normalizer=9).loss)
    for half in (0.5, torch.tensor(0.5)):
        close(loss(*cols, MASK, normalizer=half).loss, 18 * loss(*cols, MASK).loss)


@every_loss
def test_an_empty_mask_gives_zero_and_no_gradient(loss: Loss):
    cols, nothing = columns(MASK, 0), torch.zeros_like(MASK)
    for normalizer in (None, 0.0, 7.0, torch.tensor(0)):
        out = loss(*cols, nothing, normalizer=normalizer)
        assert all(torch.all(x == 0) for x in fields(out).values())
        assert out.loss.requires_grad
        assert torch.all(gradient(loss, cols, nothing, normalizer=normalizer) == 0)
    no_columns = tuple(x[:, :0].detach() for x in cols)
    assert loss(*no_columns, MASK[:, :0]).loss == 0


@every_loss
@given(mask=masks, seed=seeds, scale=scales)
def test_finite_where_the_maths_is(loss: Loss, mask, seed, scale):
    """Huge advantages, returns and ratios, one at a time: value and gradient stay finite."""
    new, old, other = columns(mask, seed)
    # the square of an error of 1e30 does not fit into fp32
    pull = min(scale, 1e15) if loss in (value_loss, _free_value) else scale
    for cols in ((new, old, other * pull), (new * min(scale, 1e15), old, other)):
        out = loss(*cols, mask)
        assert finite(*(x.detach() for x in fields(out).values()))
        assert finite(gradient(loss, cols, mask))


def test_ratio_overflow_and_impossible_tokens():
    new = torch.tensor([[-1.0, -math.inf, -500.0, -1.0]], requires_grad=True)
    old = torch.tensor([[-900.0, -1.0, -1.0, -math.inf]])
    for advantages in (torch.ones(1, 4), -torch.ones(1, 4)):
        for clip in (CLIP, None):
            out = clipped_policy_loss(new, old, advantages, torch.ones(1, 4, dtype=torch.bool), clip_range=clip)
            (grad,) = torch.autograd.grad(out.loss, new)
            assert finite(*(x.detach() for x in fields(out).values()), grad)
            assert torch.all(grad == 0)


def test_huge_advantage_and_huge_ratio_together_are_held_by_the_clip():
    new, old = torch.tensor([[-1.0]], requires_grad=True), torch.tensor([[-900.0]])
    out = clipped_policy_loss(new, old, torch.tensor([[1e30]]), torch.ones(1, 1, dtype=torch.bool), clip_range=CLIP)
    close(out.loss, -1.2e30)
    assert torch.autograd.grad(out.loss, new)[0] == 0


@every_loss
def test_fp32_from_bf16_and_only_the_loss_has_a_gradient(loss: Loss):
    cols = columns(MASK, 0)
    out = loss(*(x.detach().bfloat16().requires_grad_() for x in cols), MASK)
    rounded = loss(*(x.detach().bfloat16().float() for x in cols), MASK)
    for name, number in fields(out).items():
        assert number.dtype == torch.float32
        assert number.shape == ()
        assert number.requires_grad == (name == "loss")
        close(number, getattr(rounded, name))


def test_entropy_level_over_micro_batches_needs_the_sign_of_the_whole():
    entropies, mask = torch.tensor([[1.0, 1.0], [4.0, 4.0]]), torch.ones(2, 2, dtype=torch.bool)
    whole = entropy_term(entropies, mask, coef=1.0, clip=2.0).loss
    parts = [
        entropy_term(entropies[i : i + 1], mask[i : i + 1], coef=1.0, clip=2.0, normalizer=4, mean_entropy=mean).loss
        for i in (0, 1)
        for mean in (2.5, None)
    ]
    close(whole, 0.5)
    close(parts[0] + parts[2], whole)
    close(parts[1] + parts[3], 1.5)  # each cut on its own side of the level: not the term asked for


def test_refusals():
    cols = columns(MASK, 0)
    for loss in (clipped_policy_loss, value_loss):
        with pytest.raises(ValueError, match=r"`clip_range` \(0.0\) must be positive, or None for no clipping"):
            loss(*cols, MASK, clip_range=0.0)
    with pytest.raises(ValueError, match=r"`beta` \(-1.0\) must not be negative"):
        kl_penalty_policy_loss(*cols, MASK, beta=-1.0)
    for loss in LOSSES:
        with pytest.raises(ValueError, match="`mask` must be bool"):
            loss(*cols, MASK.float())
        with pytest.raises(ValueError, match="must have the shape"):
            loss(*cols, MASK[:, 1:])
    with pytest.raises(ValueError, match=r"`clip` \(2.0\) needs `mean_entropy`"):
        f.entropy_loss(cols[0], clip=2.0)
