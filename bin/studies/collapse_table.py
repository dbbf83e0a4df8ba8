"""Was every collapse flagged in time, and nothing else? Replays the detector's rule on logged runs.

``python bin/studies/collapse_table.py --group SFT VANILLA PPO_MAX [--group ...]``, one group a
seed; ``-`` for a run leaves it out.

The truth is the win rate over the baseline by the gold judge, at every saved evaluation of a run. A collapse is a fall
of 5 points under the peak so far; the flag is in time when it comes in an earlier iteration than that evaluation.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_rlhf.callbacks.collapse_rule import Flag, RuleConfig
from lit_rlhf.evaluation.answers import Answer, read_answers
from lit_rlhf.evaluation.comparison import Grouping, against_baseline
from lit_rlhf.evaluation.judges import Judge, ScoreJudge
from lit_rlhf.reports.run_data import RunData, load_run, name_runs
from lit_rlhf.studies.detector import first_fall, replay


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One run's row.

    Attributes:
        name: The run.
        stable: Whether the run is one that must not be flagged.
        peak: Highest win rate, ties counted half, in [0, 1].
        peak_at: Its iteration.
        fell_at: Iterations done at the first evaluation ``drop`` under the peak so far; None when there is none.
        flag: First flag of the rule, if any.
    """

    name: str
    stable: bool
    peak: float
    peak_at: int
    fell_at: int | None
    flag: Flag | None

    @property
    def outcome(self) -> str:
        """``in time``, ``late``, ``missed``; ``quiet``, ``false alarm``, or ``early`` where the fall never came."""
        if self.stable:
            return "quiet" if self.flag is None else "false alarm"
        if self.fell_at is None:
            return "quiet" if self.flag is None else "early"
        if self.flag is None:
            return "missed"
        return "in time" if self.flag.iteration < self.fell_at else "late"


def judged(run: RunData, baseline: Sequence[Answer], *, judge: Judge) -> list[tuple[int, float]]:
    """``(iterations done, win rate)`` of every saved validation of a run.

    A rollout of iteration i is sampled by the policy that i iterations have made, so both count alike.

    Raises:
        ValueError: If the run saved none.
    """
    points = []
    for path in sorted((run.path / "evaluations").glob("val-step*.jsonl")):
        step = int(re.findall(r"step(\d+)", path.name)[-1])
        done = sum(start < step for _, start in run.starts)
        policy = against_baseline(run.name, read_answers(path), baseline, judge, grouping=Grouping())
        points.append((done, policy.win_rates["all"].rate))
    if not points:
        raise ValueError(f"`RUN_DIR` ({run.path}) has no evaluations/val-step*.jsonl.")
    return sorted(points)


def judge_run(
    run: RunData, rates: Sequence[tuple[int, float]], *, stable: bool, config: RuleConfig, drop: float = 0.05
) -> Verdict:
    """Compare the first flag with the first fall of ``drop`` under the peak so far."""
    peak_at, peak = max(rates, key=lambda each: each[1])
    fell_at, flag = first_fall(rates, drop), replay(run.series, config)
    return Verdict(name=run.name, stable=stable, peak=peak, peak_at=peak_at, fell_at=fell_at, flag=flag)


def to_markdown(verdicts: Iterable[Verdict]) -> str:
    """The table of docs/collapse.md."""
    lines = [
        "| run | peak win rate | at iteration | 5 points under it at | flagged at | onset | fired | outcome |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for v in verdicts:
        fell = "never" if v.fell_at is None else str(v.fell_at)
        flag = ("never", "", "") if v.flag is None else (v.flag.iteration, v.flag.since, ", ".join(v.flag.fired))
        cells = [v.name, f"{v.peak:.3f}", v.peak_at, fell, *flag, v.outcome]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    defaults = RuleConfig()
    parser = argparse.ArgumentParser(prog="python bin/studies/collapse_table.py", description=__doc__)
    parser.add_argument(
        "--group",
        nargs=3,
        action="append",
        required=True,
        metavar=("SFT", "COLLAPSING", "STABLE"),
        help="runs of one seed: the baseline, one whose collapse must be flagged in time, one that must not be flagged",
    )
    parser.add_argument("--judge", default="gold", help="score that decides (default: gold)")
    parser.add_argument("--tie-margin", type=float, default=0.08, help="scores that differ by less tie (default: 0.08)")
    parser.add_argument("--threshold", type=float, default=defaults.threshold)
    parser.add_argument("--patience", type=int, default=defaults.patience)
    parser.add_argument("--smoothing", type=int, default=defaults.smoothing)
    parser.add_argument("--trend", type=int, default=defaults.trend)
    parser.add_argument("--horizon", type=int, default=defaults.horizon)
    parser.add_argument("--tail-smoothing", type=int, default=defaults.tail_smoothing)
    parser.add_argument("--min-deviation", type=float, default=defaults.min_deviation)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    args = parser.parse_args(argv)
    config = RuleConfig(
        threshold=args.threshold,
        patience=args.patience,
        smoothing=args.smoothing,
        tail_smoothing=args.tail_smoothing,
        trend=args.trend,
        horizon=args.horizon,
        min_deviation=args.min_deviation,
    )
    paths = [Path(path) for _, *pair in args.group for path in pair if path != "-"]
    names = dict(zip(paths, name_runs(paths), strict=True))
    verdicts = []
    judge = ScoreJudge(args.judge, tie_margin=args.tie_margin)
    for sft, *pair in args.group:
        baseline = read_answers(sft)
        for path, stable in zip(pair, (False, True), strict=True):
            if path != "-":
                run = load_run(path, name=names[Path(path)])
                rates = judged(run, baseline, judge=judge)
                verdicts.append(judge_run(run, rates, stable=stable, config=config))
    table = to_markdown(verdicts)
    sys.stdout.write(table + "\n")
    if args.out is not None:
        args.out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
        rows = [{"run": v.name, "outcome": v.outcome, "peak": v.peak, "fell_at": v.fell_at} for v in verdicts]
        args.out.with_suffix(".json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
