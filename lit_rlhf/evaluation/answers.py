"""Saved answers of policies, and the pairs that a judge compares: no model is asked anything again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_rlhf.data.formats import RowFormat, choose_format
from lit_rlhf.data.loading import FIRST_ROWS, FORMATS
from lit_rlhf.data.records import Message, PromptRecord, Reason, RowError
from lit_rlhf.data.sources import RawRow, read_rows


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One saved response to one prompt.

    Attributes:
        source: File it is from.
        line: Its row there, from 1.
        key: What tells its prompt from the others: the evaluation's ``row``, or the file's own ``id``.
        sample: Which of several responses to the prompt.
        turns: The prompt, oldest turn first, the last one the user's.
        text: The response; it may be empty.
        ended: False for a response that the length limit cut.
        record: The prompt's raw row.
        row: The whole saved row, with whatever scores it has.
    """

    source: str
    line: int
    key: str
    sample: int
    turns: tuple[Message, ...]
    text: str
    ended: bool = True
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    row: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def prompt(self) -> str:
        """The prompt as people and language models read it; a single turn stands without its speaker."""
        if len(self.turns) == 1:
            return self.turns[0].content
        return "\n\n".join(f"{turn.role}: {turn.content}" for turn in self.turns)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to one prompt."""

    a: Answer
    b: Answer

    @property
    def prompt(self) -> str:
        """The prompt of both."""
        return self.a.prompt


def saved_answers(path: str | Path) -> Path:
    """The file of answers that ``path`` means: itself, or the newest test (else validation) of a run directory.

    For the folder ``<run>/export/final`` it is the newest evaluation of that run.

    Raises:
        FileNotFoundError: There is none.
    """
    found = Path(path)
    if not found.is_dir():
        if not found.is_file():
            raise FileNotFoundError(f"{found} does not exist.")
        return found
    is_export = found.name == "final" and not (found / "evaluations").is_dir()
    folder = (found.parent.parent if is_export else found) / "evaluations"
    files = sorted(folder.glob("test-*.jsonl")) or sorted(folder.glob("val-*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no evaluated responses: run `lit-rlhf test` first.")
    return files[-1]


def read_answers(path: str | Path) -> list[Answer]:
    """The answers of a file, run directory or export folder, in the order of the file.

    A row is what validation, test and ``lit-rlhf predict`` write, or any object with ``response`` (text), a prompt in
    one of the known layouts, and ``id`` (or ``row``).

    Raises:
        FileNotFoundError: See :func:`saved_answers`.
        ValueError: A row cannot be used, two rows are the same sample of the same prompt, or there is no row.
    """
    source = str(saved_answers(path))
    rows = list(read_rows(source, streaming=False))
    if not rows:
        raise ValueError(f"{source} holds no answer.")
    records = [_record(row.value) for row in rows[:FIRST_ROWS] if row.error is None and isinstance(row.value, Mapping)]
    fmt = choose_format(records, "prompt", FORMATS, source=source) if records else FORMATS[0]
    answers: list[Answer] = []
    seen: dict[tuple[str, int], int] = {}
    for row in rows:
        try:
            answer = _answer(row, fmt)
        except RowError as error:
            raise ValueError(f"{source}, row {row.line}: {error}.") from None
        place = (answer.key, answer.sample)
        if place in seen:
            raise ValueError(
                f"{source}: rows {seen[place]} and {row.line} are both sample {answer.sample} of prompt {answer.key}."
            )
        seen[place] = row.line
        answers.append(answer)
    return answers


def answers_from_rows(rows: Sequence[Mapping[str, Any]], *, source: str = "rows") -> list[Answer]:
    """The same of evaluated rows in memory.

    Raises:
        ValueError: A row cannot be used.
    """
    fmt = choose_format([_record(row) for row in rows[:FIRST_ROWS]], "prompt", FORMATS, source=source)
    return [_answer(RawRow(source=source, line=line, value=row), fmt) for line, row in enumerate(rows, start=1)]


def pair_up(
    a: Sequence[Answer], b: Sequence[Answer], *, names: tuple[str, str] = ("A", "B"), subset: bool = False
) -> list[Pair]:
    """Every response of ``a`` with every response of ``b`` to the same prompt, in the order of ``a``.

    Args:
        a: Answers of one policy.
        b: Answers of another.
        names: How messages call them.
        subset: Whether ``b`` may hold prompts that ``a`` does not.

    Raises:
        ValueError: One of them lacks prompts of the other, or a prompt with the same key is another one there.
    """
    others: dict[str, list[Answer]] = defaultdict(list)
    for answer in b:
        others[answer.key].append(answer)
    own = {answer.key: None for answer in a}
    _check_covered(list(own), set(others), names)
    if not subset:
        _check_covered(list(others), set(own), names[::-1])
    for answer in a:
        for other in others[answer.key][:1]:
            if answer.turns != other.turns:
                raise ValueError(
                    f"Prompt {answer.key} of {names[0]} ({_short(answer.prompt)}) is another one in {names[1]} "
                    f"({_short(other.prompt)}): the answers are to different prompt sets."
                )
    return [Pair(a=answer, b=other) for answer in a for other in others[answer.key]]


def _check_covered(wanted: Sequence[str], found: set[str], names: tuple[str, str]) -> None:
    missing = [key for key in wanted if key not in found]
    if missing:
        raise ValueError(
            f"{names[1]} has no response to {len(missing)} of the {len(wanted)} prompts of {names[0]}, "
            f"the first of them prompt {missing[0]}."
        )


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def _record(row: Mapping[str, Any]) -> Mapping[str, Any]:
    record = row.get("record")
    if isinstance(record, Mapping) and record:
        return record
    return {key: value for key, value in row.items() if key != "response"}


def _answer(row: RawRow, fmt: RowFormat) -> Answer:
    if row.error is not None:
        raise row.error
    value = row.value
    if not isinstance(value, Mapping) or not isinstance(value.get("response"), str):
        raise RowError(Reason.WRONG_TYPES, "expected an object with `response` (string)")
    key = value.get("row", value.get("id"))
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise RowError(Reason.WRONG_TYPES, "expected `row` or `id` (a string or a whole number) that names the prompt")
    sample = value.get("sample", 0)
    if isinstance(sample, bool) or not isinstance(sample, int):
        raise RowError(Reason.WRONG_TYPES, f"`sample` must be a whole number, got {sample!r}")
    record = _record(value)
    prompt = fmt.read(record, "prompt")
    assert isinstance(prompt, PromptRecord)
    return Answer(
        source=row.source,
        line=row.line,
        key=str(key),
        sample=sample,
        turns=prompt.prompt,
        text=value["response"],
        ended=value.get("ended", True) is not False,
        record=record,
        row=value,
    )
