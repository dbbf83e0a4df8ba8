"""Rooms and stairs (docs/architecture.md): imports go down, never round, and heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import re
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lit_rlhf"
FLOORS = (
    ("files",),
    ("types", "config", "jsonl", "randomness", "signals", "user_errors", "http_service", "functional"),
    ("distributed",),
    ("data", "strategies"),
    ("models",),
    ("rewards", "rollout", "pocket", "ppo", "callbacks"),
    ("evaluation",),
    ("reward_report",),
    ("reports",),
    ("studies",),
    ("modules", "datamodules"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""From the bottom up. A room imports itself and what is on lower floors: nothing above, and no neighbor."""
LIGHTNING = ("modules", "datamodules", "callbacks", "strategies", "commands")
LARGEST_SHARE = 0.15
"""Of the package's lines, that one room may hold."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def statements(path: Path) -> list[tuple[str, str | None]]:
    """Module and name of every import, anywhere in a file: a lazy one counts, and so does one for type checkers."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            found += [(node.module, alias.name) for alias in node.names]
    return found


def imports(path: Path) -> set[str]:
    """Dotted names: `from lit_rlhf import data` imports a room as much as `from lit_rlhf.data import hh`."""
    return {name for module, part in statements(path) for name in (module, f"{module}.{part}" if part else module)}


def rooms_imported(path: Path) -> set[str]:
    names = [name.split(".") for name in imports(path)]
    return {parts[1] for parts in names if parts[0] == "lit_rlhf" and len(parts) > 1 and parts[1] in FLOOR}


def not_below(room: str, imported: set[str]) -> list[str]:
    return sorted(other for other in imported - {room} if FLOOR[other] >= FLOOR[room])


def libraries_imported(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def import_graph(package: Path) -> dict[str, set[str]]:
    """Which file imports which, by dotted names; `from p import name` means the file `name` if p has one, else p."""
    files = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for own, path in files.items():
        named = (f"{module}.{part}" if f"{module}.{part}" in files else module for module, part in statements(path))
        graph[own] = {name for name in named if name in files and name != own}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Files that import each other in a circle, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_room_is_on_a_floor() -> None:
    assert {room_of(path) for path in FILES} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    if room not in FLOOR:  # the package's own __init__ names the modules it loads on first use
        return
    wrong = not_below(room, rooms_imported(path))
    assert not wrong, f"{path.relative_to(PACKAGE)} imports {wrong}, not below {room}"


@pytest.mark.parametrize("folder", ["lit_rlhf", "bin/benchmarks"])
def test_no_files_import_each_other_in_a_circle(folder: str) -> None:
    graph = import_graph(PACKAGE.parent / folder)
    assert any(graph.values())
    assert circle(graph) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_upper_rooms_know_lightning(path: Path) -> None:
    if room_of(path) in LIGHTNING:
        return
    assert not libraries_imported(path) & {"lightning", "pytorch_lightning"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "functional").rglob("*.py")), ids=lambda p: p.name)
def test_functional_needs_torch_alone(path: Path) -> None:
    standard = {"__future__", "collections", "dataclasses", "functools", "math", "typing"}
    assert libraries_imported(path) <= {"torch", "lit_rlhf", *standard}
    assert rooms_imported(path) <= {"functional"}


def test_importing_the_package_imports_nothing_heavy() -> None:
    names = libraries_imported(PACKAGE / "__init__.py") | libraries_imported(PACKAGE / "cli.py")
    assert not names & {"torch", "lightning", "transformers", "datasets", "deepspeed"}


def test_no_room_outgrows_the_house() -> None:
    lines = Counter({room: 0 for room in FLOOR})
    for path in FILES:
        lines[room_of(path)] += len(path.read_text(encoding="utf-8").splitlines())
    room, largest = lines.most_common(1)[0]
    assert largest < LARGEST_SHARE * lines.total(), f"{room}/ holds {largest} of {lines.total()} lines"


def test_the_architecture_page_draws_these_floors() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = re.search(r"## Rooms and stairs.*?```\n(.*?)```", page, re.DOTALL)
    assert drawing is not None
    rows = [re.findall(r"(\w+)(?:\.py|/)", line.split("   ")[0]) for line in drawing.group(1).splitlines()]
    assert [set(row) for row in rows[::-1]] == [set(floor) for floor in _joined(FLOORS)]


def _joined(floors: tuple[tuple[str, ...], ...]) -> list[tuple[str, ...]]:
    """The page has the two single files of the top on one line."""
    return [*floors[:-2], floors[-2] + floors[-1]]


# ---------------------------------------------------------------- the walkers themselves


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_walker_sees_lazy_and_room_imports(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from lit_rlhf import modules\n    import lightning as L\n")
    assert rooms_imported(file) == {"modules"}
    assert "lightning" in libraries_imported(file)


def test_neighbors_and_upper_rooms_are_not_below() -> None:
    assert not_below("modules", {"modules", "ppo", "data", "types"}) == []
    assert not_below("modules", {"datamodules", "commands", "reports"}) == ["commands", "datamodules"]
    assert not_below("data", {"models", "config"}) == ["models"]


@pytest.mark.parametrize(
    ("back", "closed"),
    [
        ("from p.a import f", True),
        ("import p.a", True),
        ("def g():\n    from p import a", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import f", True),
        ("from p.room import f", True),
        ("import q.a", False),
        ("", False),
    ],
)
def test_a_circle_of_files_is_found(tmp_path: Path, back: str, closed: bool) -> None:
    files = {"a.py": "from p.room.b import g", "room/__init__.py": "from p.room.b import g", "room/b.py": back}
    found = circle(import_graph(write(tmp_path / "p", {"__init__.py": "", **files})))
    assert bool(found) == closed
    assert not closed or "p.room.b" in found


def test_a_package_that_gathers_its_files_is_no_circle(tmp_path: Path) -> None:
    files = {"__init__.py": "", "room/__init__.py": "from p.room.b import g", "room/b.py": "from p.room import c"}
    graph = import_graph(write(tmp_path / "p", {**files, "room/c.py": ""}))
    assert graph["p.room.b"] == {"p.room.c"}
    assert circle(graph) == []
