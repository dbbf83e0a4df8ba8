from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_rlhf import cli
from lit_rlhf.commands.score import load_scorer, main
from lit_rlhf.data.records import Message, RowError
from lit_rlhf.data.template import encode_prompt, encode_response
from lit_rlhf.models.loading.scalar import load_scalar_model
from lit_rlhf.pocket.tokenizer import write_base_model
from lit_rlhf.reward_report.response_scorer import ResponseScorer

ASK, REPLY, OTHER = "what is the capital of france ?", "it is paris .", "i do not know . it is a city ."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reward model folder with a fresh head."""
    base = tmp_path_factory.mktemp("base")
    write_base_model(base, seed=0)
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("reward")
    load_scalar_model(base, head="fresh").save_pretrained(out, AutoTokenizer.from_pretrained(base))
    return out


@pytest.fixture(scope="module")
def scorer(folder) -> ResponseScorer:
    return load_scorer(str(folder))


@pytest.fixture(scope="module")
def reference(folder):
    """Score of (prompt, response) by plain transformers."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)

    def score(prompt: str, response: str, *, eos: bool = True) -> float:
        ids = encode_prompt(tokenizer, [Message("user", prompt)]) + encode_response(tokenizer, response)
        with torch.no_grad():
            return model(torch.tensor([ids if eos else ids[:-1]])).logits.item()

    return score


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def hh(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    start = f"\n\nHuman: {prompt}\n\nAssistant: "
    return {"chosen": start + chosen, "rejected": start + rejected}


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_get_the_scores_of_plain_transformers(folder, reference, tmp_path, capsys):
    prompts = [f"what is the capital of {place} ?" for place in ("france", "japan", "peru")]
    rows = [hh(prompt, REPLY, OTHER) for prompt in prompts]
    data, out = write(tmp_path / "harmless.jsonl", [*rows, hh(ASK, "", OTHER)]), tmp_path / "deep" / "scores.jsonl"
    main(["--model", str(folder), data, "--out", str(out)])
    scores = read(out)
    assert [row["line"] for row in scores] == [1, 2, 3]
    assert {row["subset"] for row in scores} == {"harmless"}
    for row, prompt in zip(scores, prompts, strict=True):
        assert row["chosen_score"] == pytest.approx(reference(prompt, REPLY), abs=1e-5)
        assert row["rejected_score"] == pytest.approx(reference(prompt, OTHER), abs=1e-5)
        assert row["difference"] == row["chosen_score"] - row["rejected_score"]
    err = capsys.readouterr().err
    assert "3 of 4 rows accepted" in err
    assert "1 empty response" in err
    assert "accuracy" in err


def test_single_responses_go_to_standard_output(folder, reference, tmp_path, capsys):
    rows = [{"messages": [{"role": "user", "content": ASK}, {"role": "assistant", "content": REPLY}]}]
    main(["--model", str(folder), write(tmp_path / "chat.jsonl", rows)])
    row = json.loads(capsys.readouterr().out)
    assert row["score"] == pytest.approx(reference(ASK, REPLY), abs=1e-5)


def test_predictions_are_scored_after_the_prompt_of_their_record(folder, reference, tmp_path):
    record = {"prompt": f"\n\nHuman: {ASK}\n\nAssistant:", "id": 7}
    rows = [
        {"prompt": f"<bos>human: {ASK} assistant:", "response": REPLY, "ended": True, "record": record},
        {"prompt": "", "response": REPLY, "ended": False, "record": record},
        {"prompt": "", "response": "", "ended": True, "record": record},
        {"prompt": "", "response": 3, "record": record},
    ]
    data, out = write(tmp_path / "predictions.jsonl", rows), tmp_path / "scores.jsonl"
    with pytest.raises(ValueError, match=r"1 of 4 rows cannot be used: .*predictions.jsonl:4: wrong types"):
        main(["--model", str(folder), data, "--format", "predictions", "--on-bad-row", "error"])
    main(["--model", str(folder), data, "--format", "predictions", "--out", str(out)])
    scores = [row["score"] for row in read(out)]
    assert scores[0] == pytest.approx(reference(ASK, REPLY), abs=1e-5)
    assert scores[1] == pytest.approx(reference(ASK, REPLY, eos=False), abs=1e-5)
    assert scores[2] == pytest.approx(reference(ASK, ""), abs=1e-5)
    assert len(scores) == 3
    assert scores[0] != scores[1]


def test_predictions_are_recognized(folder, tmp_path, capsys):
    rows = [{"prompt": "x", "response": REPLY, "record": {"prompt": ASK}}]
    main(["--model", str(folder), write(tmp_path / "p.jsonl", rows)])
    assert "format: predictions" in capsys.readouterr().err


def test_report_of_pairs_with_probes(folder, tmp_path, capsys):
    rows = [hh(f"what is the capital of {place} ?", REPLY, OTHER) for place in ("france", "japan")]
    data = write(tmp_path / "pairs.jsonl", rows)
    main(["--model", str(folder), data, "--report", str(tmp_path / "report"), "--out", str(tmp_path / "s.jsonl")])
    report = json.loads((tmp_path / "report" / "reward_report.json").read_text())
    assert report["pairs"] == 2
    assert [probe["name"] for probe in report["probes"]][:3] == ["empty", "repeated", "truncated"]
    assert "reward_report.html" in capsys.readouterr().err


def test_report_of_single_responses_is_refused_before_the_model_loads(tmp_path):
    rows = [{"messages": [{"role": "user", "content": ASK}, {"role": "assistant", "content": REPLY}]}]
    with pytest.raises(ValueError, match="`--report` needs preference pairs"):
        main(["--model", "no/model", write(tmp_path / "chat.jsonl", rows), "--report", str(tmp_path / "r")])


def test_too_long_rows_are_counted(folder, tmp_path, capsys):
    rows = [hh(ASK, REPLY, OTHER), hh(ASK, "paris " * 100, OTHER)]
    out = tmp_path / "s.jsonl"
    main(["--model", str(folder), write(tmp_path / "p.jsonl", rows), "--max-length", "60", "--out", str(out)])
    assert len(read(out)) == 1
    assert "1 of 2 rows accepted" in capsys.readouterr().err


def test_what_the_user_can_mend_is_one_line(folder, tmp_path, capsys):
    data = write(tmp_path / "p.jsonl", [hh(ASK, REPLY, OTHER)])
    cases = [
        (["--model", str(tmp_path / "none"), data], "none"),
        (["--model", str(folder), str(tmp_path / "gone.jsonl")], "gone.jsonl"),
        (["--model", str(folder), data, "--template", "nope"], "`template` ('nope')"),
        (["--model", str(folder), data, "--max-length", "10000000"], "context"),
        (["--model", str(folder), data, "--max-batch-tokens", "0"], "`max_batch_tokens` (0) must be at least 1"),
    ]
    for words, expected in cases:
        with pytest.raises(SystemExit, match="2"):
            cli.main(["score", *words])
        err = capsys.readouterr().err
        assert expected in err
        assert err.count("\n") == 1
        assert "Traceback" not in err


class TestResponseScorer:
    def test_batching_changes_nothing(self, scorer, folder):
        requests = [([Message("user", ASK)], response) for response in (REPLY, OTHER, "", REPLY + " " + OTHER)]
        small = load_scorer(str(folder), max_batch_tokens=1)
        assert small(requests) == pytest.approx(scorer(requests), abs=1e-5)

    def test_prompt_as_text_messages_or_ids_is_the_same(self, scorer):
        ids = encode_prompt(scorer.tokenizer, [Message("user", ASK)])
        one, two, three = scorer([(ASK, REPLY), ([Message("user", ASK)], REPLY), (ids, REPLY)])
        assert one == pytest.approx(two, abs=1e-6)
        assert one == pytest.approx(three, abs=1e-6)

    def test_a_pair_shares_its_prompt_even_when_only_one_response_is_long(self, folder, scorer):
        turns = [Message("user", ASK), Message("assistant", REPLY), Message("user", ASK)]
        (whole, _), dropped = scorer.encode_pair(turns, "paris " * 12, "paris")
        assert dropped == 0
        short = load_scorer(str(folder), max_length=len(whole) - 1)
        (chosen, rejected), dropped = short.encode_pair(turns, "paris " * 12, "paris")
        assert dropped == 2
        shared = len(rejected) - short.response_length("paris")
        assert chosen[:shared] == rejected[:shared] == encode_prompt(scorer.tokenizer, turns[2:])
        assert len(chosen) < len(whole)

    def test_encode_refuses_and_call_cuts_what_is_too_long(self, folder):
        scorer = load_scorer(str(folder), max_length=16)
        with pytest.raises(RowError, match="too long"):
            scorer.encode([Message("user", ASK * 9)], REPLY)
        cut = scorer._cut(list(range(100, 130)), "paris " * 50)
        assert len(cut) == 16
        assert cut[:8] == list(range(122, 130))
        assert cut[-1] == scorer.tokenizer.eos_token_id
        assert len(scorer([(ASK * 9, "paris " * 50)])) == 1

    def test_refuses_a_length_that_holds_nothing(self, scorer):
        with pytest.raises(ValueError, match=r"`max_length` \(3\)"):
            ResponseScorer(scorer.model, scorer.tokenizer, max_length=3)


def test_what_is_scored_is_kept_when_the_command_ends_early(folder, tmp_path, monkeypatch, capsys):
    rows = [hh(ASK, REPLY, OTHER) for _ in range(4)]
    data, out = write(tmp_path / "pairs.jsonl", rows), tmp_path / "scores.jsonl"
    monkeypatch.setattr("lit_rlhf.commands.score._CHUNK", 2)
    monkeypatch.setattr("lit_rlhf.commands.score._EVERY", 0.0)
    calls, whole = [], ResponseScorer.score_ids

    def fails_later(self, rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(ResponseScorer, "score_ids", fails_later)
        with pytest.raises(KeyboardInterrupt):
            main([data, "--model", str(folder), "--out", str(out)])
    part = tmp_path / "scores.jsonl.part"
    kept = read(part)
    assert len(kept) == 2
    assert not out.exists()
    main([data, "--model", str(folder), "--out", str(out)])
    assert not part.exists()
    assert read(out)[:2] == kept
    told = capsys.readouterr().err
    assert "scored 2/4, " in told
    assert "the longer response wins 1.000, the shorter 0.000" in told or "wins 0.000, the shorter 1.000" in told
