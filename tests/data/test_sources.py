"""Where rows come from: files, folders, globs, hub names; broken files; malformed bytes of every kind."""

from __future__ import annotations

import datetime
import gzip
import json
import os
from decimal import Decimal
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_rlhf.data.hub import looks_like_hub_name, parse_hub_name
from lit_rlhf.data.loading import FORMATS, collect, read_preferences, read_prompts, read_sft
from lit_rlhf.data.records import RowError
from lit_rlhf.data.sources import read_rows

from .conftest import hh

TEXTS = [{"text": "a"}, {"text": "b"}]


def texts(path: Any, **kwargs: Any) -> list[str]:
    return [r.text for r in read_sft(path, **kwargs)[0]]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz", "x.json.gz"])
def test_every_suffix(write, name):
    assert texts(write(name, TEXTS)) == ["a", "b"]


def test_json_suffix_with_json_lines_inside(write):
    assert texts(write("x.json", b'{"text": "a"}\n{"text": "b"}\n')) == ["a", "b"]
    assert texts(write("y.json", b'{"text":\n "a"}')) == ["a"]


def test_byte_order_mark_and_unicode_line_separator(write):
    assert texts(write("x.jsonl", b"\xef\xbb\xbf" + '{"text": "a\u2028b"}\r\n'.encode())) == ["a\u2028b"]


def test_folder_and_glob_in_a_fixed_order(write, tmp_path):
    for name in ("d/b.jsonl", "d/a.json", "d/sub/c.jsonl.gz"):
        write(name, [{"text": name}])
    write("d/readme.md", b"not data")
    assert texts(str(tmp_path / "d")) == ["d/a.json", "d/b.jsonl", "d/sub/c.jsonl.gz"]
    assert texts(str(tmp_path / "d" / "*.json*")) == ["d/a.json", "d/b.jsonl"]
    assert texts(str(tmp_path / "**" / "c.*")) == ["d/sub/c.jsonl.gz"]


def test_path_errors_name_the_path(tmp_path, write):
    with pytest.raises(FileNotFoundError, match=r"No data at .*nothing\.jsonl: not a file"):
        read_sft(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(ValueError, match="holds no data file"):
        read_sft(str(tmp_path))
    path = write("x.jsonl", TEXTS)
    with pytest.raises(ValueError, match="Data given twice"):
        read_sft([path, path])
    with pytest.raises(ValueError, match="No data path"):
        read_sft([])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl.gz", b"no gzip", "not a complete gzip file"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9999)[:-20], "not a complete gzip file"),
        ("x.json", b'[{"text": "a"}, ', r"x\.json: not JSON \(.*line 1 column"),
        ("x.json", b"\xff\xfe[", "not JSON"),
        ("x.jsonl", b"", "No usable row in .*no rows"),
        ("x.json", b"[]", "No usable row"),
        ("x.jsonl", b"{\n[\n", "none of the first 2 rows could be decoded"),
        ("x.jsonl", b'{"text": " "}', r"No usable row in .*x\.jsonl:1: empty response"),
    ],
)
def test_unusable_file_is_one_clear_error(write, name, data, message):
    with pytest.raises(ValueError, match=message):
        read_sft(write(name, data))


def test_hub_names():
    name = parse_hub_name("Anthropic/hh-rlhf/harmless-base@v1:test[10:20]")
    assert (name.repo, name.data_dir, name.config) == ("Anthropic/hh-rlhf", "harmless-base", "v1")
    assert name.split_spec == "test[10:20]"
    assert parse_hub_name("a/b").split_spec == "train"
    assert not looks_like_hub_name("./a/b")
    assert not looks_like_hub_name("justaname")


@pytest.fixture
def hub(monkeypatch) -> list[dict[str, Any]]:
    """`datasets.load_dataset` over ten rows of its own, slices as the real one has them; records its calls."""
    calls: list[dict[str, Any]] = []
    rows = datasets.Dataset.from_list([{"text": str(i)} for i in range(10)])

    def load_dataset(path: str, name: str | None = None, *, data_dir: str | None, split: str, streaming: bool) -> Any:
        calls.append({"path": path, "name": name, "data_dir": data_dir, "split": split})
        if path == "owner/missing":
            raise ConnectionError("no such thing\nlong story")
        if streaming:
            return rows.to_iterable_dataset()
        instruction = datasets.ReadInstruction.from_spec(split).to_absolute({split.split("[")[0]: len(rows)})[0]
        return rows.select(range(instruction.from_ or 0, len(rows) if instruction.to is None else instruction.to))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_split_with_slice(hub, streaming):
    assert texts("owner/name/dir@conf:test[2:4]", streaming=streaming) == ["2", "3"]
    assert hub[0] | {"split": ""} == {"path": "owner/name", "name": "conf", "data_dir": "dir", "split": ""}
    assert texts("owner/name:test[8:]", streaming=streaming) == ["8", "9"]
    assert texts("owner/name", streaming=streaming) == [str(i) for i in range(10)]


def test_hub_percent_slice(hub):
    assert texts("owner/name:train[:20%]") == ["0", "1"]
    with pytest.raises(ValueError, match="percent slice needs the whole split"):
        texts("owner/name:train[:20%]", streaming=True)


def test_values_that_json_has_not_become_text(monkeypatch):
    """Records are written to checkpoints, which hold plain values alone, and to JSON files."""
    when, amount = datetime.datetime(2023, 7, 11, 12, 30), Decimal("1.50")
    row_given = {"prompt": "q", "meta": [{"when": when, "day": when.date()}], "amount": amount, "x": 1.5, "n": None}
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: [row_given])
    (row,) = read_rows("owner/name")
    assert row.error is None
    assert row.value == {
        "prompt": "q",
        "meta": [{"when": "2023-07-11T12:30:00", "day": "2023-07-11"}],
        "amount": "1.50",
        "x": 1.5,
        "n": None,
    }
    records, _ = read_prompts("owner/name")
    assert records[0].raw == row.value


def test_plain_rows_are_not_copied(tmp_path, monkeypatch):
    plain = {"prompt": "q", "x": [1, 2]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: [plain])
    (row,) = read_rows("owner/name")
    assert row.value is plain


def test_hub_failure_is_one_line(hub):
    with pytest.raises(ValueError, match=r"owner/missing: not a local path, and not loadable .*\(no such thing\)"):
        texts("owner/missing")


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": str(i) * 50}) + "\n" for i in range(20_000)))
    size = path.stat().st_size
    rows = read_rows(str(path))
    assert next(rows).error is None
    os.truncate(path, size // 2)
    with pytest.raises(ValueError, match=rf"x\.jsonl: was cut while it was read, after {size // 2} of {size} bytes"):
        list(rows)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just(hh("q", "a")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["chosen", "rejected", "prompt", "messages", "text", "role", "content", "margin", "x"]),
            inner | st.sampled_from(["user", "assistant"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)
KINDS = ["preference", "dialogue", "prompt", "text", "sft"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), suffix=st.sampled_from(["jsonl", "json", "jsonl.gz"]), kind=st.sampled_from(KINDS))
def test_any_bytes_give_a_clear_error_or_counted_rows(write, data, suffix, kind):
    path = write(f"fuzz.{suffix}", data)
    try:
        records, report = collect(path, kind)
    except (ValueError, FileNotFoundError) as error:
        clear = "fuzz" in str(error) and type(error).__module__ in ("builtins", "lit_rlhf.data.formats")
        if not clear:
            raise AssertionError("a library's error came through") from error
        return
    assert len(records) + len(report.rejected) == report.read


@settings(max_examples=300, deadline=None)
@given(row=json_values, kind=st.sampled_from(KINDS), fmt=st.sampled_from(FORMATS))
def test_any_json_value_is_read_or_refused_by_every_format(row, kind, fmt):
    if kind not in fmt.kinds and kind != "sft":
        return
    if kind == "sft" and not fmt.kinds & {"dialogue", "text"}:
        return
    try:
        record = fmt.read(row, kind)
    except RowError:
        return
    assert record.raw


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(json_values, max_size=6))
def test_garbage_between_good_rows_is_counted(write, hh_rows, rows):
    lines = [json.dumps(row) for row in hh_rows]
    for i, row in enumerate(rows):
        lines.insert(2 * i, json.dumps(row))
    records, report = read_preferences(write("fuzz.jsonl", "\n".join(lines).encode()), format="hh")
    assert len(records) + len(report.rejected) == report.read == len(lines)
    assert len(records) >= len(hh_rows)


def test_hh_sample_is_accounted_for_row_by_row(hh_sample):
    records, report = read_preferences(hh_sample)
    assert report.read == 1812
    assert len(records) == report.accepted == 1802
    assert report.reasons == {"repeated role": 7, "empty response": 3}
    assert len({r.line for r in records} | {r.line for r in report.rejected}) == 1812
    assert {r.subset for r in records} == {"harmless"}


def test_rejects_file_and_table(write, hh_rows, tmp_path):
    path = write("x.jsonl", [*hh_rows, {"chosen": hh("q", ""), "rejected": hh("q", "b")}])
    _, report = read_preferences(path)
    written = report.write_rejects(tmp_path / "out" / "rejects.jsonl")
    (row,) = [json.loads(line) for line in written.read_text().splitlines()]
    assert (row["source"], row["line"], row["reason"]) == (path, 11, "empty response")
    assert row["row"]["rejected"] == hh("q", "b")
    assert report.summary().startswith("10 of 11 rows accepted (format: hh); refused: 1 empty response")
    assert read_preferences(write("y.jsonl", hh_rows))[1].write_rejects(tmp_path / "none.jsonl") is None


def test_prompts_that_are_taken_for_paths_are_told_apart():
    with pytest.raises(FileNotFoundError, match=r"If these are prompts and not paths, give them as .*'Hello'"):
        collect(["Hello", "World"], "prompt")
    with pytest.raises(FileNotFoundError, match=r"No data at a/b\.jsonl: [^I]*$"):
        collect(["a/b.jsonl", "c.jsonl"], "prompt")
