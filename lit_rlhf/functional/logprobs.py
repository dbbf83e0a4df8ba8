"""Log-probabilities and entropies of tokens, without keeping a logit for every token of the vocabulary.

N tokens with a vocabulary of V need N x V logits; at 32 rows x 512 tokens x 128k words that is 8 GiB in fp32, several
times over in backward. Here the logits live for one chunk of tokens at a time and are made again in backward.

Logits are raw: no temperature, no top-p, no penalty (paper section 3, Settings). A forbidden token (logit ``-inf``) has
probability zero and no gradient. The arithmetic from the logits on is fp32; everything is in nats.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_SIZE = 1024


def chunked_logprobs(
    hidden: Tensor,
    project: Callable[[Tensor], Tensor],
    ids: Tensor,
    *,
    chunk_size: int = CHUNK_SIZE,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``log π(yᵢ) = z(yᵢ) − log Σ_v e^z(v)`` and ``Hᵢ = −Σ_v p(v) log p(v)`` from hidden states, a chunk at a time.

    Up to ``chunk_size`` tokens the logits are kept for backward as usual. Beyond that each chunk's logits are thrown
    away after forward and made again in backward, so the peak is ``chunk_size x V`` whatever N is. Values are the same
    bits with and without gradients, and with and without entropy.

    Args:
        hidden: Hidden states of the positions that predict ``ids``, ``(N, H)``, any float dtype.
        project: Hidden states to logits, ``(n, H) -> (n, V)``; differentiable, row-wise, deterministic.
        ids: The tokens y, ``(N,)`` int64.
        chunk_size: Tokens whose logits exist at one time.
        with_entropy: Whether to compute the entropies too.

    Returns:
        Log-probabilities ``(N,)`` fp32, and entropies ``(N,)`` fp32 or None.

    Raises:
        ValueError: If the shapes do not fit or ``chunk_size`` is not positive.
    """
    if hidden.dim() != 2 or ids.shape != hidden.shape[:1]:
        raise ValueError(f"`hidden` {tuple(hidden.shape)} must be (N, H) and `ids` {tuple(ids.shape)} (N,).")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` ({chunk_size}) must be at least 1.")

    def of_chunk(states: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        logp = _log_softmax(project(states))
        return (_select(logp, tokens), _entropy(logp)) if with_entropy else (_select(logp, tokens),)

    if ids.numel() <= chunk_size:
        columns = of_chunk(hidden, ids)
    else:
        parts = zip(torch.split(hidden, chunk_size), torch.split(ids, chunk_size), strict=True)
        # no RNG state to keep: `project` is deterministic
        chunks = [checkpoint(of_chunk, h, t, use_reentrant=False, preserve_rng_state=False) for h, t in parts]
        columns = tuple(torch.cat(column) for column in zip(*chunks, strict=True))
    return columns[0], columns[1] if with_entropy else None


def _log_softmax(logits: Tensor) -> Tensor:
    # fused: one pass over V forward and one backward, where `gather - logsumexp` takes several
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _select(logp: Tensor, ids: Tensor) -> Tensor:
    return logp.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _entropy(logp: Tensor) -> Tensor:
    # a forbidden token gives 0 * -inf; with the largest finite number instead, value and gradient are 0
    finite = logp.clamp(min=torch.finfo(logp.dtype).min)
    return -(finite.exp() * finite).sum(-1)
