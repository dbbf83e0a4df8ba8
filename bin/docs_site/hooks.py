"""mkdocs hooks: pages that are named in prose become links, with their titles.

The pages are read in a terminal and on a code host as well, where ``docs/ppo.md`` says which file to open.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

NAMED = re.compile(r"(?<![\w/`(\[])docs/(?P<page>[\w-]+(?:/[\w-]+)?\.md)")
FENCE = re.compile(r"^ *(```|~~~)")


def title(path: Path) -> str:
    """The first heading of a page."""
    return next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))[2:]


def linked(text: str, docs: Path, page: str) -> str:
    """Markdown with every ``docs/NAME.md`` outside of code as a link from ``page``; a name of no page fails the build.

    Args:
        text: Markdown.
        docs: The folder of the pages.
        page: Path of the page in it.
    """

    def link(match: re.Match[str]) -> str:
        target = match["page"]
        return f"[{title(docs / target)}]({posixpath.relpath(target, posixpath.dirname(page) or '.')})"

    lines, fenced = [], False
    for line in text.split("\n"):
        fenced ^= bool(FENCE.match(line))
        lines.append(line if fenced else NAMED.sub(link, line))
    return "\n".join(lines)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Called by mkdocs with each page."""
    return linked(markdown, Path(config["docs_dir"]), page.file.src_uri)
