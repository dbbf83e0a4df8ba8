import hashlib
import json

import pytest

from lit_rlhf.pocket import make as make_module
from lit_rlhf.pocket.make import make, transcript

# Of all data files at seed 0: the same on every machine. Changing the world changes it, and every measured number.
DIGEST = "3e47a8f1635ddd53"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    make(out, seed=0)
    return out


def _rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _digest(folder):
    files = sorted(folder.glob("*.jsonl"))
    return hashlib.sha256(b"".join(f.name.encode() + f.read_bytes() for f in files)).hexdigest()[:16]


def test_bytes_are_the_same_on_every_machine(world):
    assert _digest(world) == DIGEST


def test_files_and_their_columns(world):
    assert sorted(p.name for p in world.iterdir()) == [
        "base", "preferences_test.jsonl", "preferences_train.jsonl", "preferences_val.jsonl", "pretrain.jsonl",
        "prompts_test.jsonl", "prompts_train.jsonl", "prompts_val.jsonl", "sft.jsonl",
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
