"""Builds reward requests from texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lit_rlhf.types import RewardRequest, Rollout


def make_request(
    tokenizer: Any,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    ended: Sequence[bool] | None = None,
    records: Sequence[dict[str, Any]] | None = None,
    extra_padding: int = 0,
) -> RewardRequest:
    """Left-pad the prompts, right-pad the responses, as a rollout engine does."""
    ended = list(ended) if ended is not None else [True] * len(prompts)
    heads = [tokenizer(p)["input_ids"] for p in prompts]
    tails = [
        tokenizer(r, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * e
        for r, e in zip(responses, ended, strict=True)
    ]
    width, length = (max(map(len, x)) + extra_padding for x in (heads, tails))
    rows = [[0] * (width - len(h)) + h + t + [0] * (length - len(t)) for h, t in zip(heads, tails, strict=True)]
    keep = [
        [False] * (width - len(h)) + [True] * (len(h) + len(t)) + [False] * (length - len(t))
        for h, t in zip(heads, tails, strict=True)
    ]
    ids, mask = torch.tensor(rows), torch.tensor(keep)
    rollout = Rollout(
        prompt_ids=ids[:, :width],
        prompt_mask=mask[:, :width],
        records=tuple(records or [{} for _ in prompts]),
        input_ids=ids,
        attention_mask=mask,
        response_mask=mask[:, width:],
        ended=torch.tensor(ended),
    )
    return RewardRequest(
        rollout=rollout,
        prompts=[tokenizer.decode(h) for h in heads],
        responses=[tokenizer.decode(t, skip_special_tokens=True) for t in tails],
        records=rollout.records,
    )
