"""The seam between PPO and whatever generates text: a request in, responses out, and word of when weights moved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_rlhf.models.uses import EngineLimits
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.types import PromptBatch, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What an engine is asked for: one response to each of B prompts, T = ``sampling.max_response_length``.

    Attributes:
        prompts: Left-padded prompts.
        sampling: Which distribution to draw from.
        eos_token_ids: Tokens that end a response; the one drawn belongs to it.
        pad_token_id: Fills the columns after the end.
        uniforms: One number in [0, 1) per row and step, ``(B, T)`` float64, on the device of the prompts. Drawn by the
            caller from seed, iteration and global row, so that responses depend on neither batch nor ranks.
        longest_row: Most tokens, prompt and response, that a row of this or a later request can have, for engines whose
            buffers do not change; 0 where nobody knows.

    Raises:
        ValueError: If the shapes do not fit, a prompt is empty or not left-padded, or there is no EOS.
    """

    prompts: PromptBatch
    sampling: SamplingConfig
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    uniforms: Tensor
    longest_row: int = 0

    def __post_init__(self) -> None:
        expected = (len(self.prompts), self.sampling.max_response_length)
        if tuple(self.uniforms.shape) != expected or self.uniforms.dtype != torch.float64:
            raise ValueError(
                f"`uniforms` ({tuple(self.uniforms.shape)}, {self.uniforms.dtype}) must be one float64 number per "
                f"prompt and response token: {expected}."
            )
        if not self.eos_token_ids:
            raise ValueError("`eos_token_ids` (empty) must name at least one token that ends a response.")
        mask = self.prompts.prompt_mask
        empty = (~mask.any(1)).nonzero()[:, 0].tolist()
        if empty:
            raise ValueError(f"Prompts must have at least one token; rows {empty[:8]} have none.")
        # Padding inside or right of a prompt would silently shift positions.
        if bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise ValueError("`prompts.prompt_mask` must be left-padded: False columns before True ones in every row.")


class RolloutEngine(ABC):
    """Draws one response to each prompt. A new inference engine is a subclass in ``rollout/<name>_engine.py``.

    The life of an engine: :meth:`setup` once, then any number of series ``sync, generate, generate, ..., rest``, then
    :meth:`close`. A module calls all of them on every rank, in the same order.

    Attributes:
        gives_logprobs: Whether rollouts carry ``sampler_logprobs`` (raw logits, fp32), which
            ``loss.old_logprobs: sampler`` needs. A class attribute, or set in ``__init__`` from an option.
    """

    gives_logprobs: bool = False

    def setup(self, *, tokenizer: Any, device: torch.device) -> None:
        """Prepare for work; called once on each rank, after the models are loaded and before the first :meth:`sync`.

        Args:
            tokenizer: The policy's tokenizer.
            device: The rank's device.
        """
        del tokenizer, device

    @abstractmethod
    def sync(self, policy: PreTrainedModel) -> None:
        """The weights may have changed: what is generated from now on is drawn from this policy.

        Called on all ranks before a series of :meth:`generate` (a rollout, a validation, a prediction) and timed as
        ``time/sync``.

        Args:
            policy: The policy being trained, on its device. An engine that reads it in place keeps the reference.
        """

    @abstractmethod
    def generate(self, request: GenerationRequest) -> Rollout:
        """Sample responses. A response depends on its own prompt and uniforms only.

        Returns:
            The prompts with their responses in the order of the prompts, T = ``max_response_length``, on their device.
        """

    def rest(self) -> None:  # noqa: B027  # most engines have nothing to give back
        """No :meth:`generate` until the next :meth:`sync`: give memory back to the update that follows."""

    def limits(self, device: torch.device | str) -> EngineLimits:
        """How the engine bounds its memory on ``device``, for `lit-rlhf plan`; no bound: all rows at once."""
        del device
        return EngineLimits()

    def close(self) -> None:  # noqa: B027
        """The run is over, well or badly: end processes, free everything. May be called more than once."""


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
        **prompts.as_dict(),
        input_ids=torch.cat([prompts.prompt_ids, response_ids], dim=1),
        attention_mask=torch.cat([prompts.prompt_mask, response_mask], dim=1),
        response_mask=response_mask,
        ended=ended,
        sampler_logprobs=sampler_logprobs,
        sampler_entropies=sampler_entropies,
    )
