"""What the models say of responses: log-probabilities and values at the response tokens.

One pair of functions serves scoring (no gradient) and the update (gradient): the same call on the same rows gives the
same bits, which is what makes the ratio of the first update exactly 1 (docs/architecture.md, invariant 1).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rlhf.functional.logprobs import chunked_logprobs
from lit_rlhf.functional.masking import flat_positions
from lit_rlhf.models.causal import projector, trunk_hidden
from lit_rlhf.models.compact import CompactRows
from lit_rlhf.types import TextBatch

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
        rows.response_ids[rows.response_mask],
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


def text_logprobs(model: Any, text: TextBatch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the learned tokens of a text batch, ``(B, L - 1)`` fp32, and their mask."""
    mask = text.loss_mask[:, 1:]
    hidden = trunk_hidden(model, text.input_ids, at=flat_positions(mask, text.input_ids.size(1)))
    flat, _ = chunked_logprobs(hidden, projector(model), text.input_ids[:, 1:][mask])
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat), mask
