"""JSON lines: all of them or none, whatever the disk and earlier kills have done."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.jsonl import append_rows, write_rows

ROWS = [{"a": 1}, {"b": "é\n\u2028"}]


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


@pytest.fixture
def filling_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes ten bytes more, as they are written."""
    room, whole = [10], os.write

    def write(descriptor: int, data: Any) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken, room[0] = min(room[0], len(data)), max(0, room[0] - len(data))
        return whole(descriptor, data[:taken])

    monkeypatch.setattr(os, "write", write)


def test_rows_are_added_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.jsonl"
    append_rows(path, ROWS)
    append_rows(path, [])
    append_rows(path, [{"c": 3}])
    assert read(path) == [*ROWS, {"c": 3}]
    write_rows(path, [{"d": 4}])
    assert read(path) == [{"d": 4}]
    assert [p.name for p in path.parent.iterdir()] == ["x.jsonl"]


def test_a_half_line_of_a_killed_run_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"b": "hal')
    append_rows(path, ROWS)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines[:2] == ['{"a": 1}', '{"b": "hal']
    assert [json.loads(line) for line in lines[2:-1]] == ROWS


@pytest.mark.usefixtures("filling_disk")
@pytest.mark.parametrize("write", [append_rows, write_rows])
def test_a_full_disk_leaves_what_was_there_and_nothing_else(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"old": 1}\n')
    with pytest.raises(OSError, match="No space left") as caught:
        write(path, ROWS)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == '{"old": 1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_text_that_is_not_unicode_is_written_as_json_escapes_it(tmp_path: Path) -> None:
    append_rows(tmp_path / "x.jsonl", [{"text": "a\ud800b"}])
    assert read(tmp_path / "x.jsonl") == [{"text": "a\ud800b"}]


def test_a_pipe_stays_one_and_a_link_too(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
    reader.start()
    write_rows(pipe, [{"a": 1}])
    reader.join(10)
    assert got == ['{"a": 1}\n']
    assert pipe.is_fifo()
    (tmp_path / "target.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "target.jsonl")
    write_rows(tmp_path / "link.jsonl", [{"a": 1}])
    assert (tmp_path / "link.jsonl").is_symlink()
    assert read(tmp_path / "target.jsonl") == [{"a": 1}]
