"""What is in some data, told without reading it: which files, how large, changed when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_rlhf.data.hub import load_split
from lit_rlhf.data.memory import DataLike, in_memory
from lit_rlhf.data.sources import expand

_PACKED = (".gz", ".parquet")
_PACKED_TIMES = 4


@dataclass(frozen=True)
class Content:
    """The state of some data.

    Attributes:
        state: As JSON's values, equal only where the data is; None where nothing can tell (rows of a list, a stream).
        bytes: About how much there is, unpacked.
        look_again: Gives the state as it is now.
    """

    state: Any
    bytes: int
    look_again: Callable[[], Any]

    def check_unchanged(self) -> None:
        """Refuse data that has changed since.

        Raises:
            ValueError: It has.
        """
        if self.look_again() != self.state:
            raise ValueError("The data changed while it was read: start again when it is complete.")


def identify(paths: DataLike, *, streaming: bool = False) -> Content:
    """The state of data: path, size and time of change of files, the fingerprint of data sets.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: A data set of the hub cannot be loaded.
    """
    memory = in_memory(paths)
    if memory is not None:
        rows = memory.rows
        fingerprint = getattr(rows, "_fingerprint", None)  # a `datasets.Dataset`
        if fingerprint is None:
            return Content(None, 0, lambda: None)
        return Content([fingerprint], rows.data.nbytes, lambda: [fingerprint])
    sources = expand(paths)
    if streaming and not all(Path(source).exists() for source in sources):
        return Content(None, 0, lambda: None)
    state = [_state(source) for source in sources]
    if None in state:
        return Content(None, 0, lambda: None)
    return Content(state, sum(_bytes(one) for one in state if one), lambda: [_state(source) for source in sources])


def _state(source: str) -> list[Any] | None:
    path = Path(source)
    if path.is_file():
        return [_file(path)]
    if path.is_dir():  # saved by `datasets`
        return [_file(file) for file in sorted(path.iterdir()) if file.is_file()]
    rows = load_split(source)
    if not hasattr(rows, "_fingerprint"):
        return None
    return [[source, rows.data.nbytes, rows._fingerprint]]


def _file(path: Path) -> list[Any]:
    about = path.stat()
    return [str(path.resolve()), about.st_size, about.st_mtime_ns]


def _bytes(state: list[Any]) -> int:
    return sum(size * (_PACKED_TIMES if name.endswith(_PACKED) else 1) for name, size, _ in state)
