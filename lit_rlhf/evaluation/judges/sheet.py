"""The sheet that people judge on: pairs shuffled and blinded, and the key that tells whose answer was where."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_rlhf.evaluation.answers import Pair
from lit_rlhf.evaluation.judges.base import REVERSED, Outcome, settled
from lit_rlhf.files import write_text

COLUMNS = ("pair", "prompt", "left", "right", "answer", "comment", "annotator")
CHOICES: dict[str, Outcome] = {"left": "win", "right": "lose", "tie": "tie"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One question: which of the two is better?

    Attributes:
        pair: Name of the pair; it tells nothing of who wrote what.
        prompt: What both answer.
        left: The answer shown on the left.
        right: The one on the right.
    """

    pair: str
    prompt: str
    left: str
    right: str


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """One annotator's answer to one question.

    Attributes:
        pair: Name of the pair.
        annotator: Who.
        choice: "left", "right" or "tie".
        comment: Why, if they said so.
        place: File and line, for messages.
    """

    pair: str
    annotator: str
    choice: str
    comment: str
    place: str


def pair_name(pair: Pair, *, seed: int) -> str:
    """A name that is the same whenever these two answers are compared, in either order."""
    sides = sorted(f"{side.sample}\0{side.text}" for side in (pair.a, pair.b))
    return hashlib.sha256("\0".join([str(seed), pair.a.key, *sides]).encode("utf-8", "replace")).hexdigest()[:12]


def is_swapped(pair: Pair, *, seed: int) -> bool:
    """Whether ``b`` is the one on the left: a coin that depends on both texts, not on their order."""
    name = pair_name(pair, seed=seed)
    heads = random.Random(f"{seed}/{name}").random() < 0.5
    sides = [f"{side.sample}\0{side.text}" for side in (pair.a, pair.b)]
    return heads != (sides[0] > sides[1])


def sheet_rows(pairs: Sequence[Pair], *, seed: int) -> list[SheetRow]:
    """The questions in a shuffled order: equal pairs are asked once, and what needs no judge not at all."""
    rows = {}
    for pair in pairs:
        if settled(pair.a, pair.b) is not None:
            continue
        left, right = (pair.b, pair.a) if is_swapped(pair, seed=seed) else (pair.a, pair.b)
        name = pair_name(pair, seed=seed)
        rows[name] = SheetRow(pair=name, prompt=pair.prompt, left=left.text, right=right.text)
    return [rows[name] for name in random.Random(seed).sample(sorted(rows), len(rows))]


def outcome_of(choice: str, pair: Pair, *, seed: int) -> Outcome:
    """What "left", "right" or "tie" means for ``a``."""
    outcome = CHOICES[choice]
    return REVERSED[outcome] if is_swapped(pair, seed=seed) else outcome


def write_csv(rows: Sequence[SheetRow], path: Path) -> None:
    """Write the sheet for a spreadsheet: ``answer`` is to be filled with left, right or tie.

    A cell that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    text = io.StringIO("\ufeff")  # by which spreadsheets know UTF-8
    text.read()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([row.pair, *map(_inert, (row.prompt, row.left, row.right)), "", "", ""])
    write_text(path, text.getvalue(), new=True)


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def write_key(path: Path, content: Mapping[str, Any]) -> None:
    """Write what unblinds the sheet; annotators must not have it."""
    write_text(path, json.dumps(content, indent=1), new=True)


def read_sheet(path: Path) -> list[Opinion]:
    """The answered rows of one sheet; the annotator of a row without a name is the file's.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such sheet, an answer is none of the three, or a pair is answered twice by the same person.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`sheets` ({path}) does not exist.")
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        reader = csv.DictReader(file)
        missing = {"pair", "answer"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path} is no answered sheet: it has no column {', '.join(sorted(missing))}.")
        opinions: list[Opinion] = []
        seen: dict[tuple[str, str], str] = {}
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            choice = (row["answer"] or "").strip().lower()
            if not choice:
                continue
            if choice not in CHOICES:
                raise ValueError(f"{place}: `answer` ({row['answer']!r}) must be left, right or tie.")
            who = (row.get("annotator") or "").strip() or path.stem
            key = (row["pair"], who)
            if key in seen:
                raise ValueError(f"{place}: {who} has judged pair {row['pair']} before, in {seen[key]}.")
            seen[key] = place
            opinions.append(
                Opinion(
                    pair=row["pair"] or "", annotator=who, choice=choice, comment=row.get("comment") or "", place=place
                )
            )
    return opinions
