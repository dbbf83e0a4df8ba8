"""A short form of the soak of damaged rows, and that it notices what it is there for."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.data.loading import collect
from lit_rlhf.data.report import RowReport
from tests.soak import rows


def test_every_damaged_row_is_used_or_refused(tmp_path: Path) -> None:
    problems, told = rows.check(tmp_path, rows=600, chance=random.Random(1))
    assert problems == [], told


def test_a_row_that_goes_missing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Any = collect

    def losing(*args: Any, **options: Any) -> tuple[list[Any], RowReport]:
        records, report = whole(*args, **options)
        del records[3], report.rejected[5]
        return records, report

    monkeypatch.setattr(rows, "collect", losing)
    problems, _ = rows.check(tmp_path, rows=60, chance=random.Random(1))
    assert [problem.split(":")[0] for problem in problems] == ["neither used nor refused"]
