"""Damage rows of preference data at random and read them: every row is used or refused with a reason, none is lost.

    python -m tests.soak.rows                 # 30,000 rows
    python -m tests.soak.rows --rows 1000 --seed 5

Two thirds of the rows are damaged: bytes flipped, cut, doubled or put in (line feeds, NULs, bytes that are not UTF-8),
keys renamed, values made another kind, turns repeated or emptied. What must be read is counted from the file's bytes
alone. Exit code 1 if a line is neither used nor refused, is both, is missing in the file of refused rows, or if a row
that nobody damaged is refused.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_rlhf.data.loading import collect

WORDS = ("why", "is", "the", "sky", "blue", "北京", "🙂", "\u2028", "<b>", '"', "\\", "a\n\nb", "e\u0301")
VALUES: tuple[Any, ...] = (None, True, 3, -1e308, [], {}, ["a"], {"b": 1}, "", " ", "no turns", 10**30)
BYTES = (
    b"\x00",
    b"\xff\xfe",
    b"\xc3",
    b"\n",
    b"\r",
    b"\xef\xbb\xbf",
    b'"',
    b"}",
    b"\xed\xa0\x80",
    b"[" * 2000,
    b"9" * 5000,
)


def main() -> None:
    """Damage, read, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/rows"))
    args = parser.parse_args()
    problems, told = check(args.out, rows=args.rows, chance=random.Random(args.seed))
    print(told)
    print("\n".join(problems) or "every row is accounted for")
    sys.exit(1 if problems else 0)


def check(out: Path, *, rows: int, chance: random.Random) -> tuple[list[str], str]:
    """What is wrong with the reading of ``rows`` rows, and what was read."""
    out.mkdir(parents=True, exist_ok=True)
    path, rejects = out / "rows.jsonl", out / "rejects.jsonl"
    whole = {good(chance) for _ in range(rows // 3)}
    written = [*sorted(whole), *(damaged(chance) for _ in range(rows - len(whole)))]
    chance.shuffle(written)
    path.write_bytes(b"".join(row + b"\n" for row in written))
    records, report = collect(str(path), "preference", format="hh")
    used = [record.line for record in records]
    refused = [row.line for row in report.rejected]
    report.write_rejects(rejects)
    kept = [json.loads(line)["line"] for line in rejects.read_bytes().split(b"\n") if line]
    there = lines(path.read_bytes())
    problems = {
        "neither used nor refused": sorted(there.keys() - set(used) - set(refused)),
        "used or refused twice, or both": sorted(line for line, n in Counter(used + refused).items() if n > 1),
        "not in the file, but used or refused": sorted({*used, *refused} - there.keys()),
        "missing in the file of refused rows": sorted(set(refused) ^ set(kept)),
        "refused although nobody damaged them": sorted(line for line in refused if there.get(line) in whole),
    }
    return [f"{what}: lines {found[:10]}" for what, found in problems.items() if found], report.summary()


def lines(data: bytes) -> dict[int, bytes]:
    """The lines that hold more than white space, by number."""
    return {number: line for number, line in enumerate(data.split(b"\n"), 1) if line.strip()}


def good(chance: random.Random) -> bytes:
    """A pair in HH-RLHF's words."""
    turns = [" ".join(chance.choices(WORDS, k=chance.randint(1, 9))) + "." for _ in range(2 * chance.randint(1, 3))]
    told = "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))
    pair = {"chosen": told + " yes", "rejected": told + " no"}
    return json.dumps(pair, ensure_ascii=chance.random() < 0.5).encode()


def damaged(chance: random.Random) -> bytes:
    """A pair with one to three wounds."""
    row = good(chance)
    for _ in range(chance.randint(1, 3)):
        row = chance.choice(WOUNDS)(row, chance)
    return row


def _flip(row: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(row) or 1)
    return row[:at] + bytes([chance.randrange(256)]) + row[at + 1 :]


def _cut(row: bytes, chance: random.Random) -> bytes:
    a, b = sorted(chance.choices(range(len(row) + 1), k=2))
    return chance.choice([row[:a], row[a:], row[:a] + row[b:]])


def _double(row: bytes, chance: random.Random) -> bytes:
    a, b = sorted(chance.choices(range(len(row) + 1), k=2))
    return row[:b] + row[a:]


def _insert(row: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(row) + 1)
    return row[:at] + chance.choice(BYTES) + row[at:]


def _rename(row: bytes, chance: random.Random) -> bytes:
    return row.replace(b"chosen", chance.choice([b"Chosen", b"rejected", b"", b"chosen "]))


def _value(row: bytes, chance: random.Random) -> bytes:
    try:
        pair = json.loads(row)
        pair[chance.choice(["chosen", "rejected"])] = chance.choice(VALUES)
    except (ValueError, TypeError, KeyError, RecursionError):
        return row
    return json.dumps(chance.choice([pair, [pair], pair.get("chosen") if isinstance(pair, dict) else pair])).encode()


def _turns(row: bytes, chance: random.Random) -> bytes:
    human, assistant = b"\\n\\nHuman:", b"\\n\\nAssistant:"
    return chance.choice(
        [row.replace(human, assistant), row.replace(assistant, human, 1), row.replace(human, human * 2), row + row]
    )


WOUNDS: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flip, _cut, _double, _insert, _rename, _value, _turns)


if __name__ == "__main__":
    main()
