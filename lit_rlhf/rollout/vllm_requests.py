"""What both vLLM engines ask for and get back, in words that need no vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lit_rlhf.rollout.engine import GenerationRequest, assemble
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.types import Rollout


def check_request(request: GenerationRequest, *, draws: str, longest: int) -> None:
    """Refuse what vLLM would answer otherwise than asked.

    Raises:
        ValueError: The sampling means something else to vLLM's sampler, or a row may not fit ``longest`` tokens.
    """
    sampling = request.sampling
    if draws == "seed" and sampling.repetition_penalty != 1 and not sampling.penalize_prompt:
        raise ValueError(
            "`sampling.penalize_prompt` (False) must be True with `draws: seed`, whose penalty counts the prompt; "
            "`draws: exact` knows both."
        )
    asked = int(request.prompts.prompt_mask.sum(1).max()) + sampling.max_response_length
    if max(asked, request.longest_row) > longest:
        raise ValueError(
            f"`max_length` ({longest}) must be at least the longest prompt plus `max_response_length` "
            f"({max(asked, request.longest_row)})."
        )


def prompt_tokens(request: GenerationRequest) -> list[list[int]]:
    """Token ids of each prompt, without padding."""
    prompts = request.prompts
    rows = zip(prompts.prompt_ids.cpu(), prompts.prompt_mask.cpu(), strict=True)
    return [ids[keep].tolist() for ids, keep in rows]


def seeded(sampling: SamplingConfig, first_number: float) -> dict[str, Any]:
    """A row's sampling in vLLM's own words, seeded by its first uniform number."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "min_tokens": max(0, sampling.min_response_length - 1),  # vLLM does not count the EOS
        "seed": int(first_number * 2**53),
    }


def as_rollout(
    request: GenerationRequest, responses: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]] | None
) -> Rollout:
    """Responses and the log-probabilities of their tokens, row by row, as a rollout.

    Raises:
        FloatingPointError: If log-probabilities of a row are not finite.
    """
    prompts, width = request.prompts, request.sampling.max_response_length
    device = prompts.prompt_ids.device
    ids = torch.full((len(prompts), width), request.pad_token_id, dtype=torch.int64)
    table = torch.zeros(len(prompts), width)
    lengths = torch.tensor([len(response) for response in responses])
    for row, response in enumerate(responses):
        ids[row, : lengths[row]] = torch.tensor(response)
        if logprobs is not None:
            table[row, : lengths[row]] = torch.tensor(logprobs[row])
    bad = (~table.isfinite().all(1)).nonzero()[:, 0].tolist()
    if bad:
        raise FloatingPointError(f"vLLM's log-probabilities after prompts {bad[:8]} are not finite.")
    last = ids.gather(1, (lengths - 1).clamp_min(0)[:, None])[:, 0]
    return assemble(
        prompts,
        response_ids=ids.to(device),
        response_lengths=lengths.to(device),
        ended=torch.isin(last, torch.tensor(request.eos_token_ids)).to(device),
        sampler_logprobs=None if logprobs is None else table.to(device),
    )
