"""The page of a run: what it reads, what it survives, and how it looks and works in a real headless browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from lit_rlhf.commands.report import main
from lit_rlhf.reports.run_data import CONFIG, EVENTS, SAMPLES, VERSIONS, load_run
from tests.reports.browser import HOSTILE, look, needs_browser, visit
from tests.reports.made_up_run import make_run

# A user with a keyboard.
USE = """
  const press = (key) => document.activeElement.dispatchEvent(
    new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const tokens = document.querySelectorAll(".token");
  tokens[0].focus(); press("ArrowRight"); press("ArrowRight");
  seen.focused = document.activeElement.dataset.k;
  seen.detail = document.getElementById("token-detail").textContent;
  press("End"); press("ArrowDown"); seen.last = Number(document.activeElement.dataset.k) + 1 === tokens.length;
  press("Home"); seen.first = document.activeElement.dataset.k;
  tokens[5].click();
  seen.stops = [...tokens].filter((token) => token.tabIndex === 0).map((token) => token.dataset.k).join();
  const column = document.getElementById("token-column"); column.value = "advantage"; column.onchange();
  seen.hover = document.querySelector(".token").title;
  const slider = document.getElementById("side-at"); slider.value = 1; slider.oninput();
  seen.cards = [...document.querySelectorAll(".sample h3, .sample small")].map((n) => n.textContent).join("|");
"""


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    main([*map(str, runs), "--out", str(out)])
    return out


def test_nan_in_a_sample_does_not_reach_the_browser_as_nan(tmp_path, runs):
    root = make_run(tmp_path / "run", collapsing=False)
    sample = json.loads((root / "samples.jsonl").read_text().splitlines()[0])
    sample["columns"]["kl"][0] = float("nan")
    sample["response"] = "NaN is a word here"
    (root / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    main([str(root), "--out", str(tmp_path / "r.html")])
    data = re.search(r'id="samples">(.*?)</script>', (tmp_path / "r.html").read_text(), re.S)[1]
    got = json.loads(data, parse_constant=lambda name: pytest.fail(name))[0]["samples"][0]
    assert got["columns"]["kl"][0] is None
    assert got["response"] == "NaN is a word here"


def test_not_a_run_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"`RUN_DIR` \(.*\) must have a metrics.csv"):
        main([str(tmp_path), "--out", str(tmp_path / "r.html")])


def test_a_run_with_metrics_only_makes_a_page(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,rollout/kl\n0,0,0.1\n1,1,0.2\n")
    main([str(tmp_path), "--out", str(tmp_path / "r.html")])
    assert "KL to the reference" in (tmp_path / "r.html").read_text()


def test_a_reading_that_was_not_finite_is_told(tmp_path):
    root = make_run(tmp_path / "run", collapsing=True, iterations=12)
    event = json.loads((root / EVENTS).read_text())
    event["readings"]["kl"]["value"] = None  # as the detector writes an infinite KL
    (root / EVENTS).write_text(json.dumps(event))
    main([str(root), "--out", str(tmp_path / "r.html")])
    assert "kl not finite (was 0.001), length 23 (was 14.5); holding" in (tmp_path / "r.html").read_text()


def test_a_page_is_not_written_over_a_file_of_the_run(tmp_path, runs):
    with pytest.raises(ValueError, match=r"`out` \(.*metrics\.csv\) must end in \.html\."):
        main([str(runs[0]), "--out", str(runs[0] / "csv/version_0/metrics.csv")])
    assert load_run(runs[0]).series


def test_the_command_needs_no_torch():
    code = "import sys, lit_rlhf.commands.report; print({'torch', 'lightning', 'matplotlib'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page of a run in which every word is an attack."""
    name = HOSTILE[:60].replace("/", "")
    root = make_run(tmp_path_factory.mktemp("hostile") / name, collapsing=True, iterations=12)
    sample = json.loads((root / SAMPLES).read_text().splitlines()[0])
    sample |= {"prompt": HOSTILE, "response": HOSTILE, "tokens": [HOSTILE] * len(sample["tokens"])}
    (root / SAMPLES).write_text(json.dumps(sample))
    reading = {"value": 1.0, "baseline": 2.0}
    event = {"step": 3, "since": 0, "fired": [HOSTILE, "x"], "did": HOSTILE, "readings": {HOSTILE: reading}}
    (root / EVENTS).write_text(json.dumps(event))
    (root / CONFIG).write_text(HOSTILE, encoding="utf-8", errors="surrogatepass")
    (root / VERSIONS).write_text(json.dumps({HOSTILE: HOSTILE}))
    log = root / "csv/version_0/metrics.csv"
    log.write_text(log.read_text().replace("val/gold", "val/" + HOSTILE[:40].replace('"', "").replace(",", "")))
    out = root.parent / "report.html"
    main([str(root), "--out", str(out), "--title", HOSTILE])
    return out


def test_what_data_wrote_is_neither_markup_nor_hidden(hostile):
    text = hostile.read_text(encoding="utf-8")
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "<b>bold" not in own
    assert "<img" not in own
    assert "owned&#39;&lt;/script&gt;" in own
    assert "{{ 7 * 7 }} {% raise %}" in own
    for block in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', own, re.DOTALL):
        assert not set(block) & set("<>&'")
        assert block.isascii()
        json.loads(block, parse_constant=lambda name: pytest.fail(name))
    assert not re.search("[\ud800-\udfff\x00\x1b\u202e]|\\\\u202e|\\\\ud800|\\\\u0000", own)


@needs_browser
def test_hostile_data_does_nothing_in_a_browser(hostile, tmp_path):
    done = visit(hostile, tmp_path, "--dump-dom")
    assert 'data-ready="yes"' in done.stdout  # the page's own scripts ran under its policy
    assert "Refused" not in done.stderr
    assert "Content Security Policy" not in done.stderr
    assert "Uncaught" not in done.stderr
    seen = look(hostile, tmp_path, width=400)
    assert seen["title"].startswith("<img src=x onerror=")
    assert seen["images"] == 0
    assert seen["plots"] == seen["drawn"] >= 15
    assert seen["wide"] <= 400


@needs_browser
def test_the_policy_stops_a_script_that_is_not_the_pages(page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("<main", "<script>document.title = 'owned'</script><main", 1))
    done = visit(broken, tmp_path, "--dump-dom")
    assert 'data-ready="yes"' in done.stdout
    assert "<title>owned" not in done.stdout
    assert "Content Security Policy" in done.stderr


@needs_browser
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_draws_fits_works_by_keyboard_and_asks_nobody(page, tmp_path, width):
    seen = look(page, tmp_path, width=width, script=USE)
    assert seen["ready"] == "yes"
    assert seen["plots"] == seen["drawn"] >= 15
    assert seen["overflowing"] == 0
    assert seen["wide"] <= seen["inner"] == width
    assert seen["focused"] == "2"
    assert seen["last"]
    assert seen["first"] == "0"
    assert seen["stops"] == "5"  # one stop of the tab key for the whole response
    assert seen["detail"].startswith("Token 3 of")
    assert "KL (nats) " in seen["detail"]
    assert "advantage: " in seen["hover"]
    assert seen["cards"].startswith("SFT|before training: score")
    assert "|vanilla|iteration 9: score" in seen["cards"]
    assert "|ppo_max|iteration 9: score" in seen["cards"]
    assert seen["resources"] == 0
    assert seen["slips"] == ""


@needs_browser
def test_a_screenshot_is_not_blank(page, tmp_path):
    shot = tmp_path / "shot.png"
    visit(page, tmp_path, "--window-size=1280,1600", f"--screenshot={shot}")
    assert shot.stat().st_size > 60_000  # a blank page of this size is under 10 kB
