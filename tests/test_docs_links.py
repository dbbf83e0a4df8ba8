"""Links between the pages resolve, the index has every page, and the tests that architecture.md names exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    return [link for link in found if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_links_resolve(page: Path) -> None:
    assert not [link for link in links(page) if not (page.parent / link).exists()]


def named(nav: Any) -> list[str]:
    """Pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in named(part)]


def test_the_site_has_every_page_once() -> None:
    pages = named(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(pages) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_the_readmes_links_resolve_and_its_ten_lines_are_the_landing_pages() -> None:
    readme, index = ROOT / "README.md", DOCS / "index.md"
    assert not [link for link in links(readme) if not (ROOT / link).exists()]
    blocks = r"^```python\n.*?^```$"
    first = [re.findall(blocks, page.read_text(encoding="utf-8"), re.M | re.S)[0] for page in (readme, index)]
    assert first[0] == first[1]


def test_index_has_every_page() -> None:
    """The landing page those of the first floor, the reference's its own."""
    for folder in {page.parent for page in PAGES}:
        pages = {page.name for page in folder.glob("*.md")} - {"index.md"}
        below = {f"{page.parent.name}/index.md" for page in folder.glob("*/index.md")}
        assert pages | below == {link for link in links(folder / "index.md") if link.endswith(".md")}


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
