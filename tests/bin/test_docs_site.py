"""`bin/docs`: what it makes of docstrings and pages, what it calls a fault, and the built site in a browser."""

from __future__ import annotations

import functools
import html
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bin.docs_site.hooks import linked
from bin.docs_site.links import faults
from tests.reports.browser import CHROMIUM, FLAGS, needs_browser

ROOT = Path(__file__).resolve().parents[2]


def test_pages_named_in_prose_become_links(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text\n# A title\n")
    (tmp_path / "deep").mkdir()
    text = "see docs/a.md.\n```\ncat docs/a.md\n```\n`docs/a.md` and [x](docs/a.md), ../docs/a.md"
    _, *rest = text.split("\n")
    assert linked(text, tmp_path, "b.md").split("\n") == ["see [A title](a.md).", *rest]
    assert linked("docs/a.md", tmp_path, "deep/c.md") == "[A title](../a.md)"
    with pytest.raises(FileNotFoundError):
        linked("docs/none.md", tmp_path, "b.md")


def test_roles_and_equations_become_markdown() -> None:
    pytest.importorskip("griffe", reason="needs the extra `docs`")
    from bin.docs_site.docstrings import to_markdown

    known = {"Reward": "lit_rlhf.rewards.base.Reward"}
    text = "A :class:`~lit_rlhf.x.Reward`, :class:`Reward`, :meth:`Reward.score`, :func:`other`: :math:`a_t`."
    link = "[`Reward`][lit_rlhf.rewards.base.Reward]"
    score = "[`Reward.score`][lit_rlhf.rewards.base.Reward.score]"
    assert to_markdown(text, known) == f"A `Reward`, {link}, {score}, `other`: \\(a_t\\)."
    assert to_markdown("x\n\n.. math:: a\n    b\n\nc", known) == "x\n\n\\[\na\nb\n\\]\n\nc"


@pytest.mark.parametrize(
    ("code", "tex"),
    [
        ("δ_t = r_t + γ V_{t+1} − V_t", r"\delta _t = r_t + \gamma  V_{t+1} - V_t"),
        ("ρ = π(y) / π_old(y)", r"\rho  = \pi (y) / \pi _{\text{old}}(y)"),
        ("−log Σ_v e^z(v)", r"-\operatorname{log} \sum _v e^{z(v)}"),
        ("M₂_a / √(σ² + ε)", r"M_{2a} / \sqrt{\sigma ^2 + \varepsilon }"),
        ("upper_tail − e^(−d)", r"\text{upper tail} - e^{-d}"),
    ],
)
def test_equations_in_unicode_become_tex(code: str, tex: str) -> None:
    pytest.importorskip("griffe", reason="needs the extra `docs`")
    from bin.docs_site.docstrings import to_markdown

    assert to_markdown(f"x ``{code}``, ``max_length``", {}) == f"x \\({tex}\\), ``max_length``"


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ('<a href="b.html#there">', None),
        ('<a href="b.html#gone">', "b.html#gone has no such anchor"),
        ('<a href="c.html">', "c.html does not exist"),
        ('<img src="c.png">', "c.png does not exist"),
        ('<a href="https://example.org">', None),
        ('<script src="https://example.org/x.js">', "https://example.org/x.js is loaded from another host"),
        ('<link href="//example.org/x.css">', "//example.org/x.css is loaded from another host"),
        ('<p id="x"><p id="x">', "id 'x' is there twice"),
    ],
)
def test_faults_of_a_built_site(page: str, fault: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html").write_text('<p id="there">')
    assert faults(tmp_path) == ([f"a.html: {fault}"] if fault else [])


# ---------------------------------------------------------------- the site itself

# Every page in a frame of two widths, one after the other: what a reader must not meet. Frames, because headless
# windows are never under 500 pixels wide.
VISIT = """<!doctype html><body><script>
const seen = [], frame = document.createElement("iframe");
document.body.append(frame);
const settled = (ms) => new Promise((done) => setTimeout(done, ms));
(async () => {
  for (const [page, width] of PAGES) {
    frame.style.width = width + "px"; frame.style.height = "900px";
    await new Promise((done) => { frame.onload = done; frame.src = page; });
    await settled(200);
    const doc = frame.contentDocument;
    const hosts = frame.contentWindow.performance.getEntriesByType("resource").map((x) => new URL(x.name).host);
    seen.push({page, width, wide: doc.documentElement.scrollWidth, title: doc.title,
      equations: doc.querySelectorAll(".arithmatex").length,
      set: doc.querySelectorAll(".arithmatex > .katex, .arithmatex > .katex-display").length,
      wrong: doc.querySelectorAll(".katex-error").length,
      broken: [...doc.images].filter((x) => x.complete && !x.naturalWidth).map((x) => x.src),
      hosts: [...new Set(hosts)]});
  }
  document.body.dataset.seen = JSON.stringify(seen);
})();
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    out = tmp_path_factory.mktemp("site")
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_site_has_no_fault(site: Path) -> None:
    assert faults(site) == []
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = [entry["location"] for entry in index["docs"] if "PPOModule" in entry["title"]]
    assert any(place.startswith("reference/modules.html#") for place in found), "the search does not know the reference"


@needs_browser
def test_every_page_in_a_browser(site: Path, address: str, tmp_path: Path) -> None:
    """At 400 and 1400 pixels: nothing runs over, every equation is set, no image is broken, the console is silent."""
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "404.html")
    visits = [(page, width) for page in pages for width in (400, 1400)]
    (site / "_visit.html").write_text(VISIT.replace("PAGES", json.dumps(visits)), encoding="utf-8")
    budget = f"--virtual-time-budget={1000 * len(visits)}"
    flags = [flag for flag in FLAGS.split() if not flag.startswith("--virtual-time")]
    command = [str(CHROMIUM), *flags, budget, f"--user-data-dir={tmp_path}", "--window-size=1500,1000", "--dump-dom"]
    command.append(f"{address}/_visit.html")
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    (site / "_visit.html").unlink()
    match = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert match, done.stderr
    seen = json.loads(html.unescape(match[1]))
    assert [(view["page"], view["width"]) for view in seen] == visits
    assert not [(view["page"], view["wide"]) for view in seen if view["wide"] > view["width"]]
    assert not [(view["page"], view["broken"]) for view in seen if view["broken"]]
    assert not [view["page"] for view in seen if view["equations"] != view["set"]]
    assert not [view["page"] for view in seen if view["wrong"]], "an equation that KaTeX cannot read"
    assert sum(view["equations"] for view in seen) >= 20
    assert {host for view in seen for host in view["hosts"]} == {address.removeprefix("http://")}
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in console if "favicon" not in line]
