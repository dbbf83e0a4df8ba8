"""What the SFT and the preference data module share: splits, reports, batches, loaders.

A sub-class says how rows of data become rows of token ids (``lit_rlhf.data.encoding``), and those a batch.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import lightning as L

from lit_rlhf import distributed
from lit_rlhf.callbacks.hooks import writes_files
from lit_rlhf.config import check_whole
from lit_rlhf.data.batching import fixed_size_batches, partition_rows, plan_steps, token_budget_batches
from lit_rlhf.data.encoding import EncodedRow, RowEncoder
from lit_rlhf.data.memory import DataLike
from lit_rlhf.data.renaming import check_columns
from lit_rlhf.data.report import OnBadRow, RowReport
from lit_rlhf.data.template import check_template
from lit_rlhf.data.token_cache import Tokenized
from lit_rlhf.data.tokenizing import TokenCache, tokenize
from lit_rlhf.datamodules.loader import StatefulLoader, batch_under_way
from lit_rlhf.datamodules.rows import StoredRows, splits
from lit_rlhf.types import DeviceBatch

log = logging.getLogger(__name__)
RowT = TypeVar("RowT")
Paths = DataLike


@dataclass(frozen=True)
class BatchPlan:
    """One rank's part of a global batch: its row indices, and the global numbers that go into ``DeviceBatch.info``."""

    rows: list[int]
    info: Mapping[str, float]


class TokenDataModule(L.LightningDataModule, ABC, Generic[RowT]):
    """Reads, checks and tokenizes everything in ``setup``, which Lightning runs before any model loads.

    Args:
        tokenizer: Local folder or hub name of the tokenizer; default: what the trained module loads.
        train: Files, folders, globs or hub names to train on; in Python also rows: a list of dicts, a data set.
        val: The same for validation; None to hold out ``val_fraction`` of the training data.
        test: The same for testing; None to hold out ``test_fraction`` of it.
        format: Name of the row format; None to recognize it.
        columns: Our names of columns that have others: ``{"prompt": "question"}``.
        template: "hh", "moss-en", "moss-zh", or None for the tokenizer's chat template.
        max_length: Most tokens of a row; old turns are dropped for it, longer rows are refused.
        batch_size: Rows of a global batch; excludes ``max_tokens``.
        max_tokens: Token budget of a global batch, padding included; excludes ``batch_size``.
        min_rows: Fewest rows of a budgeted batch.
        max_rows: Most rows of a budgeted batch.
        val_fraction: Share of the training data held out for validation where ``val`` is None. Rows with the same
            prompt stay together.
        test_fraction: The same for testing.
        seed: Of the split and of the order of every epoch.
        on_bad_row: "skip" counts and lists bad rows; "error" refuses the data because of one.
        rejects_dir: Where ``rejects-<split>.jsonl`` is written; None for the trainer's root directory.
        streaming: Read hub splits row by row.
        cache: Whether token ids are kept on the disk for the next start: null for data of 16 MiB and more.
        cache_dir: Where; default: `lit_rlhf` in the cache of `datasets` (HF_DATASETS_CACHE).

    Raises:
        ValueError: An argument breaks its rule.
    """

    default_max_tokens: int | None = None

    def __init__(
        self,
        tokenizer: str | None = None,
        train: Paths | None = None,
        *,
        val: Paths | None = None,
        test: Paths | None = None,
        format: str | None = None,
        columns: dict[str, str] | None = None,
        template: str | None = None,
        max_length: int = 1024,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        min_rows: int = 4,
        max_rows: int = 128,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        seed: int = 0,
        on_bad_row: OnBadRow = "skip",
        rejects_dir: str | None = None,
        streaming: bool = False,
        cache: bool | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size is None and max_tokens is None:
            batch_size, max_tokens = (32, None) if self.default_max_tokens is None else (None, self.default_max_tokens)
        self.tokenizer_path, self.format, self.template = tokenizer_path(tokenizer), format, template
        self.columns, self.cache = check_columns(columns), TokenCache(cache, cache_dir)
        self.paths = {"train": train, "val": val, "test": test}
        self.fractions = {"val": val_fraction if val is None else 0.0, "test": test_fraction if test is None else 0.0}
        self.max_length, self.batch_size, self.max_tokens = max_length, batch_size, max_tokens
        self.min_rows, self.max_rows = min_rows, max_rows
        self.seed, self.on_bad_row, self.rejects_dir, self.streaming = seed, on_bad_row, rejects_dir, streaming
        self._check_arguments(val_fraction, test_fraction)
        self.tokenizer: Any = None
        self._encoded_for: tuple[Any, ...] | None = None
        self.rows: dict[str, Sequence[RowT]] = {}
        self.reports: dict[str, RowReport] = {}

    def _check_arguments(self, val_fraction: float, test_fraction: float) -> None:
        if self.batch_size is not None and self.max_tokens is not None:
            raise ValueError("Give `batch_size` (rows) or `max_tokens` (a budget), not both.")
        if self.on_bad_row not in ("skip", "error"):
            raise ValueError(f"`on_bad_row` ({self.on_bad_row}) must be skip or error.")
        sizes = {"max_length": self.max_length, "min_rows": self.min_rows, "max_rows": self.max_rows, "seed": self.seed}
        check_whole(sizes, {"batch_size": self.batch_size, "max_tokens": self.max_tokens})
        if self.max_length < 2:
            raise ValueError(f"`max_length` ({self.max_length}) must be at least 2.")
        for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"`{name}` ({value}) must be in [0, 1).")
        if sum(self.fractions.values()) >= 1.0:
            raise ValueError(f"`val_fraction` + `test_fraction` ({sum(self.fractions.values())}) must be below 1.")
        if all(path is None for path in self.paths.values()):
            raise ValueError("No data: give `train`, `val` or `test`.")

    @abstractmethod
    def encoder(self) -> RowEncoder:
        """How rows of data become token ids; may run in other processes."""

    @abstractmethod
    def row(self, encoded: EncodedRow) -> RowT:
        """A row of token ids as :meth:`collate` takes it."""

    @abstractmethod
    def length(self, row: RowT) -> int:
        """Tokens a row costs."""

    @abstractmethod
    def learned_tokens(self, row: RowT) -> int:
        """Tokens of a row that a language-modelling loss counts."""

    @abstractmethod
    def collate(self, rows: Sequence[RowT]) -> Any:
        """Rows as one batch of columns."""

    def setup(self, stage: str | None = None) -> None:
        """Read, check and tokenize every split; a second call does so again for another tokenizer only.

        Raises:
            FileNotFoundError: A path or the tokenizer does not exist.
            ValueError: The data cannot be used (see ``lit_rlhf.data``), or the batch does not divide over the ranks.
        """
        source = tokenizer_source(self, self.tokenizer_path)
        if self.rows and source == self._encoded_for:
            return
        self._check_world()
        if self.tokenizer is None or self._encoded_for is not None:
            self.tokenizer = load_module_tokenizer(self, self.tokenizer_path)
        self._encoded_for = source
        check_template(self.tokenizer, self.template)
        rows: dict[str, Sequence[RowT]] = {}
        for split, paths in self.paths.items():
            if paths is not None:
                data = self._tokenize(paths)
                self.reports[split] = data.report
                rows |= self._rows_of(split, data)
        self._report()
        self.rows = rows

    def _tokenize(self, paths: Paths) -> Tokenized:
        return tokenize(
            paths,
            self.encoder(),
            self.tokenizer,
            format=self.format,
            columns=self.columns,
            streaming=self.streaming,
            cache=self.cache,
        )

    def _rows_of(self, split: str, data: Tokenized) -> dict[str, Sequence[RowT]]:
        """The rows of a split; those of the training data with what is held out of them."""
        if split != "train" or not len(data.counts):
            return {split: StoredRows.of(data, self.row)}
        parts = splits(data.groups, data.counts, self.fractions, seed=self.seed)
        return {name: StoredRows.of(data, self.row, index) for name, index in parts.items()}

    def _check_world(self) -> None:
        world, _ = self._world()
        if self.max_tokens is None:
            fixed_size_batches([1] * world, batch_size=self._batch_rows(), world_size=world)
            return
        token_budget_batches(
            [1] * world, max_tokens=self.max_tokens, min_rows=self.min_rows, max_rows=self.max_rows, world_size=world
        )

    def _report(self) -> None:
        for split, report in self.reports.items():
            write_report(self, split, report, self.on_bad_row, self.rejects_dir)

    def _world(self) -> tuple[int, int]:
        if self.trainer is not None:
            return self.trainer.world_size, self.trainer.global_rank
        return distributed.world_size(), distributed.rank()

    def _batch_rows(self) -> int:
        assert self.batch_size is not None
        return self.batch_size

    def loader(self, split: str, *, shuffle: bool) -> StatefulLoader[BatchPlan, DeviceBatch[Any]]:
        """The batches of a split.

        Raises:
            ValueError: There is no such data.
        """
        if not self.rows.get(split):
            raise ValueError(
                f"No {split} data: give `{split}`" + ("." if split == "train" else f" or `{split}_fraction`.")
            )
        rows = self.rows[split]
        lengths, learned = self._sizes(rows)
        trainer = self.trainer if shuffle else None
        return StatefulLoader(
            lambda epoch: self._plan(lengths, learned, self.seed + 2 * epoch if shuffle else None),
            lambda plan: DeviceBatch(self.collate([rows[i] for i in plan.rows]), plan.info),
            epoch=None if trainer is None else lambda: trainer.current_epoch,
            under_way=None if trainer is None else lambda: batch_under_way(trainer),
        )

    def _sizes(self, rows: Sequence[RowT]) -> tuple[Sequence[int], Sequence[int]]:
        """Tokens, and learned tokens, of each row."""
        if isinstance(rows, StoredRows):
            return rows.lengths, rows.learned
        return [self.length(row) for row in rows], [self.learned_tokens(row) for row in rows]

    def _plan(self, lengths: Sequence[int], learned: Sequence[int], seed: int | None) -> list[BatchPlan]:
        world, rank = self._world()
        plans = []
        for batch in self._global_batches(lengths, seed, world):
            part = partition_rows([lengths[i] for i in batch], world)[rank] if world > 1 else range(len(batch))
            tokens = sum(learned[i] for i in batch)
            plans.append(BatchPlan([batch[i] for i in part], {"global_rows": len(batch), "global_tokens": tokens}))
        return plans

    def _global_batches(self, lengths: Sequence[int], seed: int | None, world: int) -> list[list[int]]:
        if self.max_tokens is None:
            size = self._batch_rows()
            return fixed_size_batches(lengths, batch_size=size, shuffle_seed=seed, world_size=world, rank=None)
        limits = {"max_tokens": self.max_tokens, "min_rows": self.min_rows, "max_rows": self.max_rows}
        steps = plan_steps(lengths, **limits, shuffle_seed=None if seed is None else self.seed)
        return token_budget_batches(
            lengths, **limits, shuffle_seed=seed, world_size=world, rank=None, num_batches=steps
        )

    def train_dataloader(self) -> StatefulLoader[BatchPlan, DeviceBatch[Any]]:
        """Shuffled training batches, a function of (seed, epoch) alone."""
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> Any:
        """Validation batches in the order of the data; none where there is no validation data."""
        if self.rows.get("val"):
            return self.loader("val", shuffle=False)
        check_wanted(self, "val")
        return []

    def test_dataloader(self) -> StatefulLoader[BatchPlan, DeviceBatch[Any]]:
        """Test batches in the order of the data; the validation data where there is no test data."""
        return self.loader("test" if self.rows.get("test") or not self.rows.get("val") else "val", shuffle=False)

    def predict_dataloader(self) -> StatefulLoader[BatchPlan, DeviceBatch[Any]]:
        """The batches of :meth:`test_dataloader`."""
        return self.test_dataloader()


def tokenizer_path(value: Any) -> str | None:
    """The folder or hub name of a tokenizer, or None.

    Raises:
        ValueError: It is something else, such as the prompts that belong to ``train``.
    """
    if value is None or isinstance(value, str | os.PathLike):
        return None if value is None else os.fspath(value)
    raise ValueError(f"`tokenizer` must be a folder or a hub name, not a {type(value).__name__}. Is it `train=...`?")


def check_wanted(data: L.LightningDataModule, split: str) -> None:
    """Refuse to evaluate on data that is not there; in a fit without validation data nothing is evaluated.

    Raises:
        ValueError: Names the option.
    """
    stage = None if data.trainer is None else data.trainer.state.fn
    if stage is not None and stage != "fit":
        raise ValueError(f"`data.{split}` names no data to {stage.value} on.")


def tokenizer_source(data: L.LightningDataModule, path: str | None) -> tuple[Any, ...]:
    """What decides which tokenizer :func:`load_module_tokenizer` gives: two equal ones give the same token ids."""
    module = None if data.trainer is None else data.trainer.lightning_module
    options = getattr(module, "model_config", None)
    if path is None and hasattr(module, "sources"):
        path = str(module.sources()["tokenizer"])  # type: ignore[operator, union-attr]
    return (path, getattr(options, "pad_token", None), getattr(options, "trust_remote_code", False))


def load_module_tokenizer(data: L.LightningDataModule, path: str | None) -> Any:
    """The tokenizer at ``path``, or the one of the module that the trainer runs, with that module's options.

    Raises:
        ValueError: No path, and no module to ask.
    """
    from lit_rlhf.models.loading.tokenizer import load_tokenizer

    module = None if data.trainer is None else data.trainer.lightning_module
    options = getattr(module, "model_config", None)
    if path is None:
        if module is None or not hasattr(module, "sources"):
            raise ValueError("`tokenizer` must name a folder or hub name: the module that is trained does not.")
        path = str(module.sources()["tokenizer"])  # type: ignore[operator]
    if options is None:
        return load_tokenizer(path)
    return load_tokenizer(path, pad_token=options.pad_token, trust_remote_code=options.trust_remote_code)


def write_report(
    data: L.LightningDataModule, split: str, report: RowReport, on_bad_row: OnBadRow, folder: str | None = None
) -> None:
    """Log what became of every row, write the refused ones (rank 0), and stop where the policy says so."""
    root = folder or (data.trainer.default_root_dir if data.trainer is not None else None)
    rank = data.trainer.global_rank if data.trainer is not None else distributed.rank()
    if data.trainer is not None and not writes_files(data.trainer):
        root = None
    if rank == 0:
        log.info("%s data: %s", split, report.summary())
        written = report.write_rejects(Path(root) / f"rejects-{split}.jsonl") if root else None
        if report.rejected:
            log.warning("%s data: refused rows %s", split, f"are in {written}" if written else "not written")
    report.enforce(on_bad_row)
