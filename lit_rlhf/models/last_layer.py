"""A trunk's last layer computed only where somebody looks.

Log-probabilities need the last hidden states of response tokens, a score needs the last token's, a prefill the last
prompt token's. The other positions of the *last* layer have a part in the result through their keys and values alone:
what comes after attention (output projection, residual, MLP, final norm) would be thrown away. Left out, the numbers
stay what they were. With prompts four times as long as responses that is half of the layer, and of a model of four
layers an eighth.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PARTS = frozenset({"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"})
"""Children of a plain pre-norm layer. One with more (dropout, scaled residuals, further norms) computes otherwise."""

_trimmable: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


@contextmanager
def last_layer_at(trunk: Any, at: Tensor) -> Iterator[bool]:
    """Have the trunk's next passes give last hidden states ``(1, N, H)``, at the positions ``at`` alone.

    Only where the last layer is known to be a plain pre-norm one, which the first call for a trunk finds out (a forward
    of 8 tokens), and not under gradient checkpointing, whose second forward comes after this block has ended.

    Args:
        trunk: A Hugging Face base model.
        at: Positions in the flattened ``(B, L)`` input, ``(N,)`` int64, N >= 1.

    Yields:
        Whether it will; if not, the trunk gives ``(B, L, H)`` as always.
    """
    layer = _last_layer(trunk)
    if layer is None or not _can_trim(trunk, layer):
        yield False
        return

    def forward(hidden_states: Tensor, **kwargs: Any) -> Tensor:
        return _trimmed(layer, at, hidden_states, **kwargs)

    layer.forward = forward
    try:
        yield True
    finally:
        del layer.forward


def _trimmed(layer: Any, at: Tensor, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """What the layer gives at the positions ``at`` of ``hidden_states (B, L, H)``; ``(1, N, H)``."""
    before = layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: (_take(inputs[0], at),))
    try:
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
    finally:
        before.remove()
    hidden = _take(hidden_states, at) + attended
    out: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return out


def _take(x: Tensor, at: Tensor) -> Tensor:
    """``x (B, L, H)`` at flat positions, ``(1, N, H)``."""
    return x.flatten(0, 1).index_select(0, at)[None]


def _last_layer(trunk: Any) -> Any:
    """The last layer, if its parts have the names of a plain one and nobody else has put a forward on it."""
    layers = getattr(trunk, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return None
    layer: Any = layers[-1]
    if getattr(layer, "gradient_checkpointing", False) or "forward" in vars(layer):
        return None
    plain = {name for name, _ in layer.named_children()} == PARTS and hasattr(layer.self_attn, "o_proj")
    return layer if plain else None


def _can_trim(trunk: Any, layer: Any) -> bool:
    if trunk not in _trimmable:
        _trimmable[trunk] = _agrees(trunk, layer)
    return _trimmable[trunk]


@torch.no_grad()
def _agrees(trunk: Any, layer: Any) -> bool:
    """Whether the trimmed layer gives the layer's own numbers, on a few tokens."""
    errors: list[float] = []

    def compare(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        try:
            at = torch.tensor([6, 3, 7], device=ids.device)
            mine, wanted = _trimmed(layer, at, *args, **kwargs), _take(output, at)
            errors.append(float((mine - wanted).abs().max() / wanted.abs().max()))
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # other arguments, shapes or results
            errors.append(float("inf"))

    device = next(trunk.parameters()).device
    ids = (torch.arange(8, device=device) % trunk.config.get_text_config().vocab_size).unsqueeze(0)
    modes = {module: module.training for module in trunk.modules()}
    handle = layer.register_forward_hook(compare, with_kwargs=True)
    try:
        trunk.eval()
        with probing(device.type):
            trunk(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
        for module, training in modes.items():
            module.training = training
    half = torch.finfo(trunk.dtype).bits < 32 or torch.is_autocast_enabled(device.type)
    return len(errors) == 1 and errors[0] < (3e-2 if half else 1e-4)


@contextmanager
def probing(kind: str) -> Iterator[None]:
    """The autocast around it, without its cache, for a look at a model without a graph.

    Autocast keeps the weights it casts until its block ends, and not every torch release knows that a copy made without
    a graph must not serve the training step around the look.
    """
    with torch.autocast(
        kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    ):
        yield
