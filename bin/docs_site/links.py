"""Dead links, dead anchors, repeated ids and anything loaded from another host, in the built site.

``python -m bin.docs_site.links site`` prints each and exits with 1. mkdocs' own strictness sees the Markdown only; this
sees what the docstrings, the theme and the scripts made of it.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {("img", "src"), ("script", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}


class Page(HTMLParser):
    """Ids and addresses of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str]] = []
        self.repeated: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        for name, value in attrs:
            if name in ("id", "name") and value and tag != "meta":
                if name == "id" and value in self.ids:
                    self.repeated.add(value)
                self.ids.add(value)
            if name in ("href", "src") and value:
                self.links.append((f"{tag} {name}", value))


def faults(site: Path) -> list[str]:
    """One line for each fault of the built site in a folder."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        found += [f"{name}: id {x!r} is there twice" for x in sorted(page.repeated) if not x.startswith("__")]
        for kind, link in page.links:
            found += [f"{name}: {fault}" for fault in fault_of(kind, link, path, pages)]
    return found


def fault_of(kind: str, link: str, path: Path, pages: dict[Path, Page]) -> list[str]:
    """What is wrong with one address of a page; nothing for a link that leaves the site."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        loads = tuple(kind.split()) in LOADS and parts.scheme != "data"
        return [f"{link} is loaded from another host"] if loads else []
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    target = target / "index.html" if target.is_dir() else target
    if not target.exists():
        return [f"{link} does not exist"]
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].ids:
        return [f"{link} has no such anchor"]
    return []


def main() -> None:
    """Print the faults of the folder that is named."""
    found = faults(Path(sys.argv[1]))
    print("\n".join(found) if found else "no dead link, no dead anchor, nothing from another host")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
