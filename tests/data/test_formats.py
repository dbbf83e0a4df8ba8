"""Every format, every reason to refuse a row, and the recognition of formats."""

from __future__ import annotations

import json

import pytest

from lit_rlhf.data.formats import RowFormat
from lit_rlhf.data.loading import read_dialogues, read_preferences, read_prompts, read_sft
from lit_rlhf.data.records import DialogueRecord, Message, Reason, TextRecord
from lit_rlhf.data.text import TextFormat

from .conftest import hh

USER, BOT = "user", "assistant"


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": (USER, BOT)[i % 2], "content": text} for i, text in enumerate(texts)]


def test_hh_pair_is_read_turn_by_turn(write):
    context = "\n\nHuman: a\n\nAssistant: b"
    row = {"chosen": context + hh("c", " good\n\nreply "), "rejected": context + hh("c", "bad"), "subset": "mine"}
    records, report = read_preferences(write("x.jsonl", [row]))
    assert records[0].prompt == (Message(USER, "a"), Message(BOT, "b"), Message(USER, "c"))
    assert (records[0].chosen, records[0].rejected) == ("good\n\nreply", "bad")
    assert (records[0].margin, records[0].subset, records[0].line) == (None, "mine", 1)
    assert records[0].raw == row
    assert next(iter(report.sources.values())).format == "hh"


@pytest.mark.parametrize(
    ("path", "subset"),
    [
        ("helpful-base/train.jsonl.gz", "helpful"),
        ("hh_harmless_x.jsonl", "harmless"),
        ("helpful/harmless.jsonl", None),
        ("train.jsonl", None),
    ],
)
def test_subset_comes_from_the_folder_or_file_name(write, hh_rows, path, subset):
    assert read_preferences(write(path, hh_rows))[0][0].subset == subset


def test_hh_gives_dialogues_and_prompts_too(write, hh_rows):
    path = write("x.jsonl", hh_rows)
    assert read_dialogues(path)[0][3].messages == (Message(USER, "Q3"), Message(BOT, "good 3"))
    assert read_prompts(path)[0][3].prompt == (Message(USER, "Q3"),)


def test_moss_pair_with_strength_label(write):
    row = {"chosen": ["q", "a", "q2", "good"], "rejected": ["q", "a", "q2", "bad"], "mean preference difference": -0.4}
    records, _ = read_preferences(write("x.json", [row]))
    assert records[0].margin == -0.4
    assert [m.role for m in records[0].prompt] == [USER, BOT, USER]
    assert records[0].chosen == "good"


def test_moss_prompts_and_sft_turns(write):
    assert read_prompts(write("p.json", [["q", "a", "q2"]]))[0][0].prompt[-1] == Message(USER, "q2")
    assert read_dialogues(write("s.json", [["q", "a"]]))[0][0].messages == (Message(USER, "q"), Message(BOT, "a"))


def test_moss_speakers_are_read_and_checked(write):
    rows = [["Human: q", "Assistant: a"], ["<|Human|>q", "<|MOSS|>a"], ["Human: q", "Human: r"], ["Human: q", "x", "y"]]
    records, report = read_dialogues(write("s.json", rows))
    assert [r.messages for r in records] == [(Message(USER, "q"), Message(BOT, "a"))] * 2
    assert [r.reason for r in report.rejected] == [Reason.REPEATED_ROLE, Reason.WRONG_TYPES]


def test_messages_with_system_turn_and_extra_keys(write):
    messages = [{"role": "system", "content": "be kind"}, *turns("q", "a")]
    path = write("x.jsonl", [{"messages": messages, "id": 7}])
    assert read_dialogues(path)[0][0].messages[0] == Message("system", "be kind")
    prompt = read_prompts(path)[0][0]
    assert [m.content for m in prompt.prompt] == ["be kind", "q"]
    assert prompt.extra == {"id": 7}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad", "margin": 2},
        {"prompt": turns("q"), "chosen": turns("x", "good")[1:], "rejected": turns("x", "bad")[1:], "margin": 2},
        {"chosen": turns("q", "good"), "rejected": turns("q", "bad"), "margin": 2},
        {"prompt": turns("q"), "chosen": turns("q", "good"), "rejected": turns("q", "bad"), "margin": 2},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " good", "rejected": " bad", "margin": 2},
    ],
)
def test_columns_as_strings_messages_and_transcripts(write, row):
    (record,), report = read_preferences(write("x.jsonl", [row]))
    assert (record.prompt, record.chosen, record.rejected) == ((Message(USER, "q"),), "good", "bad")
    assert record.margin == 2.0
    assert next(iter(report.sources.values())).format == "columns"


def test_columns_for_imitation(write):
    assert read_dialogues(write("x.jsonl", [{"prompt": "q", "completion": "a"}]))[0][0].messages[1] == Message(BOT, "a")


def test_plain_prompts_keep_their_other_keys(write):
    (record,), _ = read_prompts(write("x.jsonl", [{"prompt": "2+2?", "answer": 4}]))
    assert (record.prompt, record.extra) == ((Message(USER, "2+2?"),), {"answer": 4})


def test_sft_reads_texts_and_dialogues_together(write, hh_rows):
    records, report = read_sft([write("x.jsonl", hh_rows), write("y.jsonl", [{"text": " a b "}])])
    assert isinstance(records[0], DialogueRecord)
    assert records[-1] == TextRecord(text=" a b ", source=records[-1].source, line=1)
    assert {s.format for s in report.sources.values()} == {"hh", "text"}


GOOD = json.dumps({"chosen": hh("q", "good"), "rejected": hh("q", "bad")}).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", Reason.NOT_JSON),
        (b'{"chosen": ' + b"[" * 100_000, Reason.NOT_JSON),
        (b'{"chosen": "\xff"}', Reason.NOT_UTF8),
        (b'{"chosen": "\\n\\nHuman: \\ud800"}', Reason.NOT_UTF8),
        (b"3", Reason.WRONG_TYPES),
        (b'{"chosen": 3, "rejected": 4}', Reason.WRONG_TYPES),
        ({"chosen": hh("q", "a"), "rejected": None}, Reason.WRONG_TYPES),
        ({"chosen": hh("q", "a"), "rejected": hh("q", "b"), "margin": "big"}, Reason.WRONG_TYPES),
        ({"chosen": hh("q", "a"), "rejected": hh("q", "b"), "margin": float("nan")}, Reason.WRONG_TYPES),
        ({"chosen": hh("q", "a"), "rejected": hh("q", "b"), "margin": 10**400}, Reason.WRONG_TYPES),
        ({"chosen": hh("q", " "), "rejected": hh("q", "b")}, Reason.EMPTY_RESPONSE),
        ({"chosen": hh("", "a"), "rejected": hh("", "b")}, Reason.EMPTY_PROMPT),
        ({"chosen": hh("", "x") + hh("q", "a"), "rejected": hh("", "x") + hh("q", "b")}, Reason.EMPTY_TURN),
        ({"chosen": hh("q", "a"), "rejected": hh("q", "a ")}, Reason.EQUAL_RESPONSES),
        ({"chosen": hh("q", "a"), "rejected": hh("r", "b")}, Reason.DIFFERING_PROMPTS),
        ({"chosen": hh("q", "a\n\nAssistant: c"), "rejected": hh("q", "b")}, Reason.REPEATED_ROLE),
        ({"chosen": hh("q", "a\n\nHuman: c"), "rejected": hh("q", "b")}, Reason.ENDS_WITH_HUMAN),
        ({"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, Reason.STARTS_WITH_ASSISTANT),
    ],
)
def test_bad_row_is_counted_with_line_and_reason(write, line, reason):
    bad = line if isinstance(line, bytes) else json.dumps(line).encode()
    path = write("x.jsonl", GOOD + b"\n\n" + bad + b"\n" + GOOD.replace(b"good", b"better") + b"\n")
    records, report = read_preferences(path)
    assert [(r.line, r.reason) for r in report.rejected] == [(3, reason)]
    assert (report.read, report.accepted, len(records)) == (3, 2, 2)
    with pytest.raises(ValueError, match=rf"1 of 3 rows cannot be used: .*x\.jsonl:3: {reason.value}"):
        read_preferences(path, on_bad_row="error")


def test_one_bad_byte_in_a_json_list_refuses_its_row_only(write):
    records, report = read_sft(write("x.json", b'[{"text": "a"}, {"text": "\xff"}, {"text": "b"}]'))
    assert [r.text for r in records] == ["a", "b"]
    assert [(r.line, r.reason) for r in report.rejected] == [(2, Reason.NOT_UTF8)]


def test_prompt_must_end_with_the_human(write):
    rows = [{"prompt": turns("q")}, {"prompt": turns("q", "a")}, {"prompt": " "}]
    _, report = read_prompts(write("x.jsonl", rows))
    assert [r.reason for r in report.rejected] == [Reason.ENDS_WITH_ASSISTANT, Reason.EMPTY_PROMPT]


def test_unknown_format_names_the_keys_and_the_candidates(write):
    with pytest.raises(ValueError, match=r"not recognized for preference data.*question: str.*`hh`.*`moss`.*`columns`"):
        read_preferences(write("x.jsonl", [{"question": "a"}]))


def test_ambiguous_format_names_both(write):
    row = {"prompt": "q", "chosen": hh("q", "a"), "rejected": hh("q", "b")}
    with pytest.raises(ValueError, match=r"ambiguous: `hh` .*`columns`.*format="):
        read_preferences(write("x.jsonl", [row]))
    assert read_preferences(write("x.jsonl", [row]), format="hh")[0][0].chosen == "a"


def test_mixed_rows_are_ambiguous_not_guessed(write, hh_rows):
    rows = [*hh_rows, {"prompt": "q", "chosen": "a", "rejected": "b"}]
    with pytest.raises(ValueError, match=r"ambiguous: `hh` \(10 of 11 rows\), `columns` \(1 of 11 rows\)"):
        read_preferences(write("x.jsonl", rows))


def test_a_minority_does_not_decide_the_format(write, hh_rows):
    with pytest.raises(ValueError, match="only 1 of the first 4 rows look like `hh`"):
        read_preferences(write("x.jsonl", [{"a": 1}] * 3 + hh_rows[:1]))


def test_format_name_must_exist_and_give_the_kind(write, hh_rows):
    with pytest.raises(
        ValueError, match=r"`format` \('text'\) must be one of hh, moss, columns, sharegpt for preference data"
    ):
        read_preferences(write("x.jsonl", hh_rows), format="text")


def test_a_format_that_promises_what_it_does_not_define_is_refused():
    with pytest.raises(TypeError, match=r"`Half\.kinds` has 'prompt', so the class must define `prompt`"):

        class Half(RowFormat):
            kinds = frozenset({"prompt"})

    with pytest.raises(TypeError, match=r"abstract method.*matches"):
        type("NoMatch", (RowFormat,), {"kinds": frozenset()})()
    with pytest.raises(TypeError, match="Format `text` gives no prompts"):
        TextFormat().prompt({"text": "a"})
