"""What the models say of responses: log-probabilities and values at the response tokens.

One pair of functions serves scoring (no gradient) and the update (gradient): the same call on the same rows gives the
same bits, which is what makes the ratio of the first update exactly 1 (docs/architecture.md, invariant 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.functional.logprobs import chunked_logprobs
from lit_rlhf.functional.masking import flat_positions
from lit_rlhf.models.causal import projector, trunk_hidden
from lit_rlhf.models.compact import CompactRows, compact_rows
from lit_rlhf.types import Rollout, TextBatch

CHUNK_TOKENS = 4096


def response_logprobs(
    model: Any, rows: CompactRows, *, chunk_size: int = CHUNK_TOKENS, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the response tokens under the model's raw logits.

    No temperature, top-p or penalty enters; prompt and padding positions never reach the vocabulary projection.

    Args:
        model: A causal language model.
        rows: Right-padded rows.
        chunk_size: Tokens projected to the vocabulary at a time.
        with_entropy: Whether to return the entropy of each next-token distribution too.

    Returns:
        ``(logprobs, entropy)``, each ``(b, T)`` fp32 and zero outside the mask; entropy is None unless asked for.
    """
    logprobs, entropy = chunked_logprobs(
        trunk_hidden(model, rows.input_ids, at=rows.predicting()),
        projector(model),
        rows.predicted(),
        chunk_size=chunk_size,
        with_entropy=with_entropy,
    )
    return rows.scatter(logprobs), None if entropy is None else rows.scatter(entropy)


def response_values(critic: Any, rows: CompactRows) -> Tensor:
    """The critic's value before each response token is drawn, ``(b, T)`` fp32, zero outside the mask.

    Args:
        critic: Gives values ``(N,)`` for ``critic(input_ids, at=positions)``, as ``ScalarModel`` does.
        rows: Right-padded rows.
    """
    return rows.scatter(critic(rows.input_ids, at=rows.predicting()).float())


@dataclass(frozen=True, kw_only=True)
class ModelColumns:
    """What the models say of B responses, each ``(B, T)`` fp32, zero outside the response and where none was asked.

    Attributes:
        logprobs: Of the policy.
        entropy: Of the policy's next-token distributions, nats.
        ref_logprobs: Of the reference; None without one.
        values: Of the critic.
    """

    logprobs: Tensor
    entropy: Tensor
    ref_logprobs: Tensor | None
    values: Tensor


def model_columns(
    rollout: Rollout,
    micro_batches: Sequence[Tensor],
    *,
    policy: Any | None,
    reference: Any | None,
    critic: Any | None,
    pad_token_id: int,
) -> ModelColumns:
    """Ask the models for their columns, micro-batch by micro-batch; call it without a gradient.

    Args:
        rollout: B responses.
        micro_batches: Rows (int64) of each forward pass; equal passes give equal bits.
        policy: Causal language model, or None to leave its columns zero.
        reference: Causal language model, or None.
        critic: See :func:`response_values`, or None.
        pad_token_id: Id written to padding; it changes no result.
    """
    shape, device = rollout.response_mask.shape, rollout.input_ids.device
    logprobs, entropy, values, ref = (torch.zeros(shape, dtype=torch.float32, device=device) for _ in range(4))
    for rows in (part.to(device) for part in micro_batches):
        compact = compact_rows(rollout, rows, pad_token_id)
        width = compact.response_mask.size(1)
        if policy is not None:
            now, spread = response_logprobs(policy, compact, with_entropy=True)
            assert spread is not None
            logprobs[rows, :width], entropy[rows, :width] = now, spread
        if reference is not None:
            ref[rows, :width] = response_logprobs(reference, compact)[0]
        if critic is not None:
            values[rows, :width] = response_values(critic, compact)
    return ModelColumns(
        logprobs=logprobs, entropy=entropy, ref_logprobs=None if reference is None else ref, values=values
    )


def text_logprobs(model: Any, text: TextBatch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the learned tokens of a text batch, ``(B, L - 1)`` fp32, and their mask."""
    mask = text.loss_mask[:, 1:]
    hidden = trunk_hidden(model, text.input_ids, at=flat_positions(mask, text.input_ids.size(1)))
    flat, _ = chunked_logprobs(hidden, projector(model), text.input_ids[:, 1:][mask])
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat), mask
