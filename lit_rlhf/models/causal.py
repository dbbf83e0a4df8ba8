r"""Hidden states and logits of any Hugging Face causal LM, apart from each other.

A PPO update needs the log-probabilities of a few response tokens, never the ``(B, L, V)`` logits of whole rows. So the
trunk gives hidden states, the caller picks positions, and a :class:`Projection` gives the logits of those alone.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlhf.models.cpu import hidden_at, seen_at


@dataclass(frozen=True)
class Projection:
    r"""From hidden states to logits: :math:`c \tanh(s W h / c)`, or :math:`s W h` without a cap.

    Attributes:
        head: The output embedding :math:`W`.
        scale: :math:`s`, the constant some architectures multiply their logits by (Cohere, Granite, Falcon-H1).
        softcap: :math:`c`, the soft cap of others (Gemma 2), or None.
    """

    head: Callable[[Tensor], Tensor]
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits ``(..., V)`` of hidden states ``(..., H)``, in the head's dtype (autocast applies)."""
        logits = self.head(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def unwrap(model: Any) -> Any:
    """The Hugging Face model inside a PEFT wrapper (its adapter layers stay active), else the model itself.

    Raises:
        ValueError: The adapter works on the input (prompt, prefix or p-tuning) and not inside the layers.
    """
    configs = getattr(model, "peft_config", None)
    if configs is None or not hasattr(model, "get_base_model"):
        return model
    if any(getattr(config, "is_prompt_learning", False) for config in configs.values()):
        raise ValueError("Adapters that prepend virtual tokens are not supported; use one that adapts layers (LoRA).")
    return model.get_base_model()


def run_trunk(
    trunk: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    position_ids: Tensor | None = None,
    at: Tensor | None = None,
) -> Tensor:
    """Last hidden states of a base model (one without an LM head); see :func:`trunk_hidden`.

    Args:
        trunk: The base model.
        input_ids: ``(B, L)`` int64.
        attention_mask: ``(B, L)``, nonzero = keep; or with ``position_ids`` whatever the trunk takes.
        position_ids: ``(B, L)`` int64; by default counted from the mask.
        at: Positions in the flattened ``(B, L)`` that are wanted, ``(N,)`` int64; None = all.

    Returns:
        ``(B, L, H)``, or ``(N, H)`` with ``at``.
    """
    if at is not None and len(at) and attention_mask is None and position_ids is None:
        packed = hidden_at(trunk, input_ids, at)
        if packed is not None:
            return packed
    extra: dict[str, Tensor] = {}
    if attention_mask is not None:
        extra["attention_mask"] = attention_mask
        if position_ids is None and _takes_positions(type(trunk)):
            # Left padding must not shift positions; without a mask the model counts from 0 itself.
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp_min(0)
    if position_ids is not None:
        extra["position_ids"] = position_ids
    view = None if at is None or not len(at) else seen_at(trunk, at)
    run = trunk if view is None else view
    hidden: Tensor = run(input_ids=input_ids, use_cache=False, return_dict=True, **extra).last_hidden_state
    if at is None:
        return hidden
    return hidden.flatten(0, 1).index_select(0, at) if view is None else hidden[0]


def _takes_positions(trunk_class: type[nn.Module]) -> bool:
    return "position_ids" in inspect.signature(trunk_class.forward).parameters


def trunk_hidden(
    model: nn.Module, input_ids: Tensor, *, attention_mask: Tensor | None = None, at: Tensor | None = None
) -> Tensor:
    """Last hidden states, what the LM head is applied to.

    Under causal attention a token sees nothing to its right, so RIGHT-padded rows need no mask at all, and without one
    PyTorch's attention takes its fast causal path. What stands in the padding then changes nothing at the real tokens.

    Args:
        model: A Hugging Face causal LM, PEFT-wrapped or not.
        input_ids: ``(B, L)`` int64, right-padded.
        attention_mask: ``(B, L)``, nonzero = keep. Only needed for rows that are padded on the left.
        at: Positions in the flattened ``(B, L)`` that are wanted, ``(N,)`` int64; None = all. On a CPU the last
            layer is then computed there alone where its structure allows (``models/cpu/last_layer.py``).

    Returns:
        ``(B, L, H)``, or ``(N, H)`` with ``at``, in the model's dtype (autocast applies).
    """
    return run_trunk(unwrap(model).base_model, input_ids, attention_mask, at=at)


_found: weakref.WeakKeyDictionary[nn.Module, tuple[float, float | None]] = weakref.WeakKeyDictionary()


def projector(model: nn.Module) -> Projection:
    """The map from :func:`trunk_hidden` to ``model(...).logits``, scale and soft cap included.

    The first call for a model compares it with the model's own logits on a few tokens (a forward of 8 tokens).

    Args:
        model: A Hugging Face causal LM, PEFT-wrapped or not.

    Raises:
        ValueError: The architecture does something else between its hidden states and its logits.
    """
    inner = unwrap(model)
    head = inner.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(inner).__name__} has no output embedding: not a causal language model.")
    if inner not in _found:
        _found[inner] = _find_transform(inner, head)
    scale, softcap = _found[inner]
    return Projection(head, scale, softcap)


def _candidate_scales(config: Any) -> list[float]:
    """Constants known architectures put on their logits: the same attribute divides in one, multiplies in another."""
    scales = [1.0]
    for name in (
        "logit_scale",
        "logits_scaling",
        "lm_head_multiplier",
        "output_multiplier",
        "logits_mup_width_multiplier",
    ):
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value not in (0, 1):
            scales += [float(value), 1.0 / float(value)]
    return scales


@torch.no_grad()
def _find_transform(model: Any, head: nn.Module) -> tuple[float, float | None]:
    device = next(head.parameters()).device
    kind = device.type
    # The autocast around it, without its cache: that keeps the weights it casts until its block ends, and not every
    # torch release knows that a copy made without a graph must not serve the training step around this look.
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    with torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False):
        return _matching_transform(model, head, device)


def _matching_transform(model: Any, head: nn.Module, device: torch.device) -> tuple[float, float | None]:
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    ids = (torch.arange(8, device=device) % config.vocab_size).unsqueeze(0)
    hidden, wanted = trunk_hidden(model, ids), model(input_ids=ids, use_cache=False).logits.float()
    tolerance = 1e-4 if wanted.dtype == hidden.dtype else 3e-2
    for softcap in (cap, None) if cap else (None,):
        for scale in _candidate_scales(config):
            error = (Projection(head, scale, softcap)(hidden).float() - wanted).abs().max()
            if error <= tolerance * wanted.abs().max():
                return scale, softcap
    raise ValueError(
        f"{type(model).__name__} computes its logits in a way that is not known here (neither a scale nor a soft cap "
        "after the output embedding): log-probabilities would be wrong, so it is refused."
    )
