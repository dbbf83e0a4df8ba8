from __future__ import annotations

import struct
import sys
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure

from lit_rlhf.reports import plots
from lit_rlhf.reports.plots import GOLD, PAPER_PANELS, Panel, plot_panels, read_metrics


def write_log(folder: Path, values: dict[str, list[float]]) -> Path:
    """A log written by Lightning's own logger: two rows an epoch, each with some of the columns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger = CSVLogger(folder, name="", version="")
    for epoch in range(max(map(len, values.values()))):
        row = {name: series[epoch] for name, series in values.items() if epoch < len(series)}
        logger.log_metrics({"epoch": epoch, **row}, step=10 * epoch)
        logger.log_metrics({"epoch": epoch, "loss/policy": 0.5}, step=10 * epoch + 5)
    logger.save()
    return Path(logger.log_dir) / "metrics.csv"


def paper_log(folder: Path, length: int = 5, shift: float = 0.0) -> Path:
    return write_log(folder, {panel.metric: [shift + i for i in range(length)] for panel in PAPER_PANELS})


def test_reads_what_lightning_writes(tmp_path):
    path = write_log(tmp_path, {"a": [1.0, 2.0, 3.0], "b": [5.0]})
    metrics = read_metrics(path)
    assert metrics["a"] == {0: 1.0, 1: 2.0, 2: 3.0}
    assert metrics["b"] == {0: 5.0}
    assert read_metrics(path, x="step")["loss/policy"] == {5: 0.5, 15: 0.5, 25: 0.5}


def test_the_last_value_at_a_place_stays_and_places_are_sorted(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,a\n2,7\n0,1\n1,2\n1,3\n\n,9\n3,nan\n4,inf\n5\n")
    assert list(read_metrics(path)["a"].items()) == [(0, 1), (1, 3), (2, 7)]


def test_errors_name_file_line_and_column(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,a\n0,1\n1,oops\n")
    with pytest.raises(ValueError, match=r"metrics.csv:3: column 'a' is not a number: 'oops'"):
        read_metrics(path)
    with pytest.raises(ValueError, match=r"no column 'step'; the columns are epoch, a"):
        read_metrics(path, x="step")
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "none.csv")


def test_writes_a_png_of_four_panels(tmp_path):
    runs = {
        "PPO-max": [paper_log(tmp_path / str(s), shift=s) for s in range(3)],
        "vanilla": [paper_log(tmp_path / "v")],
    }
    out = plot_panels(runs, tmp_path / "plots" / "four.png", title="Title")
    head = out.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (1440, 1008)
    assert plot_panels(runs, tmp_path / "again.png", title="Title").read_bytes() == out.read_bytes()


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"lit-rlhf\[plots\]"):
        plot_panels({"run": [paper_log(tmp_path / "r")]}, tmp_path / "out.png")


@pytest.fixture
def drawn(monkeypatch):
    """The figure that the next call draws."""
    figures = []

    def keep(*args, **options):
        figures.append(Figure(*args, **options))
        return figures[-1]

    monkeypatch.setattr("matplotlib.figure.Figure", keep)
    return figures


def test_mean_and_band_of_seeds_end_with_the_first_seed(tmp_path, drawn):
    paths = [paper_log(tmp_path / "a", length=6), paper_log(tmp_path / "b", length=3, shift=2.0)]
    plot_panels({"run": paths}, tmp_path / "out.png")
    ax = drawn[0].axes[0]
    mean, *seeds = ax.lines
    assert mean.get_xydata().tolist() == [[0, 1], [1, 2], [2, 3]]
    assert [len(line.get_xdata()) for line in seeds] == [6, 3]
    band = ax.collections[0].get_paths()[0].get_extents()
    assert (band.x0, band.x1, band.y0, band.y1) == (0, 2, 0, 4)
    (legend,) = drawn[0].legends
    assert [t.get_text() for t in legend.get_texts()] == ["run"]
    assert legend.get_title().get_text() == "mean and range of 2 seeds"


def test_the_legend_lies_within_the_picture_and_tells_seeds_where_they_differ(tmp_path, drawn):
    runs = {
        f"an arm of many words and of number {k}": [paper_log(tmp_path / f"{k}{s}") for s in range(1 + k % 2)]
        for k in range(6)
    }
    plot_panels(runs, tmp_path / "out.png")
    (legend,) = drawn[0].legends
    assert legend.get_texts()[1].get_text() == "an arm of many words and of number 1 (2 seeds)"
    assert legend.get_title().get_text() == "mean and range over seeds"
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= drawn[0].bbox.width


def test_runs_differ_in_color_and_dash_and_an_odd_panel_leaves_no_empty_axes(tmp_path, drawn):
    runs = {name: [paper_log(tmp_path / name)] for name in "abc"}
    plot_panels(runs, tmp_path / "out.png", panels=PAPER_PANELS[:3])
    axes = drawn[0].axes
    assert [ax.get_title(loc="left") for ax in axes] == [panel.title for panel in PAPER_PANELS[:3]]
    looks = {(line.get_color(), line.get_linestyle()) for line in axes[0].lines}
    assert len({color for color, _ in looks}) == len({dash for _, dash in looks}) == 3


def test_a_run_without_the_metric_is_left_out_of_its_panel_only(tmp_path, drawn):
    gold = write_log(tmp_path / "g", {"val/gold": [1.0, 2.0], "rollout/kl": [0.0, 0.1]})
    plot_panels({"gold": [gold], "plain": [paper_log(tmp_path / "p")]}, tmp_path / "o.png", panels=[GOLD, plots.KL])
    assert [len(ax.lines) for ax in drawn[0].axes] == [1, 2]
    assert [t.get_text() for t in drawn[0].legends[0].get_texts()] == ["gold", "plain"]


def test_refuses_what_cannot_be_drawn(tmp_path):
    log = paper_log(tmp_path)
    with pytest.raises(ValueError, match=r"No run has the metric 'val/x'; there are loss/policy, rollout/kl"):
        plot_panels({"a": [log]}, tmp_path / "o.png", panels=[Panel(metric="val/x", title="x")])
    with pytest.raises(ValueError, match=r"`runs` \(0\) must have between 1 and 7"):
        plot_panels({}, tmp_path / "o.png")
    assert not (tmp_path / "o.png").exists()
