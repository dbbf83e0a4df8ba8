"""Decode steps through `torch.compile`, with a word where PyTorch stops compiling."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_GRAPHS = 16
"""Shapes that are compiled: twice the row counts of a cache of 1,024 rows, for one growth of its columns."""


class CompiledStep:
    """A model's forward pass, compiled once for each shape; PyTorch alone would fall back to eager mode in silence.

    Args:
        model: The policy.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        mode = "reduce-overhead" if model.device.type == "cuda" else "default"
        self._compiled: Callable[..., Any] | None = torch.compile(model.forward, mode=mode, dynamic=False)

    def __call__(self, **inputs: Any) -> Any:
        """The model's output."""
        if self._compiled is None:
            return self.model(**inputs)
        # The names before torch 2.7, which later releases know as well.
        exceptions: Any = torch._dynamo.exc
        failure = getattr(exceptions, "FailOnRecompileLimitHit", None) or exceptions.FailOnCacheLimitHit
        try:
            with torch._dynamo.config.patch(cache_size_limit=MOST_GRAPHS, fail_on_cache_limit_hit=True):
                return self._compiled(**inputs)
        except failure:
            self._compiled = None
            warnings.warn(
                f"`compile` (True): {MOST_GRAPHS} graphs of the decode step have been compiled, and one for a mask "
                f"{tuple(inputs['attention_mask'].shape)} would be one more. "
                "From now on steps run uncompiled; TORCH_LOGS=recompiles tells what changed.",
                stacklevel=2,
            )
            return self.model(**inputs)
