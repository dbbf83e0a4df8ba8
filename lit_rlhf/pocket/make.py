"""The pocket world as HH-format files and a base model folder."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.files import write_text
from lit_rlhf.pocket import tables
from lit_rlhf.pocket.annotator import Annotator, sample_pair
from lit_rlhf.pocket.responses import demonstrate, state, write_document
from lit_rlhf.pocket.tokenizer import write_base_model
from lit_rlhf.pocket.world import ANSWERS, ARGUMENTS, BIGGER, Prompt, Split, ask, sample_prompt, split_arguments

DOCUMENTS = 38_400
DEMONSTRATIONS = 11_200
PAIRS: dict[Split, int] = {"train": 16_000, "val": 600, "test": 600}
TRAIN_PROMPTS = 6_000
# Wordings of every held-out argument: the distinct prompts of the validation and test splits.
HELD_OUT_WORDINGS = 2
HELD_OUT_DOCUMENTS = 1_000
# Choices of a question of facts, the right one included: chance is one in as many.
CHOICES = 4
_SPEAKERS = {"user": "Human", "assistant": "Assistant"}

Row = Mapping[str, Any]


def transcript(messages: Sequence[Mapping[str, str]], response: str | None = None) -> str:
    r"""Turns in the HH layout, ``\n\nHuman: ...\n\nAssistant: ...``; without a response it ends with ``Assistant:``."""
    said = "".join(f"\n\n{_SPEAKERS[m['role']]}: {m['content']}" for m in messages)
    return f"{said}\n\nAssistant:" + ("" if response is None else f" {response}")


def prompt_row(prompt: Prompt, identity: str) -> Row:
    """A row of ``prompts_*.jsonl``: what is asked, in words and in the terms of the gold scorer, without the answer."""
    return {
        "prompt": transcript(prompt.messages),
        "id": identity,
        "family": prompt.family,
        "kind": prompt.kind,
        "argument": list(prompt.argument),
        "one_word": prompt.one_word,
    }


def held_out_prompts(split: Split) -> list[Prompt]:
    """The fixed prompts of a held-out split: every argument in a few wordings, whatever the data seed."""
    rng = random.Random(f"pocket/prompts/{split}")
    prompts = []
    for family in ARGUMENTS:
        for argument in split_arguments(family, split):
            wordings = rng.sample(range(len(tables.QUESTIONS[family])), HELD_OUT_WORDINGS)
            prompts += [ask(rng, family, argument, wording=wording) for wording in wordings]
    return prompts


def _documents(rng: random.Random) -> Iterator[Row]:
    for _ in range(DOCUMENTS):
        yield {"text": write_document(rng)}


def _demonstrations(rng: random.Random) -> Iterator[Row]:
    for _ in range(DEMONSTRATIONS):
        prompt = sample_prompt(rng)
        yield {"chosen": transcript(prompt.messages, demonstrate(rng, prompt))}


def _preferences(rng: random.Random, split: Split) -> Iterator[Row]:
    for _ in range(PAIRS[split]):
        prompt, chosen, rejected = sample_pair(rng, split, Annotator())
        yield {"chosen": transcript(prompt.messages, chosen), "rejected": transcript(prompt.messages, rejected)}


def held_out_facts(split: Split) -> list[Row]:
    """Multiple choice about held-out facts: a question, statements that differ in the answer, the right one's index.

    What is asked and the wordings are those of :func:`held_out_prompts`; lists, how-tos to be refused and one-word
    questions have no single statement for an answer.
    """
    rng = random.Random(f"pocket/facts/{split}")
    rows: list[Row] = []
    for prompt in held_out_prompts(split):
        if prompt.answer is None or prompt.one_word:
            continue
        pool = list(prompt.argument) if prompt.family == BIGGER else ANSWERS[prompt.family]
        wrong = [answer for answer in pool if answer != prompt.answer]
        answers = [prompt.answer, *rng.sample(wrong, min(CHOICES - 1, len(wrong)))]
        rng.shuffle(answers)
        template = rng.choice(tables.CLAIMS[prompt.family])
        rows.append(
            {
                "question": prompt.question,
                "choices": [state(prompt, answer, template) for answer in answers],
                "answer": answers.index(prompt.answer),
                "family": prompt.family,
                "argument": list(prompt.argument),
            }
        )
    return rows


def _train_prompts(rng: random.Random) -> Iterator[Row]:
    for index in range(TRAIN_PROMPTS):
        yield prompt_row(sample_prompt(rng), f"train-{index}")


def files(seed: int) -> Iterator[tuple[str, Iterable[Row]]]:
    """(file name, rows) of everything ``make`` writes; each file has its own generator, seeded by name and ``seed``."""

    def rng(name: str) -> random.Random:
        return random.Random(f"pocket/{name}/{seed}")

    yield "pretrain.jsonl", _documents(rng("pretrain"))
    yield "sft.jsonl", _demonstrations(rng("sft"))
    for split in PAIRS:
        # Held-out pairs do not depend on the seed, so that accuracies of several seeds compare.
        source = rng("preferences") if split == "train" else random.Random(f"pocket/preferences/{split}")
        yield f"preferences_{split}.jsonl", _preferences(source, split)
    yield "prompts_train.jsonl", _train_prompts(rng("prompts"))
    # What alignment may cost: text and facts of the world that no stage reads.
    text = random.Random("pocket/text/test")
    yield "text_test.jsonl", ({"text": write_document(text)} for _ in range(HELD_OUT_DOCUMENTS))
    yield "facts_test.jsonl", held_out_facts("test")
    for split in ("val", "test"):
        rows = [prompt_row(p, f"{split}-{i}") for i, p in enumerate(held_out_prompts(split))]
        yield f"prompts_{split}.jsonl", rows


def make(out: Path, *, seed: int = 0) -> list[Path]:
    """Write the data files into ``out`` and the untrained base model into ``out/base``.

    Args:
        out: Created if need be; files of an earlier call are overwritten.
        seed: Of the sampled data and of the model's initialization; the world and its splits never change.

    Returns:
        What was written.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, rows in files(seed):
        path = out / name
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        written.append(path)
    write_base_model(out / "base", seed=seed)
    return [*written, out / "base"]
