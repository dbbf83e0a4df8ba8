"""Answers of a chat judge on disk, so that an interrupted judgement resumes without paying twice."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_rlhf.jsonl import append_rows

_KEYS = {"request", "answer", "tokens"}
_START = '{"request": "'


def request_key(request: Mapping[str, Any]) -> str:
    """The same for equal requests, and for them alone."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class ChatCache:
    """One JSON line an answer, appended as answers come; a line that a kill cut short is dropped at the next start.

    Args:
        path: The file; made with its folders when the first answer comes.

    Raises:
        ValueError: The file is there and is something else; nothing is written to it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._answers: dict[str, str] = {}
        if self.path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> str | None:
        """The raw answer to a request, or None."""
        return self._answers.get(key)

    def put(self, key: str, answer: str, *, tokens: int) -> None:
        """Keep an answer, on disk when this returns."""
        with self._lock:
            append_rows(self.path, [{"request": key, "answer": answer, "tokens": tokens}])
            self._answers[key] = answer

    def _read(self) -> None:
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.split("\n"), start=1):  # U+2028 ends no line of JSON
            row = _parsed(line)
            if row is not None:
                self._answers[row["request"]] = row["answer"]
            elif line.strip() and not _START.startswith(line[: len(_START)]):  # not even the beginning of an answer
                raise ValueError(f"`cache` ({self.path}) is no file of a chat judge's answers: line {number} is none.")


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    good = isinstance(row, dict) and set(row) == _KEYS and isinstance(row["request"], str)
    return row if good and isinstance(row["answer"], str) else None
