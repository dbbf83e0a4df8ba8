"""Runs the tutorials and writes their pages.

    bash bin/tutorials            # run all of docs/tutorials/*.py, write docs/tutorials/*.md and their pictures
    bash bin/tutorials --check    # run all, write nothing: each must end well, and its page must hold its code
    bash bin/tutorials first_ppo  # this one

A tutorial is a Python file in cells, ``# %%`` for code and ``# %% [markdown]`` for text, as editors and Jupyter (with
jupytext) open it. Each runs in a process and an empty folder of its own, on one thread; what its cells print and the
matplotlib figures that they leave open stand below them on the page.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "tutorials"
CELL = re.compile(r"^# %%(?P<kind> \[markdown\])?\n(?P<body>.*?)(?=^# %%|\Z)", re.MULTILINE | re.DOTALL)


def cells(source: str) -> Iterator[tuple[bool, str]]:
    """Whether each cell is text, and its body; the text without its comment signs."""
    for match in CELL.finditer(source):
        body = match["body"].strip("\n")
        if match["kind"]:
            body = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
        yield bool(match["kind"]), body


def render(source: str, name: str, images: Path) -> str:
    """Run the cells in this process and return the page; figures go into ``images``.

    Args:
        source: The tutorial's file.
        name: Of the tutorial, in the figures' names.
        images: A folder.
    """
    scope: dict[str, Any] = {"__name__": "__main__"}
    parts, started, figures = [], time.perf_counter(), 0
    for is_text, body in cells(source):
        parts.append(body if is_text else f"```python\n{body}\n```")
        if is_text:
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(body, f"{name}.py", "exec"), scope)
        if printed.getvalue().strip():
            parts.append(f'```{{ .text .no-copy title="prints" }}\n{printed.getvalue().rstrip()}\n```')
        for figure in open_figures():
            figures += 1
            figure.savefig(images / f"{name}-{figures}.png", dpi=110)
            parts.append(f"![{name}, figure {figures}](images/{name}-{figures}.png)")
    seconds = time.perf_counter() - started
    note = (
        f"This page is [{name}.py]({name}.py), run by `bash bin/tutorials {name}` in {seconds:.0f} s, on a busy core."
    )
    title, _, rest = parts[0].partition("\n")
    return "\n\n".join([title, note, rest.strip("\n"), *parts[1:]]) + "\n"


def open_figures() -> list[Any]:
    """Matplotlib's figures, closed."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return []
    found = [pyplot.figure(number) for number in pyplot.get_fignums()]
    pyplot.close("all")
    return found


def code_of(page: str) -> list[str]:
    """The code of a written page."""
    return re.findall(r"^```python\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)


def run(name: str, *, check: bool) -> str | None:
    """Run one tutorial in a process of its own; what is wrong, or None."""
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    page = FOLDER / f"{name}.md"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        paths = [str(FOLDER / f"{name}.py"), str(out if check else FOLDER)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
        env |= {"DS_ACCELERATOR": "cpu"}  # or DeepSpeed says on standard output that there is no GPU
        words = [sys.executable, "-m", "bin.docs_site.tutorials", "--cell-runner", *paths]
        done = subprocess.run(words, cwd=scratch, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return done.stderr
    if check and code_of(page.read_text(encoding="utf-8")) != [x for is_text, x in cells(source) if not is_text]:
        return f"{page.name} is not of this {name}.py: bash bin/tutorials {name}"
    return None


def main() -> None:
    """Run what is named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="tutorials; default: all")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--cell-runner", nargs=2, metavar=("FILE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell_runner:
        file, folder = map(Path, args.cell_runner)
        (folder / "images").mkdir(exist_ok=True)
        text = render(file.read_text(encoding="utf-8"), file.stem, folder / "images")
        (folder / f"{file.stem}.md").write_text(text, encoding="utf-8")
        return
    known = sorted(path.stem for path in FOLDER.glob("*.py"))
    if unknown := set(args.names) - set(known):
        parser.error(f"no tutorial {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    wrong = False
    for name in args.names or known:
        started = time.perf_counter()
        fault = run(name, check=args.check)
        wrong |= fault is not None
        print(f"{name}: {'failed' if fault else 'ran'} in {time.perf_counter() - started:.0f} s", flush=True)
        if fault:
            print(fault, file=sys.stderr)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
