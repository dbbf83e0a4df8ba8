"""What the optional files of a run hold; what is not of the types that the page draws is skipped and counted."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NUMBER = int | float
_MAYBE = int | float | None  # a number that is not finite is read as None


def read_bytes(root: Path, name: str, skipped: Counter[str]) -> bytes:
    """The file ``root/name``; empty where there is none, and counted where it cannot be read."""
    path = root / name
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError:
        skipped[name] += 1
        return b""


def read_lines(root: Path, name: str, fits: Callable[[Any], bool], skipped: Counter[str]) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file that ``fits`` accepts; the others are counted."""
    # Not `splitlines`: a response may hold U+2028, which JSON need not escape.
    values = [_parsed(line) for line in read_bytes(root, name, skipped).split(b"\n") if line.strip()]
    kept = [value for value in values if fits(value)]
    if len(kept) < len(values):
        skipped[name] += len(values) - len(kept)
    return kept


def read_versions(root: Path, name: str, skipped: Counter[str]) -> dict[str, str]:
    """A JSON object of package versions; empty where there is none."""
    content = read_bytes(root, name, skipped)
    versions = _parsed(content) if content else {}
    if not isinstance(versions, dict):
        skipped[name] += 1
        return {}
    return {package: str(number) for package, number in versions.items()}


def _parsed(content: bytes) -> Any:
    """JSON with None for numbers that a browser has not; None as a whole where it is no JSON."""
    try:
        return json.loads(content.decode(), parse_constant=lambda _: None, parse_float=_float, parse_int=_int)
    except (ValueError, RecursionError):
        return None


def _float(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _int(text: str) -> int | None:
    return int(text) if len(text) < 16 else None  # beyond, a browser's integers have gaps


def _has(value: Any, /, **kinds: Any) -> bool:
    """Whether ``value`` is an object with these types under these names; a missing one is None."""
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())


def is_sample(line: Any) -> bool:
    """Whether ``line`` is a line that :class:`~lit_rlhf.callbacks.SampleLogger` writes."""
    texts = _has(line, kind=str, prompt=str, response=str, tokens=list, columns=dict)
    numbers = _has(line, step=int, index=int, score=_MAYBE, kl=_MAYBE, ended=bool | None)
    return (
        texts
        and numbers
        and all(isinstance(token, str) for token in line["tokens"])
        and all(isinstance(c, list) and len(c) == len(line["tokens"]) for c in line["columns"].values())
        and all(isinstance(value, _MAYBE) for column in line["columns"].values() for value in column)
    )


def is_histogram(line: Any) -> bool:
    """Whether ``line`` is a line that :class:`~lit_rlhf.callbacks.RewardDistributionMonitor` writes."""
    return (
        _has(line, step=int, start=_NUMBER, width=_NUMBER, counts=list)
        and all(isinstance(count, int) and count >= 0 for count in line["counts"])
        and (
            not line["counts"] or _is_grid(line["start"], line["width"], sum(line["counts"]))
        )  # no counts: no score was finite
    )


def _is_grid(start: float, width: float, scores: int) -> bool:
    """Whether there are scores in the bins, and places that stay finite in arithmetic."""
    return scores > 0 and 1e-100 < width < 1e100 and abs(start) < 1e100


def is_event(line: Any) -> bool:
    """Whether ``line`` is a line that :class:`~lit_rlhf.callbacks.CollapseDetector` writes."""
    return (
        _has(line, step=int, since=int, fired=list, readings=dict | None, did=str | None)
        and all(isinstance(name, str) for name in line["fired"])
        and all(_has(reading, value=_MAYBE, baseline=_MAYBE) for reading in (line.get("readings") or {}).values())
    )


def is_evaluated(line: Any) -> bool:
    """Whether ``line`` is a row that a validation saves."""
    texts = _has(line, prompt=str, response=str, score=_MAYBE, ended=bool | None)
    return texts and _has(line, tokens=int, logprob=_NUMBER, ref_logprob=_MAYBE)
