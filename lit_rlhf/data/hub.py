"""Data sets on the hub, through `datasets`: ``owner/name[/data_dir][@config][:split[slice]]``.

``Anthropic/hh-rlhf/harmless-base:train[:1000]`` is the first thousand training rows of one folder. The split is
"train" where none is named; a slice takes rows ``[a:b]``, either end optional, or percent (``[:10%]``, not when
streaming).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

_NAME = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<data_dir>[\w./-]+))?(?:@(?P<config>[\w.-]+))?"
    r"(?::(?P<split>[\w.-]+)(?:\[(?P<start>\d*%?):(?P<stop>\d*%?)\])?)?"
)


@dataclass(frozen=True)
class HubName:
    """The parts of a hub name; ``start`` and ``stop`` as written ("" where absent)."""

    repo: str
    data_dir: str | None
    config: str | None
    split: str
    start: str
    stop: str

    @property
    def split_spec(self) -> str:
        """The split with its slice, as `datasets` writes it."""
        return f"{self.split}[{self.start}:{self.stop}]" if self.start or self.stop else self.split


def looks_like_hub_name(text: str) -> bool:
    """Whether ``text`` has the form of a hub name (and not of a path such as ``./x/y``)."""
    return _NAME.fullmatch(text) is not None and text[0] not in "./~"


def parse_hub_name(text: str) -> HubName:
    """The parts of a hub name.

    Raises:
        ValueError: Not of the form above.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a hub name: owner/name[/data_dir][@config][:split[slice]].")
    parts = match.groupdict()
    return HubName(
        parts["repo"],
        parts["data_dir"],
        parts["config"],
        parts["split"] or "train",
        parts["start"] or "",
        parts["stop"] or "",
    )


def read_hub(text: str, *, streaming: bool = False) -> Iterable[Any]:
    """The rows of a hub split, as dicts.

    Raises:
        ValueError: The name is malformed or the data set cannot be loaded; a percent slice when streaming.
    """
    name = parse_hub_name(text)
    if streaming and "%" in name.start + name.stop:
        raise ValueError(f"{text}: a percent slice needs the whole split; give row numbers or `streaming=False`.")
    if not streaming:
        yield from load_split(text)
        return
    try:
        # A failure may come at any row when streaming, and `datasets` raises dozens of types: one line for all.
        rows = _load(name, name.split, streaming=True)
        yield from islice(rows, int(name.start or 0), int(name.stop) if name.stop else None)
    except Exception as error:
        raise _not_loadable(text, error) from error


def load_split(text: str) -> Any:
    """The whole split, a ``datasets.Dataset``.

    Raises:
        ValueError: The name is malformed or the data set cannot be loaded.
    """
    name = parse_hub_name(text)
    try:
        return _load(name, name.split_spec, streaming=False)
    except Exception as error:
        raise _not_loadable(text, error) from error


def _load(name: HubName, split: str, *, streaming: bool) -> Any:
    from datasets import load_dataset

    return load_dataset(name.repo, name.config, data_dir=name.data_dir, split=split, streaming=streaming)


def _not_loadable(text: str, error: Exception) -> ValueError:
    first = str(error).strip().split("\n")[0][:300]
    return ValueError(f"{text}: not a local path, and not loadable from the hub ({first}).")
