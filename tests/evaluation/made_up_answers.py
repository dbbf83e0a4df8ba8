"""Saved answers made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.evaluation.answers import Answer, Pair, answers_from_rows


def row(key: int, response: str, *, sample: int = 0, prompt: str | None = None, **more: Any) -> dict[str, Any]:
    """What validation saves of one response."""
    record = {"prompt": f"question {key}" if prompt is None else prompt, **more.pop("record", {})}
    return {
        "row": key,
        "sample": sample,
        "prompt": f"<s>{record['prompt']}",
        "response": response,
        "record": record,
        **more,
    }


def answers(responses: Sequence[str], source: str = "rows", **more: Any) -> list[Answer]:
    """One answer a prompt."""
    return answers_from_rows([row(i, text, **more) for i, text in enumerate(responses)], source=source)


def pairs(a: Sequence[str], b: Sequence[str], **more: Any) -> list[Pair]:
    """Answers beside each other."""
    return [Pair(a=x, b=y) for x, y in zip(answers(a, "a.jsonl", **more), answers(b, "b.jsonl", **more), strict=True)]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A file of saved rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path
