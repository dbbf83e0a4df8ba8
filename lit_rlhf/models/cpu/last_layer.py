"""A trunk's last layer computed only where somebody looks.

Log-probabilities need the last hidden states of response tokens, a score needs the last token's, a prefill the last
prompt token's. The other positions of the *last* layer have a part in the result through their keys and values alone:
what they ask of others (query, attention) and what comes after (output projection, residual, MLP, final norm) would be
thrown away. Left out, the numbers stay what they were. With prompts four times as long as responses that is more than
half of the layer, and of a model of four layers a seventh. Of many layers it is too little to be worth another way
through the model (`MOST_LAYERS`).

The model is not changed for it. It is asked through a view: shallow copies of the few modules on the way to the last
layer, which share all weights, with the last layer exchanged for one that is told the positions.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlhf.models.cpu.attention import put_at

PLAIN = ("gemma", "glm", "llama", "ministral", "mistral", "olmo", "qwen2", "qwen3", "smollm3", "starcoder2")
"""Architectures whose layer computes what :class:`LastLayerAt` does; the tests compare each with the whole layer."""
MOST_LAYERS = 12
"""Up to which half a layer is surely 3 % of an iteration or more; docs/performance.md has 4, 12, 16 and 32 layers."""
_PLAIN_MODULES = frozenset(f"transformers.models.{name}.modeling_{name}" for name in PLAIN)
_TOKEN_BY_TOKEN = (
    "torch.nn.modules.",
    "transformers.activations",
    "lit_rlhf.models.cpu.",
    "peft.tuners.lora",
    "bitsandbytes.nn",
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def seen_at(model: Any, at: Tensor) -> Any | None:
    """The view for the positions ``at``, or None where the last layer is not known to be plain; see ``models.cpu``.

    Also None for a model of more than `MOST_LAYERS` layers, under gradient checkpointing, where a layer of its own
    would keep its activations, and where somebody has put hooks or another ``forward`` on the layer.
    """
    trunk = getattr(model, "base_model", model)
    layer = _plain_last_layer(trunk)
    if layer is None:
        return None
    layers = nn.ModuleList([*trunk.layers[:-1], LastLayerAt(layer, at)])
    view = _with(trunk, layers=layers)
    return view if trunk is model else _with(model, **{model.base_model_prefix: view})


def plain_trunk(trunk: Any) -> bool:
    """Whether all of a trunk is what its architecture has there, with no hook: nobody minds where tokens stand."""
    if not _layers(trunk) or not all(map(_is_plain, trunk.layers)):
        return False
    return all(map(_is_known, trunk.modules()))


def _is_known(part: nn.Module) -> bool:
    """Whether what it computes was written by its architecture's authors, or works on each token alone; no hook."""
    written = type(part).forward.__module__
    if _is_replaced(part) or any(getattr(part, name) for name in _HOOKS):
        return False
    return written in _PLAIN_MODULES or written.startswith(_TOKEN_BY_TOKEN)


def _plain_last_layer(trunk: Any) -> Any | None:
    layers = _layers(trunk)
    return layers[-1] if 0 < len(layers) <= MOST_LAYERS and _is_plain(layers[-1]) else None


def _layers(trunk: Any) -> list[Any]:
    """A trunk's layers; none where they are not all it has, in a list."""
    layers: Any = getattr(trunk, "layers", None)
    whole = isinstance(layers, nn.ModuleList) and len(layers) == trunk.config.get_text_config().num_hidden_layers
    return list(layers) if whole else []


def _is_plain(layer: Any) -> bool:
    """Whether it computes what is known of its class, with nothing of anybody's in between."""
    # Of a class that only inherits `forward` this is still the module that wrote it.
    if type(layer).forward.__module__ not in _PLAIN_MODULES or layer.gradient_checkpointing:
        return False
    if type(layer.self_attn).forward.__module__ not in _PLAIN_MODULES:
        return False
    if not getattr(layer.self_attn, "is_causal", True):
        return False
    # A hook on either would be skipped, or handed other shapes.
    return not any(part._forward_hooks or part._forward_pre_hooks or _is_replaced(part) for part in _parts(layer))


def _is_replaced(part: nn.Module) -> bool:
    """Whether something else runs in place of its class's ``forward``: a function of its own, or a compiled one."""
    return "forward" in vars(part) or part._compiled_call_impl is not None


def _parts(layer: Any) -> tuple[Any, Any]:
    return layer, layer.self_attn


def _with(module: nn.Module, **children: nn.Module) -> Any:
    """A shallow copy of ``module`` with other children; parameters, buffers, hooks and the rest are shared."""
    view = copy.copy(module)
    view._modules = {**module._modules, **children}
    return view


class LastLayerAt(nn.Module):
    """A plain pre-norm layer that gives hidden states ``(1, N, H)``, at N positions of its input ``(B, L, H)``.

    Args:
        layer: The layer; left as it is.
        at: Positions in the flattened ``(B, L)``, ``(N,)`` int64.
    """

    def __init__(self, layer: Any, at: Tensor) -> None:
        super().__init__()
        self.layer, self.at = layer, at
        asked = torch.unique(at)  # a position may be read twice, but written once
        attention = layer.self_attn
        parts: dict[str, nn.Module] = {"o_proj": _InputAt(attention.o_proj, at)}
        if all(map(_is_known, attention.q_proj.modules())):  # adapters are in it
            parts["q_proj"] = _OutputAt(attention.q_proj, asked)
        self.attention = _with(attention, **parts)
        self.attention.asked = asked  # for ``attention.sdpa_attention``
        self.attention_type = getattr(layer, "attention_type", None)  # transformers before 5.20 picks the mask by it

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Keys and values at all positions; everything else at the wanted ones, attention itself where it can."""
        attended, _ = self.attention(hidden_states=self.layer.input_layernorm(hidden_states), **kwargs)
        hidden = _take(hidden_states, self.at) + attended
        out: Tensor = hidden + self.layer.mlp(self.layer.post_attention_layernorm(hidden))
        return out


class _InputAt(nn.Module):
    """A linear map asked at some positions of its input only."""

    def __init__(self, inner: nn.Module, at: Tensor) -> None:
        super().__init__()
        self.inner, self.at = inner, at

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(_take(x, self.at))
        return out


class _OutputAt(nn.Module):
    """A linear map computed at some positions, once each, and zero at the others."""

    def __init__(self, inner: nn.Module, at: Tensor) -> None:
        super().__init__()
        self.inner, self.at = inner, at

    def forward(self, x: Tensor) -> Tensor:
        return put_at(self.inner(_take(x, self.at))[0], self.at, x.shape[:-1])


def _take(x: Tensor, at: Tensor) -> Tensor:
    """``x (B, L, H)`` at flat positions, ``(1, N, H)``."""
    return x.flatten(0, 1).index_select(0, at)[None]
