"""A griffe extension: the docstrings' reStructuredText roles and equations as the Markdown that the site renders.

``:math:`` and ``.. math::`` become what arithmatex reads; ``:class:`` and the like become code, with a link where the
name is in the reference.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(?P<short>~?)\.?(?P<name>[^`]+)`")
MATH = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^(?P<indent> *)\.\. math:: *(?P<first>.*)(?P<rest>(?:\n(?P=indent)   ? ?\S.*)*)$", re.MULTILINE)


def documented() -> dict[str, str]:
    """Full names of what the reference holds, by full name and by last part."""
    pages = [path.read_text(encoding="utf-8") for path in sorted(REFERENCE.glob("*.md"))]
    names = [name for page in pages for name in re.findall(r"^::: (\S+)", page, re.MULTILINE)]
    return {key: name for name in names for key in (name, name.rpartition(".")[2])}


def to_markdown(text: str, known: dict[str, str]) -> str:
    """A docstring's text for the site.

    Args:
        text: With reStructuredText roles and math.
        known: Full names by every name that may stand for one.
    """

    def role(match: re.Match[str]) -> str:
        name = match["name"]
        shown = name.rpartition(".")[2] if match["short"] else name
        owner, _, member = name.rpartition(".")
        target = known.get(name) or (f"{known[owner]}.{member}" if owner in known else None)
        return f"[`{shown}`][{target}]" if target else f"`{shown}`"

    def block(match: re.Match[str]) -> str:
        indent, lines = match["indent"], [match["first"], *match["rest"].split("\n")]
        return f"{indent}\\[\n" + "\n".join(indent + line.strip() for line in lines if line.strip()) + f"\n{indent}\\]"

    return MATH.sub(r"\\(\1\\)", ROLE.sub(role, BLOCK.sub(block, text)))


class Docstrings(griffe.Extension):  # type: ignore[misc]  # griffe is not among the tools that mypy runs beside
    """Rewrites each docstring as it is read."""

    def __init__(self) -> None:
        self.known = documented()

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Called by griffe with every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, self.known)
