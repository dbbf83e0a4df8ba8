"""`lit-rlhf compare`: which policy's saved answers win, by a judge; nothing is generated again."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from lit_rlhf.commands.parsing import OneLineParser, readable
from lit_rlhf.evaluation.agreement import Agreement, agreement
from lit_rlhf.evaluation.answers import Pair, read_answers, saved_answers
from lit_rlhf.evaluation.comparison import Comparison, Grouping, judge_policies, pair_policies, summarize
from lit_rlhf.evaluation.judges import HumanJudge, Judge, Verdict
from lit_rlhf.evaluation.judges.sheet import write_csv, write_key
from lit_rlhf.evaluation.verdicts import Judged, read_outcomes, verdict_outcomes, verdict_row
from lit_rlhf.files import write_text
from lit_rlhf.jsonl import append_rows, write_rows
from lit_rlhf.reports.compare_page import write_comparison, write_sheet_page
from lit_rlhf.user_errors import UserError, fail

EPILOG = """
A policy is NAME=PATH: a run directory, its export/final, or a file of answers. The first one is the baseline.
Judges: ScoreJudge (a saved score), RewardJudge (any reward), ChatJudge (a language model), HumanJudge (people).
  lit-rlhf compare SFT=runs/sft PPO=runs/ppo --judge ScoreJudge --judge.score score --judge.tie_margin 0.1
"""


def main(argv: Sequence[str]) -> None:
    """Judge, print the tables, and write them beside each other.

    Raises:
        FileNotFoundError: A run, file or sheet does not exist.
        ValueError: The answers cannot be compared, an option cannot be used, or the judge cannot go on.
    """
    parser = _parser()
    options = parser.parse_args(list(argv))
    judge = _judge(parser, options)
    paths = named(options.policies) or _runs_of_the_sheet(judge, options.key)
    if len(paths) < 2:
        raise UserError("Name a baseline and at least one policy: NAME=RUN_DIR NAME=RUN_DIR ...")
    policies = {name: read_answers(path) for name, path in paths.items()}
    grouping = Grouping(cluster_by=tuple(options.cluster_by), split_by=options.split_by)
    pairs = pair_policies(policies, all_pairs=options.all_pairs)
    for answer in next(iter(policies.values())):  # wrong columns end here, before a judge is paid
        grouping.cluster(answer), grouping.label(answer)
    if isinstance(judge, HumanJudge) and not judge.sheets:
        _write_sheet(judge, [pair for each in pairs.values() for pair in each], paths, options)
        return
    earlier = {name: read_outcomes(path) for name, path in named(options.agree_with).items()}
    judge.setup()
    with _kept(options.out, total=sum(map(len, pairs.values()))) as keep:
        judged = judge_policies(policies, judge, all_pairs=options.all_pairs, keep=keep)
    result = summarize(
        policies, judged, judge, grouping=grouping, agreements=_agreements(judge, judged, earlier),
        length_control=_has_sklearn(),
    )  # fmt: skip
    if not _has_sklearn():
        note = "No length-controlled win rates and no ratings: scikit-learn is missing (pip install 'lit-rlhf[judge]')."
        result = dataclasses.replace(result, notes=[*result.notes, note])
    show(result)
    if options.out is not None:
        write(result, judged, Path(options.out))


def _parser() -> OneLineParser:
    parser = _Parser(prog="lit-rlhf compare", description=__doc__, epilog=EPILOG)
    parser.add_argument("-c", "--config", action="config", help="YAML file with any of these options")
    parser.add_argument(
        "policies", nargs="*", type=str, default=[], help="NAME=PATH of the baseline and of each policy"
    )
    parser.add_subclass_arguments(Judge, "judge", required=False, help="who decides: a Judge and its arguments")
    parser.add_argument("--sheet", nargs="+", type=str, default=[], help="answered sheets, for HumanJudge")
    parser.add_argument("--key", type=str | None, help="the sheets' key (default: the *.key.json beside the first one)")
    parser.add_argument("--cluster-by", nargs="+", type=str, default=[], help="record's columns that cluster prompts")
    parser.add_argument("--split-by", type=str | None, help="record's column of the prompts' group")
    parser.add_argument("--all-pairs", type=bool, default=False, help="judge all policies against each other (true)")
    parser.add_argument(
        "--agree-with", nargs="+", type=str, default=[], help="NAME=VERDICTS.jsonl of other judges on the same answers"
    )
    parser.add_argument("--out", type=str | None, help="write OUT.json, OUT.md, OUT.html and OUT.verdicts.jsonl")
    return parser


class _Parser(OneLineParser):
    """The parser of the training commands, with a hint of its own."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the message on one line.

        Raises:
            SystemExit: Always, with exit code 2.
        """
        text = readable(message).rstrip(".")
        score = re.search(r"there is no class '(\w+)'", text)
        if score and score[1].islower():  # a name of a score, not of a class
            text = f"{score[0]}. For a score of the rows: `--judge ScoreJudge --judge.score {score[1]}`"
        missing = re.search(r"arguments are required: (\w+)$", text)
        if missing:  # of the judge: the command's own are none
            text = f"`--judge.{missing[1]}` is needed"
        fail(f"{text}. See `lit-rlhf compare --help` and `--judge.help JUDGE`.")


def _judge(parser: OneLineParser, options: Any) -> Judge:
    if options.get("judge") is None:
        raise UserError("Who decides? `--judge`: ScoreJudge, RewardJudge, ChatJudge, HumanJudge or a class path.")
    judge: Judge = parser.instantiate_classes(options).judge
    if options.sheet:
        if not isinstance(judge, HumanJudge) or judge.sheets:
            raise UserError("`--sheet` is for `--judge HumanJudge`, instead of `--judge.sheets`.")
        judge.sheets = list(options.sheet)
    return judge


def named(words: Sequence[str]) -> dict[str, str]:
    """Paths by name; a path without one is called like its run, or its last part.

    Raises:
        ValueError: Two have the same name.
    """
    found: dict[str, str] = {}
    for word in words:
        name, _, path = word.rpartition("=")
        parts = Path(path).parts
        name = name or (parts[-3] if len(parts) > 2 and parts[-2] == "export" else Path(path).name)
        if name in found:
            raise UserError(f"Two are called {name!r}: give each a name of its own, NAME={path}.")
        found[name] = path
    return found


# ---------------------------------------------------------------- people


def _runs_of_the_sheet(judge: Judge, key: str | None) -> dict[str, str]:
    """The policies that the sheets' key names."""
    if not isinstance(judge, HumanJudge) or not judge.sheets:
        return {}
    found = [Path(key)] if key else sorted(Path(judge.sheets[0]).parent.glob("*.key.json"))
    if len(found) != 1:
        raise UserError(f"`--key`: {len(found)} keys lie beside {judge.sheets[0]}; name the runs, or the key.")
    try:
        content = json.loads(found[0].read_text(encoding="utf-8"))
        judge.seed, runs = int(content["seed"]), dict(content["runs"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"`--key` ({found[0]}) is no key of a sheet: {error!r}.") from None
    return runs


def _write_sheet(judge: HumanJudge, pairs: Sequence[Pair], paths: Mapping[str, str], options: Any) -> None:
    if options.out is None:
        raise UserError("`--out` is needed: where shall the sheet for the annotators be written?")
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet, key = out.with_suffix(".sheet.csv"), out.with_suffix(".key.json")
    rows = judge.questions(pairs)
    runs = {name: str(saved_answers(path).resolve()) for name, path in paths.items()}
    write_key(key, {"seed": judge.seed, "runs": runs, "pairs": len(rows)})
    write_csv(rows, sheet)
    write_sheet_page(rows, sheet.with_suffix(".html"))
    Console().print(
        f"{len(rows)} pairs to judge: {sheet}, or in a browser {sheet.with_suffix('.html')}. "
        f"Keep {key} from the annotators. Then: "
        f"lit-rlhf compare --judge HumanJudge --sheet ANSWERED.csv ... --key {key}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


# ---------------------------------------------------------------- while judging


@contextlib.contextmanager
def _kept(out: str | None, *, total: int) -> Iterator[Any]:
    """Yields what saves verdicts as they come and moves the progress bar; whole results take their final name."""
    final = None if out is None else Path(out).with_suffix(".verdicts.jsonl")
    partial = None if final is None else final.with_suffix(".partial")
    if partial is not None:
        write_rows(partial, [])
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("judging", total=total)

        def keep(a: str, b: str, pairs: Sequence[Pair], verdicts: Sequence[Verdict | None]) -> None:
            progress.advance(task, len(pairs))
            if partial is not None:
                rows = [verdict_row(a, b, p, v) for p, v in zip(pairs, verdicts, strict=True) if v is not None]
                append_rows(partial, rows)

        yield keep
    if partial is not None and final is not None:
        partial.replace(final)


def _agreements(judge: Judge, judged: Sequence[Judged], earlier: Mapping[str, Any]) -> list[Agreement]:
    found = []
    if isinstance(judge, HumanJudge) and judge.agreement is not None:
        found.append(judge.agreement)
    if earlier:
        everyone = {judge.name: verdict_outcomes(judged), **earlier}
        if len(everyone) <= len(earlier):
            raise UserError(f"`--agree-with`: {judge.name!r} is this judge's own name.")
        names = list(everyone)
        found += [agreement({a: everyone[a], b: everyone[b]}) for i, a in enumerate(names) for b in names[i + 1 :]]
    return found


def _has_sklearn() -> bool:
    return importlib.util.find_spec("sklearn") is not None


# ---------------------------------------------------------------- results


def show(result: Comparison) -> None:
    """Print the tables and notes to the terminal."""
    console = Console()
    console.print(result.table.to_rich())
    for title, header, rows in result.sections():
        table = Table(title=title)
        for name in header:
            table.add_column(Text(name), justify="left" if name == header[0] else "right")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    for note in result.notes:
        console.print(Text(note))


def write(result: Comparison, judged: Sequence[Judged], out: Path) -> None:
    """Write JSON, Markdown and the page beside each other."""
    result.write(out.with_suffix(".json"))
    write_text(out.with_suffix(".md"), result.to_markdown())
    write_comparison(result, judged, out.with_suffix(".html"))
