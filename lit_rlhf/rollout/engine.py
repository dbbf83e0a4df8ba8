"""The seam between PPO and whatever generates text: one method, responses out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.types import PromptBatch, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RolloutEngine(ABC):
    """Draws one response to each prompt.

    A new inference engine is a subclass in ``rollout/<name>_engine.py``. The rows of the result are in the order of
    the prompts, the response has ``max_response_length`` columns, and a response depends on its own prompt and uniforms
    only.
    """

    @abstractmethod
    def generate(
        self,
        model: PreTrainedModel,
        prompts: PromptBatch,
        *,
        sampling: SamplingConfig,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        uniforms: Tensor,
    ) -> Rollout:
        """Sample responses.

        Args:
            model: The policy, on the device it generates on.
            prompts: Left-padded prompts, B rows.
            sampling: Which distribution to draw from.
            eos_token_ids: Tokens that end a response; the one drawn belongs to it.
            pad_token_id: Fills the columns after the end.
            uniforms: One number in [0, 1) per row and step, ``(B, max_response_length)`` float64, drawn by the caller.

        Returns:
            The prompts with their responses, T = ``max_response_length``, on the device of ``prompts``.

        Raises:
            ValueError: If the shapes do not fit, a prompt is empty, or there is no EOS.
        """


def check_request(
    prompts: PromptBatch, *, sampling: SamplingConfig, eos_token_ids: Sequence[int], uniforms: Tensor
) -> None:
    """Refuse what no engine can generate from.

    Raises:
        ValueError: Names the argument, the rule and what came.
    """
    expected = (len(prompts), sampling.max_response_length)
    if tuple(uniforms.shape) != expected or uniforms.dtype != torch.float64:
        raise ValueError(
            f"`uniforms` ({tuple(uniforms.shape)}, {uniforms.dtype}) must be one float64 number per prompt and "
            f"response token: {expected}."
        )
    if not eos_token_ids:
        raise ValueError("`eos_token_ids` (empty) must name at least one token that ends a response.")
    empty = (~prompts.prompt_mask.any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(f"Prompts must have at least one token; rows {empty[:8]} have none.")
    # Padding inside or right of a prompt would silently shift positions.
    if bool((prompts.prompt_mask[:, :-1] & ~prompts.prompt_mask[:, 1:]).any()):
        raise ValueError("`prompts.prompt_mask` must be left-padded: False columns before True ones in every row.")


def assemble(
    prompts: PromptBatch,
    *,
    response_ids: Tensor,
    response_lengths: Tensor,
    ended: Tensor,
    sampler_logprobs: Tensor | None = None,
    sampler_entropies: Tensor | None = None,
) -> Rollout:
    """Prompts and responses as the columns of a rollout.

    Args:
        prompts: Left-padded prompts, B rows.
        response_ids: Right-padded responses, ``(B, T)`` int64.
        response_lengths: Tokens of each response, EOS included, ``(B,)`` int64.
        ended: Whether the response has its EOS, ``(B,)`` bool.
        sampler_logprobs: Log-probabilities the engine saw, ``(B, T)`` fp32, or None.
        sampler_entropies: Entropies the engine saw, ``(B, T)`` fp32, or None.
    """
    columns = torch.arange(response_ids.size(1), device=response_ids.device)
    response_mask = columns < response_lengths[:, None]
    return Rollout(
        prompt_ids=prompts.prompt_ids,
        prompt_mask=prompts.prompt_mask,
        records=prompts.records,
        input_ids=torch.cat([prompts.prompt_ids, response_ids], dim=1),
        attention_mask=torch.cat([prompts.prompt_mask, response_mask], dim=1),
        response_mask=response_mask,
        ended=ended,
        sampler_logprobs=sampler_logprobs,
        sampler_entropies=sampler_entropies,
    )
