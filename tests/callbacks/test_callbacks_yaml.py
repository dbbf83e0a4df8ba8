"""What docs/monitors.md and docs/collapse.md tell users to write in YAML is accepted."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import jsonargparse
import lightning as L
import pytest

import lit_rlhf.callbacks

DOCS = Path(__file__).parents[2] / "docs"


def snippets():
    for page in ("monitors.md", "collapse.md"):
        yield from re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.S)


@pytest.mark.parametrize("snippet", list(snippets()))
def test_snippets_build_their_callbacks(snippet, tmp_path):
    for found in iter_modules(lit_rlhf.callbacks.__path__):
        import_module(f"lit_rlhf.callbacks.{found.name}")  # short class names need the classes to be known
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--trainer.callbacks", type=list[L.Callback])
    (tmp_path / "config.yaml").write_text(snippet)
    parser.add_argument("--config", action="config")
    built = parser.instantiate_classes(parser.parse_args(["--config", str(tmp_path / "config.yaml")]))
    names = re.findall(r"class_path: (\w+)", snippet)
    assert [type(callback).__name__ for callback in built.trainer.callbacks] == names
    for callback in built.trainer.callbacks:
        if type(callback).__name__ == "CollapseDetector" and "threshold" in snippet:
            assert callback.rule.config.threshold == 0.18


def test_public_names_resolve_and_are_all_there():
    for name in lit_rlhf.callbacks.__all__:
        assert getattr(lit_rlhf.callbacks, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        lit_rlhf.callbacks.Nothing  # noqa: B018
