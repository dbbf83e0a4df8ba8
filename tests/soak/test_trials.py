"""A short form of a stranger's first tries, and that the counting notices what it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_rlhf.user_errors import UserError
from tests.soak import python_trials, trials


def test_every_eighth_try_works_or_ends_in_one_good_line(world: Path, tmp_path: Path) -> None:
    found = list(trials.check(8, tmp_path, world))
    assert len(found) >= 12
    assert len(trials.trials()) >= 100
    assert [each for each in found if each[1] not in ("works", "one line")] == []


def test_so_does_every_sixth_in_python(world: Path, tmp_path: Path) -> None:
    found = list(trials.check_python(6, tmp_path, world))
    assert len(found) >= 20
    assert len(python_trials.TRIES) >= 150
    assert [each for each in found if each[1] not in ("works", "one line")] == []


class Two:
    def __init__(self, a: int) -> None:
        raise ValueError("of a test")


PYTHON = [
    ("x = 1", "", "works"),
    ("x = 1", "wrong", "silent"),
    ("raise UserError('wrong')", "wrong", "one line"),
    ("raise UserError('wrong')", "another", "misleading"),
    ("raise UserError('wrong' * 200)", "wrong", "misleading"),
    ("raise UserError('wrong\\nin two')", "wrong", "misleading"),
    ("raise UserError('wrong')", "", "misleading"),
    ("raise KeyError('wrong')", "wrong", "traceback"),
    ("Two()", "'a'", "one line"),
    ("Two(1)", "of a test", "traceback"),
]


@pytest.mark.parametrize(("source", "told", "kind"), PYTHON)
def test_kinds_in_python(source: str, told: str, kind: str) -> None:
    assert python_trials.attempt(source, told, {"UserError": UserError, "Two": Two})[0] == kind


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
