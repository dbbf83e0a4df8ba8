"""A judge that reads a number which validation or test already saved with every answer."""

from __future__ import annotations

import math
from typing import Any

from lit_rlhf.evaluation.answers import Answer
from lit_rlhf.evaluation.judges.base import Judge, Verdict, by_margin, check_margin


class ScoreJudge(Judge):
    """The higher saved score wins; no model is loaded, so it is cheap enough for every validation of a run.

    Args:
        score: Key of the score in the saved rows, e.g. "score", or a name of ``eval_rewards``.
        tie_margin: Scores that differ by at most this tie.
        name: Used in tables and messages; default: ``score``.

    Raises:
        ValueError: If ``tie_margin`` is negative.
    """

    def __init__(self, score: str, *, tie_margin: float, name: str | None = None) -> None:
        self.score, self.tie_margin, self.name = score, check_margin(tie_margin), name or score

    def compare(self, prompt: str, a: Answer, b: Answer) -> Verdict:
        """Compare the saved scores.

        Raises:
            ValueError: A row has no such score, or it is no finite number.
        """
        own, other = self._of(a), self._of(b)
        return Verdict(outcome=by_margin(own, other, tie_margin=self.tie_margin), scores=(own, other))

    def _of(self, answer: Answer) -> float:
        value = answer.row.get(self.score)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            numbers = sorted(k for k, v in answer.row.items() if isinstance(v, int | float))
            raise ValueError(
                f"{answer.source}, row {answer.line}: `score` ({self.score}) is "
                f"{'not among its numbers: ' + ', '.join(numbers) if value is None else f'{value!r}, not a number'}."
            )
        return float(value)

    def describe(self) -> dict[str, Any]:
        """The score and the margin, too."""
        return {**super().describe(), "score": self.score, "tie_margin": self.tie_margin}
