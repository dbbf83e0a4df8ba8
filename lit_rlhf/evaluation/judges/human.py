"""People as judges: a sheet goes out, answered sheets come in again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.evaluation.agreement import Agreement, agreement
from lit_rlhf.evaluation.answers import Answer, Pair
from lit_rlhf.evaluation.judges.base import Judge, Verdict, settled
from lit_rlhf.evaluation.judges.sheet import (
    Opinion,
    SheetRow,
    outcome_of,
    pair_name,
    read_sheet,
    sheet_rows,
)

_SHOWN = 3  # pairs that a message names


class HumanJudge(Judge):
    """Verdicts of one or several annotators from their answered sheets.

    Without ``sheets`` there is nothing to judge with yet: ``lit-rlhf compare`` then writes the sheet
    (:meth:`questions`). With several annotators the most frequent of win, tie and lose is the verdict, and a tie where
    two are equally frequent. Equal answers tie and an empty one loses to any other; nobody is asked.

    Args:
        sheets: Answered sheets (CSV), one or several.
        seed: Shuffles and blinds; the answered sheets must have been written with the same one.
        allow_missing: Whether pairs that nobody judged are skipped; else they are an error.
        name: Used in tables and messages.

    Attributes:
        agreement: Of the annotators, once there are verdicts and more than one of them.
    """

    def __init__(
        self, *, sheets: list[str] | None = None, seed: int = 0, allow_missing: bool = False, name: str = "people"
    ) -> None:
        self.sheets, self.seed, self.allow_missing, self.name = sheets or [], seed, allow_missing, name
        self._opinions: dict[str, list[Opinion]] = defaultdict(list)
        self.agreement: Agreement | None = None

    def setup(self) -> None:
        """Read the answered sheets.

        Raises:
            FileNotFoundError: A sheet does not exist.
            ValueError: A sheet cannot be read, or somebody judged a pair twice.
        """
        self._opinions.clear()
        seen: dict[tuple[str, str], str] = {}
        for path in self.sheets:
            for opinion in read_sheet(Path(path)):
                key = (opinion.pair, opinion.annotator)
                if key in seen:
                    raise ValueError(
                        f"{opinion.place}: {opinion.annotator} has judged pair {opinion.pair} before, in {seen[key]}."
                    )
                seen[key] = opinion.place
                self._opinions[opinion.pair].append(opinion)

    def questions(self, pairs: Sequence[Pair]) -> list[SheetRow]:
        """The sheet of these pairs, shuffled and blinded."""
        return sheet_rows(pairs, seed=self.seed)

    def compare(self, prompt: str, a: Answer, b: Answer) -> Verdict:
        """The verdict on one pair.

        Raises:
            ValueError: Nobody judged it.
        """
        found = self._verdict(Pair(a=a, b=b))
        if found is None:
            raise ValueError(f"Nobody judged the answers to prompt {a.key} on {', '.join(self.sheets) or 'any sheet'}.")
        return found

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """Check the sheets against the pairs, and measure how far the annotators agree (``agreement``).

        Raises:
            ValueError: Rows are missing (unless ``allow_missing``), or there are rows of other pairs.
        """
        asked = {pair_name(pair, seed=self.seed): pair for pair in pairs if settled(pair.a, pair.b) is None}
        self._check(list(asked))
        by_annotator: dict[str, dict[Hashable, str]] = defaultdict(dict)
        for name, pair in asked.items():
            for opinion in self._opinions.get(name, ()):
                by_annotator[opinion.annotator][name] = outcome_of(opinion.choice, pair, seed=self.seed)
        self.agreement = agreement(by_annotator) if len(by_annotator) > 1 else None

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        """The verdicts on all pairs; None for those that nobody judged."""
        return [self._verdict(pair) for pair in pairs]

    def _check(self, names: Sequence[str]) -> None:
        known = set(names)
        strangers = [name for name in self._opinions if name not in known]
        if strangers:
            place = self._opinions[strangers[0]][0].place
            raise ValueError(
                f"{place}: pair {strangers[0]} is none of these runs' ({len(strangers)} such in all). Same runs in the "
                f"same files, and the same `seed` ({self.seed})?"
            )
        missing = [name for name in dict.fromkeys(names) if name not in self._opinions]
        if missing and not self.allow_missing:
            shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            raise ValueError(
                f"{len(missing)} of {len(known)} pairs are judged by nobody: {shown}. "
                "`allow_missing: true` leaves them out."
            )

    def _verdict(self, pair: Pair) -> Verdict | None:
        known = settled(pair.a, pair.b)
        if known is not None:
            return known
        opinions = self._opinions.get(pair_name(pair, seed=self.seed), [])
        if not opinions:
            return None
        counts = Counter(outcome_of(opinion.choice, pair, seed=self.seed) for opinion in opinions)
        (outcome, most), *rest = counts.most_common()
        reasons = [f"{opinion.annotator}: {opinion.comment}" for opinion in opinions if opinion.comment.strip()]
        split = " / ".join(f"{counts[o]} {o}" for o in counts)
        return Verdict(
            outcome="tie" if rest and rest[0][1] == most else outcome,
            reason="\n".join(reasons),
            note=split if len(opinions) > 1 else "",
        )

    def describe(self) -> dict[str, Any]:
        """The sheets and the seed, too."""
        return {**super().describe(), "sheets": list(self.sheets), "seed": self.seed}
