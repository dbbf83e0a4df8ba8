"""The demonstration's data: parts that share no dialogue, and halves in which length says nothing."""

from __future__ import annotations

import json
import random

import pytest
from real_model.data import BINS, VALIDATED, balanced, first_turn, paragraphs, part_of, prose, split

from lit_rlhf.data.loading import read_preferences


def write_pairs(path, count: int, seed: int = 0):
    """Dialogues with pairs at two depths; the shorter response is chosen in four of five."""
    draw, rows = random.Random(seed), []
    for place in range(count):
        first = f"\n\nHuman: question {place}"
        for depth in range(2):
            turns = first + f"\n\nAssistant: well\n\nHuman: and {place}?" * depth
            short, long = ("word " * draw.randint(1, 40) + f"{place}{depth}{end}" for end in "ab")
            short, long = sorted((short, long), key=len)
            chosen, rejected = (short, long) if draw.random() < 0.8 else (long, short)
            rows.append({"chosen": f"{turns}\n\nAssistant: {chosen}", "rejected": f"{turns}\n\nAssistant: {rejected}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    counts = split(write_pairs(folder / "pairs.jsonl", 400), folder)
    files = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in counts}
    assert {name: len(lines) for name, lines in files.items()} == counts
    return {name: [json.loads(line) for line in lines] for name, lines in files.items()}, folder


def dialogues(rows):
    return {row["dialogue"] for row in rows}


def test_parts_share_no_dialogue_and_lose_no_pair(parts) -> None:
    files, _ = parts
    a, b, test = (dialogues(files[name]) for name in ("a", "b", "test"))
    assert not a & b
    assert not (a | b) & test
    assert sum(len(files[name]) for name in ("a", "b", "test")) == 800
    assert all(len(part) > 80 for part in (a, b, test))


def test_prompts_are_one_a_dialogue_and_held_out_ones_are_divided(parts) -> None:
    files, _ = parts
    for name in ("prompts_a", "prompts_val", "prompts_test"):
        assert len(dialogues(files[name])) == len(files[name])
    assert dialogues(files["prompts_a"]) == dialogues(files["a"])
    assert len(files["prompts_val"]) == VALIDATED
    assert dialogues(files["prompts_val"]) | dialogues(files["prompts_test"]) == dialogues(files["test"])
    assert not dialogues(files["prompts_val"]) & dialogues(files["prompts_test"])


def test_more_data_moves_no_dialogue(tmp_path) -> None:
    split(write_pairs(tmp_path / "few.jsonl", 50), tmp_path / "few")
    split(write_pairs(tmp_path / "many.jsonl", 100), tmp_path / "many")
    for name in ("a", "b", "test"):
        few, many = ((tmp_path / size / f"{name}.jsonl").read_text().splitlines() for size in ("few", "many"))
        assert dialogues(map(json.loads, few)) <= dialogues(map(json.loads, many))
    assert {part_of(f"question {i}") for i in range(50)} == {"a", "b", "test"}


def test_balanced_pairs_say_nothing_by_length(parts) -> None:
    _, folder = parts
    whole, fair = (read_preferences([str(folder / f"{name}.jsonl")])[0] for name in ("a", "balanced_a"))

    def shorter_wins(records, low: int = 0, high: int = 10**9) -> float:
        gaps = [len(r.chosen) - len(r.rejected) for r in records]
        gaps = [gap for gap in gaps if gap and low < abs(gap) <= high]
        return sum(gap < 0 for gap in gaps) / len(gaps) if gaps else 0.5

    assert shorter_wins(whole) > 0.7
    assert shorter_wins(fair) == 0.5
    assert all(shorter_wins(fair, low, high) == 0.5 for low, high in zip((0, *BINS), BINS, strict=False))
    texts = {r.chosen for r in whole}
    assert {r.chosen for r in fair} < texts
    assert [r.chosen for r in balanced(fair)] == [r.chosen for r in fair]
    equal = [r for r in whole if len(r.chosen) == len(r.rejected)]
    assert len([r for r in fair if len(r.chosen) == len(r.rejected)]) == len(equal)


def test_dialogues_are_told_by_their_first_turn(parts) -> None:
    _, folder = parts
    record = read_preferences([str(folder / "a.jsonl")])[0][1]
    assert first_turn(record).startswith("question")


def test_prose_is_running_text(tmp_path) -> None:
    text = "It is a paragraph of running text. " * 8
    page = f"# Title\n\n{text}one\n\n```\n{text}code\n```\n\n- {text}list\n\n| {text} |\n\nshort\n\n{text}two\n"
    (tmp_path / "page.md").write_text(page)
    assert [block[-3:] for block in paragraphs(page)] == ["one", "two"]
    prose([tmp_path / "page.md"], tmp_path, count=1)
    train, test = ((tmp_path / f"prose_{name}.jsonl").read_text() for name in ("train", "test"))
    assert {json.loads(part)["text"][-3:] for part in (train, test)} == {"one", "two"}
