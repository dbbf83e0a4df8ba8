"""What every judge is: two answers to one prompt in, win, tie or lose out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_rlhf.evaluation.answers import Answer, Pair

Outcome = Literal["win", "tie", "lose"]
OUTCOMES: tuple[Outcome, ...] = ("win", "tie", "lose")
REVERSED: dict[Outcome, Outcome] = {"win": "lose", "tie": "tie", "lose": "win"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge says of answer ``a`` beside answer ``b``.

    Attributes:
        outcome: Whether ``a`` wins, ties or loses.
        reason: Why, in the judge's words; empty where it gives none.
        scores: The scores of ``a`` and ``b``, of a judge that has them.
        votes: What was said of ``a`` each time the judge was asked: with ``a`` shown first, then with ``a`` shown
            second; None for an answer that could not be read. Empty for a judge whose answer has no order.
        note: What a reader should know of this verdict, e.g. that nobody was asked.
    """

    outcome: Outcome
    reason: str = ""
    scores: tuple[float, float] | None = None
    votes: tuple[Outcome | None, ...] = ()
    note: str = ""

    @property
    def disagrees(self) -> bool:
        """Whether the two orders were answered differently."""
        return len(self.votes) == 2 and None not in self.votes and self.votes[0] != self.votes[1]


class Judge(ABC):
    """Compares answers.

    A subclass implements :meth:`compare`; one that is faster with many pairs at a time overrides :meth:`judge` too.
    What it needs to load, it loads in :meth:`setup`.

    Attributes:
        name: Used in tables and messages.
    """

    name: str = "judge"

    def setup(self) -> None:
        """Load what judging needs; called once, before the first pair."""
        return

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """Told once of all pairs that will come, before the first is judged."""
        del pairs

    @abstractmethod
    def compare(self, prompt: str, a: Answer, b: Answer) -> Verdict:
        """Whether ``a`` wins over, ties with or loses to ``b``.

        Args:
            prompt: What both answer, as text.
            a: One answer; ``a.text`` is the response, ``a.row`` everything that was saved of it.
            b: The other.
        """

    def judge(self, pairs: Sequence[Pair]) -> Sequence[Verdict | None]:
        """A verdict on each pair; None for a pair that this judge skips."""
        return [self.compare(pair.prompt, pair.a, pair.b) for pair in pairs]

    def describe(self) -> dict[str, Any]:
        """What identifies this judge in results (plain values, no secrets)."""
        return {"name": self.name, "type": type(self).__name__}


def settled(a: Answer, b: Answer) -> Verdict | None:
    """The verdict that needs no judge: equal answers tie, and an empty answer loses to one that is not; else None."""
    own, other = a.text.strip(), b.text.strip()
    if own == other:
        return Verdict(outcome="tie", note="the answers are equal; the judge was not asked")
    if own and other:
        return None
    return Verdict(outcome="win" if own else "lose", note="an answer is empty; the judge was not asked")


def by_margin(score: float, other: float, *, tie_margin: float) -> Outcome:
    """The outcome of ``score`` against ``other``: a tie where they differ by at most ``tie_margin``."""
    if score > other + tie_margin:
        return "win"
    return "lose" if score < other - tie_margin else "tie"


def check_margin(tie_margin: float | None) -> float:
    """``tie_margin`` itself.

    Raises:
        ValueError: It is not there, negative or NaN.
    """
    if tie_margin is None or not tie_margin >= 0:
        raise ValueError(f"`tie_margin` ({tie_margin}) must not be negative: scores that differ by it still tie.")
    return tie_margin
