"""What a module says of the models it is going to hold and of the size of its passes, before anything is loaded.

``lit-rlhf plan`` asks for it (``BaseModule.memory_models``, ``BaseModule.pass_sizes``) and counts with ``memory.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lit_rlhf.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ModelUse:
    """A model as a run uses it.

    Attributes:
        role: Its name in the table.
        path: Folder or hub name, of a model or an adapter; only its configuration is going to be read.
        causal: Whether it has an LM head.
        trained: Whether it is trained; otherwise frozen.
        dtype: Dtype of the weights while it is frozen; None, or where it is trained, the strategy's (or that of an
            adapter's base that it runs on).
        num_layers: Layers that are kept of it; None for all.
        placement: Where it waits while it is frozen: on the `device`, or in host memory (`cpu`).
        loading: How it is loaded.
    """

    role: str
    path: str
    causal: bool
    trained: bool = False
    dtype: str | None = None
    num_layers: int | None = None
    placement: Literal["device", "cpu"] = "device"
    loading: ModelConfig = field(default_factory=ModelConfig)


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """How an engine bounds its own memory; None for no bound.

    Attributes:
        cache_slots: Most slots (tokens) of the key-value cache.
        cache_bytes: Most bytes of it.
        prefill_tokens: Most tokens of a prefill pass.
        copy_dtype: Of a copy of the policy's weights that it keeps, `auto` for theirs; None for no copy.
        resident: Whether copy and cache stay between rollouts.
    """

    cache_slots: int | None = None
    cache_bytes: int | None = None
    prefill_tokens: int | None = None
    copy_dtype: str | None = None
    resident: bool = False


@dataclass(frozen=True, kw_only=True)
class PassSizes:
    """Tokens and rows of one rank's passes.

    Attributes:
        update_rows: Rows of a micro-batch of the update.
        update_width: Tokens of each.
        learned: Tokens of each that meet the vocabulary (response tokens).
        text_rows: Language-model rows beside a micro-batch (ptx).
        text_width: Tokens of each.
        generated_rows: Rows generated at a time; 0 without a rollout.
        cache_slots: Columns of the key-value cache, over all rows.
        prefill_tokens: Tokens of one prefill pass.
        cache_bytes: Most bytes of the key-value cache, where these bound it.
        copy_dtype: Of the engine's own copy of the policy's weights; see :class:`EngineLimits`.
        engine_resident: Whether the engine's copy and cache stay between rollouts.
    """

    update_rows: int
    update_width: int
    learned: int
    text_rows: int = 0
    text_width: int = 0
    generated_rows: int = 0
    cache_slots: int = 0
    prefill_tokens: int = 0
    cache_bytes: int | None = None
    copy_dtype: str | None = None
    engine_resident: bool = False


def supervised_sizes(*, width: int, pass_tokens: int) -> PassSizes:
    """Passes over rows of ``width`` tokens, each token learned, ``pass_tokens`` at a time."""
    return PassSizes(update_rows=max(1, pass_tokens // width), update_width=width, learned=width)


def rollout_sizes(
    *,
    prompt: int,
    response: int,
    rollout_rows: int,
    update_rows: int,
    pass_tokens: int,
    limits: EngineLimits,
    text_ratio: float = 0.0,
    text_width: int = 0,
) -> PassSizes:
    """The largest passes of an iteration: every prompt and response as long as it may be.

    Args:
        prompt: Most tokens of a prompt.
        response: Most tokens of a response.
        rollout_rows: Responses of this rank.
        update_rows: Responses of this rank's part of a minibatch.
        pass_tokens: Most tokens of a micro-batch.
        limits: The engine's.
        text_ratio: Text rows beside each row of a micro-batch.
        text_width: Tokens of each.
    """
    width = prompt + response
    updated = min(max(1, update_rows), max(1, pass_tokens // width))
    generated = max(1, rollout_rows)
    if limits.cache_slots is not None:
        generated = min(generated, max(1, limits.cache_slots // width))
    prefilled = generated * prompt
    return PassSizes(
        update_rows=updated,
        update_width=width,
        learned=response,
        text_rows=max(1, round(updated * text_ratio)) if text_ratio else 0,
        text_width=text_width,
        generated_rows=generated,
        cache_slots=generated * width,
        prefill_tokens=prefilled if limits.prefill_tokens is None else min(prefilled, limits.prefill_tokens),
        cache_bytes=limits.cache_bytes,
        copy_dtype=limits.copy_dtype,
        engine_resident=limits.resident,
    )
