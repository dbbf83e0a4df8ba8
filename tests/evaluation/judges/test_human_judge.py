"""People: the sheet that goes out, and the answered sheets that come in."""

from __future__ import annotations

import csv
import math

import pytest

from lit_rlhf.evaluation.judges import HumanJudge
from lit_rlhf.evaluation.judges.sheet import COLUMNS, pair_name, read_sheet, sheet_rows, write_csv
from tests.evaluation.made_up_answers import pairs

pytest.importorskip("krippendorff")
A, B = [f"good {i}" for i in range(30)], [f"bad {i}" for i in range(30)]


def answered(path, rows, choose, *, annotator="", comment=""):
    """A sheet with ``choose(left, right)`` filled in."""
    write_csv(rows, path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        content = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in content:
            choice = choose(row["left"], row["right"])
            writer.writerow({**row, "answer": choice, "annotator": annotator, "comment": comment})
    return str(path)


def good_side(left, right):
    return "left" if left.startswith("good") else "right"


def judged(found, **options):
    judge = HumanJudge(**options)
    judge.setup()
    judge.prepare(found)
    return judge, judge.judge(found)


def test_a_sheet_is_shuffled_and_blinded_and_its_answers_find_back(tmp_path):
    found = pairs(A, B)
    rows = HumanJudge(seed=3).questions(found)
    assert [row.prompt for row in rows] != [pair.prompt for pair in found]
    assert sorted(row.prompt for row in rows) == sorted(pair.prompt for pair in found)
    left = sum(row.left.startswith("good") for row in rows)
    assert 6 <= left <= 24  # a fair coin leaves this once in 10,000 seeds
    _, verdicts = judged(found, sheets=[answered(tmp_path / "s.csv", rows, good_side)], seed=3)
    assert {v.outcome for v in verdicts} == {"win"}


def test_the_order_of_the_policies_changes_no_name_and_turns_the_verdicts(tmp_path):
    forth, back = pairs(A, B), pairs(B, A)
    assert [pair_name(p, seed=0) for p in forth] == [pair_name(p, seed=0) for p in back]
    assert sheet_rows(forth, seed=0) == sheet_rows(back, seed=0)
    sheet = answered(tmp_path / "s.csv", sheet_rows(forth, seed=0), good_side)
    assert {v.outcome for v in judged(back, sheets=[sheet])[1]} == {"lose"}


def test_the_most_frequent_verdict_counts_and_agreement_is_measured(tmp_path):
    found = pairs(A, B)
    rows = sheet_rows(found, seed=0)
    sheets = [
        answered(tmp_path / "1.csv", rows, good_side, annotator="ann", comment="=clear"),
        answered(tmp_path / "2.csv", rows, good_side),  # named by its file
        answered(tmp_path / "3.csv", rows, lambda left, right: "left", annotator="lefty"),
    ]
    judge, verdicts = judged(found, sheets=sheets)
    assert {v.outcome for v in verdicts} == {"win"}
    assert verdicts[0].reason == "ann: =clear"
    assert judge.agreement.judges == ("ann", "2", "lefty")
    assert judge.agreement.units == 30
    assert -0.5 < judge.agreement.alpha < 0.8
    both, _ = judged(found, sheets=sheets[:2])
    assert both.agreement.same == 1.0
    assert math.isnan(both.agreement.alpha)  # one value only: nothing to tell from chance
    two, split = judged(found, sheets=[sheets[0], answered(tmp_path / "4.csv", rows, lambda *_: "tie", annotator="x")])
    assert {v.outcome for v in split} == {"tie"}
    assert split[0].note == "1 win / 1 tie"
    assert two.agreement.same == 0.0


def test_equal_and_empty_answers_are_not_asked(tmp_path):
    found = pairs(["same", "", "x"], ["same", "y", "z"])
    rows = sheet_rows(found, seed=0)
    assert len(rows) == 1
    _, verdicts = judged(found, sheets=[answered(tmp_path / "s.csv", rows, lambda *_: "tie")])
    assert [v.outcome for v in verdicts] == ["tie", "lose", "tie"]


def test_missing_rows_are_named_or_left_out(tmp_path):
    found = pairs(A, B)
    rows = sheet_rows(found, seed=0)
    sheet = answered(tmp_path / "s.csv", rows, lambda left, right: "" if "good 1" in left + right else "left")
    with pytest.raises(
        ValueError, match=r"11 of 30 pairs are judged by nobody: \w{12}, \w{12}, \w{12}, \.\.\."
    ) as caught:
        judged(found, sheets=[sheet])
    assert pair_name(found[1], seed=0) in str(caught.value)
    _, verdicts = judged(found, sheets=[sheet], allow_missing=True)
    assert sum(v is None for v in verdicts) == 11
    judge = HumanJudge(sheets=[sheet])
    judge.setup()
    with pytest.raises(ValueError, match="Nobody judged the answers to prompt 1"):
        judge.compare("", found[1].a, found[1].b)


def test_duplicates_strangers_and_other_words_are_named(tmp_path):
    found = pairs(A[:3], B[:3])
    rows = sheet_rows(found, seed=0)
    sheet = answered(tmp_path / "s.csv", rows, good_side, annotator="ann")
    copy = answered(tmp_path / "copy.csv", rows, good_side, annotator="ann")
    with pytest.raises(ValueError, match=r"copy.csv, line 2: ann has judged pair \w+ before, in .*s.csv, line 2"):
        judged(found, sheets=[sheet, copy])
    lines = (tmp_path / "s.csv").read_text().splitlines()
    (tmp_path / "twice.csv").write_text("\n".join([*lines, lines[-1]]))
    with pytest.raises(ValueError, match=r"twice\.csv, line 5: ann has judged"):
        read_sheet(tmp_path / "twice.csv")
    (tmp_path / "odd.csv").write_text("\n".join(lines).replace(",left,", ",yes,").replace(",right,", ",yes,"))
    with pytest.raises(ValueError, match=r"odd.csv, line 2: `answer` \('yes'\) must be left, right or tie"):
        read_sheet(tmp_path / "odd.csv")
    (tmp_path / "none.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no answered sheet: it has no column answer, pair"):
        read_sheet(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        read_sheet(tmp_path / "gone.csv")
    with pytest.raises(ValueError, match=r"none of these runs' \(1 such in all\).*same `seed` \(0\)"):
        judged(found[:2], sheets=[sheet])
    with pytest.raises(ValueError, match="none of these runs'"):
        judged(found, sheets=[sheet], seed=1)


def test_a_spreadsheet_runs_no_response(tmp_path):
    write_csv(sheet_rows(pairs(["=1+1", "+x", 'ok, "fine"\nyes'], ["-2", "@z", "no"]), seed=0), tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(encoding="utf-8-sig", newline="") as file:
        cells = {cell for row in list(csv.reader(file))[1:] for cell in row}
    assert {"'=1+1", "'+x", "'-2", "'@z", 'ok, "fine"\nyes', "no"} <= cells
    with pytest.raises(FileExistsError):
        write_csv([], tmp_path / "s.csv")
