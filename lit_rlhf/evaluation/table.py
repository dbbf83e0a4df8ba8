"""The result table: policies against the SFT policy, for the terminal, for Markdown and as JSON.

The JSON file is the interface between whoever evaluates policies and whoever shows the results::

    {"baseline": "SFT", "judge": "gold", "policies": [
        {"name": "PPO-max", "seeds": [1, 2, 3],
         "win_rates": {"all": {"win": 0.61, "tie": 0.07, "lose": 0.32, "rate": 0.645, "low": 0.60, "high": 0.69,
                               "prompts": 300, "clusters": 300},
                       "helpful": {...}, "harmless": {...}},
         "p_values": {"all": 0.0001}, "length_controlled": {"all": {"low": 0.58, "mean": 0.62, "high": 0.66}},
         "judge_score": 0.42, "score": 1.9, "kl": 0.05, "perplexity": 1.6, "response_length": 19.2, "eos_rate": 0.99}]}

Shares and rates lie in [0, 1]; a number that was not measured is null or absent.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rlhf.evaluation.intervals import Interval
from lit_rlhf.evaluation.win_rate import WinRate
from lit_rlhf.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

_MISSING = "-"
_MEANINGS = {
    "score": "score: the reward model's.",
    "KL": "KL: to the reference, nats per token.",
    "length": "length: tokens of a response.",
}


@dataclass(frozen=True, kw_only=True)
class PolicyEvaluation:
    """What was measured of one policy on held-out prompts.

    Attributes:
        name: "SFT", "PPO-max", "vanilla PPO", ...
        seeds: Training seeds the numbers are over.
        win_rates: Comparison with the baseline by group of prompts ("all" and the user's own); empty for the baseline
            itself.
        p_values: Of the difference from the baseline, by group.
        length_controlled: Length-controlled win rates, by group; empty where they were not asked for.
        judge_score: Mean score by the judge; None for one that gives no scores.
        score: Mean score by the reward model that PPO maximized (the proxy).
        kl: k1 estimate against the reference, nats per token.
        perplexity: exp of the mean negative log-likelihood of response tokens.
        response_length: Mean tokens of a response.
        eos_rate: Share of responses that ended by themselves.
    """

    name: str
    seeds: tuple[int, ...] = ()
    win_rates: Mapping[str, WinRate] = field(default_factory=dict)
    p_values: Mapping[str, float] = field(default_factory=dict)
    length_controlled: Mapping[str, Interval] = field(default_factory=dict)
    judge_score: float | None = None
    score: float | None = None
    kl: float | None = None
    perplexity: float | None = None
    response_length: float | None = None
    eos_rate: float | None = None

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> PolicyEvaluation:
        """The evaluation that :meth:`to_dict` wrote.

        Raises:
            ValueError: If a key is unknown or missing; names it.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(row) - known)
        if unknown or "name" not in row:
            wrong = f"unknown key {unknown[0]!r}" if unknown else "no key 'name'"
            raise ValueError(f"A policy of the result table has {wrong}; the keys are {', '.join(sorted(known))}.")
        rates = {group: _win_rate(rate, group) for group, rate in row.get("win_rates", {}).items()}
        controlled = {group: _interval(ends) for group, ends in row.get("length_controlled", {}).items()}
        given = {"seeds": tuple(row.get("seeds", ())), "win_rates": rates, "length_controlled": controlled}
        return cls(**{**row, **given})

    def to_dict(self) -> dict[str, Any]:
        """The evaluation in JSON's own types; numbers that are not finite become null."""
        plain = dataclasses.asdict(dataclasses.replace(self, win_rates={}))
        plain["win_rates"] = {group: _finite(dataclasses.asdict(rate)) for group, rate in self.win_rates.items()}
        plain["length_controlled"] = {g: _finite(rate._asdict()) for g, rate in self.length_controlled.items()}
        return _finite({**plain, "seeds": list(self.seeds)})


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """Policies side by side.

    Attributes:
        policies: The rows, in the order shown.
        baseline: Name of the policy that the others are compared with.
        judge: What decided the comparisons.
    """

    policies: Sequence[PolicyEvaluation]
    baseline: str = "SFT"
    judge: str = "gold"

    @classmethod
    def read(cls, path: str | Path) -> ResultTable:
        """The table that :meth:`write` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not such a table.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}.") from error
        if not isinstance(content, dict) or not isinstance(content.get("policies"), list):
            raise ValueError(f"{path} is no result table: it has no list 'policies'.")
        return cls(
            policies=[PolicyEvaluation.from_dict(row) for row in content["policies"]],
            baseline=content.get("baseline", "SFT"),
            judge=content.get("judge", "gold"),
        )

    def write(self, path: str | Path) -> Path:
        """Writes the JSON file described above; missing folders are made."""
        write_text(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")
        return Path(path)

    def to_dict(self) -> dict[str, Any]:
        """The table in JSON's own types."""
        return {"baseline": self.baseline, "judge": self.judge, "policies": [p.to_dict() for p in self.policies]}

    def caption(self) -> str:
        """How to read the columns, in a few sentences."""
        parts = [
            f"win/tie/lose: percent of comparisons with {self.baseline}, judged by {self.judge}. win %: wins plus half "
            "the ties, with its 95 % interval (bootstrap over clusters of prompts)."
        ]
        if any(p.length_controlled for p in self.policies):
            parts.append("LC win %: were both of equal length (regression).")
        if any(p.p_values for p in self.policies):
            parts.append("p: of the difference, all prompts (signs of clusters drawn).")
        header, _ = self.cells()
        return " ".join([*parts, *(meaning for name, meaning in _MEANINGS.items() if name in header)])

    def to_rich(self) -> Table:
        """The table for a terminal: one column a policy, so that four fit into 80 characters."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        header, rows = self.cells()
        title = f"Policies against {self.baseline}"
        table = Table(title=title, caption=self.caption(), caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
        table.add_column("")
        for row in rows:
            table.add_column(Text(row[0]), justify="right")
        for place, name in enumerate(header[1:], start=1):
            table.add_row(name, *(Text(row[place]) for row in rows))  # Text: square brackets are no markup here
        return table

    def to_markdown(self) -> str:
        """The table as Markdown, one row a policy, the caption below it."""
        header, rows = self.cells()
        rule = ["---", *["---:"] * (len(header) - 1)]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [header, rule, *rows]]
        return "\n".join([*lines, "", self.caption(), ""])

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows, one row a policy; what was measured of none has no column."""
        groups = list(dict.fromkeys(g for p in self.policies for g in p.win_rates))
        groups.sort(key=lambda group: group != "all")  # "all" first, the user's own in their order
        controlled = ["all"] if any("all" in p.length_controlled for p in self.policies) else []
        header = ["policy", *(["win/tie/lose"] if groups else []), *(f"win % {group}" for group in groups)]
        header += ["LC win %"] if controlled else []
        header += ["p"] if any(p.p_values for p in self.policies) else []
        header += [self.judge, "score", "KL", "perplexity", "length", "ended %"]
        rows = [self._row(policy, groups, controlled, with_p="p" in header) for policy in self.policies]
        kept = [place for place in range(len(header)) if any(row[place] != _MISSING for row in rows)]
        return [header[place] for place in kept], [[row[place] for place in kept] for row in rows]

    def _row(
        self, policy: PolicyEvaluation, groups: Sequence[str], controlled: Sequence[str], *, with_p: bool
    ) -> list[str]:
        cells = [policy.name, *([_shares(policy.win_rates.get(groups[0]))] if groups else [])]
        cells += [_rate(policy.win_rates.get(group)) for group in groups]
        cells += [_interval_shown(policy.length_controlled.get(group)) for group in controlled]
        cells += [p_shown(policy.p_values.get("all"))] if with_p else []
        cells += [_shown(policy.judge_score, "+.2f"), _shown(policy.score, "+.2f"), _shown(policy.kl, ".3f")]
        ended = None if policy.eos_rate is None else 100 * policy.eos_rate
        return [*cells, _shown(policy.perplexity, ".2f"), _shown(policy.response_length, ".1f"), _shown(ended, ".1f")]


def _win_rate(content: Any, group: str) -> WinRate:
    names = {f.name for f in dataclasses.fields(WinRate)}
    if not isinstance(content, Mapping) or set(content) != names:
        raise ValueError(f"The win rate {group!r} of a policy must have the keys {', '.join(sorted(names))}.")
    numbers: dict[str, Any] = {name: math.nan if value is None else value for name, value in content.items()}
    return WinRate(**numbers)


def _interval(content: Any) -> Interval:
    return Interval(*(math.nan if content[name] is None else content[name] for name in Interval._fields))


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _shares(rate: WinRate | None) -> str:
    return _MISSING if rate is None else "/".join(f"{100 * share:.0f}" for share in (rate.win, rate.tie, rate.lose))


def _rate(rate: WinRate | None) -> str:
    if rate is None:
        return _MISSING
    return _interval_shown(Interval(rate.low, rate.rate, rate.high))


def _interval_shown(rate: Interval | None) -> str:
    if rate is None:
        return _MISSING
    ends = f"{100 * rate.low:.1f}, {100 * rate.high:.1f}" if rate.is_defined else "n/a"
    return f"{100 * rate.mean:.1f} [{ends}]"


def p_shown(p: float | None) -> str:
    """A p-value with three digits; one that is smaller is said to be."""
    if p is None:
        return _MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _shown(value: float | None, form: str) -> str:
    return _MISSING if value is None else format(value, form)
