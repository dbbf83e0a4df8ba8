"""Pages of comparisons, tax and sheets in a headless browser, with hostile responses; a sheet answered there."""

from __future__ import annotations

import csv
import html
import io
import json
import re

import pytest

from lit_rlhf.evaluation.answers import answers_from_rows
from lit_rlhf.evaluation.comparison import judge_policies, summarize
from lit_rlhf.evaluation.intervals import Interval
from lit_rlhf.evaluation.judges import HumanJudge, Judge, Verdict
from lit_rlhf.evaluation.judges.sheet import sheet_rows
from lit_rlhf.evaluation.tax import LOSS, Measurement, Tax
from lit_rlhf.evaluation.verdicts import Judged
from lit_rlhf.reports.compare_figures import length_points, shares_chart, tax_chart
from lit_rlhf.reports.compare_page import MOST_PAIRS, write_comparison, write_sheet_page, write_tax
from tests.evaluation.made_up_answers import pairs, row
from tests.reports.browser import HOSTILE, look, needs_browser, visit


class Talks(Judge):
    """Gives every outcome in turn, with a reason nobody should run."""

    name = HOSTILE
    count = 0

    def compare(self, prompt, a, b):
        self.count += 1
        return Verdict(outcome=["win", "tie", "lose"][self.count % 3], reason=f"{HOSTILE} because", note=HOSTILE)


def policies(number=30, text=HOSTILE):
    def answers(name):
        rows = [row(i, f"{text} {name} {i}" * (1 + i % 4), prompt=f"{text} {i}") for i in range(number)]
        return answers_from_rows(rows)

    return {f"{text} SFT": answers("x"), f"{text} PPO": answers("y"), "third": answers("z")}


def written(tmp_path, found):
    judge = Talks()
    judged = judge_policies(found, judge)
    result = summarize(found, judged, judge, length_control=False)
    return write_comparison(result, judged, tmp_path / "compare.html")


@needs_browser
@pytest.mark.parametrize("width", [375, 1280])
def test_hostile_answers_reasons_and_names_are_shown_and_do_nothing(tmp_path, width):
    script = """
      seen.pairs = document.querySelectorAll(".verdict").length;
      const first = document.querySelector(".verdict"); first.open = true;
      seen.texts = [...first.querySelectorAll(".text")].map((n) => n.textContent);
      const shown = () => [...document.querySelectorAll(".verdict")].filter((n) => n.checkVisibility()).length;
      seen.before = shown(); document.querySelector("input.lose").click(); seen.after = shown();
    """
    seen = look(written(tmp_path, policies()), tmp_path, width=width, script=script)
    assert seen["title"].startswith("Against <img src=x onerror")
    assert seen["images"] == seen["resources"] == 0
    assert seen["plots"] == seen["drawn"] == 2
    assert seen["overflowing"] == 0
    assert seen["wide"] <= seen["inner"]
    assert seen["slips"] == ""
    assert (seen["pairs"], seen["before"], seen["after"]) == (60, 60, 40)
    assert "<script>document.title='owned'</script>" in seen["texts"][1]
    assert "because" in seen["texts"][3]


def test_of_many_pairs_some_of_each_outcome_are_shown_and_the_page_is_the_same_again(tmp_path):
    found = policies(4 * MOST_PAIRS, text="plain")
    text = written(tmp_path, found).read_text()
    for outcome in ("win", "tie", "lose"):
        assert text.count(f'class="verdict {outcome}"') == 2 * MOST_PAIRS
    assert written(tmp_path, found).read_text() == text


def test_bars_are_the_shares_and_points_hold_every_pair():
    found = policies(31, text="plain")
    judged = judge_policies(found, Talks())[0]
    result = summarize(found, [judged], Talks(), length_control=False)
    rate = result.table.policies[1].win_rates["all"]
    figure = shares_chart([("PPO", rate)])
    assert [bar.x[0] for bar in figure.data] == pytest.approx([100 * rate.win, 100 * rate.tie, 100 * rate.lose])
    points = length_points(judged)
    assert len(points) == 6
    assert [gap for gap, _ in points] == sorted(gap for gap, _ in points)
    few = Judged(a="a", b="b", pairs=judged.pairs[:2], verdicts=judged.verdicts[:2])
    assert len(length_points(few)) == 2


def made_up_tax(name="text"):
    values = {
        name: Interval(1.0, 1.1, 1.2),
        "PPO": Interval(1.4, 1.5, 1.6),
        "one": Interval(float("nan"), 1.0, float("nan")),
    }
    changes = {k: Interval(0.1, 0.2, 0.3) for k in ("PPO", "one")}
    found = Measurement(name=name, unit=LOSS, documents=9, values=values, changes=changes)
    return Tax(baseline=name, models=list(values), measurements=[found])


@needs_browser
def test_a_tax_is_a_bar_for_every_model(tmp_path):
    seen = look(write_tax(made_up_tax(HOSTILE), tmp_path / "tax.html"), tmp_path, width=700)
    assert (seen["plots"], seen["drawn"], seen["images"], seen["slips"]) == (1, 1, 0, "")
    assert seen["wide"] <= seen["inner"]
    tax = made_up_tax()
    assert list(tax_chart(tax.measurements[0], tax.models).data[0].y) == [1.1, 1.5, 1.0]


# ---------------------------------------------------------------- people


def act(page, folder, *scripts):
    """What each script (an async function's body that fills ``seen``) finds on the page, opened anew for each.

    One browser for all of them: what a page has stored reaches the disk only later. Each may run in a process of its
    own, which learns of it a moment later as well: one that finds nothing opens again, 20 times at the most.
    """
    text = re.sub(r"script-src [^;]*;", "script-src 'unsafe-inline';", page.read_text(encoding="utf-8"), count=1)
    for i, script in enumerate(scripts):
        probe = (
            "<script>addEventListener('load', async () => { const seen = {};"
            " await new Promise((r) => setTimeout(r, 50)); const tries = Number(location.search.slice(1));"
            f" if ({i} && !localStorage.length && tries < 20) {{ location.search = tries + 1; return; }}"
            " const press = (key, target = document.body) => target.dispatchEvent("
            "new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true })); const at = (id) => "
            f"document.getElementById(id); {script} parent.postMessage(seen, '*'); }});</script>"
        )
        (folder / f"visit-{i}.html").write_text(text.replace("</body>", probe + "</body>"), encoding="utf-8")
    frame = folder / "visits.html"
    frame.write_text(
        "<!doctype html><body><iframe id=frame src=visit-0.html></iframe><script>const all = [];"
        " addEventListener('message', (e) => { all.push(e.data); document.body.dataset.seen = JSON.stringify(all);"
        f" if (all.length < {len(scripts)}) document.getElementById('frame').src = `visit-${{all.length}}.html`; }});"
        "</script>"
    )
    dom = visit(frame, folder, "--dump-dom").stdout
    found = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', dom)[1]))
    assert len(found) == len(scripts)
    return found


DOWNLOAD = """
  let blob = null; const links = [];
  URL.createObjectURL = (each) => { blob = each; return "about:blank#"; };
  HTMLAnchorElement.prototype.click = function () { links.push(this.download); };
  at("download").click(); seen.csv = await blob.text(); seen.file = links[0];
"""


@needs_browser
def test_a_person_answers_the_sheet_in_the_browser_and_hands_it_in(tmp_path):
    """Keys and buttons, a comment, closing the page half way, the download; then the judge reads it."""
    good, bad = [f"good {HOSTILE} {i}" for i in range(6)], [f"bad {HOSTILE} {i}" for i in range(6)]
    found = pairs(good, bad)
    page = write_sheet_page(sheet_rows(found, seed=0), tmp_path / "sheet.html")
    take = """
      const side = () => (at("left").textContent.startsWith("good") ? "1" : "3");
      at("annotator").value = 'Ann "A", =1'; at("annotator").oninput();
    """
    first, second = act(
        page, tmp_path,
        take + """
      seen.start = at("progress").textContent; seen.texts = [at("prompt").textContent, at("left").textContent];
      at("comment").value = 'clear, "very"\\nclear'; press(side());
      press("1", at("comment"));  // typing in a field chooses nothing
      press("ArrowUp"); press(side() === "1" ? "ArrowLeft" : "ArrowRight");  // back, and the same again
      press("2"); seen.progress = at("progress").textContent;
      seen.images = document.images.length; seen.title = document.title;
    """,
        take + """
      seen.kept = at("progress").textContent;
      seen.pressed = ["1", "2", "3", "ArrowLeft", "ArrowDown", "ArrowRight"].map((key) => {
        press(key); press("ArrowUp"); return document.querySelector("[aria-pressed=true]").dataset.choice; });
      for (let i = 0; i < 4; i++) document.querySelector(`[data-choice=${side() === "1" ? "left" : "right"}]`).click();
      seen.end = at("progress").textContent;
    """ + DOWNLOAD,
    )  # fmt: skip
    assert first["start"] == "Pair 1 of 6; 0 judged"
    assert first["progress"] == "Pair 3 of 6; 2 judged"
    assert first["images"] == 0
    assert first["title"] == "Which answer is better?"
    assert "<script>document.title='owned'</script>" in first["texts"][1]
    assert second["kept"] == "Pair 3 of 6; 2 judged"  # opened anew in the same browser
    assert second["pressed"] == ["left", "tie", "right"] * 2
    assert second["end"].endswith("6 judged")
    assert re.fullmatch(r"Ann-A-1-\w{12}\.csv", second["file"])
    answered = tmp_path / "answered.csv"
    answered.write_text(second["csv"], encoding="utf-8", newline="")
    rows = list(csv.DictReader(io.StringIO(second["csv"])))
    assert rows[0]["comment"] == 'clear, "very"\nclear'
    assert {r["annotator"] for r in rows} == {'Ann "A", =1'}
    judge = HumanJudge(sheets=[str(answered)])
    judge.setup()
    judge.prepare(found)
    outcomes = [verdict.outcome for verdict in judge.judge(found)]
    assert sorted(outcomes) == ["tie", *["win"] * 5]


@needs_browser
def test_the_sheet_runs_its_own_script_under_its_own_policy(tmp_path):
    page = write_sheet_page(sheet_rows(pairs(["x"], ["y"]), seed=0), tmp_path / "sheet.html")
    done = visit(page, tmp_path, "--dump-dom")
    assert 'data-ready="yes"' in done.stdout
    assert "Pair 1 of 1; 0 judged" in done.stdout
    assert "Content Security Policy" not in done.stderr
    assert len(page.read_text()) < 30_000  # no chart library
    narrow = look(page, tmp_path, width=375)
    assert narrow["wide"] <= narrow["inner"]
    with pytest.raises(FileExistsError):
        write_sheet_page([], page)
