"""Rows that are in memory already: a list, or a `datasets.Dataset`, in the place of files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rlhf.data.hub import looks_like_hub_name

if TYPE_CHECKING:
    DataLike = Any
else:
    DataLike = list[str] | str
"""What data modules take: paths, or in Python rows as well. Command line and YAML know paths alone."""

DATA_SUFFIXES = (".json", ".jsonl", ".gz", ".csv", ".parquet", ".arrow", ".txt")


class MemoryRows:
    """Rows as they were given, in order.

    Args:
        rows: Dicts as a file would have them; strings and lists of messages as prompts; strings as texts to imitate.
    """

    def __init__(self, rows: Iterable[Any]) -> None:
        self.rows: Any = rows if hasattr(rows, "__len__") else list(rows)

    def __repr__(self) -> str:
        """For messages; the rows may be many."""
        return f"{len(self.rows)} rows in memory"

    def read(self, kind: str) -> Iterator[Any]:
        """The rows as dicts, as far as they can be: a bad one is refused where those of files are."""
        for row in self.rows:
            if kind == "prompt" and isinstance(row, str | list):
                yield {"prompt": row}
            elif kind in ("sft", "text") and isinstance(row, str):
                yield {"text": row}
            else:
                yield dict(row) if isinstance(row, Mapping) else row


def in_memory(data: Any) -> MemoryRows | None:
    """The rows that ``data`` is, or None where it is a path or a list of paths.

    A list of strings is paths, unless one of them has a space in it and none can be a path.

    Raises:
        ValueError: It is neither, or a list of both.
    """
    if isinstance(data, str | os.PathLike):
        return None
    if isinstance(data, MemoryRows):
        return data
    if hasattr(data, "to_dict") and hasattr(data, "iterrows"):  # a DataFrame of pandas, which iterates over its columns
        return MemoryRows(data.to_dict("records"))
    _refuse_others(data)
    if not isinstance(data, list | tuple):
        return MemoryRows(data)
    texts = [str(item) for item in data if isinstance(item, str | os.PathLike)]
    if len(texts) < len(data):
        return MemoryRows(data)
    paths = [text for text in texts if _can_be_a_path(text)]
    if len(paths) == len(texts) or not any(" " in text.strip() for text in texts):
        return None
    if paths:
        raise ValueError(
            f"A list of prompts must not hold anything that can be a path, and a list of paths nothing else: "
            f"{paths[0]!r} beside {next(text for text in texts if text not in paths)!r:.80}. Give prompts as "
            '{"prompt": ...}.'
        )
    return MemoryRows(data)


def _refuse_others(data: Any) -> None:
    """Refuse what is neither paths nor rows."""
    hint = None if isinstance(data, Iterable) else ""
    if isinstance(data, Mapping):  # a row, or a `DatasetDict`
        hint = ": name a split"
    elif hasattr(data, "dataset") and hasattr(data, "collate_fn"):
        hint = ", which has batches: give its data set"
    if hint is not None:
        raise ValueError(f"Data must be paths, rows or a data set, not a {type(data).__name__}{hint}.")


def _can_be_a_path(text: str) -> bool:
    if not text.strip() or "\n" in text or len(text) > 1000:
        return False
    return text.endswith(DATA_SUFFIXES) or looks_like_hub_name(text) or Path(text).expanduser().exists()
