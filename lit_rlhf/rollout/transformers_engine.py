"""Generation with any causal LM of the transformers library: a bare loop over a key-value cache.

What it leaves out of ``model.generate`` is where the time went: logits at prompt positions, all ``B x T x V`` scores,
padding of every prompt to the longest, and rows that have long ended. Prompts are sorted by length and split into
batches by a budget of cache slots; each batch is prefilled in smaller pieces of similar length, then decoded together
while finished rows drop out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_rlhf import signals
from lit_rlhf.data.batching import token_packs
from lit_rlhf.functional.logprobs import chunked_logprobs
from lit_rlhf.models.causal import unwrap
from lit_rlhf.models.cpu import seen_at
from lit_rlhf.models.packed_pairs import can_pack
from lit_rlhf.rollout.engine import GenerationRequest, RolloutEngine, assemble
from lit_rlhf.rollout.sampling import SamplingConfig, inverse_cdf, token_weights
from lit_rlhf.types import PromptBatch, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersEngine(RolloutEngine):
    """Samples with a key-value cache; rows are independent of each other up to floating-point rounding.

    Args:
        max_batch_tokens: Cache slots of one batch: rows times (longest prompt + ``max_response_length``). Bounds
            memory; one row is always taken.
        prefill_tokens: Slots of one prefill pass. Small pieces keep activations in cache on a CPU and waste less
            padding; a GPU wants more.
        drop_every: Steps between looks for finished rows. 1 on a CPU; each look makes a GPU wait, so more there.
        sampler_logprobs: Whether the rollout carries the log-probabilities (raw logits, fp32) of the drawn tokens
            and the entropies. ``loss.old_logprobs: sampler`` takes them in place of the policy's scoring pass; the
            two differ by rounding.
        static_cache: Whether decode steps have fixed shapes (all columns, under a mask). For ``compile``.
        compile: Whether decode steps go through `torch.compile`; needs ``static_cache``.
    """

    max_batch_tokens: int
    prefill_tokens: int

    def __init__(
        self,
        *,
        max_batch_tokens: int = 65536,
        prefill_tokens: int = 2048,
        drop_every: int = 1,
        sampler_logprobs: bool = False,
        static_cache: bool = False,
        compile: bool = False,
    ) -> None:
        for name, value in (
            ("max_batch_tokens", max_batch_tokens),
            ("prefill_tokens", prefill_tokens),
            ("drop_every", drop_every),
        ):
            if value < 1:
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
        self._compiled: tuple[PreTrainedModel, Callable[..., Any]] | None = None

    def sync(self, policy: PreTrainedModel) -> None:
        """Reads the policy's own weights, so there is nothing to copy."""
        self._policy = policy

    @torch.no_grad()
    def generate(self, request: GenerationRequest) -> Rollout:
        """See `RolloutEngine.generate`; the policy is in eval mode meanwhile.

        Raises:
            RuntimeError: If there was no :meth:`sync`.
            FloatingPointError: If the logits of a row are not finite; names the prompt and the response token.
        """
        if self._policy is None:
            raise RuntimeError("`TransformersEngine.generate` needs a policy: call `sync(policy)` first.")
        sampling, prompts = request.sampling, request.prompts
        out = _Responses(request.uniforms, pad_token_id=request.pad_token_id, scored=self.gives_logprobs)
        lengths = prompts.prompt_mask.sum(1)
        with _evaluating(self._policy) as policy:
            for rows in _batches(lengths, extra=sampling.max_response_length, max_tokens=self.max_batch_tokens):
                running = _Running.start(
                    prompts,
                    rows,
                    request.uniforms,
                    penalize_prompt=sampling.penalize_prompt,
                    scored=self.gives_logprobs,
                )
                _Batch(self, policy, running, sampling, request.eos_token_ids).run(out)
        return assemble(
            prompts,
            response_ids=out.ids,
            response_lengths=out.lengths,
            ended=out.ended,
            sampler_logprobs=out.logprobs,
            sampler_entropies=out.entropies,
        )

    def rest(self) -> None:
        """Lets go of the policy: a `generate` before the next `sync` is an error, not stale weights."""
        self._policy = None

    def step_function(self, model: PreTrainedModel) -> Callable[..., Any]:
        """What runs a decode step: the model, compiled once if asked for."""
        if not self.compile:
            forward: Callable[..., Any] = model
            return forward
        if self._compiled is None or self._compiled[0] is not model:
            mode = "reduce-overhead" if model.device.type == "cuda" else "default"
            compiled: Callable[..., Any] = torch.compile(model.forward, mode=mode, dynamic=False)
            self._compiled = (model, compiled)
        return self._compiled[1]


class _Responses:
    """What a generation fills in, rows in the order of the prompts."""

    def __init__(self, uniforms: Tensor, *, pad_token_id: int, scored: bool) -> None:
        rows = uniforms.size(0)
        self.ids = torch.full(uniforms.shape, pad_token_id, dtype=torch.int64, device=uniforms.device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=uniforms.device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=uniforms.device)
        self.logprobs = torch.zeros(uniforms.shape, dtype=torch.float32, device=uniforms.device) if scored else None
        self.entropies = None if self.logprobs is None else torch.zeros_like(self.logprobs)

    def write(self, running: _Running, *, width: int) -> None:
        """Write down the rows of ``running``, whose responses start at column ``width``."""
        drawn = running.drawn[:, width:]
        self.ids[running.rows] = torch.where(drawn, running.ids[:, width:], self.ids[running.rows])
        self.lengths[running.rows] = drawn.sum(1)
        self.ended[running.rows] = running.done
        if self.logprobs is not None and self.entropies is not None:
            self.logprobs[running.rows] = running.logprobs.masked_fill(~drawn, 0.0)
            self.entropies[running.rows] = running.entropies.masked_fill(~drawn, 0.0)


def _batches(lengths: Tensor, *, extra: int, max_tokens: int) -> list[Tensor]:
    """Row indices in pieces of at most ``max_tokens`` slots (rows x (longest + extra)), longest rows first."""
    packs = token_packs((lengths + extra).tolist(), max_tokens)
    return [torch.tensor(rows, device=lengths.device) for rows in packs]


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Dropout off and gradient checkpointing (which would refuse a cache) asleep."""
    training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(training)


@dataclass
class _Running:
    """The rows still being generated, always the leading rows of the cache; n of them, W columns.

    Attributes:
        rows: Their indices among the prompts, ``(n,)``.
        lengths: Tokens of their prompts, ``(n,)``.
        uniforms: ``(n, T)`` float64.
        ids: Prompt and response tokens, ``(n, W)``.
        visible: True at the columns attention may see, all response columns included, ``(n, W)`` bool.
        drawn: True at response tokens drawn before or at the row's end, ``(n, W)`` bool.
        penalized: True at tokens the repetition penalty counts, ``(n, W)`` bool.
        done: Whether the row's EOS has been drawn, ``(n,)`` bool.
        broken: Whether the row had no finite largest logit while it was running, ``(n,)`` bool.
        logprobs: Of the drawn tokens, ``(n, T)`` fp32; ``(n, 0)`` if not wanted.
        entropies: Of the distributions they were drawn from, the same shape.
    """

    rows: Tensor
    lengths: Tensor
    uniforms: Tensor
    ids: Tensor
    visible: Tensor
    drawn: Tensor
    penalized: Tensor
    done: Tensor
    broken: Tensor
    logprobs: Tensor
    entropies: Tensor

    @classmethod
    def start(
        cls, prompts: PromptBatch, rows: Tensor, uniforms: Tensor, *, penalize_prompt: bool, scored: bool
    ) -> _Running:
        """The given rows, without the columns that are padding in all of them."""
        lengths, steps = prompts.prompt_mask[rows].sum(1), uniforms.size(1)
        width = int(lengths.max())
        mask, ids = prompts.prompt_mask[rows, -width:], prompts.prompt_ids[rows, -width:]
        none = mask.new_zeros(len(rows), steps)
        return cls(
            rows=rows,
            lengths=lengths,
            uniforms=uniforms[rows],
            ids=torch.cat([ids, none.long()], dim=1),
            visible=torch.cat([mask, ~none], dim=1),
            drawn=torch.cat([torch.zeros_like(mask), none], dim=1),
            penalized=torch.cat([mask & penalize_prompt, ~none], dim=1),
            done=torch.zeros_like(rows, dtype=torch.bool),
            broken=torch.zeros_like(rows, dtype=torch.bool),
            logprobs=torch.zeros(len(rows), steps if scored else 0, dtype=torch.float32, device=ids.device),
            entropies=torch.zeros(len(rows), steps if scored else 0, dtype=torch.float32, device=ids.device),
        )

    def take(self, index: Tensor) -> _Running:
        """The rows ``index``, in that order."""
        return _Running(**{name: value[index] for name, value in vars(self).items()})


class _Batch:
    """One batch from prefill to its last token."""

    def __init__(
        self,
        engine: TransformersEngine,
        model: PreTrainedModel,
        running: _Running,
        sampling: SamplingConfig,
        eos_token_ids: Sequence[int],
    ) -> None:
        from lit_rlhf.rollout.kv_cache import RowCache

        self.engine, self.model, self.running, self.sampling = engine, model, running, sampling
        self.eos_token_ids = eos_token_ids
        self.eos = torch.tensor(list(eos_token_ids), device=running.ids.device)
        self.steps = sampling.max_response_length
        self.width = running.ids.size(1) - self.steps
        self.first_column = 0
        self.cache = RowCache(
            layers=model.config.get_text_config().num_hidden_layers,
            rows=len(running.rows),
            columns=running.ids.size(1),
            static=engine.static_cache,
        )
        self.accepts = inspect.signature(model.forward).parameters
        trunk = unwrap(model).base_model
        # Building the mask anew at every step, as the models do by themselves, costs more than a small layer.
        self.own_mask = trunk.config._attn_implementation if can_pack(trunk) else None
        self.position = torch.zeros(1, dtype=torch.int64, device=running.ids.device) if engine.static_cache else None

    def run(self, out: _Responses) -> None:
        """Fill the batch's rows of ``out``."""
        logits = self._prefill()
        for step in range(self.steps):
            signals.check()
            self._draw(logits, step)
            last = step + 1 == self.steps
            if last or (step + 1) % self.engine.drop_every == 0:
                self._check_finite(step)
                if last or self._drop_finished(out, step):
                    break
            logits = self._decode(step)
        out.write(self.running, width=self.width)

    def _logits(
        self, run: Callable[..., Any], ids: Tensor, mask: Tensor, positions: Tensor, *, keep: int = 1
    ) -> Tensor:
        """Logits after the last ``keep`` tokens of each row (0 = all of what the trunk gives)."""
        extra = {"position_ids": positions, "logits_to_keep": keep}
        known = {k: v for k, v in extra.items() if k in self.accepts}
        output = run(input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, **known)
        logits: Tensor = output.logits
        return logits

    def _prefill(self) -> Tensor:
        """Fill the cache with the prompts, in pieces of similar length; logits after each prompt."""
        pieces, running = [], self.running
        for rows in _batches(running.lengths, extra=0, max_tokens=self.engine.prefill_tokens):
            first, stop = int(rows[0]), int(rows[-1]) + 1
            column = self.width - int(running.lengths[first])
            mask = running.visible[first:stop, column : self.width]
            self.cache.aim_prefill(first_row=first, column=column)
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            ids = running.ids[first:stop, column : self.width]
            ends = torch.arange(1, len(ids) + 1, device=ids.device) * ids.size(1) - 1
            view = seen_at(unwrap(self.model), ends)
            if view is None:
                pieces.append(self._logits(self.model, ids, mask, positions)[:, -1])
            else:
                pieces.append(self._logits(view, ids, mask, positions, keep=0)[0])
        return torch.cat(pieces).float()

    def _decode(self, step: int) -> Tensor:
        """Run the tokens of ``step`` through the model; logits after them."""
        running, column, first = self.running, self.width + step, self.first_column
        if self.position is not None:
            self.position.fill_(column)
        self.cache.aim_decode(column=column, first_column=first, position=self.position)
        run = self.engine.step_function(self.model)
        mask, positions = self._decode_mask(column), (running.lengths + step)[:, None]
        return self._logits(run, running.ids[:, column, None], mask, positions)[:, -1].float()

    def _decode_mask(self, column: int) -> Tensor:
        """What the token in ``column`` sees, for the models that let us say so; else the columns that are not padding.

        With a static cache all columns are there, and the shape is the same at every step.
        """
        visible = self.running.visible
        if self.own_mask is None:
            return visible[:, self.first_column : column + 1]
        if self.position is None:
            visible = visible[:, None, None, self.first_column : column + 1]
        else:
            visible = (visible & (torch.arange(visible.size(1), device=visible.device) <= column))[:, None, None]
        if self.own_mask != "eager":
            return visible
        dtype = self.model.dtype
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
            ~visible, torch.finfo(dtype).min
        )

    def _draw(self, logits: Tensor, step: int) -> None:
        """Draw a token for every running row and write it down."""
        running, column = self.running, self.width + step
        weights = token_weights(
            logits,
            sampling=self.sampling,
            eos_token_ids=self.eos_token_ids,
            position=step,
            seen_ids=running.ids[:, :column],
            seen_mask=running.penalized[:, :column],
        )
        tokens = weights.argmax(-1) if self.sampling.greedy else inverse_cdf(weights, running.uniforms[:, step])
        running.broken |= ~logits.amax(-1).isfinite() & ~running.done
        running.ids[:, column] = tokens
        running.drawn[:, column] = ~running.done
        running.done |= torch.isin(tokens, self.eos)
        if self.engine.gives_logprobs:
            logprobs, entropies = chunked_logprobs(logits, lambda x: x, tokens, with_entropy=True)
            assert entropies is not None
            running.logprobs[:, step], running.entropies[:, step] = logprobs, entropies

    def _check_finite(self, step: int) -> None:
        if bool(self.running.broken.any()):
            rows = self.running.rows[self.running.broken].tolist()
            raise FloatingPointError(
                f"The policy's logits after prompts {rows[:8]} are not finite (seen at response token {step})."
            )

    def _drop_finished(self, out: _Responses, step: int) -> bool:
        """Take finished rows out of the batch; whether none is left.

        With a static cache the batch only ever halves, so that few shapes occur; finished rows fill it up.
        """
        running, size = self.running, len(self.running.rows)
        count = size - int(running.done.sum())
        target = count
        if self.engine.static_cache:
            target = size
            while target // 2 >= count > 0:
                target //= 2
        if count == 0 or target == size:
            return count == 0
        leading = torch.arange(size, device=running.rows.device) < target
        movers = (~running.done & ~leading).nonzero()[:, 0]
        holes = (running.done & leading).nonzero()[: len(movers), 0]
        out.write(running.take(running.done.nonzero()[:, 0]), width=self.width)
        self.cache.move_rows(movers, holes, stop=self.width + step)
        order = torch.arange(target, device=running.rows.device)
        order[holes] = movers
        self.running = running.take(order)
        if not self.engine.static_cache:
            self.first_column = self.width - int(self.running.lengths.max())
        return False
