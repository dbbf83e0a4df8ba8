"""Would the collapse detector have flagged a run in time? Its rule, replayed on what runs logged."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lit_rlhf.callbacks.collapse_rule import METRICS, CollapseRule, Flag, RuleConfig
from lit_rlhf.studies.plan import Study
from lit_rlhf.studies.results import WIN, Curve, Results

DROP = 5.0
"""A win rate fell where it is so many points under its peak so far, and stays there."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the detector made of one run.

    Attributes:
        fell_at: Iterations done at the first evaluation of a fall (:data:`DROP`); None without one.
        flag: First flag of the rule, if any.
    """

    fell_at: int | None
    flag: Flag | None

    @property
    def told(self) -> str:
        """``in time``, ``late`` or ``missed`` where the win rate fell; ``quiet`` or ``false alarm`` where not."""
        if self.fell_at is None:
            return "quiet" if self.flag is None else "false alarm"
        if self.flag is None:
            return "missed"
        return "in time" if self.flag.iteration < self.fell_at else "late"


def replay(series: Mapping[str, Sequence[tuple[int, float]]], config: RuleConfig) -> Flag | None:
    """The rule's first flag on logged metrics.

    Args:
        series: Metric name to ``(iteration, value)`` pairs.
        config: Constants of the rule.

    Raises:
        ValueError: If no KL was logged.
    """
    if not series.get(METRICS["kl"]):
        raise ValueError(f"The run did not log {METRICS['kl']!r}; a collapse cannot be told without.")
    at: dict[int, dict[str, float]] = {}
    for signal, metric in METRICS.items():
        for iteration, value in series.get(metric, []):
            at.setdefault(iteration, {})[signal] = value
    rule = CollapseRule(config)
    flags = (rule.update(iteration, values) for iteration, values in sorted(at.items()) if "kl" in values)
    return next((flag for flag in flags if flag is not None), None)


def first_fall(rates: Sequence[tuple[int, float]], drop: float, *, for_good: bool = False) -> int | None:
    """Iterations done at the first of ``(iterations done, win rate)`` that is ``drop`` under the highest before it.

    Args:
        rates: In order.
        drop: In the rates' unit.
        for_good: Only where every later one is so as well: one alone may be noise.
    """
    peaks = [math.inf, *itertools.accumulate((rate for _, rate in rates), max)]
    low = [rate <= peak - drop < math.inf for (_, rate), peak in zip(rates, peaks, strict=False)]
    return next((rates[k][0] for k in range(len(rates)) if all(low[k:] if for_good else low[k : k + 1])), None)


def outcome(run: Mapping[str, Curve], config: RuleConfig | None = None) -> Outcome:
    """One run's, from its curves.

    Raises:
        ValueError: The run has no win rate or logged no KL.
    """
    if not run.get(WIN):
        raise ValueError("The run has no win rate; whether it fell cannot be told.")
    flag = replay({metric: sorted(curve.items()) for metric, curve in run.items()}, config or RuleConfig())
    return Outcome(fell_at=first_fall(sorted(run[WIN].items()), DROP, for_good=True), flag=flag)


def detector_cells(study: Study, results: Results) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header, a row an arm, and a row for all; no rows where no run has both win rates and KL."""
    header = ("arm", "seeds", "fell", "in time", "late", "missed", "false alarms", "iterations ahead")
    rows: list[Sequence[str]] = []
    everything: list[Outcome] = []
    for arm, seeds in results.items():
        found = [outcome(run) for run in seeds.values() if run.get(WIN) and run.get(METRICS["kl"])]
        if found:
            rows.append((study.title(arm), *_cells(found)))
            everything += found
    return header, [*rows, ("all arms", *_cells(everything))] if rows else []


def _cells(found: Sequence[Outcome]) -> tuple[str, ...]:
    told = Counter(each.told for each in found)
    fell = sum(told[each] for each in ("in time", "late", "missed"))
    counts = (len(found), fell, told["in time"], told["late"], told["missed"], told["false alarm"])
    return (
        *map(str, counts),
        _ahead([each.fell_at - each.flag.iteration for each in found if each.fell_at and each.flag]),
    )


def _ahead(values: Sequence[int]) -> str:
    """Median and range of the iterations between flag and fall."""
    if not values:
        return ""
    middle = f"{statistics.median(values):g}"
    return middle if len(values) == 1 else f"{middle} ({min(values)} to {max(values)})"
