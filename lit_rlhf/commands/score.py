"""``lit-rlhf score --model RM FILE``: a reward model's scores of every response in a file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from rich.console import Console
from rich.progress import track

from lit_rlhf.commands.arguments import CommandParser
from lit_rlhf.data.records import PreferenceRecord, RowError
from lit_rlhf.data.report import RowReport
from lit_rlhf.evaluation.response_files import Response, read_scorable
from lit_rlhf.jsonl import append_rows, write_rows
from lit_rlhf.reports.reward_page import write_reward_report
from lit_rlhf.reward_report.pairs import ScoredPair
from lit_rlhf.reward_report.response_scorer import ResponseScorer

_CHUNK = 512  # rows between two ticks of the progress bar
_EVERY = 60.0  # seconds between two lines where there is no progress bar
Keep = Callable[[list[dict[str, Any]]], None]
ItemT = TypeVar("ItemT")


def main(argv: Sequence[str]) -> None:
    """The command line of ``lit-rlhf score``.

    Raises:
        FileNotFoundError: The data or the model does not exist.
        ValueError: The data, the model or an option cannot be used.
    """
    options = _parser().parse_args(argv)
    items, report = read_scorable(options.files, format=options.format, on_bad_row=options.on_bad_row)
    are_pairs = isinstance(items[0], PreferenceRecord)
    if options.report is not None and not are_pairs:
        raise ValueError("`--report` needs preference pairs; the file holds single responses.")
    scorer = load_scorer(
        options.model,
        template=options.template,
        max_length=options.max_length,
        max_batch_tokens=options.max_batch_tokens,
        dtype=options.dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    console = Console(stderr=True)
    part = None if options.out is None else options.out.with_name(f"{options.out.name}.part")
    keep = partial(_keep, part)
    if part is not None:
        part.unlink(missing_ok=True)
    if are_pairs:
        pairs = score_pairs(cast("list[PreferenceRecord]", items), scorer, report, console=console, keep=keep)
        rows = [_pair_row(record, pair) for record, pair in pairs]
        summary = _pairs_summary([pair for _, pair in pairs], options, scorer)
    else:
        scores = score_responses(cast("list[Response]", items), scorer, report, console=console, keep=keep)
        rows = [_response_row(response, score) for response, score in scores]
        summary = f"mean score {sum(row['score'] for row in rows) / len(rows):+.4f}" if rows else "no response"
    report.enforce(options.on_bad_row)
    _write(rows, options.out)
    if part is not None:
        part.unlink(missing_ok=True)
    console.print(f"{report.summary()}\n{summary}", markup=False, highlight=False, soft_wrap=True)


def load_scorer(
    path: str,
    *,
    template: str | None = None,
    max_length: int | None = None,
    max_batch_tokens: int | None = None,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> ResponseScorer:
    """A reward model with its tokenizer, ready to score.

    Args:
        path: Local folder or hub name.
        template: See :class:`~lit_rlhf.reward_report.response_scorer.ResponseScorer`.
        max_length: Most tokens of a row; None takes the model's context.
        max_batch_tokens: Most tokens of one forward pass; None: 4096 on a CPU, 16384 on an accelerator.
        dtype: Of the weights.
        device: None takes a GPU where there is one.
        trust_remote_code: Run Python files that come with the model.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: Not a reward model, or its tokenizer, template or context cannot be used.
    """
    import torch

    from lit_rlhf.data.micro import SUPERVISED_TOKENS
    from lit_rlhf.models.cpu import tune
    from lit_rlhf.models.loading.checks import check_context
    from lit_rlhf.models.loading.scalar import load_scalar_model
    from lit_rlhf.models.loading.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_scalar_model(path, head="load", dtype=dtype, trust_remote_code=trust_remote_code).to(place).eval()
    tune(model, place)
    if max_length is None:
        max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048
    check_context(model.config, max_length)
    return ResponseScorer(
        model,
        tokenizer,
        template=template,
        max_length=max_length,
        max_batch_tokens=SUPERVISED_TOKENS.on(place, max_batch_tokens),
        device=place,
    )


def score_pairs(
    records: Sequence[PreferenceRecord],
    scorer: ResponseScorer,
    report: RowReport,
    *,
    console: Console | None = None,
    keep: Keep | None = None,
) -> list[tuple[PreferenceRecord, ScoredPair]]:
    """Both scores of every pair that fits; one that does not is withdrawn from ``report``."""
    scored = []
    for chunk in _chunks(records, console):
        kept: list[tuple[PreferenceRecord, list[list[int]]]] = []
        for record in chunk:
            try:
                rows, dropped = scorer.encode_pair(record.prompt, record.chosen, record.rejected)
            except RowError as error:
                report.withdraw(record, error)
                continue
            report.shorten(record, dropped)
            kept.append((record, rows))
        scores = scorer.score_ids([ids for _, rows in kept for ids in rows])
        new = [
            (record, _scored_pair(record, scorer, *scores[2 * place : 2 * place + 2]))
            for place, (record, _) in enumerate(kept)
        ]
        scored += new
        if keep is not None:
            keep([_pair_row(record, pair) for record, pair in new])
    return scored


def score_responses(
    responses: Sequence[Response],
    scorer: ResponseScorer,
    report: RowReport,
    *,
    console: Console | None = None,
    keep: Keep | None = None,
) -> list[tuple[Response, float]]:
    """The score of every response that fits; one that does not is rejected in ``report``."""
    scored: list[tuple[Response, float]] = []
    for chunk in _chunks(responses, console):
        kept, rows = [], []
        for response in chunk:
            try:
                ids, dropped = scorer.encode(response.prompt, response.text, ended=response.ended)
            except RowError as error:
                report.source(response.source).accepted -= 1
                report.reject(response.source, response.line, error)
                continue
            report.source(response.source).dropped_turns += dropped
            report.source(response.source).shortened += dropped > 0
            kept.append(response)
            rows.append(ids)
        new = list(zip(kept, scorer.score_ids(rows), strict=True))
        scored += new
        if keep is not None:
            keep([_response_row(response, score) for response, score in new])
    return scored


def _scored_pair(record: PreferenceRecord, scorer: ResponseScorer, chosen: float, rejected: float) -> ScoredPair:
    return ScoredPair(
        prompt="\n\n".join(f"{turn.role}: {turn.content}" for turn in record.prompt),
        chosen=record.chosen,
        rejected=record.rejected,
        chosen_score=chosen,
        rejected_score=rejected,
        chosen_length=scorer.response_length(record.chosen),
        rejected_length=scorer.response_length(record.rejected),
        subset=record.subset or "all",
        prompt_source=record.prompt,
        cluster=next(turn.content for turn in record.prompt if turn.role == "user"),  # HH: pairs at several depths
    )


def _pair_row(record: PreferenceRecord, pair: ScoredPair) -> dict[str, Any]:
    scores = {"chosen_score": pair.chosen_score, "rejected_score": pair.rejected_score, "difference": pair.difference}
    return {"source": record.source, "line": record.line, "subset": record.subset, **scores}


def _response_row(response: Response, score: float) -> dict[str, Any]:
    return {"source": response.source, "line": response.line, "score": score}


def _keep(part: Path | None, rows: list[dict[str, Any]]) -> None:
    """What is scored is on the disk, in a file beside the one that is written in the end."""
    if part is not None:
        append_rows(part, rows)


def _pairs_summary(pairs: Sequence[ScoredPair], options: argparse.Namespace, scorer: ResponseScorer) -> str:
    from lit_rlhf.reward_report import RewardReport

    if not pairs:
        return "no pair"
    score_fn = scorer if options.report is not None else None
    result = RewardReport.from_scores(pairs, score_fn=score_fn, model=options.model, data=", ".join(options.files))
    rate, rule = result.accuracy.rate, result.length_bias.longer_wins.rate
    text = f"accuracy {rate.mean:.3f} [{rate.low:.3f}, {rate.high:.3f}]; the longer response wins {rule.mean:.3f}"
    text += f", the shorter {1 - rule.mean:.3f}"  # equal lengths count half in both
    if options.report is not None:
        text += f"\nreport: {write_reward_report(result, options.report)[1]}"
    return text


def _chunks(items: Sequence[ItemT], console: Console | None) -> Iterator[Sequence[ItemT]]:
    starts = range(0, len(items), _CHUNK)
    quiet = console is None or not console.is_terminal
    told = began = time.monotonic()
    for start in track(starts, description="scoring", console=console, transient=True, disable=quiet):
        now = time.monotonic()
        if quiet and console is not None and start and now - told >= _EVERY:
            left = (now - began) / start * (len(items) - start)
            console.print(f"scored {start}/{len(items)}, {left:.0f} s left", highlight=False, soft_wrap=True)
            told = now
        yield items[start : start + _CHUNK]


def _write(rows: Sequence[Mapping[str, Any]], out: Path | None) -> None:
    if out is None:
        sys.stdout.write("".join(json.dumps(row) + "\n" for row in rows))
    else:
        write_rows(out, rows)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "score",
        "Score the responses in preference files, dialogues or predictions with a reward model. Writes one JSON line\n"
        "per row: chosen_score, rejected_score and difference of a pair, or score of a single response.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="files, folders, globs or hub names")
    parser.add_argument("--model", required=True, help="folder or hub name of the reward model")
    parser.add_argument("--out", type=Path, help="file for the JSON lines (default: standard output)")
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write the reward-model report of pairs there")
    parser.add_argument("--format", help="the data's format (default: recognized from the first rows)")
    parser.add_argument("--template", help="hh, moss-en or moss-zh (default: the tokenizer's chat template)")
    parser.add_argument("--max-length", type=int, help="most tokens of a row (default: the model's context)")
    parser.add_argument("--max-batch-tokens", type=int, help="most tokens at once (default: by device)")
    parser.add_argument("--on-bad-row", choices=("skip", "error"), default="skip", help="default: skip, and count")
    parser.add_argument("--dtype", default="float32", help="of the weights (default: float32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    return parser
