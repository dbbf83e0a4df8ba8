"""The report: what it reads, what it survives, and the page in a real headless browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from lit_rlhf.commands.report import main
from lit_rlhf.reports.run_data import load_run, name_runs
from lit_rlhf.reports.run_figures import COLORS, distribution_figure, series_figure
from tests.reports.made_up_run import make_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=10000",
]
# Appended to a copy of the page: acts as a user with a keyboard, and writes what it saw where --dump-dom shows it.
PROBE = """<script>addEventListener("load", () => {
  const root = document.documentElement, press = (key) => document.activeElement.dispatchEvent(
    new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const tokens = document.querySelectorAll(".tok");
  tokens[0].focus(); press("ArrowRight"); press("ArrowRight");
  root.dataset.focused = document.activeElement.dataset.k;
  root.dataset.detail = document.getElementById("token-detail").textContent;
  root.dataset.stops = [...tokens].filter((t) => t.tabIndex === 0).length;
  const column = document.getElementById("token-column"); column.value = "advantage"; column.onchange();
  root.dataset.title = document.querySelector(".tok").title;
  const slider = document.getElementById("side-at"); slider.value = 1; slider.oninput();
  root.dataset.cards = [...document.querySelectorAll(".card h3, .card small")].map((n) => n.textContent).join("|");
  root.dataset.slips = (document.querySelector("main").innerText.match(/undefined|NaN|\\[object/g) || []).join();
  root.dataset.resources = performance.getEntriesByType("resource").length;
  root.dataset.wide = root.scrollWidth - innerWidth;
  const plots = [...document.querySelectorAll(".plot")];
  root.dataset.plots = plots.length;
  root.dataset.drawn = plots.filter((box) => box.querySelector(".main-svg")).length;
  parent.postMessage({ wide: root.scrollWidth, inner: innerWidth, plot: plots[0].clientWidth }, "*");
});</script>"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return make_run(root / "vanilla", collapsing=True), make_run(root / "ppo_max", collapsing=False, seed=1)


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    main([*map(str, runs), "--out", str(out)])
    return out


def browse(page, tmp_path, *options):
    """Standard output of one headless visit."""
    profile = tmp_path / "profile"
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_series_average_an_iteration_and_ignore_what_is_empty(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,a,b\n0,0,1.0,\n0,1,3.0,\n1,2,nan,7.0\n1,3,5.0,inf\nbroken")
    run = load_run(tmp_path)
    assert run.series == {"a": [(0, 2.0), (1, 5.0)], "b": [(1, 7.0)]}


def test_a_resumed_run_overrides_the_steps_it_did_again(tmp_path):
    for version, rows in ((0, "0,0,1\n1,1,2\n2,2,3\n"), (1, "2,2,30\n3,3,40\n"), (10, "3,3,41\n")):
        (tmp_path / f"csv/version_{version}").mkdir(parents=True)
        (tmp_path / f"csv/version_{version}/metrics.csv").write_text("epoch,step,a\n" + rows)
    lines = [
        {"step": s, "iteration": s, "start": 0.0, "width": 1.0, "counts": [c]} for s, c in ((2, 1), (3, 1), (2, 5))
    ]
    (tmp_path / "reward_histograms.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4, "cou')
    run = load_run(tmp_path)
    assert run.series["a"] == [(0, 1.0), (1, 2.0), (2, 30.0), (3, 41.0)]
    assert [(h["step"], h["counts"]) for h in run.histograms] == [(2, [5]), (3, [1])]
    assert run.broken_lines == 1


def test_steps_are_placed_in_their_iteration(runs):
    run = load_run(runs[0])
    assert [event["at"] for event in run.events] == [17]
    assert {h["step"] // 4 == h["at"] for h in run.histograms} == {True}


def test_nan_in_a_sample_does_not_reach_the_browser_as_nan(tmp_path, runs):
    root = make_run(tmp_path / "run", collapsing=False)
    sample = json.loads((root / "samples.jsonl").read_text().splitlines()[0])
    sample["columns"]["kl"][0] = float("nan")
    sample["response"] = "NaN is a word here"
    (root / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    main([str(root), "--out", str(tmp_path / "r.html")])
    data = re.search(r'id="samples-data">(.*?)</script>', (tmp_path / "r.html").read_text(), re.S)[1]
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


def test_without_fixed_samples_the_saved_validations_stand_in(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,rollout/kl\n0,0,0.1\n1,1,0.2\n2,2,0.2\n")
    (tmp_path / "evaluations").mkdir()
    row = {
        "prompt": "p",
        "response": "r",
        "score": 1.0,
        "ended": True,
        "tokens": 4,
        "logprob": -1.0,
        "ref_logprob": -3.0,
    }
    (tmp_path / "evaluations/val-step000002.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row))
    samples = load_run(tmp_path).samples
    assert [(s["at"], s["index"], s["kl"], s["length"]) for s in samples] == [(2, 0, 0.5, 4), (2, 1, 0.5, 4)]
    (tmp_path / "samples.jsonl").write_text(json.dumps({"step": 0, "kind": "fixed", "index": 0}))
    assert len(load_run(tmp_path).samples) == 1


def test_names_are_short_and_distinct(tmp_path):
    paths = [tmp_path / "a" / "s1", tmp_path / "b" / "s1"]
    assert name_runs(paths) == ["a/s1", "b/s1"]
    assert name_runs([paths[0], paths[0]]) == ["s1 (1)", "s1 (2)"]
    assert name_runs(paths[:1]) == ["s1"]


def test_band_holds_the_line_and_the_runs_differ_in_color_and_dash(runs):
    loaded = [load_run(path) for path in runs]
    figure = series_figure(loaded, ("KL", "nats", ("rollout/kl",)))
    bands, lines = figure.data[::2], figure.data[1::2]
    for band, line in zip(bands, lines, strict=True):
        n = len(line.x)
        high, low = band.y[:n], band.y[n:][::-1]
        assert all(a <= y <= b for a, y, b in zip(low, line.y, high, strict=True))
    assert len({(line.line.color, line.line.dash) for line in lines}) == 2
    assert len({line.line.dash for line in lines}) == 2
    assert figure.layout.shapes[0].x0 == 17
    assert len(set(COLORS)) == len(COLORS)


def test_distribution_columns_sum_to_one_on_merged_grids(runs):
    run = load_run(runs[0])
    run.histograms[5] |= {"width": 0.125, "start": 0.0, "counts": [4, 4, 2]}
    figure = distribution_figure(run, 0)
    sums = [sum(column) for column in zip(*figure.data[0].z, strict=True)]
    assert sums == pytest.approx([1.0] * len(sums))
    row = list(figure.data[0].y).index(0.125)
    assert figure.data[0].z[row][5] == pytest.approx(0.8)


def test_what_a_model_wrote_stays_text(page):
    text = page.read_text()
    assert "<b>bold</b>" not in text.replace("<\\/", "</").split('id="samples-data"')[0]
    assert "</script><b>bold" not in text
    assert "&lt;b&gt;not bold&lt;/b&gt;" in text


@needs_browser
def test_the_page_draws_works_by_keyboard_and_asks_nobody(page, tmp_path):
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    dom = browse(probed, tmp_path, "--window-size=1280,900", "--dump-dom")
    seen = {k: html.unescape(v) for k, v in re.findall(r'data-([a-z]+)="([^"]*)"', dom.split(">", 3)[1] + dom[:2000])}
    assert seen["ready"] == "yes"
    assert int(seen["plots"]) == int(seen["drawn"]) >= 15
    assert seen["focused"] == "2"
    assert seen["stops"] == "1"  # one tab stop for the whole response
    assert seen["detail"].startswith("Token 3 of")
    assert "KL (nats) " in seen["detail"]
    assert "advantage: " in seen["title"]
    assert seen["cards"].startswith("SFT|before training · score")
    assert "|vanilla|iteration 9 · score" in seen["cards"]
    assert "|ppo_max|iteration 9 · score" in seen["cards"]
    assert seen["resources"] == "0"
    assert int(seen["wide"]) <= 0
    assert seen["slips"] == ""


@needs_browser
def test_the_page_fits_a_phone(page, tmp_path):
    """Headless windows are never under 500 px, so the phone is a frame."""
    (tmp_path / "probed.html").write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    frame = tmp_path / "phone.html"
    frame.write_text(
        "<html><body><iframe src='probed.html' style='width:390px;height:800px;border:0'></iframe><script>"
        "addEventListener('message', (e) => { document.body.dataset.seen = JSON.stringify(e.data); });"
        "</script></body></html>"
    )
    dom = browse(frame, tmp_path, "--dump-dom")
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', dom)[1]))
    assert seen["wide"] <= seen["inner"] <= 390
    assert 300 < seen["plot"] <= 390


@needs_browser
def test_a_screenshot_is_not_blank(page, tmp_path):
    shot = tmp_path / "shot.png"
    browse(page, tmp_path, "--window-size=1280,1600", f"--screenshot={shot}")
    assert shot.stat().st_size > 60_000  # a blank page of this size is under 10 kB


def test_file_names_are_those_the_callbacks_write():
    from lit_rlhf.callbacks import collapse_detector, reward_distribution, sample_logger
    from lit_rlhf.reports import run_data as load

    assert sample_logger.FILENAME == load.SAMPLES
    assert reward_distribution.FILENAME == load.HISTOGRAMS
    assert collapse_detector.FILENAME == load.EVENTS
