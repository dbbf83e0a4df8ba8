"""Data to rows of token ids: in memory where it is small, from the cache on the disk where it is not.

Both go through the same function (:func:`lit_rlhf.data.encoding.encode_chunk`), so that which one it was decides
nothing but time and memory.
"""

from __future__ import annotations

import errno
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lit_rlhf.data.arrow_rows import packed
from lit_rlhf.data.content import Content, identify
from lit_rlhf.data.encoding import Chunk, EncodedRow, RowEncoder, encode_chunk
from lit_rlhf.data.loading import RowReader, Source, open_sources
from lit_rlhf.data.memory import DataLike, in_memory
from lit_rlhf.data.renaming import check_columns
from lit_rlhf.data.report import RowReport
from lit_rlhf.data.sources import RawItem, RawLine
from lit_rlhf.data.token_cache import Entry, Tokenized, default_root, entry_name
from lit_rlhf.data.workers import Workers, batched, cores

LARGE = 16 * 2**20
"""Bytes of data from which on it is cached, and tokenized by several processes: below it takes seconds."""
_NOT_WRITABLE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG", "ENOTDIR", "EEXIST", "ENOLCK", "ENOSYS")
}
_CHUNK_ROWS = 4096
_CHUNK_BYTES = 2 * 2**20
_SECONDS_BETWEEN_WORDS = 10.0


@dataclass(frozen=True)
class CacheConfig:
    """Where token ids are kept.

    Attributes:
        use: None for data of 16 MiB and more; True for all that is not in memory already, False for none.
        folder: The folder; None for ``lit_rlhf`` in the cache of `datasets`.
    """

    use: bool | None = None
    folder: str | None = None


def tokenize(
    paths: DataLike,
    encoder: RowEncoder,
    tokenizer: Any,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    streaming: bool = False,
    cache: CacheConfig | None = None,
) -> Tokenized:
    """Every row of the data as token ids, or accounted for.

    Args:
        paths: Where the data is, or rows; see :mod:`lit_rlhf.data.sources`.
        encoder: What the rows are to become.
        tokenizer: A transformers tokenizer.
        format: Name of the rows' format; None to recognize it source by source.
        columns: Our names of columns that have others.
        streaming: Read hub splits row by row; these are not cached.
        cache: Whether and where token ids are kept.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: An unknown, ambiguous or wrong format, a wrong name in ``columns``, or an unreadable file.
    """
    paths = in_memory(paths) or paths  # an iterator gives its rows once
    open_all = partial(open_sources, paths, encoder.kind, format=format, columns=columns, streaming=streaming)
    options = cache or CacheConfig()
    check_columns(columns)
    content = identify(paths, streaming=streaming)
    job = _Job(encoder, tokenizer, open_all, cores() if content.bytes >= LARGE else 0, content)
    if content.state is None or not (content.bytes >= LARGE if options.use is None else options.use):
        return job.in_memory()
    root = Path(options.folder).expanduser() if options.folder else default_root()
    what = {
        "data": content.state,
        "encoder": [type(encoder).__qualname__, asdict(encoder)],
        "format": format,
        "columns": dict(columns or {}),
    }
    return _cached(Entry(root, entry_name(tokenizer, what), encoder.columns), job)


def _cached(entry: Entry, job: _Job) -> Tokenized:
    found = entry.load()
    if found is not None:
        return found
    try:
        with entry.lock():
            found = entry.load()  # another process may have made it while this one waited
            if found is None:
                job.into(entry)
                found = entry.load()
    except OSError as error:
        if not _of_the_cache(error):
            raise
        place = f"{entry.folder.parent}: {error.strerror or error}"
        _say(f"token ids are not kept on the disk ({place}); they stay in the memory of each process.")
        return job.in_memory()
    if found is None:
        raise ValueError(f"The token ids written to {entry.folder} cannot be read back: is the disk in order?")
    return found


def _of_the_cache(error: OSError) -> bool:
    """Whether it says that a folder cannot be written, rather than that data cannot be read."""
    return error.errno in _NOT_WRITABLE


@dataclass
class _Job:
    """What is to be tokenized, by how many processes (0: by this one)."""

    encoder: RowEncoder
    tokenizer: Any
    open_all: Callable[[], Iterator[Source]]
    processes: int
    content: Content

    def in_memory(self) -> Tokenized:
        """Everything as a list."""
        rows: list[EncodedRow] = []
        return self._run(rows.extend, lambda: rows, encode_only)

    def into(self, entry: Entry) -> None:
        """Everything into an entry of the cache; its lock is held."""
        writer = entry.begin()
        started = time.monotonic()
        _say(f"tokenizing {self.content.bytes / 2**20:,.0f} MiB of data, kept in {entry.folder}")
        try:
            made = self._run(writer.write, tuple, encode_and_pack)
            self.content.check_unchanged()
            writer.finish(made.counts, made.groups, made.report)
        except BaseException:
            writer.give_up()
            raise
        _say(f"tokenized {made.report.read:,} rows in {time.monotonic() - started:,.0f} s")

    def _run(self, take: Callable[[Any], Any], rows: Callable[[], Any], encode: Any) -> Tokenized:
        report, counts, groups = RowReport(), array("i"), array("Q")
        told = _Progress(self.content.bytes)
        function = partial(encode, encoder=self.encoder, tokenizer=self.tokenizer)
        with ExitStack() as stack:
            run: Any = partial(map, function)
            if self.processes > 1 and not _of_a_script(self.tokenizer):
                run = stack.enter_context(Workers(function, self.processes)).map
            for source in self.open_all():
                count = report.source(source.name)
                if source.reader is None:
                    continue
                count.format = source.reader.format
                for chunk, made in run(told.passing(_jobs(source.reader, source.items))):
                    take(made)
                    counts.extend(chunk.counts)
                    groups.extend(chunk.groups)
                    _account(report, source.name, chunk)
        report.check()
        return Tokenized(rows(), np.frombuffer(counts, np.int32), np.frombuffer(groups, np.uint64), report)


_JobItem = tuple[RowReader, list[RawItem]]


def encode_only(job: _JobItem, *, encoder: RowEncoder, tokenizer: Any) -> tuple[Chunk, list[EncodedRow]]:
    """What became of some rows, and their token ids as they are."""
    chunk = encode_chunk(job[1], job[0], encoder, tokenizer)
    return replace(chunk, rows=[]), chunk.rows


def encode_and_pack(job: _JobItem, *, encoder: RowEncoder, tokenizer: Any) -> tuple[Chunk, bytes]:
    """The same with the token ids packed for a file."""
    chunk, rows = encode_only(job, encoder=encoder, tokenizer=tokenizer)
    return chunk, packed(rows, encoder.columns)


def _jobs(reader: RowReader, items: Iterable[RawItem]) -> Iterator[_JobItem]:
    for some in batched(items, rows=_CHUNK_ROWS, size=_line_bytes, bytes=_CHUNK_BYTES):
        yield reader, some


def _line_bytes(item: RawItem) -> int:
    return len(item.data) if isinstance(item, RawLine) else 0


def _account(report: RowReport, source: str, chunk: Chunk) -> None:
    count = report.source(source)
    count.read += chunk.read
    count.accepted += chunk.read - len(chunk.rejected)
    count.shortened += chunk.shortened
    count.dropped_turns += chunk.dropped_turns
    report.rejected += chunk.rejected


def _of_a_script(tokenizer: Any) -> bool:
    """Whether its class is known to this process alone."""
    return type(tokenizer).__module__.split(".")[0] in ("__main__", "transformers_modules")


class _Progress:
    """A line now and then of how far it is, where it takes long."""

    def __init__(self, total: int) -> None:
        self._total, self._rows, self._bytes = total, 0, 0
        self._started = self._told = time.monotonic()

    def passing(self, jobs: Iterable[_JobItem]) -> Iterator[_JobItem]:
        """The jobs, counted."""
        for job in jobs:
            yield job
            self._rows += len(job[1])
            self._bytes += sum(map(_line_bytes, job[1]))
            if time.monotonic() - self._told >= _SECONDS_BETWEEN_WORDS:
                self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        line = f"tokenizing: {self._rows:,} rows in {self._told - self._started:,.0f} s"
        if 0 < self._bytes <= self._total:  # neither packed files nor tables
            line += f", {self._bytes / self._total:.0%} of the data"
        _say(line)


def _say(line: str) -> None:
    sys.stderr.write(f"lit-rlhf: {line}\n")
    sys.stderr.flush()
