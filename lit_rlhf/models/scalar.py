"""A causal trunk with one number on top: reward model and critic.

The score of a row is read at its last token; the value of a state at the token before the action. Both are the same
forward pass, so one class serves both, and a critic can start from a reward model's weights.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_rlhf.data.batching import pad_right, token_packs
from lit_rlhf.models.causal import Projection, run_trunk, unwrap

HEAD_KEY = "score.weight"


class ScalarHead(nn.Linear):
    """Bias-free map from a hidden state to one fp32 number, outside autocast whatever the dtype of its weight.

    Args:
        hidden_size: H.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1, bias=False)

    def reset_parameters(self) -> None:
        r"""Fresh weights from :math:`N(0, 1/(H+1))`, torch's global generator (Stiennon et al. 2020, App. B)."""
        nn.init.normal_(self.weight, std=(self.in_features + 1) ** -0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        """Scores ``(..., 1)`` fp32 of hidden states ``(..., H)``."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight.float())


class ScalarModel(nn.Module):
    """Trunk + scalar head (+ the trunk's own LM head for the reward model's auxiliary loss).

    Args:
        trunk: A Hugging Face base model (no LM head), PEFT-wrapped or not.
        head: Bias-free ``nn.Linear(H, 1)``.
        projection: The LM head of the causal LM the trunk comes from, or None.

    Attributes:
        lm_head: The module inside ``projection``, registered, or None.
    """

    def __init__(self, trunk: nn.Module, head: nn.Linear, *, projection: Projection | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.lm_head = cast(nn.Module, projection.head) if projection else None
        self._scale = projection.scale if projection else 1.0
        self._softcap = projection.softcap if projection else None

    @property
    def config(self) -> Any:
        """The trunk's Hugging Face configuration."""
        return unwrap(self.trunk).config

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states ``(B, L, H)``, or ``(N, H)`` at the flat positions ``at``; see ``causal.run_trunk``."""
        return run_trunk(unwrap(self.trunk), input_ids, attention_mask, position_ids=position_ids, at=at)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, at: Tensor | None = None) -> Tensor:
        """Scores at every position, ``(B, L)`` fp32, or ``(N,)`` at some.

        Args:
            input_ids: ``(B, L)`` int64, right-padded (rows need no mask then, see ``causal.trunk_hidden``).
            attention_mask: ``(B, L)``, nonzero = keep; only needed for rows that are padded on the left.
            at: Positions in the flattened ``(B, L)`` that are wanted, ``(N,)`` int64; None = all.
        """
        scores: Tensor = self.head(self.hidden(input_ids, attention_mask, at=at)).squeeze(-1)
        return scores

    def lm_project(self, hidden: Tensor) -> Tensor:
        """Next-token logits ``(..., V)`` of hidden states ``(..., H)``.

        Raises:
            ValueError: The model was loaded without its LM head.
        """
        if self.lm_head is None:
            raise ValueError("This model has no LM head; load it with `lm_head=True`.")
        return Projection(self.lm_head, self._scale, self._softcap)(hidden)

    def save_pretrained(self, out: str | Path, tokenizer: Any, *, dtype: torch.dtype | None = None) -> None:
        """Write a folder that ``AutoModelForSequenceClassification`` loads with the same scores; no LM head in it.

        Args:
            out: Folder, made if missing.
            tokenizer: Saved beside the weights; its pad token goes into the configuration, where plain transformers
                needs it to find the last token. Where it is EOS, transformers reads one token early: a warning.
            dtype: Of the saved weights; None keeps each one's. A reader in bf16 gets bf16 scores.

        Raises:
            ValueError: transformers has no sequence-classification class for this architecture.
        """
        if tokenizer.pad_token_id == tokenizer.eos_token_id:
            warnings.warn(
                f"The tokenizer pads with EOS ('{tokenizer.eos_token}'): plain transformers takes the end of a response"
                " for padding and scores the token before it (ModelReward does not). `model.pad_token` names another.",
                stacklevel=3,
            )
        trunk = merged(self.trunk)
        shell = sequence_classifier(self.config)
        setattr(shell, shell.base_model_prefix, trunk)
        shell.score = self.head
        weights = {f"{shell.base_model_prefix}.{k}": v for k, v in trunk.state_dict().items()}
        weights[HEAD_KEY] = self.head.weight
        shell.save_pretrained(out, state_dict=host_copy(weights, dtype))
        tokenizer.save_pretrained(out)
        declare(Path(out), dtype=dtype, pad_token_id=tokenizer.pad_token_id)


def declare(folder: Path, *, dtype: torch.dtype | None, pad_token_id: int) -> None:
    """Say in ``config.json`` which dtype the weights were saved in, for readers with dtype "auto", and the pad token.

    Args:
        folder: An exported folder.
        dtype: Of the saved weights; None leaves what is there.
        pad_token_id: The tokenizer's; ``generation_config.json`` gets it as well.
    """
    padding, saved = (
        {"pad_token_id": pad_token_id},
        {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")},
    )
    _update_json(folder / "generation_config.json", padding)
    _update_json(folder / "config.json", {**padding, **saved})


def _update_json(file: Path, said: dict[str, Any]) -> None:
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8")) | said
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def host_copy(weights: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors on the CPU, floating-point ones in ``dtype`` where it is given."""
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    for weight in weights.values():
        target = dtype if dtype is not None and weight.is_floating_point() else weight.dtype
        # One copy of tied weights, so that transformers still sees that they are tied and writes them once.
        copies.setdefault((weight.data_ptr(), weight.shape), weight.detach().to("cpu", target))
    return {key: copies[weight.data_ptr(), weight.shape] for key, weight in weights.items()}


def merged(model: nn.Module) -> Any:
    """The model with its PEFT adapter folded into a copy of its weights; a model without adapter as it is."""
    if unwrap(model) is model:
        return model
    return copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]


def sequence_classifier(config: Any) -> Any:
    """The library's own sequence-classification model for a trunk's configuration, on the meta device (no memory).

    Raises:
        ValueError: There is none, or its head is not the bias-free ``score``.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(config)
    config.num_labels = 1
    try:
        with torch.device("meta"):
            shell = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ValueError(_no_class(config)) from error
    head: Any = getattr(shell, "score", None)
    if getattr(head, "in_features", None) is None or head.bias is not None:
        raise ValueError(_no_class(config))
    shell.config.architectures = [type(shell).__name__]
    return shell


def _no_class(config: Any) -> str:
    return (
        f"transformers has no sequence-classification class with a bias-free `score` head for '{config.model_type}': a "
        "reward model or critic on this trunk could not be saved for others to load."
    )


def last_positions(lengths: Tensor, width: int) -> Tensor:
    """Flat positions of the last real tokens of right-padded rows ``(B, width)``, from lengths ``(B,)`` int64."""
    return torch.arange(len(lengths), device=lengths.device) * width + lengths - 1


def score_rows(
    model: Callable[..., Tensor],
    rows: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    max_batch_tokens: int = 16384,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Score of each row of token ids at its last token, without a graph.

    Args:
        model: A :class:`ScalarModel`, a ``FrozenModel`` around one, or whatever gives scores ``(N,)`` for
            ``model(input_ids, at=positions)``; see :meth:`ScalarModel.forward`.
        rows: Token ids, any lengths of at least 1; no padding.
        pad_token_id: Fills short rows on the right (its value changes no score).
        max_batch_tokens: Most tokens, padding included, of one forward pass; a longer row goes alone.
        device: Where the model is.

    Returns:
        ``(len(rows),)`` fp32 on the CPU, in the order of ``rows``.

    Raises:
        ValueError: A row is empty.
    """
    if any(len(row) == 0 for row in rows):
        raise ValueError(f"Row {[len(row) for row in rows].index(0)} has no tokens, so it has no score.")
    scores = torch.empty(len(rows), dtype=torch.float32)
    with torch.no_grad():
        for picks in token_packs([len(row) for row in rows], max_batch_tokens):
            ids, mask = pad_right([rows[i] for i in picks], pad_token_id)
            at = last_positions(mask.sum(1), ids.size(1))
            scores[picks] = model(ids.to(device), at=at.to(device)).float().cpu()
    return scores
