"""A griffe extension: the docstrings' reStructuredText roles and equations as the Markdown that the site renders.

``:math:`` and ``.. math::`` become what arithmatex reads, and so does code that is an equation in Unicode; ``:class:``
and the like become code, with a link where the name is in the reference.
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
CODE = re.compile(r"``([^`]+)``")
SIGNS = {
    **{"β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "ε": r"\varepsilon ", "η": r"\eta ", "λ": r"\lambda "},
    **{"μ": r"\mu ", "π": r"\pi ", "ρ": r"\rho ", "σ": r"\sigma ", "Σ": r"\sum ", "Â": r"\hat A", "s̄": r"\bar s"},
    **{"−": "-", "½": r"\tfrac12 ", "≠": r"\ne ", "²": "^2", "₂": "_2", "₃": "_3", "₄": "_4", "ᵢ": "_i"},
}
TEX = (
    (re.compile(r"₂_(\w)"), r"_{2\1}"),
    (re.compile(r"√\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\^\(([^()]*)\)"), r"^{\1}"),
    (re.compile(r"\^(\w\(\w\)|[\d.]+)"), r"^{\1}"),
    (re.compile(r"\b([a-z]{2,})_([a-z]{2,})\b"), r"\\text{\1 \2}"),
    (re.compile(r"_([a-z]{2,})"), r"_{\\text{\1}}"),
    (re.compile(r"(?<![\\{a-zA-Z_])([A-Za-z]{2,})(?![\w}])"), r"\\operatorname{\1}"),
)
"""Equations as docstrings have them, rule by rule into TeX; the signs come last."""


def to_tex(code: str) -> str:
    """An equation in Unicode as TeX."""
    for pattern, tex in TEX:
        code = pattern.sub(tex, code)
    for sign, tex in SIGNS.items():
        code = code.replace(sign, tex)
    return code


def is_equation(code: str) -> bool:
    """Whether code has a sign that no program has."""
    return any(sign in code for sign in SIGNS)


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

    def equation(match: re.Match[str]) -> str:
        return rf"\({to_tex(match[1])}\)" if is_equation(match[1]) else match[0]

    return CODE.sub(equation, MATH.sub(r"\\(\1\\)", ROLE.sub(role, BLOCK.sub(block, text))))


class Docstrings(griffe.Extension):  # type: ignore[misc]  # griffe is not among the tools that mypy runs beside
    """Rewrites each docstring as it is read."""

    def __init__(self) -> None:
        self.known = documented()

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Called by griffe with every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, self.known)
