"""Rows in one key-value cache from their first prefill to their last token, freed slots given to waiting prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_rlhf import signals
from lit_rlhf.data.batching import token_packs
from lit_rlhf.functional.logprobs import chunked_logprobs
from lit_rlhf.models.causal import unwrap
from lit_rlhf.models.cpu import seen_at
from lit_rlhf.models.packed_pairs import can_pack
from lit_rlhf.rollout.attention import grouped_heads_in_place
from lit_rlhf.rollout.engine import GenerationRequest, assemble
from lit_rlhf.rollout.kv_cache import RowCache
from lit_rlhf.rollout.sampling import inverse_cdf, token_weights
from lit_rlhf.rollout.series import Series
from lit_rlhf.types import PromptBatch, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Responses:
    """What a generation fills in: rows in the order of the prompts, and a last one for what nobody asked for.

    Attributes:
        ids: ``(B + 1, T)`` int64.
        lengths: ``(B + 1,)`` int64.
        ended: Whether the response has its EOS, ``(B + 1,)`` bool.
        logprobs: ``(B + 1, T)`` fp32, or None.
        entropies: The same, or None.
    """

    def __init__(self, uniforms: Tensor, *, pad_token_id: int, scored: bool) -> None:
        (rows, steps), device = uniforms.shape, uniforms.device
        self.ids = torch.full((rows + 1, steps), pad_token_id, dtype=torch.int64, device=device)
        self.lengths = torch.zeros(rows + 1, dtype=torch.int64, device=device)
        self.ended = torch.zeros(rows + 1, dtype=torch.bool, device=device)
        self.logprobs = torch.zeros(rows + 1, steps, dtype=torch.float32, device=device) if scored else None
        self.entropies = None if self.logprobs is None else torch.zeros_like(self.logprobs)

    def assemble(self, prompts: PromptBatch) -> Rollout:
        """Prompts and responses as the columns of a rollout."""
        return assemble(
            prompts,
            response_ids=self.ids[:-1],
            response_lengths=self.lengths[:-1],
            ended=self.ended[:-1],
            sampler_logprobs=None if self.logprobs is None else self.logprobs[:-1],
            sampler_entropies=None if self.entropies is None else self.entropies[:-1],
        )


@dataclass
class Slots:
    """The leading rows of a cache, n of them; every field is ``(n,)``.

    Attributes:
        rows: The prompt each answers; B for a slot that only keeps a fixed shape full.
        lengths: Tokens of the prompt.
        steps: Response tokens drawn.
        tokens: The last of them, which is not in the cache yet.
        ended: Whether it is an EOS.
        done: Whether nothing more will be drawn; the slot goes on writing to the cache until it is dropped.
        broken: Whether a row had no finite largest logit while it was running.
    """

    rows: Tensor
    lengths: Tensor
    steps: Tensor
    tokens: Tensor
    ended: Tensor
    done: Tensor
    broken: Tensor

    @classmethod
    def new(cls, rows: Sequence[int], lengths: Sequence[int], device: torch.device, *, done: bool = False) -> Slots:
        """Slots in which nothing has been drawn."""
        index = torch.tensor(rows, dtype=torch.int64, device=device)
        no = torch.zeros_like(index, dtype=torch.bool)
        return cls(
            rows=index,
            lengths=torch.tensor(lengths, dtype=torch.int64, device=device),
            steps=torch.zeros_like(index),
            tokens=torch.zeros_like(index),
            ended=no,
            done=no | done,
            broken=no.clone(),
        )

    def take(self, index: Tensor) -> Slots:
        """The slots ``index``, in that order."""
        return Slots(**{name: value[index] for name, value in vars(self).items()})

    def and_then(self, others: Slots) -> Slots:
        """These slots and ``others``."""
        return Slots(**{name: torch.cat([value, getattr(others, name)]) for name, value in vars(self).items()})

    def __len__(self) -> int:
        return len(self.rows)


class Decoder:
    """Runs one series.

    Args:
        model: The policy, in eval mode.
        step: What runs a decode step: the model, or what it was compiled to.
        cache: With the series' columns, and at least its rows.
        request: Prompts and how to draw.
        out: Filled in.
        drop_every: Steps between looks for finished rows.
        prefill_tokens: Slots of one prefill pass.
        row_counts: The numbers of rows a decode step may have, ascending; None for any.
    """

    def __init__(
        self,
        series: Series,
        *,
        model: PreTrainedModel,
        step: Callable[..., Any],
        cache: RowCache,
        request: GenerationRequest,
        out: Responses,
        drop_every: int,
        prefill_tokens: int,
        row_counts: Sequence[int] | None = None,
    ) -> None:
        self.series, self.model, self.step, self.cache, self.out = series, model, step, cache, out
        self.request, self.sampling, self.device = request, request.sampling, request.uniforms.device
        self.drop_every, self.prefill_tokens, self.row_counts = drop_every, prefill_tokens, row_counts
        self.steps = self.sampling.max_response_length
        self.eos = torch.tensor(request.eos_token_ids, device=self.device)
        self.accepts = inspect.signature(model.forward).parameters
        self.trunk: Any = unwrap(model).base_model
        # Building the mask anew at every step, as the models do by themselves, costs more than a small layer.
        self.own_mask = can_pack(self.trunk)
        self.eager = self.trunk.config._attn_implementation == "eager"
        self.started = 0  # how many of the series' prompts have had a slot
        self.column = series.lengths[0]  # the next one written
        self.first_column = 0
        self.drawn = self.youngest = 0  # steps since the beginning, and of the rows that came last
        self.slots = Slots.new([], [], self.device)
        self.visible = torch.empty(0, 0)

    def run(self) -> None:
        """Fill the series' rows of ``out``."""
        with grouped_heads_in_place(self.trunk):
            self._run()

    def _run(self) -> None:
        self._admit(self.series.rows)
        self._settle([])
        while len(self.slots):
            signals.check()
            ends = self.youngest == self.steps or self.column == self.series.columns
            if ends or self.drawn % self.drop_every == 0:
                self._look()
            if len(self.slots) and self.youngest < self.steps:
                self._draw(self.slots, self._decode())
                self.drawn, self.youngest = self.drawn + 1, self.youngest + 1

    # ---------------------------------------------------------------- which rows are in the cache

    def _look(self) -> None:
        """Write down finished rows, drop them, and give their slots to waiting prompts. One wait for the device."""
        slots = self.slots
        done, broken, spans = torch.stack([slots.done, slots.broken, slots.lengths + slots.steps]).tolist()
        if any(broken):
            self._refuse([i for i, bad in enumerate(broken) if bad])
        running = [i for i, finished in enumerate(done) if not finished]
        free, waiting = self.series.rows - len(running), len(self.series.prompts) - self.started
        # A pass over a few short prompts costs as much as a decode step: not for every single slot.
        new = min(free, waiting) if free >= self.series.rows / 8 else 0
        if not new and self._count(len(running)) == len(slots) > 0:
            return
        self.out.lengths[slots.rows], self.out.ended[slots.rows] = slots.steps, slots.ended
        self._compact([bool(finished) for finished in done], len(running))
        self._admit(new)
        self._settle([spans[i] for i in running])

    def _refuse(self, broken: list[int]) -> None:
        rows, step = self.slots.rows[broken].tolist(), int(self.slots.steps[broken].max()) - 1
        raise FloatingPointError(
            f"The policy's logits after prompts {rows[:8]} are not finite (seen at response token {step})."
        )

    def _count(self, rows: int) -> int:
        """Rows of a decode step of which ``rows`` are running."""
        if self.row_counts is None or not rows:
            return rows
        return next(count for count in self.row_counts if count >= rows)

    def _compact(self, done: list[bool], running: int) -> None:
        """Move the last running rows into the slots of finished ones, so that the running rows lead."""
        movers = [i for i in range(running, len(done)) if not done[i]]
        holes = [i for i in range(running) if done[i]]
        order = torch.arange(running, device=self.device)
        if movers:
            source, target = torch.tensor([movers, holes], device=self.device)
            self.cache.move_rows(source, target, stop=self.column)
            order[target] = source
        self.slots = self.slots.take(order)

    def _admit(self, count: int) -> None:
        """Start the next ``count`` prompts in the slots behind the running ones, and draw their first tokens."""
        part = slice(self.started, self.started + count)
        rows, lengths = self.series.prompts[part], self.series.lengths[part]
        if not rows:
            return
        self.started += len(rows)
        slots = Slots.new(rows, lengths, self.device)
        self._draw(slots, self._prefill(slots.rows, lengths))
        self.slots = self.slots.and_then(slots)
        self.drawn, self.youngest = max(self.drawn, 1), 1

    def _settle(self, spans: list[int]) -> None:
        """After a change of rows: fill up a fixed shape, and see which columns are visible.

        Args:
            spans: Prompt and response tokens of the rows that were there before.
        """
        missing = self._count(len(self.slots)) - len(self.slots)
        if missing:
            nobody = len(self.out.lengths) - 1
            self.slots = self.slots.and_then(Slots.new([nobody] * missing, [1] * missing, self.device, done=True))
        if self.row_counts is None and len(self.slots):
            new = self.series.lengths[self.started - (len(self.slots) - len(spans)) : self.started]
            # The last token drawn is not in the cache, hence the 1.
            self.first_column = self.column - max([span - 1 for span in spans] + new)
        self._see()

    def _see(self) -> None:
        first = self.column - (self.slots.lengths + self.slots.steps - 1)
        self.visible = torch.arange(self.series.columns, device=self.device) >= first[:, None]

    def _make_room(self) -> None:
        """At the last column: move all rows to the left, as far as the longest of them lets."""
        if self.column < self.series.columns:
            return
        by = self.column - int((self.slots.lengths + self.slots.steps).max()) + 1
        self.cache.shift(by, rows=len(self.slots), stop=self.column)
        self.column, self.first_column = self.column - by, max(0, self.first_column - by)
        self._see()

    # ---------------------------------------------------------------- the model

    def _logits(
        self, run: Callable[..., Any], ids: Tensor, mask: Tensor, positions: Tensor, *, keep: int = 1
    ) -> Tensor:
        """Logits after the last ``keep`` tokens of each row (0 = all of what the trunk gives)."""
        extra = {"position_ids": positions, "logits_to_keep": keep}
        known = {k: v for k, v in extra.items() if k in self.accepts}
        output = run(input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, **known)
        logits: Tensor = output.logits
        return logits

    def _prefill(self, rows: Tensor, lengths: list[int]) -> Tensor:
        """Put prompts into the cache, in pieces of similar length; logits after each prompt."""
        pieces, prompts = [], self.request.prompts
        for pack in token_packs(lengths, self.prefill_tokens):
            start, width = pack[0], lengths[pack[0]]  # the longest of the pack: rows are in that order already
            part = rows[start : start + len(pack)]
            ids, mask = prompts.prompt_ids[part, -width:], prompts.prompt_mask[part, -width:]
            self.cache.aim_prefill(first_row=len(self.slots) + start, column=self.column - width)
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            ends = torch.arange(1, len(ids) + 1, device=ids.device) * width - 1
            view = seen_at(unwrap(self.model), ends)
            if view is None:
                pieces.append(self._logits(self.model, ids, mask, positions)[:, -1])
            else:
                pieces.append(self._logits(view, ids, mask, positions, keep=0)[0])
        return torch.cat(pieces).float()

    def _decode(self) -> Tensor:
        """Run the last tokens drawn through the model; logits after them."""
        self._make_room()
        slots = self.slots
        self.cache.aim_decode(rows=len(slots), column=self.column, first_column=self.first_column)
        positions = (slots.lengths + slots.steps - 1).clamp_min(0)[:, None]
        logits = self._logits(self.step, slots.tokens[:, None], self._mask(), positions)
        self.column += 1
        return logits[:, -1].float()

    def _mask(self) -> Tensor:
        """What the token in ``column`` sees, for the models that let us say so; else the columns that are not padding.

        With a static cache all columns are there, and the shape is the same at every step.
        """
        if self.cache.window.position is None:
            visible = self.visible[:, self.first_column : self.column + 1]
        else:
            visible = self.visible & (torch.arange(self.series.columns, device=self.device) <= self.column)
        if not self.own_mask:
            return visible
        visible = visible[:, None, None]
        if not self.eager:
            return visible
        dtype = self.model.dtype
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
            ~visible, torch.finfo(dtype).min
        )

    # ---------------------------------------------------------------- the draw

    def _draw(self, slots: Slots, logits: Tensor) -> None:
        """Draw a token for every slot and write it down; what is drawn for finished ones goes to nobody."""
        out, nobody = self.out, len(self.out.lengths) - 1
        step = slots.steps.clamp_max(self.steps - 1)
        weights = self._weights(slots, logits)
        if self.sampling.greedy:
            tokens = weights.argmax(-1)
        else:
            tokens = inverse_cdf(weights, self.request.uniforms[slots.rows.clamp_max(nobody - 1), step])
        slots.broken |= ~logits.amax(-1).isfinite() & ~slots.done
        target = slots.rows.masked_fill(slots.done, nobody)
        out.ids[target, step] = tokens
        if out.logprobs is not None and out.entropies is not None:
            logprobs, entropies = chunked_logprobs(logits, lambda x: x, tokens, with_entropy=True)
            out.logprobs[target, step], out.entropies[target, step] = logprobs, entropies  # type: ignore[assignment]
        slots.tokens = tokens
        slots.steps = slots.steps + ~slots.done
        slots.ended = slots.ended | (torch.isin(tokens, self.eos) & ~slots.done)
        slots.done = slots.done | slots.ended | (slots.steps == self.steps)

    def _weights(self, slots: Slots, logits: Tensor) -> Tensor:
        sampling, ids, mask = self.sampling, None, None
        if slots is self.slots and self.youngest + 1 >= sampling.min_response_length:
            sampling = replace(sampling, min_response_length=0)
        if sampling.repetition_penalty != 1:
            ids, mask = self._seen(slots)
        return token_weights(
            logits, sampling=sampling, eos_token_ids=self.eos, position=slots.steps, seen_ids=ids, seen_mask=mask
        )

    def _seen(self, slots: Slots) -> tuple[Tensor, Tensor]:
        """The tokens that the repetition penalty counts, and where they are."""
        rows, prompts = slots.rows.clamp_max(len(self.out.lengths) - 2), self.request.prompts
        ids = self.out.ids[rows, : min(self.drawn, self.steps)]
        mask = torch.arange(ids.size(1), device=self.device) < slots.steps[:, None]
        if not self.sampling.penalize_prompt:
            return ids, mask
        return torch.cat([prompts.prompt_ids[rows], ids], 1), torch.cat([prompts.prompt_mask[rows], mask], 1)
