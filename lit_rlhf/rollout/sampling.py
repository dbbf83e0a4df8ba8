"""From logits to tokens: which distribution a response is drawn from, and the draw itself.

The draw inverts the cumulative distribution at a uniform number that the caller supplies, one per row and step. A
token is then a function of (logits, uniform) alone: results do not depend on the order of rows, on batching, or on
which other rows are still running, and two ranks draw what one process would. It is also cheaper than
`torch.multinomial` over a large vocabulary, which draws one exponential per vocabulary entry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How responses are drawn. Applied in this order: minimum length, repetition penalty, temperature, top-k, top-p.

    Log-probabilities for the PPO ratio and for KL are always of the *raw* logits; nothing here enters them.

    Args:
        temperature: Divides the logits; 0 takes the most likely token (the uniforms are then unused).
        top_p: Keep the smallest set of most likely tokens whose probability reaches this, in (0, 1]. Tokens tied with
            the last one kept are kept too, so that the set does not depend on a sort's order.
        top_k: Keep this many most likely tokens (ties kept); 0 keeps all.
        repetition_penalty: Tokens already generated have positive logits divided and negative ones multiplied by it
            (CTRL, arXiv 1909.05858). 1 is off.
        penalize_prompt: Whether prompt tokens count as already generated. Off by default, as in the paper; the
            `generate` method of transformers counts them.
        max_response_length: Tokens after which a response is cut, EOS included.
        min_response_length: Tokens a response has at least, EOS included: an earlier EOS cannot be drawn.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    penalize_prompt: bool = False
    max_response_length: int = 512
    min_response_length: int = 0

    def __post_init__(self) -> None:
        self._require(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "finite and >= 0")
        self._require(0 < self.top_p <= 1, "top_p", "in (0, 1]")
        self._require(self.top_k >= 0, "top_k", ">= 0 (0 keeps every token)")
        self._require(0 < self.repetition_penalty < math.inf, "repetition_penalty", "> 0 and finite (1 is off)")
        self._require(self.max_response_length >= 1, "max_response_length", ">= 1")
        self._require(self.min_response_length >= 0, "min_response_length", ">= 0")
        if self.min_response_length > self.max_response_length:
            raise ValueError(
                f"`min_response_length` ({self.min_response_length}) must not exceed `max_response_length` "
                f"({self.max_response_length})."
            )

    def _require(self, holds: bool, name: str, rule: str) -> None:  # noqa: FBT001
        if not holds:
            raise ValueError(f"`{name}` ({getattr(self, name)}) must be {rule}.")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken instead of a draw."""
        return self.temperature == 0


def penalize_repetition(logits: Tensor, seen_ids: Tensor, seen_mask: Tensor, *, penalty: float) -> Tensor:
    """Logits with the tokens ``seen_ids`` made less likely (or more, for a penalty below 1).

    Args:
        logits: ``(B, V)`` fp32.
        seen_ids: Token ids already present, ``(B, S)`` int64; repeats count once.
        seen_mask: True where ``seen_ids`` counts, ``(B, S)`` bool.
        penalty: Divides positive logits, multiplies negative ones.

    Returns:
        New logits ``(B, V)``. Source: Keskar et al. 2019, section 4.1, with the sign rule of transformers.
    """
    seen = logits.gather(1, seen_ids)
    scaled = torch.where(seen > 0, seen / penalty, seen * penalty)
    # Positions that do not count write into a spare column: the same token may count elsewhere in the row, and of two
    # different values scattered to one place either may win.
    spare = logits.size(1)
    padded = torch.cat([logits, logits[:, :1]], dim=1)
    return padded.scatter(1, seen_ids.masked_fill(~seen_mask, spare), scaled)[:, :spare]


def _at_least(weights: Tensor, threshold: Tensor, *, scratch: Tensor | None = None) -> Tensor:
    """``weights`` (B, V) where they reach ``threshold`` (B, 1), zero elsewhere."""
    # A comparison into floats and a product: ten times faster on a CPU than `where` or `masked_fill`.
    return torch.ge(weights, threshold, out=torch.empty_like(weights) if scratch is None else scratch).mul_(weights)


def keep_top_k(weights: Tensor, *, k: int) -> Tensor:
    """Weights ``(B, V)`` with all but the ``k`` largest of each row (and their ties) set to zero."""
    if not 0 < k < weights.size(-1):
        return weights
    return _at_least(weights, weights.topk(k, dim=-1).values[..., -1:])


def keep_top_p(weights: Tensor, *, p: float, first_look: int = 64) -> Tensor:
    """Weights outside each row's nucleus set to zero; what is left is not renormalized.

    The nucleus is the smallest set of most likely tokens with a share >= ``p`` of the row's total, and their ties
    (Holtzman et al. 2020, arXiv 1904.09751). On a CPU the ``first_look`` likeliest tokens usually contain it; when some
    row's do not, the threshold is searched for by bisection instead of sorting the vocabulary. An accelerator sorts:
    asking whether it has to would make the host wait for it at every token.

    Args:
        weights: Non-negative, ``(B, V)`` fp32.
        p: In (0, 1].
        first_look: Tokens sorted at the first attempt; does not change the result.
    """
    if p >= 1:
        return weights
    target = p * weights.sum(-1, keepdim=True)
    if weights.device.type != "cpu":
        return _at_least(weights, _sorted_threshold(weights, target=target))
    largest = weights.topk(min(first_look, weights.size(-1)), dim=-1).values
    cumulative = largest.cumsum(-1)
    if bool((cumulative[:, -1:] >= target).all()):
        return _at_least(weights, largest.gather(-1, (cumulative < target).sum(-1, keepdim=True)))
    return _at_least(weights, _bisect_threshold(weights, target=target))


def _sorted_threshold(weights: Tensor, *, target: Tensor) -> Tensor:
    """The entry of each row, ``(B, 1)``, at which the sum of the largest ones reaches ``target``."""
    largest = weights.sort(-1, descending=True).values
    # Rounding may keep the sum of all below a target close to it: then every token belongs to the nucleus.
    position = (largest.cumsum(-1) < target).sum(-1, keepdim=True).clamp_max(weights.size(-1) - 1)
    return largest.gather(-1, position)


def _bisect_threshold(weights: Tensor, *, target: Tensor) -> Tensor:
    """The largest value t of each row, ``(B, 1)``, for which entries >= t sum to at least ``target`` (0 if none do).

    Non-negative fp32 numbers are ordered as their bit patterns are, so 31 halvings find the value exactly.
    """
    low = torch.zeros(weights.size(0), 1, dtype=torch.int32, device=weights.device)
    high = weights.amax(-1, keepdim=True).view(torch.int32) + 1
    scratch = torch.empty_like(weights)
    for _ in range(31):
        middle = low + (high - low) // 2
        enough = _at_least(weights, middle.view(torch.float32), scratch=scratch).sum(-1, keepdim=True) >= target
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low.view(torch.float32)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """Index of the first entry of each row of ``cumulative`` (B, N) that exceeds ``target`` (B, 1)."""
    last = cumulative[:, -1:]
    below_last = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last)))
    # Only a row of NaNs reaches past the end; it must stay a valid index so that the caller can report it.
    index: Tensor = torch.searchsorted(cumulative, below_last.clamp_min(0), right=True)
    return index.clamp_max(cumulative.size(1) - 1)


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The index whose share of the row's total contains ``uniforms``: a draw proportional to ``weights``.

    Works in two levels, first over blocks of about ``sqrt(V)`` entries and then inside the block found, so that the
    vocabulary is only summed, never scanned, and the two scans are in fp64. An entry of weight zero is never drawn.

    Args:
        weights: Non-negative and finite, not necessarily normalized, ``(B, V)``.
        uniforms: In [0, 1), ``(B,)`` float64.

    Returns:
        ``(B,)`` int64.
    """
    rows, vocabulary = weights.shape
    block = 2 ** max(0, round(math.log2(vocabulary) / 2))
    while vocabulary % block and block > 32:  # a divisor saves a padded copy
        block //= 2
    if vocabulary % block:
        weights = torch.nn.functional.pad(weights, (0, block - vocabulary % block))
    blocks = weights.view(rows, -1, block)
    cumulative = blocks.sum(-1).double().cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    chosen = _first_above(cumulative, target)
    before = torch.where(chosen > 0, cumulative.gather(1, (chosen - 1).clamp_min(0)), 0.0)
    inside = blocks[torch.arange(rows, device=weights.device), chosen[:, 0]].double().cumsum(-1)
    drawn: Tensor = (chosen * block + _first_above(inside, target - before))[:, 0]
    return drawn.clamp_max(vocabulary - 1)


def token_weights(
    logits: Tensor,
    *,
    sampling: SamplingConfig,
    eos_token_ids: Sequence[int] | Tensor,
    position: int | Tensor,
    seen_ids: Tensor | None = None,
    seen_mask: Tensor | None = None,
) -> Tensor:
    """Weights of the next token: the distribution a response is drawn from, up to each row's total.

    Args:
        logits: Raw logits ``(B, V)`` fp32.
        sampling: The settings; with temperature 0 the processed logits are returned instead.
        eos_token_ids: Tokens that end a response.
        position: Index of the token about to be drawn, 0 for the first; one for all rows or one each, ``(B,)``.
        seen_ids: Tokens that the repetition penalty applies to, ``(B, S)`` int64.
        seen_mask: True where ``seen_ids`` counts, ``(B, S)`` bool.

    Returns:
        ``(B, V)`` fp32: probabilities, with excluded tokens at zero and the rest not renormalized.
    """
    if sampling.min_response_length:
        early = torch.as_tensor(position, device=logits.device).view(-1, 1) + 1 < sampling.min_response_length
        eos = torch.as_tensor(eos_token_ids, device=logits.device)
        logits = logits.index_copy(1, eos, logits[:, eos].masked_fill(early, -math.inf))
    if sampling.repetition_penalty != 1 and seen_ids is not None and seen_mask is not None and seen_ids.size(1):
        logits = penalize_repetition(logits, seen_ids, seen_mask, penalty=sampling.repetition_penalty)
    if sampling.greedy:
        return logits
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    return keep_top_p(keep_top_k(logits.softmax(-1), k=sampling.top_k), p=sampling.top_p)
