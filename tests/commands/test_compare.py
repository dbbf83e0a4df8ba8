"""`lit-rlhf compare` as a user runs it: judges by name and by YAML, one line for what is wrong, what it leaves."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
import yaml

from lit_rlhf.cli import main
from lit_rlhf.evaluation.intervals import cluster_bootstrap
from lit_rlhf.pocket.gold import gold_score
from lit_rlhf.pocket.make import held_out_prompts, prompt_row
from lit_rlhf.pocket.responses import demonstrate
from lit_rlhf.pocket.tokenizer import build_tokenizer
from tests.evaluation.judges.chat_server import longer, says, serving
from tests.evaluation.made_up_answers import row, write

CONFIG = Path(__file__).parents[2] / "configs" / "pocket" / "compare.yaml"
SCORE = ("--judge", "ScoreJudge", "--judge.score", "gold", "--judge.tie_margin", "0.08")


def pocket_answers(seed, samples):
    rng = random.Random(seed)
    rows = []
    for i, prompt in enumerate(held_out_prompts("test")[::3]):
        for sample in range(samples):
            response = demonstrate(rng, prompt, helpful=0.3 + 0.2 * seed)
            saved = row(i, response, sample=sample, record=dict(prompt_row(prompt, f"test-{i}")), ended=True)
            rows.append({**saved, "tokens": len(response.split()), "logprob": -5.0, "score": rng.random()})
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Answers of three policies to pocket prompts, and the shipped config with this folder in it."""
    root = tmp_path_factory.mktemp("world")
    for seed, (name, samples) in enumerate([("sft", 4), ("ppo", 1), ("best", 1)]):
        write(root / name / "evaluations" / "test-step000000.jsonl", pocket_answers(seed, samples))
    build_tokenizer().save_pretrained(root / "tokenizer")
    text = CONFIG.read_text().replace("runs/pocket/sft/export/final", str(root / "tokenizer"))
    (root / "compare.yaml").write_text(text)
    return root


def compare(*words):
    main(["compare", *map(str, words)])


def refused(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        compare(*words)
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


def rows_of(folder):
    return [json.loads(line) for line in (folder / "evaluations" / "test-step000000.jsonl").open()]


def test_the_shipped_judge_gives_the_numbers_of_the_gold_scorer_term_by_term(world, tmp_path):
    """What `compare` printed before there were judges: saved gold scores, a margin of 0.08, clusters by argument."""
    compare("--config", world / "compare.yaml", f"SFT={world / 'sft'}", f"PPO={world / 'ppo'}", "--out", tmp_path / "r")
    from lit_rlhf.pocket.gold import prompt_from_record

    def gold(saved):
        return gold_score(prompt_from_record(saved["record"]), saved["response"], ended=True)

    others, halves, clusters, kinds, counts = {}, [], [], [], [0.0, 0.0, 0.0]
    for saved in rows_of(world / "sft"):
        others.setdefault(saved["row"], []).append(gold(saved))
    own = rows_of(world / "ppo")
    for saved in own:
        score, against = gold(saved), others[saved["row"]]
        wins = sum(score > x + 0.08 for x in against) / len(against)
        losses = sum(score < x - 0.08 for x in against) / len(against)
        for i, share in enumerate((wins, 1 - wins - losses, losses)):
            counts[i] += share / len(own)
        halves.append(wins + 0.5 * (1 - wins - losses))
        clusters.append((saved["record"]["family"], tuple(saved["record"]["argument"])))
        kinds.append(saved["record"]["kind"])
    sft, ppo = json.loads((tmp_path / "r.json").read_text())["policies"]
    rates = ppo["win_rates"]
    assert list(rates) == ["all", "helpful", "harmless"]
    assert [rates["all"][k] for k in ("win", "tie", "lose")] == pytest.approx(counts)
    for group in ("all", "helpful", "harmless"):
        kept = [i for i, kind in enumerate(kinds) if group in ("all", kind)]
        expected = cluster_bootstrap([halves[i] for i in kept], [clusters[i] for i in kept])
        assert (rates[group]["low"], rates[group]["rate"], rates[group]["high"]) == pytest.approx(expected)
    assert ppo["judge_score"] == pytest.approx(sum(map(gold, own)) / len(own))
    assert sft["judge_score"] == pytest.approx(sum(sum(x) for x in others.values()) / 4 / len(others))
    assert sft["win_rates"] == {}


def test_everything_is_written_beside_each_other(world, tmp_path, capsys):
    policies = [f"{name}={world / name}" for name in ("sft", "ppo", "best")]
    compare("--config", world / "compare.yaml", *policies, "--all-pairs", "true", "--out", tmp_path / "deep" / "r")
    shown = capsys.readouterr().out
    assert "Policies against sft" in shown
    assert "Against each other" in shown
    text = (tmp_path / "deep" / "r.md").read_text()
    assert text.startswith("| policy | win/tie/lose | win % all | win % helpful | win % harmless |")
    verdicts = [json.loads(line) for line in (tmp_path / "deep" / "r.verdicts.jsonl").open()]
    number = len(rows_of(world / "ppo"))
    assert len(verdicts) == 4 * number * 2 + number
    assert set(verdicts[0]) == {"a", "b", "prompt", "samples", "outcome", "reason", "scores", "votes", "note"}
    assert not list((tmp_path / "deep").glob("*.partial"))


def test_agreement_with_an_earlier_judge(world, tmp_path, capsys):
    pytest.importorskip("krippendorff")
    policies = [f"{name}={world / name}" for name in ("sft", "ppo")]
    compare("--config", world / "compare.yaml", *policies, "--out", tmp_path / "gold")
    score = ("--judge", "ScoreJudge", "--judge.score", "score", "--judge.tie_margin", "0.0")
    verdicts = tmp_path / "gold.verdicts.jsonl"
    capsys.readouterr()
    compare(*score, *policies, "--agree-with", f"gold={verdicts}", "--out", tmp_path / "score")
    assert "Agreement of judges" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "score.json").read_text())["agreements"]
    assert found["judges"] == ["score", "gold"]
    assert found["units"] == 4 * len(rows_of(world / "ppo"))
    assert -0.3 < found["alpha"] < 0.3  # a random score
    assert "this judge's own name" in refused(capsys, *score, *policies, "--agree-with", f"score={verdicts}")


def test_an_export_folder_and_a_file_do_too(world, tmp_path, capsys):
    (world / "ppo" / "export" / "final").mkdir(parents=True, exist_ok=True)
    file = world / "sft" / "evaluations" / "test-step000000.jsonl"
    compare("--config", world / "compare.yaml", f"SFT={file}", world / "ppo" / "export" / "final")
    assert "ppo" in capsys.readouterr().out


# ---------------------------------------------------------------- a chat model


@pytest.fixture
def two(tmp_path):
    a = write(tmp_path / "a.jsonl", [row(i, f"a brief one {i}") for i in range(6)])
    b = write(tmp_path / "b.jsonl", [row(i, f"a long and winding answer {i}") for i in range(6)])
    return a, b


def chat(url, cache):
    words = ("--judge", "ChatJudge", "--judge.model", "tiny", "--judge.base_url", url, "--judge.api_key_env", "null")
    return [*words, "--judge.cache", cache, "--judge.retries", "0"]


def test_a_chat_model_judges_and_its_bias_is_reported(two, tmp_path, capsys):
    pytest.importorskip("openai")
    with serving(longer) as server:
        compare(*two, *chat(server.url, tmp_path / "cache.jsonl"), "--out", tmp_path / "r")
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["policies"][1]["win_rates"]["all"]["win"] == 1.0
    assert result["order"] == {"asked": 6, "differing": 0, "first": 0.5, "unreadable": 0}
    assert "contradicts itself in 0 of 6 pairs" in capsys.readouterr().out
    verdict = json.loads((tmp_path / "r.verdicts.jsonl").read_text().splitlines()[0])
    assert verdict["votes"] == ["win", "win"]
    assert "The first one is better." in verdict["reason"]
    with serving(lambda _: says("A")) as server:
        compare(*two, *chat(server.url, tmp_path / "cache2.jsonl"), "--out", tmp_path / "biased")
    biased = json.loads((tmp_path / "biased.json").read_text())
    assert biased["policies"][1]["win_rates"]["all"]["tie"] == 1.0
    assert biased["order"]["first"] == 1.0


def test_a_judge_that_breaks_down_leaves_what_it_judged_and_goes_on(two, tmp_path, capsys):
    pytest.importorskip("openai")
    asked = []

    def breaks(text):
        asked.append(text)
        return longer(text) if len(asked) <= 5 else (500, {})

    with serving(breaks) as server:
        words = [*two, *chat(server.url, tmp_path / "cache.jsonl"), "--judge.concurrency", "1", "--out", tmp_path / "r"]
        text = refused(capsys, *words)
        assert "HTTP 500" in text
        assert "5 answers are kept" in text
        assert not (tmp_path / "r.json").exists()
        asked.clear()
        server.behavior = longer
        before = len(server.texts)
        compare(*words)
        assert len(server.texts) - before == 7
    assert (tmp_path / "r.json").exists()


# ---------------------------------------------------------------- people


def fill(sheet, out, choose):
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([{**r, "answer": choose(r["left"], r["right"])} for r in rows])
    return out


def test_a_sheet_goes_out_and_comes_in_again(two, tmp_path, capsys):
    compare(*two, "--judge", "HumanJudge", "--out", tmp_path / "study" / "people")
    assert "6 pairs to judge" in capsys.readouterr().out
    sheet, key = tmp_path / "study" / "people.sheet.csv", tmp_path / "study" / "people.key.json"
    assert "long and winding" in sheet.read_text(encoding="utf-8-sig")
    assert "a.jsonl" not in sheet.read_text(encoding="utf-8-sig")
    assert json.loads(key.read_text())["runs"] == {"a.jsonl": str(two[0].resolve()), "b.jsonl": str(two[1].resolve())}
    answered = fill(sheet, tmp_path / "study" / "answered.csv", lambda left, _: "left" if "long" in left else "right")
    compare(
        "--judge", "HumanJudge", "--sheet", answered, "--out", tmp_path / "result"
    )  # the key beside it names the runs
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["policies"][1]["name"] == "b.jsonl"
    assert result["policies"][1]["win_rates"]["all"]["win"] == 1.0
    assert result["judge"] == "people"
    assert "exists" in refused(capsys, *two, "--judge", "HumanJudge", "--out", tmp_path / "study" / "people")
    assert "gone.json" in refused(capsys, "--judge", "HumanJudge", "--sheet", answered, "--key", tmp_path / "gone.json")
    for text in ("{", "[]", '{"seed": "x", "runs": {}}', '{"seed": 1}'):
        (tmp_path / "bad.json").write_text(text)
        bad = refused(capsys, "--judge", "HumanJudge", "--sheet", answered, "--key", tmp_path / "bad.json")
        assert "bad.json) is no key of a sheet" in bad
    assert "where shall the sheet" in refused(capsys, *two, "--judge", "HumanJudge")


# ---------------------------------------------------------------- what is wrong


def test_bad_input_is_one_line(two, tmp_path, capsys):
    a, b = two
    assert "Who decides? `--judge`" in refused(capsys, a, b)
    gold = refused(capsys, a, b, "--judge", "gold")
    assert "there is no class 'gold'. For a score of the rows: `--judge ScoreJudge --judge.score gold`." in gold
    assert "`--judge.tie_margin` is needed. See" in refused(capsys, a, b, "--judge", "ScoreJudge", "--judge.score", "x")
    assert "Name a baseline and at least one policy" in refused(capsys, a, *SCORE)
    assert "`score` (gold) is not among its numbers" in refused(capsys, a, b, *SCORE)
    assert "Two are called 'x'" in refused(capsys, f"x={a}", f"x={b}", *SCORE)
    assert "gone.jsonl does not exist" in refused(capsys, a, tmp_path / "gone.jsonl", *SCORE)
    assert "`cluster_by` (family) is not a column" in refused(capsys, a, b, *SCORE, "--cluster-by", "family")
    assert "`--sheet` is for `--judge HumanJudge`" in refused(capsys, a, b, *SCORE, "--sheet", "x.csv")
    assert "0 keys lie beside" in refused(capsys, "--judge", "HumanJudge", "--sheet", tmp_path / "x.csv")
    fewer = write(tmp_path / "fewer.jsonl", [row(i, "x", gold=0.0) for i in range(4)])
    assert "has no response to 2 of the 6 prompts" in refused(capsys, f"A={fewer}", f"B={b}", *SCORE)
    other = write(tmp_path / "other.jsonl", [row(i, "x", prompt="else") for i in range(6)])
    assert "different prompt sets" in refused(capsys, f"A={a}", f"B={other}", *SCORE)
    twice = write(tmp_path / "twice.jsonl", [row(0, "x"), row(0, "y")])
    assert "rows 1 and 2 are both sample 0 of prompt 0" in refused(capsys, a, twice, *SCORE)
    assert "`tie_margin` (-1.0)" in refused(capsys, a, b, *SCORE[:-1], "-1.0")
    assert "--judge.help" in refused(capsys, a, b, "--judge", "ScorJudge")


def test_an_empty_answer_is_judged_and_said(two, tmp_path, capsys):
    empty = write(tmp_path / "empty.jsonl", [row(i, "" if i < 2 else "x", gold=0.0) for i in range(6)])
    other = write(tmp_path / "other.jsonl", [row(i, "y", gold=0.0) for i in range(6)])
    compare(f"A={other}", f"B={empty}", *SCORE)
    assert "2 of 6 responses of B are empty." in capsys.readouterr().out


def test_the_shipped_config_is_read_as_it_is():
    content = yaml.safe_load(CONFIG.read_text())
    assert content["judge"]["init_args"]["tie_margin"] == 0.08
    assert (content["cluster_by"], content["split_by"]) == (["family", "argument"], "kind")
