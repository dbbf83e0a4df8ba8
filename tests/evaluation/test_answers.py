"""Saved answers: what can be read, what is refused, and which answers stand beside each other."""

from __future__ import annotations

import json

import pytest

from lit_rlhf.evaluation.answers import pair_up, read_answers, saved_answers
from tests.evaluation.made_up_answers import answers, row, write


def test_rows_of_validation_are_read_with_their_turns(tmp_path):
    record = {"prompt": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: more?\n\nAssistant:", "kind": "x"}
    saved = {"row": 3, "sample": 1, "prompt": "<s>...", "response": "no", "ended": False, "record": record, "gold": 1.0}
    (answer,) = read_answers(write(tmp_path / "a.jsonl", [saved]))
    assert (answer.key, answer.sample, answer.text, answer.ended, answer.line) == ("3", 1, "no", False, 1)
    assert answer.prompt == "user: hi\n\nassistant: hello\n\nuser: more?"
    assert answer.record["kind"] == "x"
    assert answer.row["gold"] == 1.0


def test_rows_of_another_program_need_an_id_a_prompt_and_a_response(tmp_path):
    rows = [{"id": "q-1", "prompt": "what?", "response": "that"}, {"id": "q-2", "prompt": "who?", "response": ""}]
    first, second = read_answers(write(tmp_path / "a.jsonl", rows))
    assert (first.key, first.prompt, first.record) == ("q-1", "what?", {"id": "q-1", "prompt": "what?"})
    assert second.text == ""


def test_a_run_directory_and_its_export_mean_the_newest_test_else_validation(tmp_path):
    run = tmp_path / "run"
    write(run / "evaluations" / "val-step000010.jsonl", [row(0, "ten")])
    newest = write(run / "evaluations" / "val-step000020.jsonl", [row(0, "twenty")])
    (run / "export" / "final").mkdir(parents=True)
    assert saved_answers(run) == saved_answers(run / "export" / "final") == newest
    test = write(run / "evaluations" / "test-step000010.jsonl", [row(0, "test")])
    assert saved_answers(run) == saved_answers(run / "export" / "final") == test
    with pytest.raises(FileNotFoundError, match="lit-rlhf test"):
        saved_answers(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        saved_answers(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([row(0, "a"), row(0, "b")], r"rows 1 and 2 are both sample 0 of prompt 0"),
        ([row(0, "a"), {"id": 1, "prompt": "q"}], r"row 2: wrong types: expected an object with `response`"),
        ([{"prompt": "q", "response": "a"}], "expected `row` or `id`"),
        ([{"id": True, "prompt": "q", "response": "a"}], "expected `row` or `id`"),
        ([{**row(0, "a"), "sample": "x"}], "`sample` must be a whole number"),
        ([row(0, "a"), row(1, "b", prompt="")], "row 2: empty prompt"),
        ([], "holds no answer"),
    ],
)
def test_rows_that_cannot_be_used_are_one_line(tmp_path, rows, text):
    with pytest.raises(ValueError, match=text) as caught:
        read_answers(write(tmp_path / "a.jsonl", rows))
    assert "\n" not in str(caught.value)


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row(0, "a")) + "\n{oops\n")
    with pytest.raises(ValueError, match="row 2: not JSON"):
        read_answers(path)


def test_every_sample_meets_every_sample():
    own = answers(["a", "b"])
    others = [*answers(["x", "y"]), *answers(["x2", "y2"], sample=1)]
    found = [(pair.a.text, pair.b.text) for pair in pair_up(own, others)]
    assert found == [("a", "x"), ("a", "x2"), ("b", "y"), ("b", "y2")]


def test_different_prompt_sets_are_refused_with_the_first_difference():
    with pytest.raises(
        ValueError, match="SFT has no response to 1 of the 3 prompts of PPO, the first of them prompt 2"
    ):
        pair_up(answers(["a", "b", "c"]), answers(["x", "y"]), names=("PPO", "SFT"))
    with pytest.raises(ValueError, match="PPO has no response to 1 of the 3 prompts of SFT"):
        pair_up(answers(["x", "y"]), answers(["a", "b", "c"]), names=("PPO", "SFT"))
    assert len(pair_up(answers(["x", "y"]), answers(["a", "b", "c"]), subset=True)) == 2
    with pytest.raises(ValueError, match=r"Prompt 0 of PPO \('question 0'\) is another one in SFT \('else'\)"):
        pair_up(answers(["x"]), answers(["a"], prompt="else"), names=("PPO", "SFT"))
