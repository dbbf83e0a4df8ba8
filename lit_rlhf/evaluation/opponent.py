"""Saved answers to beat: win rates of fresh answers, cheap enough for every validation of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_rlhf.evaluation.answers import Answer, answers_from_rows, pair_up, read_answers
from lit_rlhf.evaluation.judges.base import Judge
from lit_rlhf.evaluation.verdicts import Judged
from lit_rlhf.evaluation.win_rate import half_ties


@dataclass
class Opponent:
    """A policy to compare with during `fit`, by its saved answers to the same held-out prompts.

    Attributes:
        answers: Its run directory, export folder or file of answers, e.g. those of SFT.
        judge: Who decides. It is asked in every validation: take a cheap one.
    """

    answers: str
    judge: Judge
    _saved: list[Answer] = field(default_factory=list, init=False, repr=False)

    def setup(self) -> None:
        """Read the answers and set the judge up, once.

        Raises:
            FileNotFoundError: There are no such answers.
            ValueError: They cannot be read, or the judge cannot be set up.
        """
        if not self._saved:
            self._saved = read_answers(self.answers)
            self.judge.setup()

    def measure(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """``win_rate`` (ties count half) and ``tie_rate`` of evaluated rows; each prompt weighs the same.

        Raises:
            ValueError: A prompt has no saved answer or is another one there, or the judge cannot judge.
        """
        self.setup()
        own = answers_from_rows(rows, source="this run's answers")
        pairs = pair_up(own, self._saved, names=("this run", self.answers), subset=True)
        self.judge.prepare(pairs)
        judged = Judged(a="policy", b=self.answers, pairs=pairs, verdicts=self.judge.judge(pairs))
        outcomes = [[verdict.outcome for _, verdict in prompt] for prompt in judged.by_prompt().values()]
        if not outcomes:
            raise ValueError(f"Judge {self.judge.name!r} gave no verdict on the validation's answers.")
        ties = [sum(outcome == "tie" for outcome in prompt) / len(prompt) for prompt in outcomes]
        return {"win_rate": sum(half_ties(outcomes)) / len(outcomes), "tie_rate": sum(ties) / len(ties)}
