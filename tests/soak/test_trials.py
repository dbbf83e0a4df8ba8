"""A short form of a stranger's first tries, and that the counting notices what it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import trials


def test_every_eighth_try_works_or_ends_in_one_good_line(world: Path, tmp_path: Path) -> None:
    found = list(trials.check(8, tmp_path, world))
    assert len(found) >= 12
    assert len(trials.trials()) >= 100
    assert [each for each in found if each[1] not in ("works", "one line")] == []


@pytest.mark.parametrize(
    ("line", "told", "kind"),
    [
        ("--version", "no version", "silent"),
        ("fitt", "nothing like it", "misleading"),
        ("fitt", "", "misleading"),
        ("fitt", "unknown command", "one line"),
        ("configs", "", "works"),
    ],
)
def test_kinds(line: str, told: str, kind: str) -> None:
    assert trials.attempt(line, told)[0] == kind


def test_a_traceback_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def slip(words: list[str]) -> None:
        raise KeyError("x")

    monkeypatch.setattr(trials, "lit_rlhf", slip)
    assert trials.attempt("x", "x") == ("traceback", "KeyError: 'x'")
