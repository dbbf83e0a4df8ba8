"""From two or more policies' answers and a judge to everything that is said of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_rlhf.evaluation.agreement import Agreement
from lit_rlhf.evaluation.answers import Answer, Pair, pair_up
from lit_rlhf.evaluation.intervals import Interval
from lit_rlhf.evaluation.judges.base import Judge, Verdict
from lit_rlhf.evaluation.length_control import length_controlled
from lit_rlhf.evaluation.ratings import elo_ratings
from lit_rlhf.evaluation.responses import answer_means
from lit_rlhf.evaluation.table import PolicyEvaluation, ResultTable, p_shown
from lit_rlhf.evaluation.verdicts import Judged, OrderBias, order_bias
from lit_rlhf.evaluation.win_rate import half_ties, p_value, rows_by, win_rates_by
from lit_rlhf.files import write_text

CHUNK = 256
"""Pairs judged between two calls of ``keep``: what an interruption can lose of a judge without a cache of its own."""
_HALF = {"win": 1.0, "tie": 0.5, "lose": 0.0}


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """What the user says about prompts.

    Attributes:
        cluster_by: Columns of the record; prompts that agree in all of them are resampled together. Without any, every
            prompt is a cluster.
        split_by: Column of the record that says which group a prompt is of (helpful, harmless); None for one group.
    """

    cluster_by: tuple[str, ...] = ()
    split_by: str | None = None

    def cluster(self, answer: Answer) -> Hashable:
        """The cluster of a prompt.

        Raises:
            ValueError: Its record has no such column.
        """
        if not self.cluster_by:
            return answer.key
        return json.dumps(
            [_column(answer, name, "cluster_by") for name in self.cluster_by], sort_keys=True, default=str
        )

    def label(self, answer: Answer) -> str:
        """The group of a prompt.

        Raises:
            ValueError: Its record has no such column.
        """
        return "all" if self.split_by is None else str(_column(answer, self.split_by, "split_by"))


def _column(answer: Answer, name: str, option: str) -> Any:
    if name not in answer.record:
        raise ValueError(
            f"`{option}` ({name}) is not a column of prompt {answer.key}; its columns are {', '.join(answer.record)}."
        )
    return answer.record[name]


def pair_policies(
    policies: Mapping[str, Sequence[Answer]], *, all_pairs: bool = False
) -> dict[tuple[str, str], list[Pair]]:
    """The pairs of answers of every two policies to compare, by their names; the first policy is the baseline.

    Raises:
        ValueError: The answers are to different prompts.
    """
    names = list(policies)
    duels = [(name, names[0]) for name in names[1:]]
    if all_pairs:
        duels += [(b, a) for a, b in itertools.combinations(names[1:], 2)]
    return {(a, b): pair_up(policies[a], policies[b], names=(a, b)) for a, b in duels}


def judge_policies(
    policies: Mapping[str, Sequence[Answer]],
    judge: Judge,
    *,
    all_pairs: bool = False,
    keep: Callable[[str, str, Sequence[Pair], Sequence[Verdict | None]], None] | None = None,
) -> list[Judged]:
    """Judge every policy against the first one.

    Args:
        policies: Answers by name; the first is the baseline.
        judge: Already set up.
        all_pairs: Judge all policies against each other, too.
        keep: Called with names, pairs and verdicts as soon as some are there.

    Raises:
        ValueError: The answers are to different prompts, or the judge cannot go on.
    """
    paired = pair_policies(policies, all_pairs=all_pairs)
    judge.prepare([pair for pairs in paired.values() for pair in pairs])
    out = []
    for (a, b), pairs in paired.items():
        verdicts: list[Verdict | None] = []
        for start in range(0, len(pairs), CHUNK):
            part = pairs[start : start + CHUNK]
            found = list(judge.judge(part))
            verdicts += found
            if keep is not None:
                keep(a, b, part, found)
        out.append(Judged(a=a, b=b, pairs=pairs, verdicts=verdicts))
    return out


@dataclass(frozen=True, kw_only=True)
class Duel:
    """Two policies, neither of them the baseline: win rate of the first with its interval."""

    a: str
    b: str
    rate: Interval
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is said of the policies.

    Attributes:
        table: Every policy against the baseline.
        judge: What identifies the judge.
        duels: The other pairs of policies.
        ratings: Elo ratings of three and more policies; empty otherwise.
        order: The judge's bias for a place; None where it was not asked in both orders.
        agreements: Between annotators, and between this judge and earlier ones.
        notes: What a reader should know, in sentences.
    """

    table: ResultTable
    judge: Mapping[str, Any]
    duels: Sequence[Duel] = ()
    ratings: Mapping[str, Interval] = field(default_factory=dict)
    order: OrderBias | None = None
    agreements: Sequence[Agreement] = ()
    notes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """The whole of it in JSON's own types: the result table's keys and the others beside them."""
        more = {
            "judge_details": dict(self.judge),
            "duels": [dataclasses.asdict(duel) | {"rate": duel.rate._asdict()} for duel in self.duels],
            "ratings": {name: interval._asdict() for name, interval in self.ratings.items()},
            "order": None if self.order is None else dataclasses.asdict(self.order),
            "agreements": [dataclasses.asdict(each) for each in self.agreements],
            "notes": list(self.notes),
        }
        return {name: _plain(value) for name, value in {**self.table.to_dict(), **more}.items()}

    def to_markdown(self) -> str:
        """The table and everything beside it, as Markdown."""
        parts = [self.table.to_markdown().rstrip("\n")]
        for title, header, rows in self.sections():
            lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (header, *rows)]
            rule = " | ".join(["---", *["---:"] * (len(header) - 1)])
            parts.append(f"**{title}**\n\n" + "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:])))
        return "\n\n".join([*parts, *self.notes]) + "\n"

    def sections(self) -> list[tuple[str, Sequence[str], list[Sequence[str]]]]:
        """Title, header and rows of the tables beside the result table; those that have no row are left out."""
        duels = [(each.a, each.b, _percent(each.rate), p_shown(each.p_value)) for each in self.duels]
        ratings = [(name, _number(rating)) for name, rating in self.ratings.items()]
        agreements = [
            (" and ".join(each.judges), str(each.units), f"{each.alpha:.2f}", f"{100 * each.same:.0f}")
            for each in self.agreements
        ]
        tables: list[tuple[str, Sequence[str], list[Sequence[str]]]] = [
            ("Against each other", ("policy", "against", "win %", "p"), list(duels)),
            ("Elo ratings (Bradley and Terry)", ("policy", "rating"), list(ratings)),
            ("Agreement of judges", ("judges", "comparisons", "Krippendorff's alpha", "equal %"), list(agreements)),
        ]
        return [table for table in tables if table[2]]

    def write(self, path: str | Path) -> Path:
        """Write it as JSON."""
        write_text(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")
        return Path(path)


def _percent(rate: Interval) -> str:
    ends = f"{100 * rate.low:.1f}, {100 * rate.high:.1f}" if rate.is_defined else "n/a"
    return f"{100 * rate.mean:.1f} [{ends}]"


def _number(value: Interval) -> str:
    has_width = value.is_defined and value.low < value.high  # the baseline's rating is 1000 by definition
    return f"{value.mean:.0f} [{value.low:.0f}, {value.high:.0f}]" if has_width else f"{value.mean:.0f}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def summarize(
    policies: Mapping[str, Sequence[Answer]],
    judged: Sequence[Judged],
    judge: Judge,
    *,
    grouping: Grouping = Grouping(),
    agreements: Sequence[Agreement] = (),
    length_control: bool = True,
) -> Comparison:
    """Everything that can be said of these verdicts.

    Args:
        policies: Answers by name; the first is the baseline.
        judged: What :func:`judge_policies` gave.
        judge: Who judged.
        grouping: Clusters and groups of prompts.
        agreements: Measured elsewhere.
        length_control: Whether to fit the length-controlled win rates, which need scikit-learn.

    Raises:
        ValueError: Nothing was judged, or a record lacks a column of the grouping.
    """
    names = list(policies)
    against = {each.a: each for each in judged if each.b == names[0]}
    rows = [
        evaluate_policy(name, policies[name], against.get(name), grouping=grouping, length_control=length_control)
        for name in names
    ]
    scores = _mean_scores(judged)
    table = ResultTable(
        policies=[dataclasses.replace(row, judge_score=scores.get(row.name)) for row in rows],
        baseline=names[0],
        judge=judge.name,
    )
    verdicts = [verdict for each in judged for _, verdict in each.rows()]
    return Comparison(
        table=table,
        judge=judge.describe(),
        duels=[_duel(each, grouping) for each in judged if each.b != names[0]],
        ratings=_ratings(judged, grouping) if len(names) > 2 and length_control else {},
        order=order_bias(verdicts),
        agreements=agreements,
        notes=_notes(policies, judged, verdicts),
    )


def evaluate_policy(
    name: str,
    answers: Sequence[Answer],
    judged: Judged | None,
    *,
    grouping: Grouping = Grouping(),
    length_control: bool = False,
) -> PolicyEvaluation:
    """One row of the result table; without a comparison the baseline's own row."""
    means: dict[str, Any] = answer_means([dict(answer.row) for answer in answers])
    if judged is None:
        return PolicyEvaluation(name=name, **means)
    prompts = judged.by_prompt()
    if not prompts:
        raise ValueError(f"No pair of {judged.a} and {judged.b} was judged.")
    outcomes = [[verdict.outcome for _, verdict in rows] for rows in prompts.values()]
    first = [rows[0][0].a for rows in prompts.values()]
    clusters, labels = [grouping.cluster(x) for x in first], [grouping.label(x) for x in first]
    groups = rows_by(labels, len(outcomes))
    gaps = [[length(pair.a) - length(pair.b) for pair, _ in rows] for rows in prompts.values()]
    controlled = {}
    for label, rows in groups.items() if length_control else ():
        wins = [[_HALF[outcome] for outcome in outcomes[i]] for i in rows]
        fit = length_controlled(wins, [gaps[i] for i in rows], clusters=[clusters[i] for i in rows])
        controlled[label] = fit.rate
    return PolicyEvaluation(
        name=name,
        win_rates=win_rates_by(labels, outcomes, clusters=clusters),
        p_values={
            label: p_value([outcomes[i] for i in rows], clusters=[clusters[i] for i in rows])
            for label, rows in groups.items()
        },
        length_controlled=controlled,
        **means,
    )


def against_baseline(
    name: str, answers: Sequence[Answer], baseline: Sequence[Answer], judge: Judge, *, grouping: Grouping
) -> PolicyEvaluation:
    """One policy's row without the rest of a comparison: what a study asks of every evaluation of a run.

    Raises:
        ValueError: See :func:`judge_policies`.
    """
    judged = judge_policies({"baseline": baseline, name: answers}, judge)[0]
    return evaluate_policy(name, answers, judged, grouping=grouping)


def length(answer: Answer) -> float:
    """Tokens where the row says how many, else characters."""
    tokens = answer.row.get("tokens")
    return float(tokens) if isinstance(tokens, int | float) else float(len(answer.text))


def _mean_scores(judged: Sequence[Judged]) -> dict[str, float]:
    """The judge's mean score of each policy's answers, each counted once."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    for each in judged:
        for pair, verdict in each.rows():
            if verdict.scores is None:
                return {}
            for name, answer, score in zip((each.a, each.b), (pair.a, pair.b), verdict.scores, strict=True):
                found.setdefault(name, {})[answer.key, answer.sample] = score
    return {name: sum(scores.values()) / len(scores) for name, scores in found.items()}


def _duel(judged: Judged, grouping: Grouping) -> Duel:
    row = evaluate_policy(judged.a, [pair.a for pair in judged.pairs], judged, grouping=grouping)
    rate = row.win_rates["all"]
    return Duel(a=judged.a, b=judged.b, rate=Interval(rate.low, rate.rate, rate.high), p_value=row.p_values["all"])


def _ratings(judged: Sequence[Judged], grouping: Grouping) -> dict[str, Interval]:
    results = {}
    for each in judged:
        prompts = each.by_prompt().values()
        halves = half_ties([[verdict.outcome for _, verdict in rows] for rows in prompts])
        clusters = [grouping.cluster(rows[0][0].a) for rows in prompts]
        # The baseline's name first, so that it is the one with 1000.
        results[each.b, each.a] = [(cluster, 1 - half) for cluster, half in zip(clusters, halves, strict=True)]
    return elo_ratings(results)


def _notes(
    policies: Mapping[str, Sequence[Answer]], judged: Sequence[Judged], verdicts: Sequence[Verdict]
) -> list[str]:
    notes = []
    for name, answers in policies.items():
        empty = sum(not answer.text.strip() for answer in answers)
        if empty:
            notes.append(f"{empty} of {len(answers)} responses of {name} are empty.")
    left_out = sum(verdict is None for each in judged for verdict in each.verdicts)
    if left_out:
        notes.append(f"{left_out} of {left_out + len(verdicts)} pairs have no verdict and are skipped.")
    boasting = sum("speaks to the judge" in verdict.note for verdict in verdicts)
    if boasting:
        notes.append(f"In {boasting} pairs an answer speaks to the judge; see the pairs.")
    order = order_bias(verdicts)
    if order is not None:
        share = (
            "" if math.isnan(order.first) else f"; {100 * order.first:.0f} % of its votes are for the one shown first"
        )
        notes.append(
            f"Asked in both orders, the judge contradicts itself in {order.differing} of {order.asked} pairs, "
            f"which tie{share}."
        )
        if order.unreadable:
            notes.append(f"{order.unreadable} answers of the judge could not be read.")
    return notes
