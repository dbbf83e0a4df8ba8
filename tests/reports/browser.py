"""A page in a real headless browser; tests that need one skip where there is none."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=10000 --enable-logging=stderr"
)
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script> <!-- <script>"
    " \u2028\u2029 \u202eevil\x00\x1b[2J \ud800 ]]> {{ 7 * 7 }} {% raise %} ${1} &amp; \\u003c <b>bold</b> "
    "javascript:document.title='owned'"
)
# What a reader must never meet, and what must be drawn.
SEE = """
  const root = document.documentElement, main = document.querySelector("main");
  seen.wide = root.scrollWidth; seen.inner = innerWidth;
  seen.plots = document.querySelectorAll(".plot").length;
  seen.drawn = [...document.querySelectorAll(".plot")].filter((box) => box.querySelector(".main-svg")).length;
  seen.overflowing = [...document.querySelectorAll(".plot")].filter((box) => box.scrollWidth > box.clientWidth).length;
  seen.slips = (main.innerText.match(/undefined|NaN|\\[object/g) || []).join();
  seen.resources = performance.getEntriesByType("resource").length;
  seen.ready = root.dataset.ready; seen.title = document.title; seen.images = document.images.length;
"""


def visit(page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """One headless visit; its standard output is the document with ``--dump-dom``, its standard error the console."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


def look(page: Path, folder: Path, *, width: int, script: str = "") -> dict:
    """What ``SEE`` and then ``script`` (JavaScript that fills ``seen``) find on a copy of the page in a frame.

    A frame, because headless windows are never under 500 pixels wide. The page's own policy admits its own scripts
    only, so that of the copy admits all inline ones; the rest of it stays.
    """
    probe = (
        f"<script>addEventListener('load', () => {{ const seen = {{}}; {SEE} {script}"
        " parent.postMessage(JSON.stringify(seen), '*'); });</script>"
    )
    text = re.sub(r"script-src [^;]*;", "script-src 'unsafe-inline';", page.read_text(encoding="utf-8"), count=1)
    (folder / "probed.html").write_text(text.replace("</body>", probe + "</body>"), encoding="utf-8")
    frame = folder / f"frame-{width}.html"
    frame.write_text(
        f"<!doctype html><body><iframe src='probed.html' style='width:{width}px;height:900px;border:0'></iframe>"
        "<script>addEventListener('message', (e) => { document.body.dataset.seen = e.data; });</script>"
    )
    dom = visit(frame, folder, "--dump-dom", "--window-size=1500,1000").stdout
    return json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', dom)[1]))
