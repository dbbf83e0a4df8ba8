"""Links between the pages resolve, the index has every page, and the tests that architecture.md names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    return [link for link in found if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page: Path) -> None:
    assert not [link for link in links(page) if not (page.parent / link).exists()]


def test_index_has_every_page() -> None:
    assert {p.name for p in PAGES} - {"index.md"} == {link for link in links(ROOT / "docs" / "index.md")}


def test_tests_named_for_the_invariants_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) >= 7
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"


def test_rooms_of_the_package_are_described() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [p.parent.name for p in (ROOT / "lit_rlhf").glob("*/__init__.py")]
    assert not [room for room in rooms if f"| `{room}/` |" not in text]
