"""Scores of responses given as text, by a reward model: encoded exactly as in its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lit_rlhf.data.batching import check_pass_tokens
from lit_rlhf.data.records import Message
from lit_rlhf.data.template import EncodedPrompt, check_template, encode_prompt, encode_response, fit_prompt
from lit_rlhf.models.scalar import score_rows
from lit_rlhf.reward_report.probes import ScoreRequest


class ResponseScorer:
    """Encodes and scores; callable as the scoring function of a reward-model report.

    Args:
        model: A ``ScalarModel`` (or a ``FrozenModel`` around one), already on ``device``.
        tokenizer: Its tokenizer.
        template: Named template, or None for the tokenizer's chat template.
        max_length: Most tokens of prompt and response together.
        max_batch_tokens: Most tokens of one forward pass, padding included.
        device: Where the model is.

    Raises:
        ValueError: If the template cannot be used with the tokenizer, or ``max_length`` is too small to hold a pair.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        template: str | None = None,
        max_length: int = 2048,
        max_batch_tokens: int = 16384,
        device: torch.device | str = "cpu",
    ) -> None:
        check_template(tokenizer, template)
        check_pass_tokens("max_batch_tokens", max_batch_tokens)
        if max_length < 4:
            raise ValueError(f"`max_length` ({max_length}) must be at least 4: prompt, response and EOS.")
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.max_length, self.max_batch_tokens, self.device = max_length, max_batch_tokens, device

    def encode(self, prompt: Sequence[Message], response: str, *, ended: bool = True) -> tuple[list[int], int]:
        """Ids of prompt and response, and how many old turns had to go.

        Raises:
            RowError: Too long even with the last turn alone.
        """
        ids = self._response_ids(response, ended=ended)
        fitted = self._fit(prompt, room=max(self.max_length - len(ids), 0))
        return fitted.ids + ids, fitted.dropped_turns

    def encode_pair(self, prompt: Sequence[Message], chosen: str, rejected: str) -> tuple[list[list[int]], int]:
        """Ids of both responses after the SAME prompt, cut for the longer of the two as in training.

        Raises:
            RowError: Too long even with the last turn alone.
        """
        responses = [self._response_ids(response) for response in (chosen, rejected)]
        fitted = self._fit(prompt, room=max(self.max_length - max(map(len, responses)), 0))
        return [fitted.ids + response for response in responses], fitted.dropped_turns

    def response_length(self, response: str) -> int:
        """Tokens of a response, EOS included."""
        return len(self._response_ids(response))

    def score_ids(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Score of each row at its last token."""
        pad = self.tokenizer.pad_token_id  # on the right, where it reaches no score
        scores: list[float] = score_rows(
            self.model, rows, pad_token_id=pad, max_batch_tokens=self.max_batch_tokens, device=self.device
        ).tolist()
        return scores

    def __call__(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """Scores of (prompt, response) requests; a prompt is messages, token ids, or the text of one user turn.

        Never refuses: what is too long loses the end of its response (not the EOS), then the start of its prompt.
        """
        return self.score_ids([self._cut(self._prompt_ids(prompt), response) for prompt, response in requests])

    def _fit(self, prompt: Sequence[Message], *, room: int) -> EncodedPrompt:
        return fit_prompt(self.tokenizer, prompt, template=self.template, max_length=room)

    def _response_ids(self, response: str, *, ended: bool = True) -> list[int]:
        ids = encode_response(self.tokenizer, response, template=self.template)
        return ids if ended or len(ids) == 1 else ids[:-1]

    def _prompt_ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            prompt = [Message("user", prompt)]
        if prompt and isinstance(prompt[0], int):
            return list(prompt)
        return encode_prompt(self.tokenizer, prompt, template=self.template)

    def _cut(self, prompt: list[int], response: str) -> list[int]:
        ids = self._response_ids(response)
        room = max(self.max_length - len(prompt), self.max_length // 2)
        if len(ids) > room:
            ids = [*ids[: room - 1], ids[-1]]
        return prompt[max(0, len(prompt) + len(ids) - self.max_length) :] + ids
