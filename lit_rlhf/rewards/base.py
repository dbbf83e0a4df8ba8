"""What every source of reward is: a request in, one finite number a response out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.models.uses import ModelUse
from lit_rlhf.types import RewardOutput, RewardRequest
from lit_rlhf.user_errors import LitRLHFError


class NonFiniteScoreError(ValueError):
    """A reward gave NaN or an infinity for a response: the one fault of a reward that `on_non_finite: skip` skips."""


class RewardError(LitRLHFError, RuntimeError):
    """A reward could not be had; the message names the prompt."""


class RewardTimeoutError(LitRLHFError, TimeoutError):
    """A reward took too long; the message names the prompt."""


class Reward(ABC):
    """A source of reward: scores a batch of responses.

    A subclass implements :meth:`score`; what it needs to load, it loads in :meth:`setup`, so that a configuration can
    be read and printed without loading anything. Call the object, not :meth:`score`: the call checks the result.

    Attributes:
        name: Used in metrics and messages.
    """

    name: str = "reward"

    @property
    def prices_missing_eos(self) -> bool:
        """Whether a response that the length limit cut is worth less for it: then nobody needs to be told of cuts."""
        return False

    def prepare(self) -> None:  # noqa: B027  # most have nothing to refuse
        """Refuse early what cannot work; called once on each rank before any model is loaded."""

    def setup(self, *, device: torch.device, tokenizer: Any) -> None:
        """Load what scoring needs; called once on each rank, before the first request.

        Args:
            device: The rank's device.
            tokenizer: The policy's tokenizer.
        """
        del device, tokenizer

    @abstractmethod
    def score(self, request: RewardRequest) -> RewardOutput:
        """Score the B responses of ``request``; ``scores`` is ``(B,)``, ``token_scores`` ``(B, T)`` or None."""

    def __call__(self, request: RewardRequest) -> RewardOutput:
        """Score and check.

        Returns:
            fp32 on the rollout's device; ``token_scores`` are zero outside the response.

        Raises:
            NonFiniteScoreError: A score that is not finite; names the prompt.
            ValueError: Wrong number of scores or wrong shape.
        """
        output = self.score(request)
        rollout = request.rollout
        scores = self._checked(output.scores, (len(request.prompts),), request)
        if output.token_scores is None:
            return RewardOutput(scores=scores)
        token_scores = output.token_scores.to(rollout.response_mask.device)
        if token_scores.shape == rollout.response_mask.shape:
            token_scores = token_scores.masked_fill(~rollout.response_mask, 0.0)
        token_scores = self._checked(token_scores, tuple(rollout.response_mask.shape), request)
        return RewardOutput(scores=scores, token_scores=token_scores)

    def _checked(self, scores: Tensor, shape: tuple[int, ...], request: RewardRequest) -> Tensor:
        if tuple(scores.shape) != shape:
            raise ValueError(f"Reward '{self.name}' must give scores of shape {shape}, not {tuple(scores.shape)}.")
        scores = scores.detach().to(request.rollout.input_ids.device, torch.float32)
        finite = scores.isfinite().reshape(len(scores), -1).all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            bad = scores[row][~scores[row].isfinite()].flatten()[0].item()
            raise NonFiniteScoreError(f"Reward '{self.name}' gave {bad} for {quoted(request.prompts[row])}.")
        return scores

    def memory_models(self) -> list[ModelUse]:
        """The models it loads in :meth:`setup`, for `lit-rlhf plan`; none unless a subclass says so."""
        return []

    def describe(self) -> dict[str, Any]:
        """What identifies this source in logs and reports (plain values, no secrets)."""
        return {"name": self.name, "type": type(self).__name__}


def quoted(prompt: str, limit: int = 200) -> str:
    """``prompt '...'`` for a message, shortened in the middle."""
    shown = prompt if len(prompt) <= limit else f"{prompt[: limit // 2]} ... {prompt[-limit // 2 :]}"
    return f"prompt {shown!r}"


def parse_scores(value: Any, request: RewardRequest, *, source: str) -> RewardOutput:
    """Turn what a program or a service gave into a :class:`RewardOutput`.

    Args:
        value: A sequence of B numbers, or a mapping with ``scores`` (B numbers) and optionally ``token_scores`` (for
            each response a sequence of as many numbers as it has tokens, EOS included).
        request: What was asked.
        source: Names the giver in messages.

    Raises:
        ValueError: Anything else; says what came and, where one row is wrong, for which prompt.
    """
    scores, token_scores = (
        (value.get("scores"), value.get("token_scores")) if isinstance(value, Mapping) else (value, None)
    )
    numbers = _numbers(scores, request, source)
    if token_scores is None:
        return RewardOutput(scores=torch.tensor(numbers, dtype=torch.float32))
    table = torch.zeros(request.rollout.response_mask.shape, dtype=torch.float32)
    lengths = request.rollout.response_lengths.tolist()
    if not _is_list(token_scores) or len(token_scores) != len(lengths):
        raise ValueError(f"{source} must give `token_scores` for each of the {len(lengths)} responses.")
    for row, (given, length) in enumerate(zip(token_scores, lengths, strict=True)):
        if not _is_list(given) or len(given) != length:
            count = len(given) if _is_list(given) else type(given).__name__
            raise ValueError(
                f"{source} gave {count} token scores for {length} tokens of {quoted(request.prompts[row])}."
            )
        table[row, :length] = torch.tensor([_number(x, request, row, source) for x in given])
    return RewardOutput(scores=torch.tensor(numbers, dtype=torch.float32), token_scores=table)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _numbers(scores: Any, request: RewardRequest, source: str) -> list[float]:
    if isinstance(scores, Tensor) or type(scores).__module__ == "numpy":
        scores = scores.tolist()
    if not _is_list(scores):
        raise ValueError(f"{source} must give a list of {len(request.prompts)} scores, not {type(scores).__name__}.")
    if len(scores) != len(request.prompts):
        raise ValueError(f"{source} gave {len(scores)} scores for {len(request.prompts)} responses.")
    return [_number(score, request, row, source) for row, score in enumerate(scores)]


def _number(score: Any, request: RewardRequest, row: int, source: str) -> float:
    try:
        if isinstance(score, str | bytes):
            raise TypeError
        return float(score)
    except (TypeError, ValueError):
        raise ValueError(
            f"{source} gave {score!r:.80}, which is no number, for {quoted(request.prompts[row])}."
        ) from None
