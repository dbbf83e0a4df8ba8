"""From run folders to curves, table, page and pictures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.studies.findings import findings
from lit_rlhf.studies.page import charts, finding_cells, tables, verdict_cells, write_markdown, write_page
from lit_rlhf.studies.pictures import write_pictures
from lit_rlhf.studies.plan import Claim, Figure, Judging, Quality, Step, Study
from lit_rlhf.studies.results import (
    Results,
    frontier_starts,
    measures_of,
    quality_points,
    read_results,
    unlogged_qualities,
    write_table,
)

GOLD = {"a": {10: 0.2, 20: 0.9}, "b": {10: 0.5, 20: 0.1}}
STUDY = Study(
    seeds=[1, 2],
    arms={"a": Step(config="x", title="arm <A>"), "b": Step(config="x")},
    prepare={"opponents": Step(run="x", made="opponents/evaluations")},
    judging=Judging(opponents="opponents", score="gold", tie_margin=0.05),
    figures=[
        Figure(
            title="Figure <1>",
            arms=["a", "b"],
            panels=["win", "val/kl", "never/logged"],
            frontier=["val/kl", "val/gold"],
            claims=[Claim(says="a wins", arm="a", against="b")],
        )
    ],
)


def answers(path: Path, gold: list[float]) -> None:
    rows = [
        {
            "row": i,
            "sample": 0,
            "prompt": f"p{i}",
            "response": "r",
            "tokens": 1,
            "record": {"prompt": f"p{i}"},
            "gold": g,
        }
        for i, g in enumerate(gold)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two seeds of two arms: two iterations of two updates between validations, two prompts."""
    for seed in (1, 2):
        here = tmp_path / f"seed{seed}"
        answers(here / "opponents" / "evaluations" / "val-step000000.jsonl", [0.5, 0.5])
        for arm, gold in GOLD.items():
            run = here / arm
            (run / "export" / "final").mkdir(parents=True)
            (run / "export" / "final" / "config.json").touch()
            lines = ["epoch,step,rollout/kl,val/kl,val/gold"]
            for epoch in range(20):
                lines.append(f"{epoch},{2 * epoch},{epoch / 100},,")
                if epoch % 10 == 9:
                    lines.append(f"{epoch},{2 * epoch + 1},,{seed + epoch},{gold[epoch + 1]}")
            (run / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
            for iteration, value in gold.items():
                answers(run / "evaluations" / f"val-step{2 * iteration:06d}.jsonl", [value, 0.5])
    return tmp_path


def test_curves_count_iterations_done(out: Path) -> None:
    run = read_results(STUDY, out)["a"][2]
    assert run["val/kl"] == {10: 11.0, 20: 21.0}
    assert run["rollout/kl"][0] == 0.0  # the first rollout is the start's
    assert run["rollout/kl"][19] == 0.19
    assert run["win"] == {10: 25.0, 20: 75.0}  # one tie of two prompts, one lost and then won


def test_win_rates_are_judged_once_and_again_when_the_judge_changes(out: Path) -> None:
    read_results(STUDY, out)
    kept = out / "seed1" / "a" / "judged.json"
    kept.write_text(kept.read_text(encoding="utf-8").replace("75.0", "76.0"), encoding="utf-8")
    assert read_results(STUDY, out)["a"][1]["win"][20] == 76.0
    other = Study(**{**vars(STUDY), "judging": Judging(opponents="opponents", score="gold", tie_margin=0.45)})
    assert read_results(other, out)["a"][1]["win"] == {10: 50.0, 20: 50.0}  # everything ties


def test_an_arm_that_is_not_done_is_not_read(out: Path) -> None:
    (out / "seed1" / "a" / "export" / "final" / "config.json").unlink()
    assert set(read_results(STUDY, out)["a"]) == {2}


def test_the_table_has_a_row_a_point(out: Path) -> None:
    results = read_results(STUDY, out)
    assert measures_of(STUDY) == {"win", "val/kl", "never/logged", "val/gold"}
    write_table(results, out / "results.csv", measures={"win", "val/kl"})
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 2
    assert {"arm": "b", "seed": "2", "measure": "win", "iteration": "20", "value": "25.0"} in rows


def test_page_and_markdown_show_every_arm_and_finding_and_escape_names(out: Path) -> None:
    results = read_results(STUDY, out)
    found = findings(STUDY, results)
    text = write_markdown(STUDY, results, found, out, notes=["4 runs"])
    assert text == (out / "study.md").read_text(encoding="utf-8")
    assert "| arm <A> | 2 | 75 (75 to 75) | 75 (75 to 75) | 0 (0 to 0) |" in text
    assert "| a wins | end of win: arm <A> less b | +50 [+50, +50] | 2 | cannot be told |" in text
    assert "| Figure <1> |  |  | 1 |  |" in text
    assert "| all figures |  |  | 1 |  |" in text
    write_page(STUDY, results, found, out, notes=["4 runs"])
    page = (out / "study.html").read_text(encoding="utf-8")
    assert "Figure &lt;1&gt;" in page
    assert "arm <A>" not in page
    assert [title for title, _, _ in tables(STUDY, STUDY.figures[0], results)] == [
        "Win rate (win % over the opponents): mean over seeds (lowest to highest)",
        "KL to the reference (nats per token): mean over seeds (lowest to highest)",
    ]


def test_a_panel_has_a_line_a_seed_and_a_mean_and_the_frontier_a_fit_where_it_can(out: Path) -> None:
    drawn = charts(STUDY, STUDY.figures[0], read_results(STUDY, out), out)
    assert [chart.title for chart in drawn] == [
        "Win rate (win % over the opponents)",
        "KL to the reference (nats per token)",
        "val/gold over the square root of val/kl",
    ]
    assert len(drawn[0].figure.data) == 2 * 3
    assert sum(trace.showlegend for trace in drawn[0].figure.data) == 2
    assert [trace.mode for trace in drawn[2].figure.data] == ["markers", "lines"] * 2


def test_the_frontier_starts_at_the_opponents_score_where_their_answers_have_it(out: Path) -> None:
    assert frontier_starts(STUDY, "val/gold", out) == {1: 0.5, 2: 0.5}
    assert frontier_starts(STUDY, "val/kl", out) == {}
    drawn = charts(STUDY, STUDY.figures[0], read_results(STUDY, out), out)[2].figure
    assert drawn.layout.yaxis.title.text == "gold score above the opponents'"
    assert sorted(drawn.data[0].y) == pytest.approx([-0.3, -0.3, 0.4, 0.4])
    with (out / "seed2" / "opponents" / "evaluations" / "val-step000000.jsonl").open("w") as file:
        file.write('{"row": 0}\n')
    with pytest.raises(ValueError, match="val-step000000"):
        frontier_starts(STUDY, "val/gold", out)


def test_a_study_of_which_little_ran_still_has_a_page(out: Path) -> None:
    results: Results = {"a": {1: read_results(STUDY, out)["a"][1]}}
    found = findings(STUDY, results)
    assert finding_cells(STUDY, found)[1][0][2:] == ("not run", "0", "cannot be told")
    assert verdict_cells(found)[1][0] == ("Figure <1>", "", "", "", "1")
    assert verdict_cells([])[1] == []
    write_page(STUDY, results, found, out, notes=[])
    write_markdown(STUDY, results, found, out, notes=[])
    assert (out / "study.html").stat().st_size > 1000


def test_pictures_of_curves_one_a_figure(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "lit_rlhf.studies.pictures.draw_panels", lambda logs, path, **more: seen.append((logs, more)) or path
    )
    assert write_pictures(STUDY, read_results(STUDY, out), out)[0] == out / "figure1.png"
    logs, more = seen[0]
    assert {name: len(seeds) for name, seeds in logs.items()} == {"arm <A>": 2, "b": 2}
    assert logs["b"][0]["win"] == {10.0: 50.0 if GOLD["b"][10] == 0.5 else 25.0, 20.0: 25.0}
    assert [panel.metric for panel in more["panels"]] == ["win", "val/kl"]


def test_quality_frontier_and_scores_have_charts_and_pictures(out: Path) -> None:
    quality = Quality(steps={"a": "reward"}, x="val/accuracy", y="val/gold", at="end")
    figure = Figure(**{**vars(STUDY.figures[0]), "quality": quality, "distributions": True})
    study = Study(
        **{
            **vars(STUDY),
            "prepare": {
                **STUDY.prepare,
                "reward": Step(config="x", made="reward/metrics.csv"),
                "unmade": Step(config="x"),
            },
            "figures": [figure],
        }
    )
    study.check()
    for seed, accuracy in ((1, 0.7), (2, 0.8)):
        (out / f"seed{seed}" / "reward").mkdir()
        text = f"epoch,step,val/accuracy\n0,1,0.5\n1,2,{accuracy}\n"
        (out / f"seed{seed}" / "reward" / "metrics.csv").write_text(text, encoding="utf-8")
    line = {"iteration": 0, "step": 0, "start": 0.0, "width": 0.5, "counts": [1, 3]}
    shape = {"mean": 0.5, "std": 1.0, "skew": 0.0, "kurtosis": 0.0, "upper_tail": 1.0}
    (out / "seed1" / "a" / "reward_histograms.jsonl").write_text(json.dumps({**line, **shape}) + "\n", encoding="utf-8")
    results = read_results(study, out)
    assert unlogged_qualities(study, results, out) == []
    blind = Figure(**{**vars(figure), "quality": Quality(steps={"b": "reward"}, x="val/f1", y="val/gold")})
    other = Study(**{**vars(study), "figures": [blind]})
    assert unlogged_qualities(other, results, out) == ["reward has no val/f1"]
    assert quality_points(study, Quality(steps={"b": "unmade"}, x="x", y="val/gold"), results, out) == {}
    assert quality_points(study, quality, results, out) == {"a": [(0.7, 0.9), (0.8, 0.9)]}
    titles = [chart.title for chart in charts(study, figure, results, out)]
    assert titles[-2:] == ["End of Gold score over val/accuracy", "Scores over time: arm <A>, seed 1"]
    names = ["figure1.png", "figure1-frontier.png", "figure1-scores.png"]
    assert write_pictures(study, results, out) == [out / name for name in names]
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in names)
