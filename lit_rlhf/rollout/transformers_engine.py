"""Generation with any causal LM of the transformers library: a bare loop over a key-value cache.

What it leaves out of ``model.generate`` is where the time went: logits at prompt positions, all ``B x T x V`` scores,
padding of every prompt to the longest, and rows that have long ended. Prompts are sorted by length and share a cache of
a limited size (:class:`~lit_rlhf.rollout.decoding.Series`); they are prefilled in pieces of similar length, decoded
together, and a row that has ended gives its place to the next prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from lit_rlhf.models.causal import unwrap
from lit_rlhf.models.memory import cache_bytes_per_token
from lit_rlhf.models.uses import EngineLimits
from lit_rlhf.rollout.compiled import CompiledStep
from lit_rlhf.rollout.decoding import Decoder, Responses
from lit_rlhf.rollout.engine import GenerationRequest, RolloutEngine
from lit_rlhf.rollout.kv_cache import RowCache
from lit_rlhf.rollout.series import (
    Series,
    cache_budget,
    engine_limits,
    fixed_columns,
    fixed_series,
    growing_series,
    row_counts,
)
from lit_rlhf.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU_DROP_EVERY, ACCELERATOR_DROP_EVERY = 1, 8


class TransformersEngine(RolloutEngine):
    """Samples with a key-value cache; rows are independent of each other up to floating-point rounding.

    Args:
        max_batch_tokens: Cache slots of one batch: rows times (longest prompt + ``max_response_length``). Bounds
            memory; one row is always taken. None: 65,536 on a CPU, on an accelerator what fits into 8 GiB.
        prefill_tokens: Slots of one prefill pass. Small pieces keep activations in cache on a CPU and waste less
            padding; a GPU wants more. None: 2,048 on a CPU, 16,384 on an accelerator.
        drop_every: Steps between looks for finished rows; each look makes an accelerator wait. None: 1 on a CPU, 8 on
            an accelerator.
        sampler_logprobs: Whether the rollout carries the log-probabilities (raw logits, fp32) of the drawn tokens
            and the entropies. ``loss.old_logprobs: sampler`` takes them in place of the policy's scoring pass; the
            two differ by rounding.
        static_cache: Whether decode steps have fixed shapes: all columns (for the longest prompt there can be, rounded
            up to 128) under a mask, rows in powers of two. For ``compile``.
        compile: Whether decode steps go through `torch.compile`; needs ``static_cache``. One graph for each number of
            rows; a warning says when PyTorch has given up and steps run uncompiled.
    """

    def __init__(
        self,
        *,
        max_batch_tokens: int | None = None,
        prefill_tokens: int | None = None,
        drop_every: int | None = None,
        sampler_logprobs: bool = False,
        static_cache: bool = False,
        compile: bool = False,
    ) -> None:
        for name, value in (
            ("max_batch_tokens", max_batch_tokens),
            ("prefill_tokens", prefill_tokens),
            ("drop_every", drop_every),
        ):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` ({value}) must be >= 1.")
        if compile and not static_cache:
            raise ValueError(
                "`compile` (True) needs `static_cache` (False): a growing cache would recompile every step."
            )
        self.max_batch_tokens = max_batch_tokens
        self.prefill_tokens = prefill_tokens
        self.drop_every = drop_every
        self.gives_logprobs = sampler_logprobs
        self.static_cache = static_cache
        self.compile = compile
        self._policy: PreTrainedModel | None = None
        self._compiled: CompiledStep | None = None
        self._cache: RowCache | None = None
        self._columns = 0

    def sync(self, policy: PreTrainedModel) -> None:
        """Reads the policy's own weights, so there is nothing to copy."""
        self._policy = policy

    def generate(self, request: GenerationRequest) -> Rollout:
        """See `RolloutEngine.generate`; the policy is in eval mode meanwhile.

        Raises:
            RuntimeError: If there was no :meth:`sync`.
            FloatingPointError: If the logits of a row are not finite; names the prompt and the response token.
        """
        if self._policy is None:
            raise RuntimeError("`TransformersEngine.generate` needs a policy: call `sync(policy)` first.")
        # Validation runs in inference mode, whose tensors are of another kind: each graph would be compiled twice.
        mode = torch.inference_mode(mode=False) if self.compile else nullcontext()
        # Not a PEFT wrapper, whose `forward` does not say what it takes; the adapter's layers are inside the model.
        with mode, torch.no_grad(), _evaluating(unwrap(self._policy)) as policy:
            out = Responses(request.uniforms, pad_token_id=request.pad_token_id, scored=self.gives_logprobs)
            for series in self._series(policy, request):
                self._run(series, policy, request, out)
            return out.assemble(request.prompts)

    def rest(self) -> None:
        """Lets go of the policy (a `generate` before the next `sync` is an error, not stale weights) and the cache."""
        self._policy = self._cache = None
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            # What PyTorch keeps of the cache is in pieces that an update's larger tensors may not fit into.
            torch.cuda.empty_cache()

    def limits(self, device: torch.device | str) -> EngineLimits:
        """``max_batch_tokens`` and ``prefill_tokens``, or what suits the kind of device."""
        return engine_limits(device, cache_slots=self.max_batch_tokens, prefill_tokens=self.prefill_tokens)

    def cache_slots(self, policy: PreTrainedModel) -> int:
        """Cache slots of one batch: ``max_batch_tokens``, or what suits device and model."""
        kind = policy.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else policy.dtype
        return cache_budget(self.limits(kind), bytes_per_slot=cache_bytes_per_token(policy.config, dtype.itemsize))

    def _series(self, policy: PreTrainedModel, request: GenerationRequest) -> list[Series]:
        lengths, steps = request.prompts.prompt_mask.sum(1).tolist(), request.sampling.max_response_length
        budget = self.cache_slots(policy)
        if not self.static_cache:
            return list(growing_series(lengths, steps=steps, budget=budget))
        self._columns = max(self._columns, fixed_columns(max(request.longest_row, max(lengths) + steps)))
        return [fixed_series(lengths, columns=self._columns, budget=budget)]

    def _run(self, series: Series, policy: PreTrainedModel, request: GenerationRequest, out: Responses) -> None:
        drop_every = CPU_DROP_EVERY if policy.device.type == "cpu" else ACCELERATOR_DROP_EVERY
        prefill_tokens = self.limits(policy.device).prefill_tokens
        assert prefill_tokens is not None
        cache, self._cache = self._cache_for(series, policy), None
        Decoder(
            series,
            model=policy,
            step=self._step_function(policy),
            cache=cache,
            request=request,
            out=out,
            drop_every=self.drop_every or drop_every,
            prefill_tokens=prefill_tokens,
            row_counts=row_counts(series.rows) if self.static_cache else None,
        ).run()
        # Compiled steps know the buffers by their address. (What breaks off may leave anything in them.)
        self._cache = cache if self.static_cache else None

    def _cache_for(self, series: Series, policy: PreTrainedModel) -> RowCache:
        cache = self._cache
        if cache is not None and cache.columns == series.columns and cache.rows >= series.rows:
            return cache
        return RowCache(
            layers=policy.config.get_text_config().num_hidden_layers,
            rows=series.rows,
            columns=series.columns,
            static=policy.device if self.static_cache else None,
            compiled=self.compile,
        )

    def _step_function(self, model: PreTrainedModel) -> Callable[..., Any]:
        """What runs a decode step: the model, compiled once if asked for."""
        if not self.compile:
            forward: Callable[..., Any] = model
            return forward
        if self._compiled is None or self._compiled.model is not model:
            self._compiled = CompiledStep(model)
        return self._compiled


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Dropout off and gradient checkpointing (which would refuse a cache) asleep."""
    training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(training)
