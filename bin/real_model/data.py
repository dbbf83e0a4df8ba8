"""Human preferences in halves that never meet: proxy's, judge's, and held-out dialogues.

HH-RLHF holds pairs at several depths of one dialogue, so rows are divided by their first user turn.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.data.loading import read_preferences
from lit_rlhf.data.records import PreferenceRecord
from lit_rlhf.files import write_text

SHARES = {"a": 36, "b": 36, "test": 28}
"""Percent of the dialogues: the proxy's, the judge's, held out."""
VALIDATED = 48
"""Held-out dialogues that training is validated on; the others are tested on at the end."""
BINS = (12, 30, 60, 100, 160, 260, 10**9)
"""Upper ends, in characters, of the bins of length differences that balancing works in."""


def split(pairs: Path, out: Path) -> dict[str, int]:
    """Write {a,b,test}.jsonl, balanced_{a,b}.jsonl and prompts_{a,val,test}.jsonl into ``out``.

    Rows are the published ones with `dialogue`, a name of their first user turn. `balanced_*` has as many pairs whose
    chosen response is shorter as pairs where it is longer, at every size of the difference (:func:`balanced`).
    `prompts_*` has one row a dialogue; the held-out dialogues are divided into val and test.

    Args:
        pairs: Preferences in a known layout, such as HH-RLHF's harmless-base/test.jsonl.gz.
        out: Folder for the files.

    Returns:
        Rows by file.
    """
    records, _ = read_preferences([str(pairs)])
    halves: dict[str, list[PreferenceRecord]] = {name: [] for name in SHARES}
    for record in records:
        halves[part_of(first_turn(record))].append(record)
    files = {name: [_row(record) for record in rows] for name, rows in halves.items()}
    files |= {f"balanced_{name}": [_row(record) for record in balanced(halves[name])] for name in ("a", "b")}
    held_out = sorted(one_a_dialogue(files["test"]), key=lambda row: row["dialogue"])
    files |= {"prompts_a": one_a_dialogue(files["a"])}
    files |= {"prompts_val": held_out[:VALIDATED], "prompts_test": held_out[VALIDATED:]}
    for name, rows in files.items():
        write_text(out / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {name: len(rows) for name, rows in files.items()}


def first_turn(record: PreferenceRecord) -> str:
    """What the user says first: pairs that agree in it are of one dialogue."""
    return next(message.content for message in record.prompt if message.role == "user")


def part_of(turn: str) -> str:
    """The part a dialogue belongs to, by a hash of its first turn alone: more data moves no dialogue."""
    place = _hash(turn) % sum(SHARES.values())
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    raise AssertionError(place)


def balanced(records: Sequence[PreferenceRecord]) -> list[PreferenceRecord]:
    """The pairs without those that make shorter (or longer) responses win more often, at any size of the difference.

    In each bin of differences of length as many pairs stay where the shorter response was chosen as where the longer
    was; which of the more frequent go is decided by a hash. Length alone then predicts nothing, so that a reward model
    has to look at something else.
    """
    bins: dict[tuple[int, bool], list[PreferenceRecord]] = {}
    for record in records:
        difference = len(record.chosen) - len(record.rejected)
        place = next(i for i, end in enumerate(BINS) if abs(difference) <= end)
        if difference:
            bins.setdefault((place, difference < 0), []).append(record)
    kept = {id(record) for record in records if len(record.chosen) == len(record.rejected)}
    for place in range(len(BINS)):
        sides = [bins.get((place, shorter), []) for shorter in (False, True)]
        for side in sides:
            side.sort(key=lambda record: _hash(record.chosen + record.rejected))
            kept |= {id(record) for record in side[: min(map(len, sides))]}
    return [record for record in records if id(record) in kept]


def one_a_dialogue(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of each dialogue."""
    seen: dict[str, dict[str, Any]] = {}
    for row in rows:
        seen.setdefault(row["dialogue"], row)
    return list(seen.values())


def prose(pages: Sequence[Path], out: Path, *, count: int = 40) -> None:
    """Write prose_train.jsonl and prose_test.jsonl: ``count`` paragraphs each of Markdown pages, drawn by a hash.

    Args:
        pages: Markdown files.
        out: Folder for the files.
        count: Paragraphs a file.
    """
    texts = {text for page in pages for text in paragraphs(page.read_text(encoding="utf-8"))}
    drawn = sorted(texts, key=_hash)[: 2 * count]
    for name, part in (("train", drawn[::2]), ("test", drawn[1::2])):
        write_text(out / f"prose_{name}.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in part))


def paragraphs(page: str) -> list[str]:
    """Paragraphs of running text of at least 240 characters: no headings, lists, tables or code."""
    blocks = (" ".join(block.split()) for block in re.sub(r"```.*?```", "", page, flags=re.DOTALL).split("\n\n"))
    return [block for block in blocks if len(block) >= 240 and block[0].isalpha() and "|" not in block]


def _row(record: PreferenceRecord) -> dict[str, Any]:
    return {**record.raw, "dialogue": f"{_hash(first_turn(record)):016x}"}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
