"""From prompts to what an engine is asked, and from responses to what a reward and a file are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlhf.data.template import response_end
from lit_rlhf.randomness import generator_for
from lit_rlhf.rollout.engine import GenerationRequest
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.types import ROW_KEY, PromptBatch, Record, RewardRequest, Rollout

EVAL_SEED = 20230711


def eos_token_ids(tokenizer: Any, model: Any) -> list[int]:
    """Tokens that end a response: the tokenizer's EOS, the chat template's end, and the model's generation config's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    extra = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, response_end(tokenizer), *[i for i in extra if i is not None]})


def generation_request(
    policy: Any,
    tokenizer: Any,
    prompts: PromptBatch,
    uniforms: Tensor,
    sampling: SamplingConfig,
    *,
    longest_row: int = 0,
) -> GenerationRequest:
    """What an engine is asked for, with the ends of a response that tokenizer and policy know.

    Args:
        policy: For its generation config.
        tokenizer: The policy's.
        prompts: Left-padded prompts, B rows.
        uniforms: ``(B, max_response_length)`` float64; moved to the device of the prompts.
        sampling: Which distribution to draw from.
        longest_row: See :class:`GenerationRequest`.

    Raises:
        ValueError: See :class:`GenerationRequest`.
    """
    return GenerationRequest(
        prompts=prompts,
        sampling=sampling,
        eos_token_ids=tuple(eos_token_ids(tokenizer, policy)),
        pad_token_id=tokenizer.pad_token_id,
        uniforms=uniforms.to(prompts.prompt_ids.device),
        longest_row=longest_row,
    )


def eval_uniforms(batch: PromptBatch, width: int) -> Tensor:
    """Random numbers of each row, ``(B, width)`` float64, from its prompt and sample index alone.

    The seed is a constant of the library: the same prompt meets the same numbers in every run, so differences between
    two policies are not differences of luck.
    """
    drawn = []
    for index, record in enumerate(batch.records):
        key = record.get(ROW_KEY, {"row": index, "sample": 0})
        generator = generator_for(EVAL_SEED, key["row"], key["sample"])
        drawn.append(torch.rand(width, generator=generator, dtype=torch.float64))
    return torch.stack(drawn)


def raw_record(record: Record) -> dict[str, Any]:
    """A record without the loader's own key: what rewards and files see."""
    return {k: v for k, v in record.items() if k != ROW_KEY}


def reward_request(tokenizer: Any, rollout: Rollout, *, template: str | None = None) -> RewardRequest:
    """A rollout as ids and as text; ``template`` is that of its prompts, if it has a name."""
    prompts = _real_tokens(rollout.prompt_ids, rollout.prompt_mask)
    responses = _real_tokens(rollout.response_ids, rollout.response_mask)
    return RewardRequest(
        rollout=rollout,
        prompts=tokenizer.batch_decode(prompts),
        responses=tokenizer.batch_decode(responses, skip_special_tokens=True),
        records=[raw_record(record) for record in rollout.records],
        template=template,
    )


def _real_tokens(ids: Tensor, mask: Tensor) -> list[Tensor]:
    return [row[keep] for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]


def response_rows(request: RewardRequest) -> list[dict[str, Any]]:
    """One JSON-able row a response: where its prompt stands, both texts, tokens, whether it ended, the raw record."""
    rollout = request.rollout
    lengths, ended = rollout.response_lengths.tolist(), request.ended
    return [
        {
            **rollout.records[i].get(ROW_KEY, {}),
            "prompt": request.prompts[i],
            "response": request.responses[i],
            "tokens": lengths[i],
            "ended": ended[i],
            "record": dict(request.records[i]),
        }
        for i in range(len(rollout))
    ]
