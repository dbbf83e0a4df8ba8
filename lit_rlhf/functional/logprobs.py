"""Log-probabilities and entropies of tokens, without keeping a logit for every token of the vocabulary.

N tokens with a vocabulary of V need N x V logits; at 32 rows x 512 tokens x 128k words that is 8 GiB in fp32, several
times over in backward. Here the logits live for one chunk of tokens at a time and are made again in backward; of a
chunk there is one copy in forward and two in backward (the gradient is the second), whether or not the entropy is asked
for: softmaxes live for a block of rows.

Logits are raw: no temperature, no top-p, no penalty (paper section 3, Settings). A forbidden token (logit ``-inf``) has
probability zero and no gradient. The arithmetic from the logits on is fp32; everything is in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK_SIZE = 1024
LOGIT_COPIES = 2
"""Logits of a chunk that are there at once in backward: themselves and their gradient, in the head's dtype."""
CPU_BLOCK, ACCELERATOR_BLOCK = 2**18, 2**23
"""Elements of a block: 1 MiB of fp32 stays in a CPU's cache; a few large kernels keep an accelerator busy."""


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
        columns: tuple[Tensor, ...] = _TokenColumns.apply(project(states), tokens, with_entropy)  # type: ignore[no-untyped-call]
        return columns

    if ids.numel() <= chunk_size:
        columns = of_chunk(hidden, ids)
    else:
        parts = zip(torch.split(hidden, chunk_size), torch.split(ids, chunk_size), strict=True)
        # no RNG state to keep: `project` is deterministic
        chunks = [checkpoint(of_chunk, h, t, use_reentrant=False, preserve_rng_state=False) for h, t in parts]
        columns = tuple(torch.cat(column) for column in zip(*chunks, strict=True))
    return columns[0], columns[1] if with_entropy else None


class _TokenColumns(torch.autograd.Function):
    """Log-probabilities ``(N,)`` and, if asked for, entropies ``(N,)`` of logits ``(N, V)``; keeps the logits alone."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, with_entropy: bool) -> tuple[Tensor, ...]:  # noqa: FBT001
        ctx.save_for_backward(logits, ids)
        columns = tuple(logits.new_empty(len(ids), dtype=_float(logits)) for _ in range(1 + with_entropy))
        for rows in _blocks(logits):
            logp = _log_softmax(logits[rows])
            columns[0][rows] = _select(logp, ids[rows])
            if with_entropy:
                columns[1][rows] = _entropy(logp)
        return columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_entropy: Tensor | None = None) -> tuple[Tensor, None, None]:
        logits, ids = ctx.saved_tensors
        out = torch.empty_like(logits)
        for rows in _blocks(logits):
            logp = _log_softmax(logits[rows])
            # with respect to log p: d(-sum p log p) = -(p log p + p), and the chosen token's own gradient
            wanted = torch.zeros_like(logp)
            if grad_entropy is not None:
                scale = -grad_entropy[rows, None]
                p = logp.exp()
                torch.mul(_finite(logp), scale, out=wanted).mul_(p).add_(p.mul_(scale))
            wanted.scatter_add_(1, ids[rows, None], grad[rows, None])
            out[rows] = torch.ops.aten._log_softmax_backward_data(wanted, logp, -1, logp.dtype)
        return out, None, None


def _blocks(logits: Tensor) -> Iterator[slice]:
    elements = CPU_BLOCK if logits.device.type == "cpu" else ACCELERATOR_BLOCK
    step = max(1, elements // logits.size(1))
    return (slice(start, start + step) for start in range(0, len(logits), step))


def _float(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _log_softmax(logits: Tensor) -> Tensor:
    # fused: one pass over V forward and one backward, where `gather - logsumexp` takes several
    return torch.log_softmax(logits, dim=-1, dtype=_float(logits))


def _select(logp: Tensor, ids: Tensor) -> Tensor:
    return logp.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _finite(logp: Tensor) -> Tensor:
    # a forbidden token gives 0 * -inf; with a number whose exponential is still 0 (in fp64, too), all products are 0
    return logp.clamp(min=-1000.0)


def _entropy(logp: Tensor) -> Tensor:
    finite = _finite(logp)
    return -(finite.exp() * finite).sum(-1)
