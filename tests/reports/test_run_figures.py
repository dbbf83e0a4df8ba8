from __future__ import annotations

import pytest

from lit_rlhf.reports.palette import SEQUENCE
from lit_rlhf.reports.run_data import load_run
from lit_rlhf.reports.run_figures import MAX_ROWS, Panel, distribution_figure, series_figure


def test_band_holds_the_line_and_the_runs_differ_in_color_and_dash(runs):
    loaded = [load_run(path) for path in runs]
    figure = series_figure(loaded, Panel("KL", "nats", "rollout/kl"))
    bands, lines = figure.data[::2], figure.data[1::2]
    for band, line in zip(bands, lines, strict=True):
        n = len(line.x)
        high, low = band.y[:n], band.y[n:][::-1]
        assert all(a <= y <= b for a, y, b in zip(low, line.y, high, strict=True))
    assert len({(line.line.color, line.line.dash) for line in lines}) == 2
    assert len({line.line.dash for line in lines}) == 2
    assert figure.layout.shapes[0].x0 == 17
    assert len(set(SEQUENCE)) == len(SEQUENCE)


def test_held_out_metrics_are_shown_as_they_were_measured(runs):
    run = load_run(runs[0])
    points = [(10 * i, float(i >= 6)) for i in range(12)]  # a collapse between two validations
    run.series["val/ended"] = run.series["train/ended"] = points
    (line,) = series_figure([run], Panel("", "", "val/ended")).data
    assert list(zip(line.x, line.y, strict=True)) == points
    assert line.mode == "lines+markers"
    assert len(series_figure([run], Panel("", "", "train/ended")).data) == 2


def test_distribution_columns_sum_to_one_on_merged_grids(runs):
    run = load_run(runs[0])
    run.histograms[5] |= {"width": 0.125, "start": 0.0, "counts": [4, 4, 2]}
    figure = distribution_figure(run)
    sums = [sum(column) for column in zip(*figure.data[0].z, strict=True)]
    assert sums == pytest.approx([1.0] * len(sums))
    row = list(figure.data[0].y).index(0.125)
    assert figure.data[0].z[row][5] == pytest.approx(0.8)


def test_a_map_of_scores_that_explode_stays_small(runs):
    run = load_run(runs[0])
    run.histograms[-1] |= {"width": 0.125, "start": 1e6, "counts": [128]}
    figure = distribution_figure(run)
    assert len(figure.data[0].y) <= MAX_ROWS + 2
    assert [sum(column) for column in zip(*figure.data[0].z, strict=True)] == pytest.approx([1.0] * 60)
