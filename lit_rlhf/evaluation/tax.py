"""What alignment costs: language-model loss on held-out text, and tasks, of several models on the same documents."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_rlhf.data.batching import micro_batches, pad_right
from lit_rlhf.data.records import DialogueRecord, RowError, TextRecord
from lit_rlhf.data.template import encode_dialogue, encode_text
from lit_rlhf.evaluation.intervals import Interval, ratio_bootstrap
from lit_rlhf.files import write_text
from lit_rlhf.functional.losses import lm_loss
from lit_rlhf.models.scoring import text_logprobs
from lit_rlhf.types import TextBatch

if TYPE_CHECKING:
    from rich.table import Table

LOSS = "nats per token"


@dataclass(frozen=True, kw_only=True)
class Sums:
    """One model on the documents of one source: what the means are made of.

    Attributes:
        totals: Of each document, the sum of what is measured: negative log-likelihood, or a task's metric.
        weights: Of each document, its learned tokens; 1 for a task.
    """

    totals: Sequence[float]
    weights: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One source of text or one task.

    Attributes:
        name: The file's or the task's.
        unit: "nats per token", or the task's metric.
        documents: How many.
        values: Mean of each model with its interval; documents are what is resampled.
        changes: Mean of each model less the baseline's on the same documents, with the interval of the paired
            difference; without the baseline itself.
    """

    name: str
    unit: str
    documents: int
    values: Mapping[str, Interval]
    changes: Mapping[str, Interval]

    @property
    def lower_is_better(self) -> bool:
        """True for losses."""
        return self.unit == LOSS


def measurement(name: str, unit: str, sums: Mapping[str, Sums], *, baseline: str) -> Measurement:
    """Means and paired differences of several models.

    Args:
        name: The file's or the task's.
        unit: See :class:`Measurement`.
        sums: Of every model, on the same documents in the same order.
        baseline: Whose means are subtracted.

    Raises:
        ValueError: If the models were not measured on the same documents, or on none.
    """
    base = sums[baseline]
    if not base.totals:
        raise ValueError(f"{name} holds no document that fits.")
    for model, own in sums.items():
        if list(own.weights) != list(base.weights):
            raise ValueError(f"{name}: {model} and {baseline} did not read the same documents alike.")
    documents = range(len(base.totals))
    values = {model: ratio_bootstrap(own.totals, own.weights, documents) for model, own in sums.items()}
    changes = {
        model: ratio_bootstrap([x - y for x, y in zip(own.totals, base.totals, strict=True)], own.weights, documents)
        for model, own in sums.items()
        if model != baseline
    }
    return Measurement(name=name, unit=unit, documents=len(documents), values=values, changes=changes)


@torch.no_grad()
def text_sums(
    model: Any,
    tokenizer: Any,
    records: Sequence[DialogueRecord | TextRecord],
    *,
    template: str | None = None,
    max_length: int = 1024,
    max_batch_tokens: int = 8192,
    device: torch.device | str = "cpu",
) -> Sums:
    """The ptx loss of a model, document by document: every token of a text, the responses of a dialogue.

    Args:
        model: Causal language model, on ``device``, in eval mode.
        tokenizer: Its tokenizer, with a pad token.
        records: Texts and dialogues.
        template: Named chat template for tokenizers without one, for dialogues.
        max_length: Most tokens of a row; a longer text is read in pieces, a longer dialogue loses its oldest turns or
            weighs nothing.
        max_batch_tokens: Most tokens of a forward pass, padding included.
        device: Where the model is.
    """
    rows = [
        (place, row)
        for place, record in enumerate(records)
        for row in _rows(tokenizer, record, template=template, max_length=max_length)
    ]
    totals, weights = [0.0] * len(records), [0.0] * len(records)
    for part in micro_batches([len(ids) for _, (ids, _) in rows], max_batch_tokens):
        chosen = [rows[i] for i in part]
        logprobs, mask = text_logprobs(model, _batch(tokenizer, [row for _, row in chosen]).to(device))
        nll = lm_loss(logprobs).double().sum(1).tolist()
        for (place, _), loss, tokens in zip(chosen, nll, mask.sum(1).tolist(), strict=True):
            totals[place] += loss
            weights[place] += tokens
    kept = [i for i, tokens in enumerate(weights) if tokens > 0]
    return Sums(totals=[totals[i] for i in kept], weights=[weights[i] for i in kept])


def _rows(
    tokenizer: Any, record: DialogueRecord | TextRecord, *, template: str | None, max_length: int
) -> list[tuple[list[int], list[bool]]]:
    if isinstance(record, TextRecord):
        pieces = encode_text(tokenizer, record.text, max_length=max_length)
        return [(ids, [i > 0 for i in range(len(ids))]) for ids in pieces]
    try:
        encoded = encode_dialogue(tokenizer, record, template=template, max_length=max_length)
    except RowError:  # too long: its weight is 0, for every model
        return []
    return [(encoded.ids, encoded.learned)]


def _batch(tokenizer: Any, rows: Sequence[tuple[list[int], list[bool]]]) -> TextBatch:
    ids, mask = pad_right([ids for ids, _ in rows], tokenizer.pad_token_id)
    learned, _ = pad_right([learned for _, learned in rows], 0)
    return TextBatch(input_ids=ids, attention_mask=mask, loss_mask=learned.bool())


@dataclass(frozen=True, kw_only=True)
class Tax:
    """Several models on several texts and tasks.

    Attributes:
        baseline: The model that the others are compared with.
        models: Names, in the order shown.
        measurements: The texts, then the tasks.
    """

    baseline: str
    models: Sequence[str]
    measurements: Sequence[Measurement]

    def to_dict(self) -> dict[str, Any]:
        """In JSON's own types; NaN is null."""
        return {
            "baseline": self.baseline,
            "models": list(self.models),
            "measurements": [
                {
                    "name": m.name,
                    "unit": m.unit,
                    "documents": m.documents,
                    "values": {k: _plain(v) for k, v in m.values.items()},
                    "changes": {k: _plain(v) for k, v in m.changes.items()},
                }
                for m in self.measurements
            ],
        }

    def write(self, path: str | Path) -> Path:
        """Write it as JSON."""
        write_text(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")
        return Path(path)

    def caption(self) -> str:
        """How to read the numbers."""
        return (
            f"Mean, and in brackets the change from {self.baseline} on the same documents with its 95 % interval "
            "(paired bootstrap over documents). Losses are nats per token: lower is better. Tasks: higher is better."
        )

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: one row per text or task, one column per model."""
        header = ["", "documents", *self.models]
        rows = []
        for m in self.measurements:
            unit = "loss" if m.lower_is_better else m.unit
            rows.append([f"{m.name} ({unit})", str(m.documents), *(_cell(m, model) for model in self.models)])
        return header, rows

    def to_markdown(self) -> str:
        """The table as Markdown, the caption below it."""
        header, rows = self.cells()
        rule = ["---", *["---:"] * (len(header) - 1)]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [header, rule, *rows]]
        return "\n".join([*lines, "", self.caption(), ""])

    def to_rich(self) -> Table:
        """The table for a terminal."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        header, rows = self.cells()
        table = Table(title="Alignment tax", caption=self.caption(), caption_justify="left", box=box.SIMPLE_HEAD)
        for place, name in enumerate(header):
            table.add_column(Text(name), justify="right" if place else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        return table


def _cell(m: Measurement, model: str) -> str:
    mean = f"{m.values[model].mean:.3f}"
    change = m.changes.get(model)
    if change is None:
        return mean
    ends = f" {change.low:+.3f}, {change.high:+.3f}" if change.is_defined else ""
    return f"{mean} [{change.mean:+.3f}:{ends}]"


def _plain(interval: Interval) -> dict[str, float | None]:
    return {name: end if math.isfinite(end) else None for name, end in interval._asdict().items()}
