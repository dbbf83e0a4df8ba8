"""`lit-rlhf compare`: policies against a baseline, from the responses that `lit-rlhf test` saved."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.commands.arguments import CommandParser
from lit_rlhf.evaluation.responses import evaluation_means
from lit_rlhf.evaluation.table import PolicyEvaluation, ResultTable
from lit_rlhf.evaluation.win_rate import WinRate, win_rates_by
from lit_rlhf.user_errors import UserError

Row = Mapping[str, Any]


def read_responses(path: str | Path) -> list[Row]:
    """Rows of an ``evaluations/*.jsonl`` file; for a run directory, of its newest test (or else validation) file.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: A line is not a response as `lit-rlhf test` saves it.
    """
    found = Path(path)
    if found.is_dir():
        folder = found / "evaluations"
        files = sorted(folder.glob("test-*.jsonl")) or sorted(folder.glob("val-*.jsonl"))
        if not files:
            raise FileNotFoundError(f"{folder} holds no evaluated responses: run `lit-rlhf test` first.")
        found = files[-1]
    if not found.is_file():
        raise FileNotFoundError(f"{found} does not exist.")
    lines = found.read_text(encoding="utf-8").splitlines()
    return [_response(line, f"{found}, line {number}") for number, line in enumerate(lines, start=1)]


def _response(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error}.") from None
    if not isinstance(row, dict) or not row.keys() >= {"row", "prompt", "record", "score"}:
        raise UserError(f"{where} is not a response that `lit-rlhf test` has saved.")
    return row


def win_rates(rows: Sequence[Row], baseline: Sequence[Row], *, judge: str = "gold") -> Mapping[str, WinRate]:
    """Win rates of the first response to each prompt against every baseline response to it, by kind of prompt.

    Prompts about the same thing (same ``family`` and ``argument`` in the record) are resampled together.

    Args:
        rows: Responses of the policy; must cover the same prompts as the baseline's.
        baseline: Responses of the baseline, one or several a prompt.
        judge: Key of the score that decides.

    Raises:
        ValueError: If a prompt has no baseline response or a row lacks the judge's score.
    """
    others: dict[int, list[float]] = defaultdict(list)
    for row in baseline:
        others[row["row"]].append(_score(row, judge))
    own = [row for row in rows if row.get("sample", 0) == 0]
    missing = [row["row"] for row in own if row["row"] not in others]
    if missing:
        raise ValueError(f"The baseline has no response to prompt {missing[0]} (and {len(missing) - 1} more).")
    return win_rates_by(
        [str(row["record"].get("kind", "other")) for row in own],
        [_score(row, judge) for row in own],
        [others[row["row"]] for row in own],
        clusters=[_cluster(row) for row in own],
    )


def _score(row: Row, judge: str) -> float:
    if judge not in row:
        numbers = sorted(name for name, value in row.items() if isinstance(value, float))
        raise ValueError(f"`judge` ({judge}) is not among the numbers of the rows: {', '.join(numbers)}.")
    return float(row[judge])


def _cluster(row: Row) -> str:
    record = row["record"]
    if "argument" not in record:
        return str(row["prompt"])
    return json.dumps([record.get("family"), record["argument"]])


def evaluate_policy(name: str, rows: Sequence[Row], baseline: Sequence[Row] | None, *, judge: str) -> PolicyEvaluation:
    """One row of the result table; without a baseline the baseline's own row."""
    means = evaluation_means([dict(row) for row in rows], ["score", judge])
    return PolicyEvaluation(
        name=name,
        win_rates={} if baseline is None else win_rates(rows, baseline, judge=judge),
        gold=means[judge],
        score=means["score"],
        kl=means.get("kl"),
        perplexity=means["perplexity"],
        response_length=means["response_length"],
        eos_rate=means["eos_rate"],
    )


def main(argv: Sequence[str]) -> None:
    """Print the table; write it as JSON and Markdown beside each other.

    Raises:
        FileNotFoundError: A run has no evaluated responses.
        ValueError: The runs cannot be compared, or a row lacks a score.
    """
    parser = CommandParser("compare", "Policies against a baseline, from the responses that `lit-rlhf test` saved.")
    parser.add_argument("baseline", help="NAME=RUN_DIR or file of the policy to compare with (usually SFT)")
    parser.add_argument("policies", nargs="+", help="NAME=RUN_DIR or file of each policy")
    parser.add_argument("--judge", help="score that decides (default: gold where all rows have it, else score)")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    args = parser.parse_args(argv)
    name, baseline = _named(args.baseline)
    others = [_named(policy) for policy in args.policies]
    every = [baseline, *(rows for _, rows in others)]
    judge = args.judge or ("gold" if all("gold" in row for rows in every for row in rows) else "score")
    for row in (row for rows in every for row in rows):
        _score(row, judge)
    table = ResultTable(
        policies=[
            evaluate_policy(name, baseline, None, judge=judge),
            *[evaluate_policy(n, rows, baseline, judge=judge) for n, rows in others],
        ],
        baseline=name,
        judge=judge,
    )
    from rich.console import Console

    Console().print(table.to_rich())
    if args.out is not None:
        table.write(args.out.with_suffix(".json"))
        args.out.with_suffix(".md").write_text(table.to_markdown(), encoding="utf-8")


def _named(argument: str) -> tuple[str, list[Row]]:
    name, _, path = argument.rpartition("=")
    return name or Path(path).name, read_responses(path)
