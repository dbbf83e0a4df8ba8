"""Rows of token ids as Arrow tables: written a chunk at a time, read from a memory-mapped file one row at a time.

The layout is the stream that `datasets` writes: ``datasets.Dataset.from_file`` opens a file of it.
"""

from __future__ import annotations

import json
import mmap
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from lit_rlhf.data.encoding import Column, EncodedRow

_ROWS_BETWEEN_RELEASES = 64


def schema(columns: Mapping[str, Column]) -> Any:
    """The Arrow schema of rows with these columns."""
    import pyarrow as pa

    types = {"ids": pa.list_(pa.int32()), "flags": pa.list_(pa.bool_()), "number": pa.float64()}
    fields = [(name, types[kind]) for name, kind in columns.items()]
    return pa.schema([*fields, ("record", pa.string()), ("n_tokens", pa.int32()), ("n_learned", pa.int32())])


def packed(rows: Sequence[EncodedRow], columns: Mapping[str, Column]) -> bytes:
    """Rows as the bytes of one Arrow record batch."""
    import pyarrow as pa

    layout = schema(columns)
    data = {name: [row.columns[name] for row in rows] for name in columns}
    data["record"] = [json.dumps(dict(row.record), ensure_ascii=False) for row in rows]
    data["n_tokens"], data["n_learned"] = [row.length for row in rows], [row.learned for row in rows]
    arrays = [pa.array(data[field.name], type=field.type) for field in layout]
    return bytes(pa.RecordBatch.from_arrays(arrays, schema=layout).serialize())


class ArrowWriter:
    """Writes packed rows to a file, in order; nothing of it is kept in memory.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column]) -> None:
        import pyarrow as pa

        self._schema = schema(columns)
        self._file = path.open("wb")
        self._writer = pa.ipc.new_stream(self._file, self._schema)

    def write(self, batch: bytes) -> None:
        """One record batch, as :func:`packed` gives it."""
        import pyarrow as pa

        self._writer.write_batch(pa.ipc.read_record_batch(pa.py_buffer(batch), self._schema))

    def close(self) -> None:
        """All of it to the disk."""
        import os

        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


class ArrowRows(Sequence[EncodedRow]):
    """The rows of a file, read when they are asked for.

    The file is mapped into memory: all processes that read it share the kernel's one copy of it. Pages that were read
    are let go again after some rows (they stay with the kernel), so that a process's memory does not grow with the
    rows it has seen.

    Attributes:
        lengths: Tokens of each row.
        learned: Learned tokens of each row.

    Raises:
        OSError: There is no such file.
        ValueError: It is not what :class:`ArrowWriter` wrote.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column]) -> None:
        import pyarrow as pa

        self._path, self._columns = path, dict(columns)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with pa.ipc.open_stream(pa.py_buffer(self._map)) as stream:
            if stream.schema != schema(columns):
                raise ValueError(f"{path} has other columns than {', '.join(columns)}.")
            self._batches = list(stream)
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        self.lengths, self.learned = (self._numbers(name) for name in ("n_tokens", "n_learned"))
        self._read = 0
        self._release()

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowRows, (self._path, self._columns)

    def _numbers(self, name: str) -> array[int]:
        out = array("i")
        for batch in self._batches:
            out.frombytes(batch.column(name).to_numpy().tobytes())
        return out

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedRow]: ...
    def __getitem__(self, index: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        number = bisect_right(self._ends, at)
        batch = self._batches[number]
        row = at - (self._ends[number] - batch.num_rows)
        columns = {name: _value(batch.column(name), row, kind) for name, kind in self._columns.items()}
        record = json.loads(batch.column("record")[row].as_py())
        self._read += 1
        if self._read % _ROWS_BETWEEN_RELEASES == 0:
            self._release()
        return EncodedRow(columns, record, self.lengths[at], self.learned[at])

    def _release(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def __iter__(self) -> Iterator[EncodedRow]:
        return (self[i] for i in range(len(self)))


def _value(column: Any, row: int, kind: Column) -> Any:
    if kind == "number":
        return column[row].as_py()
    return column[row].values.to_numpy(zero_copy_only=False).copy()
