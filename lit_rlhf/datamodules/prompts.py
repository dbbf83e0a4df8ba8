"""Prompts as token ids, and the loader that evaluation and prediction read them from."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lit_rlhf.data.batching import pad_left
from lit_rlhf.datamodules.rows import StoredRows
from lit_rlhf.distributed import rank, world_size
from lit_rlhf.types import ROW_KEY, DeviceBatch, PromptBatch, Record


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """One prompt as token ids, with the raw row it came from.

    Attributes:
        ids: Token ids; kept as 4 bytes each (Python's integers take 36).
        record: The raw row.
    """

    ids: Sequence[int]
    record: Record

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", array("i", self.ids))


class PromptLoader:
    """Evaluation prompts in file order, this rank's share, ``samples`` times each.

    Each row's record carries ``{"row": index, "sample": k}`` under ``"lit_rlhf"``, from which its random numbers are
    drawn: what is sampled for a prompt depends on neither batch size nor number of ranks.
    """

    def __init__(self, prompts: Sequence[EncodedPrompt], batch_size: int, pad_token_id: int, samples: int) -> None:
        self._jobs = range(len(prompts) * samples)[rank() :: world_size()]
        self._prompts = prompts
        self._batch_size = batch_size
        self._pad_token_id = pad_token_id

    def __len__(self) -> int:
        return -(-len(self._jobs) // self._batch_size)

    def __iter__(self) -> Iterator[DeviceBatch[PromptBatch]]:
        for start in range(0, len(self._jobs), self._batch_size):
            picked = self._jobs[start : start + self._batch_size]
            yield DeviceBatch(prompt_batch([self._prompt(job) for job in picked], self._pad_token_id))

    def _prompt(self, job: int) -> EncodedPrompt:
        sample, row = divmod(job, len(self._prompts))
        prompt = self._prompts[row]
        return replace(prompt, record={**prompt.record, ROW_KEY: {"row": row, "sample": sample}})


def prompt_lengths(prompts: Sequence[EncodedPrompt]) -> Sequence[int]:
    """Tokens of each prompt."""
    return prompts.lengths if isinstance(prompts, StoredRows) else [len(prompt.ids) for prompt in prompts]


def prompt_batch(prompts: Sequence[EncodedPrompt], pad_token_id: int) -> PromptBatch:
    """Left-pad encoded prompts."""
    ids, mask = pad_left([p.ids for p in prompts], pad_token_id)
    return PromptBatch(prompt_ids=ids, prompt_mask=mask, records=tuple(p.record for p in prompts))
