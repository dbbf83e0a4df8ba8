from __future__ import annotations

import json
from collections import Counter

import pytest

from lit_rlhf.commands.report import main
from lit_rlhf.reports.run_data import CONFIG, EVENTS, HISTOGRAMS, SAMPLES, VERSIONS, load_run, name_runs
from tests.reports.made_up_run import make_run

SAMPLE = b'{"step": 0, "kind": "fixed", "index": 0, "prompt": "", "response": "", "tokens": %s}'
BAD_LINES = (
    b"5",
    b"null",
    b"[]",
    b'"x"',
    b"{}",
    b'{"step": "0"}',
    b'{"step": 1e999, "kind": {}, "start": [], "fired": 3}',
    SAMPLE % b'[5], "columns": {"kl": [0]}',
    SAMPLE % b'["a"], "columns": {"kl": [1, 2]}',
    SAMPLE % b'["a"], "columns": {"kl": ["1"]}',
    SAMPLE % b'["a"], "columns": {"kl": 1}',
    b'{"step": 0, "start": 0, "width": 0, "counts": [1]}',
    b'{"step": 0, "start": 1e300, "width": 1e-99, "counts": [1]}',
    b'{"step": 0, "start": 1, "width": 1e-300, "counts": [1]}',
    b'{"step": 0, "start": 0, "width": 1, "counts": [0, 0]}',
    b'{"step": 0, "since": 0, "fired": ["kl"], "readings": {"kl": 5}}',
    b'{"step": 0, "since": 0, "fired": [1]}',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"step": ' + b"9" * 10_000 + b"}",
    b'{"step": 0, "cou',
)


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
    assert run.skipped == {HISTOGRAMS: 1}


def test_steps_are_placed_in_their_iteration(runs):
    run = load_run(runs[0])
    assert [event["at"] for event in run.events] == [17]
    assert {h["step"] // 4 == h["at"] for h in run.histograms} == {True}


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
    without = {key: value for key, value in row.items() if key != "ref_logprob"}  # a run without a reference
    (tmp_path / "evaluations/val-step000002.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(without))
    samples = load_run(tmp_path).samples
    assert [(s["at"], s["index"], s["kl"], s["length"]) for s in samples] == [(2, 0, 0.5, 4), (2, 1, None, 4)]
    fixed = {"step": 0, "kind": "fixed", "index": 0, "prompt": "p", "response": "r", "tokens": [], "columns": {}}
    (tmp_path / "samples.jsonl").write_text(json.dumps(fixed))
    assert len(load_run(tmp_path).samples) == 1


def test_names_are_short_and_distinct(tmp_path):
    paths = [tmp_path / "a" / "s1", tmp_path / "b" / "s1"]
    assert name_runs(paths) == ["a/s1", "b/s1"]
    assert name_runs([paths[0], paths[0]]) == ["s1 (1)", "s1 (2)"]
    assert name_runs(paths[:1]) == ["s1"]


@pytest.mark.parametrize("name", [SAMPLES, HISTOGRAMS, EVENTS, "evaluations/val-step000003.jsonl"])
def test_lines_of_optional_files_that_are_not_theirs_are_skipped_and_counted(tmp_path, name):
    root = make_run(tmp_path / "run", collapsing=True, iterations=12)
    (root / SAMPLES).unlink()
    path = root / name
    path.parent.mkdir(exist_ok=True)
    good = path.read_bytes() if path.is_file() else b""
    path.write_bytes(b"\n\n" + b"\n".join(BAD_LINES) + b"\n" + good)
    run = load_run(root)
    assert run.skipped == {name: len(BAD_LINES)}
    assert len([*run.samples, *run.histograms, *run.events]) == 13  # those of the run itself
    main([str(root), "--out", str(tmp_path / "r.html")])
    told = f"Skipped, because it could not be read: run/{name} ({len(BAD_LINES)})."
    assert told in (tmp_path / "r.html").read_text()


def test_optional_files_that_are_no_text_no_object_or_no_file_are_counted(tmp_path):
    root = make_run(tmp_path / "run", collapsing=True, iterations=12)
    (root / VERSIONS).write_text("[1]")
    (root / CONFIG).write_bytes(b"a: \xff\n")
    (root / SAMPLES).unlink()
    (root / SAMPLES).mkdir()
    run = load_run(root)
    assert run.skipped == {VERSIONS: 1, SAMPLES: 1}
    assert run.versions == {}
    assert run.config == "a: \ufffd\n"
    main([str(root), "--out", str(tmp_path / "r.html")])
    assert "run/samples.jsonl (1); run/versions.json (1)." in (tmp_path / "r.html").read_text()


def test_a_line_separator_in_a_response_is_no_end_of_line(tmp_path):
    root = make_run(tmp_path / "run", collapsing=False, iterations=12)
    sample = {**json.loads((root / SAMPLES).read_text().splitlines()[0]), "response": "one\u2028two\x85three"}
    (root / SAMPLES).write_text(json.dumps(sample, ensure_ascii=False), encoding="utf-8")
    run = load_run(root)
    assert [s["response"] for s in run.samples] == [sample["response"]]
    assert run.skipped == Counter()


@pytest.mark.parametrize("content", [b"epoch,a\n0,\xff\n", b"a" * 200_000])
def test_metrics_that_cannot_be_read_are_one_line(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"must have a metrics.csv that can be read; .*metrics.csv: ") as told:
        load_run(tmp_path)
    assert "\n" not in str(told.value)


def test_metrics_of_a_strange_run_make_a_page(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,rollout/kl\nnan,inf,0.1\n0,0,1e999\n1,1,0.2,9,9\n")
    assert load_run(tmp_path).series["rollout/kl"] == [(0, 0.1), (1, 0.2)]


def test_file_names_are_those_the_callbacks_write():
    from lit_rlhf.callbacks import collapse_detector, reward_distribution, sample_logger
    from lit_rlhf.reports import run_data as load

    assert sample_logger.FILENAME == load.SAMPLES
    assert reward_distribution.FILENAME == load.HISTOGRAMS
    assert collapse_detector.FILENAME == load.EVENTS
