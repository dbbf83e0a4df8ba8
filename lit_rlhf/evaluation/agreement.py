"""How far judges agree beyond chance: people with people, a reward model with a gold scorer, a model with both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

_VALUES = {"lose": -1.0, "tie": 0.0, "win": 1.0}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of two or more judges on the same comparisons.

    Attributes:
        judges: Their names.
        units: Comparisons that at least two of them judged.
        alpha: Krippendorff's alpha with ordinal distances (lose < tie < win): 1 is perfect, 0 what chance gives,
            negative is systematic disagreement. NaN where it is not defined: nothing in common, or one value only.
        same: Share of equal verdicts among all pairs of verdicts on the same comparison; NaN where there are none.
    """

    judges: tuple[str, ...]
    units: int
    alpha: float
    same: float


def agreement(verdicts: Mapping[str, Mapping[Hashable, str]]) -> Agreement:
    """Agreement of judges, each a mapping from a comparison to "win", "tie" or "lose".

    A comparison that a judge skipped is missing, not a disagreement. Source: Krippendorff 2004, "Content Analysis",
    chapter 11, by the package `krippendorff` (extra `judge`).

    Raises:
        ValueError: Fewer than two judges, or the package is not installed.
    """
    if len(verdicts) < 2:
        raise ValueError(f"Agreement needs at least two judges, not {len(verdicts)}.")
    units = {unit for judged in verdicts.values() for unit in judged}
    shared = [unit for unit in units if sum(unit in judged for judged in verdicts.values()) > 1]
    pairs = [
        (first[unit], second[unit])
        for first, second in itertools.combinations(verdicts.values(), 2)
        for unit in shared
        if unit in first and unit in second
    ]
    table = [[_VALUES[judged[unit]] if unit in judged else math.nan for unit in shared] for judged in verdicts.values()]
    return Agreement(
        judges=tuple(verdicts),
        units=len(shared),
        alpha=_alpha(table),
        same=sum(a == b for a, b in pairs) / len(pairs) if pairs else math.nan,
    )


def _alpha(table: list[list[float]]) -> float:
    values = {value for row in table for value in row if not math.isnan(value)}
    if len(values) < 2:
        return math.nan
    krippendorff = _krippendorff()
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal"))


def _krippendorff() -> Any:
    try:
        import krippendorff
    except ImportError:
        raise ValueError("Agreement needs the extra `judge`: pip install 'lit-rlhf[judge]'.") from None
    return krippendorff
