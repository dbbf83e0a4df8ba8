"""Verdicts together: what a judge said of two policies, its bias for a place, and the lines that are saved."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_rlhf.evaluation.answers import Pair
from lit_rlhf.evaluation.judges.base import REVERSED, Outcome, Verdict


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Two policies, and what the judge says of each pair of their answers.

    Attributes:
        a: Name of one policy.
        b: Name of the other.
        pairs: Their answers.
        verdicts: Of ``a`` against ``b``, one per pair; None where the judge left it out.
    """

    a: str
    b: str
    pairs: Sequence[Pair]
    verdicts: Sequence[Verdict | None]

    def rows(self) -> list[tuple[Pair, Verdict]]:
        """The pairs that have a verdict."""
        return [(pair, v) for pair, v in zip(self.pairs, self.verdicts, strict=True) if v is not None]

    def by_prompt(self) -> dict[str, list[tuple[Pair, Verdict]]]:
        """The same by prompt, in order of appearance."""
        prompts: dict[str, list[tuple[Pair, Verdict]]] = {}
        for pair, verdict in self.rows():
            prompts.setdefault(pair.a.key, []).append((pair, verdict))
        return prompts


@dataclass(frozen=True, kw_only=True)
class OrderBias:
    """Does the judge look at the answers, or at their places?

    Attributes:
        asked: Pairs asked in both orders and answered readably both times.
        differing: Those of them whose two verdicts differ; they count as ties.
        first: Share of the votes for one side, in these pairs, that went to the answer shown first: 0.5 without a bias.
            NaN without such votes.
        unreadable: Answers of the judge that could not be read.
    """

    asked: int
    differing: int
    first: float
    unreadable: int


def order_bias(verdicts: Sequence[Verdict]) -> OrderBias | None:
    """Of a judge that was asked in both orders; None for any other."""
    both = [v for v in verdicts if len(v.votes) == 2]
    if not both:
        return None
    readable = [v for v in both if None not in v.votes]
    for_first = sum((v.votes[0] == "win") + (v.votes[1] == "lose") for v in readable)
    decided = sum(vote in ("win", "lose") for v in readable for vote in v.votes)
    return OrderBias(
        asked=len(readable),
        differing=sum(v.disagrees for v in readable),
        first=for_first / decided if decided else math.nan,
        unreadable=sum(vote is None for v in both for vote in v.votes),
    )


def verdict_row(a: str, b: str, pair: Pair, verdict: Verdict) -> dict[str, Any]:
    """One JSON line of a verdict: who, which answers, what and why."""
    return {
        "a": a,
        "b": b,
        "prompt": pair.a.key,
        "samples": [pair.a.sample, pair.b.sample],
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "scores": None if verdict.scores is None else list(verdict.scores),
        "votes": list(verdict.votes),
        "note": verdict.note,
    }


def verdict_outcomes(judged: Sequence[Judged]) -> dict[Hashable, Outcome]:
    """What was judged, by (prompt, policy, sample, policy, sample), the names in alphabetical order."""
    rows = [verdict_row(each.a, each.b, pair, verdict) for each in judged for pair, verdict in each.rows()]
    return dict(map(_outcome, rows))


def read_outcomes(path: str | Path) -> dict[Hashable, Outcome]:
    """The same of a file that ``lit-rlhf compare --out`` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no verdict.
    """
    out = {}
    lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")  # U+2028 ends no line of JSON
    for number, line in enumerate(lines, start=1):
        try:
            place, outcome = _outcome(json.loads(line))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            raise ValueError(f"{path}, line {number}: no verdict of `lit-rlhf compare`.") from None
        out[place] = outcome
    return out


def _outcome(row: Mapping[str, Any]) -> tuple[Hashable, Outcome]:
    (first, own), (second, other) = sides = [(row["a"], row["samples"][0]), (row["b"], row["samples"][1])]
    outcome: Outcome = row["outcome"]
    if outcome not in REVERSED:
        raise ValueError(outcome)
    if (first, own) <= (second, other):
        return (row["prompt"], *sides[0], *sides[1]), outcome
    return (row["prompt"], *sides[1], *sides[0]), REVERSED[outcome]
