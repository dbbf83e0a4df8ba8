"""Every public class and function is in the reference of the site, once, and nothing else is."""

from __future__ import annotations

import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import lit_rlhf

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [".".join(init.relative_to(ROOT).parts[:-1]) for init in (ROOT / "lit_rlhf").rglob("__init__.py")]


def public() -> set[str]:
    """Full names of the classes and functions in the ``__all__`` of the package and its rooms."""
    modules = [importlib.import_module(name) for name in PACKAGES]
    objects = [getattr(module, name) for module in modules for name in vars(module).get("__all__", ())]
    return {f"{x.__module__}.{x.__qualname__}" for x in objects if inspect.isclass(x) or inspect.isfunction(x)}


def test_every_public_name_is_documented_once() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")]
    documented = Counter(name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE))
    assert set(documented) == public()
    assert set(documented.values()) == {1}
    assert {name.rpartition(".")[2] for name in documented} >= set(lit_rlhf.__all__) - {"__version__"}


def test_the_overview_names_what_each_page_holds() -> None:
    overview = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    for file, row in re.findall(r"^\| \[[^\]]+\]\((\w+)\.md\) \| (.*) \|$", overview, re.MULTILINE):
        page = (ROOT / "docs" / "reference" / f"{file}.md").read_text(encoding="utf-8")
        names = [name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
        assert names == re.findall(r"`(\w+)`", row), file
