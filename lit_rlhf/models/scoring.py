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

from lit_rlhf.functional.logprobs import CHUNK_SIZE, LOGIT_COPIES, chunked_logprobs
from lit_rlhf.functional.masking import flat_positions
from lit_rlhf.models.causal import projector, trunk_hidden, unwrap
from lit_rlhf.models.compact import CompactRows, compact_rows
from lit_rlhf.types import Rollout, TextBatch

CHUNK_TOKENS = 4096
CPU_LOGITS_GIB, ACCELERATOR_LOGITS_GIB = 1.0, 2.0
"""Memory for logits where nothing is said: up to 32k words (CPU) or 65k the chunk is ``CHUNK_TOKENS`` whole."""


def logits_chunk(model: Any, device: torch.device | str, *, gib: float | None = None, most: int = CHUNK_TOKENS) -> int:
    r"""Tokens projected to the vocabulary at a time; one function for scoring and update, whose bits it must not tell.

    .. math:: \min(\text{most}, \text{gib} \cdot 2^{30} / (4 \cdot \text{copies} \cdot V))

    with :data:`~lit_rlhf.functional.logprobs.LOGIT_COPIES` fp32 copies in backward, rounded down to a multiple of 64.

    Args:
        model: A transformers model, or anything with its ``config``; PEFT-wrapped or not.
        device: Where the logits will be.
        gib: ``ModelConfig.logits_gib``.
        most: Upper limit, in tokens.
    """
    if gib is None:
        gib = CPU_LOGITS_GIB if torch.device(device).type == "cpu" else ACCELERATOR_LOGITS_GIB
    vocabulary: int = unwrap(model).config.get_text_config().vocab_size
    fitting = int(gib * 2**30) // (LOGIT_COPIES * 4 * vocabulary)
    return min(most, max(64, fitting - fitting % 64))


def response_logprobs(
    model: Any, rows: CompactRows, *, logits_gib: float | None = None, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the response tokens under the model's raw logits.

    No temperature, top-p or penalty enters; prompt and padding positions never reach the vocabulary projection.

    Args:
        model: A causal language model.
        rows: Right-padded rows.
        logits_gib: ``ModelConfig.logits_gib``; the same in scoring and update.
        with_entropy: Whether to return the entropy of each next-token distribution too.

    Returns:
        ``(logprobs, entropy)``, each ``(b, T)`` fp32 and zero outside the mask; entropy is None unless asked for.
    """
    logprobs, entropy = chunked_logprobs(
        trunk_hidden(model, rows.input_ids, at=rows.predicting()),
        projector(model),
        rows.predicted(),
        chunk_size=logits_chunk(model, rows.input_ids.device, gib=logits_gib),
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
    logits_gib: float | None = None,
) -> ModelColumns:
    """Ask the models for their columns, micro-batch by micro-batch; call it without a gradient.

    Args:
        rollout: B responses.
        micro_batches: Rows (int64) of each forward pass; equal passes give equal bits.
        policy: Causal language model, or None to leave its columns zero.
        reference: Causal language model, or None.
        critic: See :func:`response_values`, or None.
        pad_token_id: Id written to padding; it changes no result.
        logits_gib: ``ModelConfig.logits_gib``.
    """
    shape, device = rollout.response_mask.shape, rollout.input_ids.device
    logprobs, entropy, values, ref = (torch.zeros(shape, dtype=torch.float32, device=device) for _ in range(4))
    for rows in (part.to(device) for part in micro_batches):
        compact = compact_rows(rollout, rows, pad_token_id)
        width = compact.response_mask.size(1)
        if policy is not None:
            now, spread = response_logprobs(policy, compact, logits_gib=logits_gib, with_entropy=True)
            assert spread is not None
            logprobs[rows, :width], entropy[rows, :width] = now, spread
        if reference is not None:
            ref[rows, :width] = response_logprobs(reference, compact, logits_gib=logits_gib)[0]
        if critic is not None:
            values[rows, :width] = response_values(critic, compact)
    return ModelColumns(
        logprobs=logprobs, entropy=entropy, ref_logprobs=None if reference is None else ref, values=values
    )


def text_logprobs(model: Any, text: TextBatch, *, logits_gib: float | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the learned tokens of a text batch, ``(B, L - 1)`` fp32, and their mask."""
    mask = text.loss_mask[:, 1:]
    hidden = trunk_hidden(model, text.input_ids, at=flat_positions(mask, text.input_ids.size(1)))
    chunk = logits_chunk(model, hidden.device, gib=logits_gib, most=CHUNK_SIZE)
    flat, _ = chunked_logprobs(hidden, projector(model), text.input_ids[:, 1:][mask], chunk_size=chunk)
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat), mask
