"""Did the weights arrive? An engine's log-probabilities against the policy's, on a few tokens, after every sync."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.models.causal import unwrap

CHECK_TOKENS = 32
MAX_GAP_FP32, MAX_GAP_16_BITS = 0.01, 0.1
"""Nats per token. Measured: 1e-6 in fp32, up to 0.03 in bf16 where all is well; above 1 where a reload went wrong."""


def checked_gap(policy: Any, engine: Callable[[list[int]], Tensor], *, limit: float, longest: int) -> float:
    """Mean absolute difference of the two log-probabilities, nats per token.

    Args:
        policy: The model whose weights were sent.
        engine: From N token ids to the log-probabilities of those after the first, ``(N - 1,)``.
        limit: Largest difference that is none.
        longest: Most tokens that the engine takes, one of them drawn.

    Raises:
        RuntimeError: If the difference is larger, or not finite.
    """
    ids = spread(unwrap(policy).config.get_text_config().vocab_size, max(2, min(CHECK_TOKENS, longest - 1)))
    gap = float((engine(ids) - policy_logprobs(policy, ids)).abs().mean())
    if not gap <= limit:  # NaN too
        raise RuntimeError(
            f"After the sync the engine's log-probabilities are {gap:.3g} nats per token from the policy's (`max_gap` "
            f"{limit}): weights are not finite, or the engine does not load {type(unwrap(policy)).__name__} rightly."
        )
    return gap


def spread(vocabulary: int, count: int) -> list[int]:
    """``count`` token ids from all over the vocabulary, none of them twice in a row."""
    step = max(1, vocabulary // count)
    return [(1 + i * step) % vocabulary for i in range(count)]


def policy_logprobs(policy: Any, ids: list[int]) -> Tensor:
    """The same of the policy, in eval mode and without autocast."""
    tokens, training = torch.tensor([ids], device=policy.device), policy.training
    try:
        logits = unwrap(policy.eval())(input_ids=tokens, use_cache=False).logits[0, :-1].float()
    finally:
        policy.train(training)
    drawn: Tensor = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0].cpu()
    return drawn
