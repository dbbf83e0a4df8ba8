"""Look at data before training on it: what is read, what is refused and why, how long the rows are.

``lit-rlhf data check FILES`` prints the report's table and a histogram of lengths, in tokens where a tokenizer is
given and in characters otherwise, and trains nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from lit_rlhf.commands.arguments import CommandParser
from lit_rlhf.data.formats import AnyRecord, Kind, UnknownFormatError
from lit_rlhf.data.loading import FORMATS, collect
from lit_rlhf.data.records import DialogueRecord, Message, PreferenceRecord, PromptRecord, RowError
from lit_rlhf.data.report import RowReport
from lit_rlhf.data.template import TEMPLATES, check_template, encode_dialogue, encode_pair, encode_piece, fit_prompt

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_GUESSES: tuple[Kind, ...] = ("preference", "sft", "prompt")
_BINS = 10
_BAR = 30


def check_files(
    paths: str | Sequence[str],
    tokenizer: Any = None,
    *,
    kind: Kind | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    template: str | None = None,
    max_length: int | None = None,
    rejects_dir: str | Path | None = None,
    streaming: bool = False,
    console: Console | None = None,
) -> RowReport:
    """Read, validate and measure data; print the table of rows and the histograms of lengths.

    Args:
        paths: Files, folders, globs or hub names.
        tokenizer: Measures in tokens and, with ``max_length``, also counts rows that are too long.
        kind: What the data is for: "preference", "dialogue", "prompt", "text" or "sft"; None for the first of
            preference, sft and prompt that at least half of the rows are usable as.
        format: Name of the row format; None to recognize it.
        columns: Our names of columns that have others: ``{"prompt": "question"}``.
        template: A named template; None for the tokenizer's chat template.
        max_length: Most tokens of a row.
        rejects_dir: Folder for ``rejects.jsonl``; None writes nothing.
        streaming: Read hub splits row by row.
        console: Where to print; None for standard output.

    Returns:
        The report, every row of the data in it.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: The format is unknown or ambiguous, a file is unreadable, or the template cannot be used.
    """
    if max_length is not None and tokenizer is None:
        raise ValueError("`max_length` is in tokens: give a `tokenizer` too.")
    if tokenizer is not None and max_length is not None:
        check_template(tokenizer, template)
    kind, records, report = _read(paths, kind, format=format, columns=columns, streaming=streaming)
    if tokenizer is not None and max_length is not None:
        records = [r for r in records if _fits(r, report, tokenizer, template, max_length)]
    report.check()
    _print(console or _console(), kind, records, report, tokenizer)
    if rejects_dir is not None:
        written = report.write_rejects(Path(rejects_dir) / "rejects.jsonl")
        (console or _console()).print(f"Refused rows: {written}" if written else "No row was refused.")
    return report


def _read(
    paths: str | Sequence[str],
    kind: Kind | None,
    **how: Any,
) -> tuple[Kind, list[AnyRecord], RowReport]:
    """The data as ``kind``, or as the first of ``_GUESSES`` that at least half of the rows are usable as."""
    found: list[tuple[Kind, list[AnyRecord], RowReport]] = []
    failed: list[UnknownFormatError] = []
    for guess in _GUESSES if kind is None else (kind,):
        try:
            found.append((guess, *collect(paths, guess, **how)))
        except UnknownFormatError as error:
            failed.append(error)
    if not found:
        if len(failed) == 1:
            raise failed[0]
        seen = str(failed[0]).partition(" Known: ")[0].replace(f" for {_GUESSES[0]} data", "")
        names = ", ".join(f.name for f in FORMATS)
        raise UnknownFormatError(f"{seen} Formats: {names}. Columns with other names: `--columns prompt=question`.")
    usable = (f for f in found if 2 * f[2].accepted >= f[2].read)
    return next(usable, found[0])


def _fits(record: AnyRecord, report: RowReport, tokenizer: Any, template: str | None, max_length: int) -> bool:
    try:
        if isinstance(record, PreferenceRecord):
            dropped = encode_pair(tokenizer, record, template=template, max_length=max_length).dropped_turns
        elif isinstance(record, DialogueRecord):
            dropped = encode_dialogue(tokenizer, record, template=template, max_length=max_length).dropped_turns
        elif isinstance(record, PromptRecord):
            dropped = fit_prompt(tokenizer, record.prompt, template=template, max_length=max_length).dropped_turns
        else:
            dropped = 0  # plain text is cut in pieces, never refused for its length
    except RowError as error:
        report.withdraw(record, error)
        return False
    report.shorten(record, dropped)
    return True


def _print(console: Console, kind: Kind, records: Sequence[AnyRecord], report: RowReport, tokenizer: Any) -> None:
    console.print(report.table())
    console.print(f"Read as {kind} data: {report.summary()}.")

    def measure(text: str) -> int:
        return len(text) if tokenizer is None else len(encode_piece(tokenizer, text))

    unit = "characters" if tokenizer is None else "tokens, without template"
    for name, lengths in _lengths(records, measure).items():
        console.print(_histogram(f"{name} ({unit})", lengths))


def _lengths(records: Sequence[AnyRecord], measure: Callable[[str], int]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for record in records:
        for name, text in _texts(record).items():
            out.setdefault(name, []).append(measure(text))
    return out


def _texts(record: AnyRecord) -> dict[str, str]:
    if isinstance(record, PreferenceRecord):
        return {"prompt": _join(record.prompt), "chosen": record.chosen, "rejected": record.rejected}
    if isinstance(record, PromptRecord):
        return {"prompt": _join(record.prompt)}
    if isinstance(record, DialogueRecord):
        return {"prompt": _join(record.messages[:-1]), "response": record.messages[-1].content}
    return {"text": record.text}


def _join(messages: Sequence[Message]) -> str:
    return "\n\n".join(m.content for m in messages)


def _histogram(title: str, lengths: Sequence[int]) -> Table:
    from rich.table import Table

    ordered = sorted(lengths)
    low, high = ordered[0], ordered[-1]
    width = max(1, -(-(high - low + 1) // _BINS))
    counts = [0] * ((high - low) // width + 1)
    for length in ordered:
        counts[(length - low) // width] += 1
    median, tail = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    table = Table("from", "to", "rows", "", title=f"{title}: median {median}, 95 % below {tail}, longest {high}")
    for i, count in enumerate(counts):
        bar = "#" * round(_BAR * count / max(counts))
        table.add_row(str(low + i * width), str(low + (i + 1) * width - 1), str(count), bar)
    return table


def _console() -> Console:
    from rich.console import Console

    return Console()


def main(argv: Sequence[str]) -> None:
    """The command line of ``lit-rlhf data check``.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: The data cannot be read, or an option cannot be used.
        SystemExit: 1 where no row can be used, or rows were refused and ``--on-bad-row error`` was given.
    """
    args = _parser().parse_args(argv)
    report = check_files(
        args.files,
        _load_tokenizer(args.tokenizer),
        kind=cast("Kind | None", args.kind),
        format=args.format,
        columns=_columns(args.columns),
        template=args.template,
        max_length=args.max_length,
        rejects_dir=args.rejects,
        streaming=args.streaming,
    )
    if not report.accepted or (report.rejected and args.on_bad_row == "error"):
        raise SystemExit(1)


def _columns(pairs: Sequence[str]) -> dict[str, str]:
    columns = dict(pair.partition("=")[::2] for pair in pairs)
    if not all(columns.values()):
        raise ValueError(f"`--columns` ({' '.join(pairs)}) must be OURS=THEIRS ..., such as prompt=question.")
    return columns


def _load_tokenizer(path: str | None) -> Any:
    if path is None:
        return None
    from lit_rlhf.models.loading.tokenizer import load_tokenizer

    return load_tokenizer(path)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "data check",
        "Read, validate and measure data; print the table of rows and the histograms of lengths.",
        epilog="Exit code 1 where no row can be used, or where rows were refused and --on-bad-row error was given.",
    )
    parser.add_argument("files", nargs="+", help="files, folders, globs or hub names (owner/name[:split])")
    parser.add_argument("--tokenizer", help="folder or hub name; lengths are then in tokens")
    parser.add_argument("--kind", choices=get_args(Kind), help="what the data is for (default: what fits best)")
    parser.add_argument("--format", choices=[f.name for f in FORMATS], help="row format (default: recognized)")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="columns with other names: prompt=question"
    )
    parser.add_argument("--template", choices=list(TEMPLATES), help="default: the tokenizer's chat template")
    parser.add_argument("--max-length", type=int, help="most tokens of a row; needs --tokenizer")
    parser.add_argument("--rejects", metavar="DIR", help="write the refused rows to DIR/rejects.jsonl")
    parser.add_argument("--on-bad-row", choices=["skip", "error"], default="skip", help="error: exit code 1")
    parser.add_argument("--streaming", action="store_true", help="read hub splits row by row")
    return parser
