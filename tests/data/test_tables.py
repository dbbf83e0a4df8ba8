"""CSV, Parquet, Arrow and saved data sets give the rows that JSON lines give; what is broken is named."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from lit_rlhf.data.loading import collect
from lit_rlhf.data.report import RowReport
from lit_rlhf.data.tables import read_table

ROWS = [{"prompt": f"Q{i}", "chosen": f"good, {i}\nyes", "rejected": 'a "b"', "margin": i / 4} for i in range(2500)]


def read(path: Any, kind: Any = "preference", **how: Any) -> tuple[list[Any], RowReport]:
    return collect(str(path), kind, **how)


def table(rows: list[dict[str, Any]] = ROWS) -> pa.Table:
    return pa.Table.from_pylist(rows)


def as_csv(path: Path) -> Path:
    datasets.Dataset.from_list(ROWS).to_csv(path)
    return path


def as_parquet(path: Path) -> Path:
    pyarrow.parquet.write_table(table(), path)
    return path


def as_arrow(path: Path, new: Any = pa.ipc.new_stream) -> Path:
    with new(path, table().schema) as writer:
        writer.write_table(table())
    return path


def as_saved(path: Path) -> Path:
    datasets.Dataset.from_list(ROWS).save_to_disk(path, num_shards=2)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.csv", as_csv),
        ("x.parquet", as_parquet),
        ("stream.arrow", as_arrow),
        ("file.arrow", lambda path: as_arrow(path, pa.ipc.new_file)),
        ("saved", as_saved),
    ],
)
def test_every_layout_gives_the_same_records(name: str, write: Any, tmp_path: Path) -> None:
    path = write(tmp_path / name)
    records, report = read(path)
    assert [(r.line, r.prompt[0].content, r.chosen, r.rejected, r.margin) for r in records] == [
        (i, row["prompt"], row["chosen"], row["rejected"], row["margin"]) for i, row in enumerate(ROWS, 1)
    ]
    assert (report.read, list(report.sources)) == (2500, [str(path)])
    in_folder, _ = read(tmp_path)
    assert [r.chosen for r in in_folder] == [r.chosen for r in records]


def test_broken_rows_of_a_csv_are_refused_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,chosen,rejected,margin\nq,a,b,0.5\nq,a,b\n\nq,\xff,b,\nq,a,b,much\nq,c,d,\n")
    records, report = read(path)
    assert [(r.line, r.margin) for r in records] == [(1, 0.5), (5, None)]
    assert [(r.line, str(r.reason.value)) for r in report.rejected] == [
        (2, "wrong types"),
        (3, "not UTF-8"),
        (4, "wrong types"),
    ]
    assert report.rejected[0].detail == "3 cells under 4 names"


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("x.parquet", b"PAR1 no", r"x\.parquet: cannot be read as a table"),
        ("x.arrow", b"no arrow", r"x\.arrow: cannot be read as a table"),
        ("x.csv", b"a,a\n1,2\n", r"must name the columns, each with another name: a, a"),
        ("x.csv", b'prompt\n"open', r"x\.csv: cannot be read as a table \(unexpected end of data"),
        ("x.txt", b"no json\n", r"its name does not say what it is: files are read that end in \.jsonl, .*\.parquet"),
        ("x.jsonl", b"no json\n", r"so that there is no format to recognize"),
    ],
)
def test_a_file_that_is_broken_as_a_whole(name: str, data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=told):
        read(tmp_path / name)


def test_saved_splits_must_be_named(tmp_path: Path) -> None:
    some = datasets.Dataset.from_list(ROWS[:3])
    datasets.DatasetDict({"train": some, "test": some}).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match=r"both holds the splits test, train: name one, such as .*both/test"):
        read(tmp_path / "both")
    assert len(read(tmp_path / "both" / "train")[0]) == 3


# ---------------------------------------------------------------- names of columns


def test_columns_read_other_names(write) -> None:
    rows = [{"question": f"q{i}", "answer": "a", "prompt": "not this", "n": i} for i in range(3)]
    path = write("x.jsonl", [*rows, {"question": "q"}])
    records, report = read(path, "dialogue", columns={"prompt": "question", "completion": "answer"})
    assert [[m.content for m in r.messages] for r in records] == [[f"q{i}", "a"] for i in range(3)]
    assert records[1].raw == {"prompt": "q1", "completion": "a", "n": 1}
    assert report.rejected[0].detail == "`columns` names 'answer'; the row has question"
    assert report.rejected[0].value == {"question": "q"}


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"promt": "question"}, r"`columns` has 'promt', which no format reads: .* Did you mean prompt\?"),
        ({"question": "prompt"}, r"The other way round: \{prompt: question\}"),
        ({"prompt": 3}, r"`columns` \(\{'prompt': 3\}\) must map names"),
        ({"prompt": "nothing"}, r"x\.jsonl: `columns` names 'nothing'; the row has question"),
    ],
)
def test_wrong_columns(columns: Any, told: str, write) -> None:
    path = write("x.jsonl", [{"question": "q"}])
    with pytest.raises(ValueError, match=told):
        read(path, "prompt", columns=columns)


# ---------------------------------------------------------------- ShareGPT, Alpaca


def turn(who: str, text: str) -> dict[str, str]:
    return {"from": who, "value": text}


def test_sharegpt(write) -> None:
    talk = [turn("human", "hi"), turn("gpt", "hello"), turn("human", "bye")]
    path = write("x.jsonl", [{"system": "be kind", "conversations": [*talk, turn("gpt", "see you")], "id": 7}])
    ((record,), report) = read(path, "sft")
    assert [(m.role, m.content) for m in record.messages] == [
        ("system", "be kind"),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "bye"),
        ("assistant", "see you"),
    ]
    assert report.sources[path].format == "sharegpt"
    ((prompt,), _) = read(path, "prompt")
    assert (prompt.prompt[-1].content, prompt.extra) == ("bye", {"system": "be kind", "id": 7})
    pair = {"conversations": talk, "chosen": turn("gpt", "good"), "rejected": turn("gpt", "bad")}
    path = write("pairs.jsonl", [pair, {**pair, "chosen": turn("tool", "x")}])
    ((record,), report) = read(path)
    assert (record.prompt[-1].content, record.chosen, record.rejected) == ("bye", "good", "bad")
    assert "`chosen.from` must be one of human, " in report.rejected[0].detail
    assert read(path, "dialogue")[0][0].messages[-1].content == "good"


def test_alpaca(write) -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "text": "Below is an instruction ..."}
    path = write("x.jsonl", [row, {**row, "input": ""}, {**row, "history": [["a", "b"]]}, {**row, "history": ["a"]}])
    records, report = read(path, "sft")
    assert [[m.content for m in r.messages] for r in records] == [
        ["Add.\n\n1 2", "3"],
        ["Add.", "3"],
        ["a", "b", "Add.\n\n1 2", "3"],
    ]
    assert (report.sources[path].format, len(report.rejected)) == ("alpaca", 1)
    assert [r.prompt[-1].content for r in read(path, "prompt")[0]] == ["Add.\n\n1 2", "Add.", "Add.\n\n1 2"]
    assert [r.text[:5] for r in read(path, "text", format="text")[0]] == ["Below"] * 4


def test_long_cells_are_read_and_pythons_limit_for_others_stays(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\n" + "a" * 200_000 + "\nb\n")
    before = csv.field_size_limit()
    rows = read_table(str(tmp_path / "a.csv"))
    assert len(next(rows)["prompt"]) == 200_000
    assert csv.field_size_limit() == before  # in the middle of a file, too
    assert next(rows) == {"prompt": "b"}
