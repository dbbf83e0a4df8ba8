"""What ``lit-rlhf score`` reads: preference pairs, dialogues that end in a response, or the predictions of a policy."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_rlhf.data.formats import RowFormat, choose_format
from lit_rlhf.data.loading import FIRST_ROWS, FORMATS, read_dialogues, read_preferences
from lit_rlhf.data.records import Message, PreferenceRecord, PromptRecord, Reason, RowError
from lit_rlhf.data.report import OnBadRow, RowReport
from lit_rlhf.data.sources import RawRow, expand, read_rows

PREDICTIONS = "predictions"


@dataclass(frozen=True, kw_only=True)
class Response:
    """One response to one prompt.

    Attributes:
        source: File or hub name.
        line: Its row, from 1.
        prompt: Turns, the last one the user's.
        text: The response; a prediction may be empty.
        ended: False for a prediction that the length limit cut: it is scored without EOS, as in PPO.
    """

    source: str
    line: int
    prompt: tuple[Message, ...]
    text: str
    ended: bool = True


def read_scorable(
    paths: Sequence[str], *, format: str | None = None, on_bad_row: OnBadRow = "skip"
) -> tuple[list[PreferenceRecord] | list[Response], RowReport]:
    """Pairs where the first rows look like preferences, else responses.

    Args:
        paths: Files, folders, globs or hub names, all of the same kind.
        format: A format's name, or "predictions" for what ``lit-rlhf predict`` writes; None to recognize it.
        on_bad_row: "skip" or "error".

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: As :func:`lit_rlhf.data.loading.read_preferences`.
    """
    if format == PREDICTIONS:
        return _read_predictions(paths, on_bad_row)
    first = list(itertools.islice(read_rows(expand(paths)[0], streaming=False), FIRST_ROWS))
    values = [row.value for row in first if row.error is None]
    if format is None and values and all(map(_is_prediction, values)):
        return _read_predictions(paths, on_bad_row)
    if any(fmt.matches(value, "preference") for fmt in FORMATS if "preference" in fmt.kinds for value in values):
        return read_preferences(paths, format=format, on_bad_row=on_bad_row)
    dialogues, report = read_dialogues(paths, format=format, on_bad_row=on_bad_row)
    responses = [
        Response(source=d.source, line=d.line, prompt=d.messages[:-1], text=d.messages[-1].content) for d in dialogues
    ]
    return responses, report


def _is_prediction(row: Any) -> bool:
    return isinstance(row, Mapping) and isinstance(row.get("response"), str) and isinstance(row.get("record"), Mapping)


def _read_predictions(paths: Sequence[str], on_bad_row: OnBadRow) -> tuple[list[Response], RowReport]:
    """A prediction's ``prompt`` is text in the policy's template; its turns are those of the raw ``record``."""
    report, responses = RowReport(), []
    for source in expand(paths):
        rows = list(read_rows(source, streaming=False))
        records = [row.value["record"] for row in rows[:FIRST_ROWS] if row.error is None and _is_prediction(row.value)]
        fmt = choose_format(records, "prompt", FORMATS, source=source)
        count = report.source(source)
        count.format = PREDICTIONS
        for row in rows:
            count.read += 1
            try:
                responses.append(_prediction(row, fmt))
                count.accepted += 1
            except RowError as error:
                report.reject(row.source, row.line, error, row.value)
    report.enforce(on_bad_row)
    return responses, report


def _prediction(row: RawRow, fmt: RowFormat) -> Response:
    if row.error is not None:
        raise row.error
    if not _is_prediction(row.value):
        raise RowError(Reason.WRONG_TYPES, "expected a prediction with `response` (string) and `record` (object)")
    record = fmt.read(row.value["record"], "prompt")
    assert isinstance(record, PromptRecord)
    ended = row.value.get("ended", True) is not False
    return Response(source=row.source, line=row.line, prompt=record.prompt, text=row.value["response"], ended=ended)
