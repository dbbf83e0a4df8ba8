"""The library's own draw inside an engine that hands over raw logits of rows at different positions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lit_rlhf.rollout.sampling import SamplingConfig, inverse_cdf, token_weights


@dataclass(frozen=True)
class Draw:
    """What the processor needs of a row: its numbers ``(T,)`` float64, and which distribution to draw from."""

    uniforms: Tensor
    sampling: SamplingConfig
    eos_token_ids: tuple[int, ...]

    def to_json(self) -> str:
        """As text, exactly, for an engine in another process."""
        numbers = self.uniforms.tolist()
        return json.dumps({"uniforms": numbers, "sampling": asdict(self.sampling), "eos": self.eos_token_ids})

    @classmethod
    def from_json(cls, text: str) -> Draw:
        """The draw that :meth:`to_json` wrote."""
        found = json.loads(text)
        uniforms = torch.tensor(found["uniforms"], dtype=torch.float64)
        return cls(uniforms, SamplingConfig(**found["sampling"]), tuple(found["eos"]))


def draw_tokens(logits: Tensor, rows: Sequence[tuple[Draw, list[int], list[int]]]) -> Tensor:
    """The next token of each row, ``(B,)`` int64.

    Args:
        logits: Raw, ``(B, V)`` fp32.
        rows: Of each its draw, prompt and tokens so far; all with the same sampling and EOS.
    """
    sampling, eos = rows[0][0].sampling, rows[0][0].eos_token_ids
    seen, mask = _seen(rows, sampling, logits.device)
    weights = token_weights(
        logits,
        sampling=sampling,
        eos_token_ids=eos,
        position=torch.tensor([len(drawn) for _, _, drawn in rows], device=logits.device),
        seen_ids=seen,
        seen_mask=mask,
    )
    if sampling.greedy:
        return weights.argmax(-1)
    uniforms = torch.stack([draw.uniforms[len(drawn)] for draw, _, drawn in rows])
    return inverse_cdf(weights, uniforms.to(logits.device))


def _seen(
    rows: Sequence[tuple[Draw, list[int], list[int]]], sampling: SamplingConfig, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    if sampling.repetition_penalty == 1:
        return None, None
    lists = [[*(prompt if sampling.penalize_prompt else []), *drawn] for _, prompt, drawn in rows]
    width = max(map(len, lists))
    ids = torch.tensor([x + [0] * (width - len(x)) for x in lists], dtype=torch.int64, device=device)
    lengths = torch.tensor([len(x) for x in lists], device=device)
    return ids.view(len(rows), width), torch.arange(width, device=device) < lengths[:, None]
