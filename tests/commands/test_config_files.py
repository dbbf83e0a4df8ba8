"""Reading configs: what a YAML parser lets pass and this does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_rlhf.commands import config_files
from lit_rlhf.commands.config_files import read_config, shipped_configs
from lit_rlhf.user_errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a"),
        ("trainer:\n  x: 1\n  x: 1\n", 3, "x"),
        ("trainer: {callbacks: [{y: 1}, {x: 1, x: 2}]}\n", 1, "x"),
        ("a: 1\n'a': 2\n", 2, "a"),
        ("1: a\n1: b\n", 2, "1"),
        ("base: &b\n  x: 1\n  x: 2\nother: *b\n", 3, "x"),
    ],
)
def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path, text: str, line: int, key: str) -> None:
    with pytest.raises(UserError, match=rf"config\.yaml, line {line}: the key '{key}' stands twice"):
        read_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a: {x: 1}\nb: {x: 2}\n", {"a": {"x": 1}, "b": {"x": 2}}),
        ("a: [x, x]\n", {"a": ["x", "x"]}),
        ("1: a\n'1': b\n", {1: "a", "1": "b"}),
        ("base: &b {x: 1}\nother:\n  <<: *b\n  x: 2\n", {"base": {"x": 1}, "other": {"x": 2}}),
        ("a: &a {x: 1}\nb: &b {y: 1}\nc:\n  <<: [*a, *b]\n", {"a": {"x": 1}, "b": {"y": 1}, "c": {"x": 1, "y": 1}}),
        ("a: &a {x: 1}\nb: &b {y: 1}\nc:\n  <<: *a\n  <<: *b\n", {"a": {"x": 1}, "b": {"y": 1}, "c": {"x": 1, "y": 1}}),
    ],
)
def test_what_is_no_repetition(tmp_path: Path, text: str, content: dict[str, object]) -> None:
    assert read_config(write(tmp_path, text)) == content


@pytest.mark.parametrize(
    ("text", "told"),
    [("a: [1\n", "is not YAML"), ("", "it is empty"), ("# nothing\n", "it is empty"), ("- 1\n", "it is a list")],
)
def test_what_is_no_config(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_config(write(tmp_path, text))


def test_another_encoding_and_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("a: 1\n".encode("utf-16"))
    with pytest.raises(UserError, match="is not YAML in UTF-8"):
        read_config(path)
    with pytest.raises(FileNotFoundError, match="no config file"):
        read_config(tmp_path / "gone.yaml")


def test_a_node_that_holds_itself_ends(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, "a: &a\n  b: *a\n"))["a"]["b"] is not None


def test_the_configs_of_a_checkout() -> None:
    assert shipped_configs() == ROOT / "configs"


def test_a_package_without_configs_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_files.lit_rlhf, "__file__", str(tmp_path / "lit_rlhf" / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="configs that ship"):
        shipped_configs()
    for inside in (tmp_path / "configs", tmp_path / "lit_rlhf" / "configs"):
        (inside / "pocket").mkdir(parents=True)
        assert shipped_configs() == inside
