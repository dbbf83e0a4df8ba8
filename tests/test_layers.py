"""Imports go down only, and heavy libraries stay in their rooms (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lit_rlhf"
FLOORS = (
    ("types", "config", "distributed", "jsonl", "randomness", "signals", "user_errors", "functional"),
    ("data", "strategies"),
    ("models",),
    ("rewards", "rollout", "pocket", "ppo", "callbacks"),
    ("evaluation",),
    ("reports",),
    ("modules", "datamodules"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LIGHTNING = ("modules", "datamodules", "callbacks", "strategies", "commands")
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names a file imports, anywhere in it: a lazy import is an import."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            # `from lit_rlhf import data` imports a room as much as `from lit_rlhf.data import hh`.
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def rooms_imported(path: Path) -> set[str]:
    names = [name.split(".") for name in imports(path)]
    return {parts[1] for parts in names if parts[0] == "lit_rlhf" and len(parts) > 1 and parts[1] in FLOOR}


def libraries_imported(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_every_room_is_on_a_floor() -> None:
    assert {room_of(path) for path in FILES} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    own = FLOOR.get(room_of(path))
    if own is None:  # the package's own __init__ names the modules it loads on first use
        return
    upward = {room for room in rooms_imported(path) if FLOOR[room] > own}
    assert not upward, f"{path.relative_to(PACKAGE)} ({room_of(path)}) imports upward: {sorted(upward)}"


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


def test_the_walker_sees_lazy_and_room_imports(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from lit_rlhf import modules\n    import lightning as L\n")
    assert rooms_imported(file) == {"modules"}
    assert "lightning" in libraries_imported(file)
