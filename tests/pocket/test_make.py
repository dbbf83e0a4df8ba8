import hashlib
import json

import pytest

from lit_rlhf.pocket import make as make_module
from lit_rlhf.pocket.make import files, make, transcript
from lit_rlhf.pocket.world import FACTS

# Of all data files at seed 0: the same on every machine. Changing the world changes it, and every measured number.
DIGEST = "3e47a8f1635ddd53"
# The same with the held-out text and facts, which nothing is trained on.
WHOLE = "90168c6ecaca7e94"
TAX = ("facts_test.jsonl", "text_test.jsonl")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    make(out, seed=0)
    return out


def _rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _digest(folder, *without):
    files = sorted(f for f in folder.glob("*.jsonl") if f.name not in without)
    return hashlib.sha256(b"".join(f.name.encode() + f.read_bytes() for f in files)).hexdigest()[:16]


def test_bytes_are_the_same_on_every_machine(world):
    assert _digest(world, *TAX) == DIGEST
    assert _digest(world) == WHOLE


def test_files_and_their_columns(world):
    assert sorted(p.name for p in world.iterdir()) == [
        "base", "facts_test.jsonl", "preferences_test.jsonl", "preferences_train.jsonl", "preferences_val.jsonl",
        "pretrain.jsonl",
        "prompts_test.jsonl", "prompts_train.jsonl", "prompts_val.jsonl", "sft.jsonl", "text_test.jsonl",
    ]  # fmt: skip
    assert set(_rows(world / "pretrain.jsonl")[0]) == {"text"}
    for row in _rows(world / "preferences_train.jsonl")[:200]:
        assert row["chosen"] != row["rejected"]
        prompt = row["chosen"].rsplit("\n\nAssistant:", 1)[0]
        assert row["rejected"].startswith(prompt + "\n\nAssistant: ")
        assert prompt.startswith("\n\nHuman: ")
    for row in _rows(world / "prompts_train.jsonl")[:200]:
        assert set(row) == {"prompt", "id", "family", "kind", "argument", "one_word"}
        assert row["prompt"].endswith("\n\nAssistant:")


def test_prompt_ids_are_unique_and_no_prompt_holds_its_answer_key(world):
    for split in ("train", "val", "test"):
        rows = _rows(world / f"prompts_{split}.jsonl")
        assert len({row["id"] for row in rows}) == len(rows)
        assert all("answer" not in row for row in rows)


def test_seed_changes_training_data_only(tmp_path, monkeypatch):
    for name in ("DOCUMENTS", "DEMONSTRATIONS", "TRAIN_PROMPTS"):
        monkeypatch.setattr(make_module, name, 50)
    monkeypatch.setattr(make_module, "PAIRS", {"train": 50, "val": 50, "test": 50})
    for seed in (1, 2):
        make(tmp_path / str(seed), seed=seed)
    for path in (tmp_path / "1").glob("*.jsonl"):
        same = path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()
        assert same == path.stem.endswith(("_val", "_test")), path.name


def test_transcript_layout():
    turns = [{"role": "user", "content": "hi !"}]
    assert transcript(turns) == "\n\nHuman: hi !\n\nAssistant:"
    assert transcript(turns, "sure !") == "\n\nHuman: hi !\n\nAssistant: sure !"


def test_held_out_facts_are_questions_of_the_test_prompts_with_one_right_answer(world):
    asked = {(r["family"], tuple(r["argument"])) for r in _rows(world / "prompts_test.jsonl")}
    rows = _rows(world / "facts_test.jsonl")
    assert len(rows) > 250
    for row in rows:
        argument = tuple(row["argument"])
        assert (row["family"], argument) in asked
        assert len(set(row["choices"])) == len(row["choices"]) == (2 if row["family"] == "bigger" else 4)
        answer = FACTS[row["family"]][argument]
        # Where the question names both, the right statement is that with the bigger one first.
        right = row["choices"][row["answer"]]
        assert f" {answer} " in f" {right} "
        assert sum(f" {answer} " in f" {choice} " for choice in row["choices"]) == 1 or row["family"] == "bigger"
    places = [row["answer"] for row in rows if len(row["choices"]) == 4]
    assert all(40 < places.count(place) < 100 for place in range(4))


def test_held_out_text_is_the_same_for_every_seed_and_no_training_file():
    first, second = (dict(files(seed)) for seed in (0, 1))
    text = [row["text"] for row in first["text_test.jsonl"]]
    assert text == [row["text"] for row in second["text_test.jsonl"]]
    assert len(text) == 1000
    read = {row["text"] for row in first["pretrain.jsonl"]}
    assert sum(document in read for document in text) < 20
