"""A trunk's last layer computed only where somebody looks.

Log-probabilities need the last hidden states of response tokens, a score needs the last token's, a prefill the last
prompt token's. The other positions of the *last* layer have a part in the result through their keys and values alone:
what comes after attention (output projection, residual, MLP, final norm) would be thrown away. Left out, the numbers
stay what they were. With prompts four times as long as responses that is half of the layer, and of a model of four
layers an eighth.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

PARTS = frozenset({"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"})
"""Children of a plain pre-norm layer. One with more (dropout, scaled residuals, further norms) computes otherwise."""

_trimmable: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


@contextmanager
def last_layer_at(trunk: Any, at: Tensor) -> Iterator[bool]:
    """Have the trunk's next passes give last hidden states ``(1, N, H)``, at the positions ``at`` alone.

    Only where the last layer is a plain pre-norm one, which the first call for a trunk finds out (8 tokens forward,
    and an fp32 copy of the layer for as long), and not under gradient checkpointing or with hooks on the layer.

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
    """The last layer, if it looks like a plain one that nobody has changed from outside."""
    layers = getattr(trunk, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return None
    layer: Any = layers[-1]
    if {name for name, _ in layer.named_children()} != PARTS or "o_proj" not in dict(layer.self_attn.named_children()):
        return None
    # Weights of its own scale something; dropout that is no module of its own is not seen in eval mode.
    own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    drops = any("drop" in name and isinstance(value, float) and value > 0 for name, value in vars(layer).items())
    # A hook would be handed other shapes; a checkpoint runs its second forward after the block of `last_layer_at`.
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in (layer, layer.self_attn))
    again = any(getattr(part, "gradient_checkpointing", False) for part in (trunk, *layer.modules()))
    return None if own or drops or hooked or again or "forward" in vars(layer) else layer


def _can_trim(trunk: Any, layer: Any) -> bool:
    if trunk not in _trimmable:
        _trimmable[trunk] = _agrees(trunk, layer)
    return _trimmable[trunk]


@torch.no_grad()
def _agrees(trunk: Any, layer: Any) -> bool:
    """Whether the trimmed layer gives the layer's own numbers, on a few tokens.

    Judged in fp32 by what the layer adds to its input: rounding, and the outliers of a residual stream, hide much.
    """
    device = next(trunk.parameters()).device
    ids = (torch.arange(8, device=device) % trunk.config.get_text_config().vocab_size).unsqueeze(0)
    calls: list[tuple[Any, dict[str, Any]]] = []
    modes = {module: module.training for module in trunk.modules()}
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    try:
        trunk.eval()
        with probing(device.type):
            trunk(input_ids=ids, use_cache=False)
        handle.remove()
        (args, kwargs), at = calls[0], torch.tensor([6, 3, 7], device=device)
        with torch.autocast(device.type, enabled=False):
            twin = copy.deepcopy(layer).float()
            if hasattr(twin.self_attn, "config"):
                twin.self_attn.config._attn_implementation = "eager"  # flash attention has no fp32
            args, kwargs = in_fp32(args), in_fp32(kwargs)
            whole, given = _take(twin(*args, **kwargs), at), _take(args[0], at)
            error = (_trimmed(twin, at, *args, **kwargs) - whole).abs().max() / (whole - given).abs().max()
        return len(calls) == 1 and float(error) < 1e-3
    except Exception:  # it is a look: whatever it does not understand is left whole
        return False
    finally:
        handle.remove()
        for module, training in modes.items():
            module.training = training


def in_fp32(values: Any) -> Any:
    """The same nested arguments, floating-point tensors in fp32."""
    return apply_to_collection(values, Tensor, lambda x: x.float() if x.is_floating_point() else x)


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
