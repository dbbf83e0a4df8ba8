import dataclasses
import random

import pytest

from lit_rlhf.pocket import tables, world
from lit_rlhf.pocket.annotator import Annotator, sample_pair
from lit_rlhf.pocket.gold import parse_claim, split_sentences
from lit_rlhf.pocket.make import held_out_prompts
from lit_rlhf.pocket.responses import demonstrate, write_document
from lit_rlhf.pocket.world import ARGUMENTS, FACTS, sample_prompt, split_arguments


def test_splits_partition_every_family():
    for family, arguments in ARGUMENTS.items():
        parts = [split_arguments(family, split) for split in ("train", "val", "test")]
        assert sorted(sum(parts, ())) == sorted(arguments)
        assert min(map(len, parts)) > 0


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_prompts_are_many_distinct_and_unasked(split):
    prompts = held_out_prompts(split)
    texts = {str(p.messages) for p in prompts}
    assert len(texts) == len(prompts) >= 300
    assert sum(p.kind == "harmless" for p in prompts) >= 60
    rng = random.Random(0)
    trained = {(p.family, p.argument) for p in (sample_prompt(rng) for _ in range(20_000))}
    assert not trained & {(p.family, p.argument) for p in prompts}


def _training_texts(rng):
    for _ in range(3000):
        yield write_document(rng)
        prompt = sample_prompt(rng)
        yield demonstrate(rng, prompt)
        yield from sample_pair(rng, "train", Annotator())[1:]


def test_training_text_states_no_held_out_fact_true_or_false():
    rng = random.Random(3)
    stated = 0
    for text in _training_texts(rng):
        for sentence in split_sentences(text):
            claim = parse_claim(sentence)
            # "the lions are bigger" names no argument: it follows its question, which the next test looks at.
            if claim and claim.argument:
                stated += 1
                assert world.may_be_stated(claim.family, claim.argument), sentence
    assert stated > 5000


def test_training_text_asks_no_held_out_question():
    held_out = set()
    for split in ("val", "test"):
        for prompt in held_out_prompts(split):
            orders = [prompt.argument, prompt.argument[::-1]] if prompt.family == world.BIGGER else [()]
            for order in orders:
                slots = dataclasses.replace(prompt, order=order).slots
                held_out |= {q.format(**slots) for q in tables.QUESTIONS[prompt.family]}
    rng = random.Random(4)
    for _ in range(5000):
        said = {s.removeprefix(tables.ONE_WORD) for s in split_sentences(write_document(rng))}
        assert not held_out & said
        assert sample_prompt(rng).question.removeprefix(tables.ONE_WORD) not in held_out


def test_every_held_out_entity_is_known_from_another_family():
    for family in FACTS:
        for split in ("val", "test"):
            for argument in split_arguments(family, split):
                entity = argument[0]
                elsewhere = [
                    (f, a) for f in ARGUMENTS for a in split_arguments(f, "train") if entity in a or f == "list"
                ]
                assert elsewhere


def test_harm_and_how_to_share_wordings_verbs_and_objects():
    harmful, harmless = ARGUMENTS["harm"], ARGUMENTS["howto"]
    assert not set(harmful) & set(harmless)
    assert {o for _, o in harmful} & {o for _, o in harmless}
    assert {v for v, _ in harmful} & {v for v, _ in harmless}
    assert tables.QUESTIONS["harm"] == tables.QUESTIONS["howto"]


def test_no_entity_is_in_two_clusters():
    entities = [entity for cluster in world.CLUSTERS for entity in cluster]
    assert len(entities) == len(set(entities)) > 400


def test_facts_are_unambiguous_and_answers_single_words():
    for family, table in FACTS.items():
        for argument, answer in table.items():
            assert " " not in answer
            assert answer in world.ANSWERS[family]
            assert all(" " not in part for part in argument)


def test_same_seed_same_prompts_other_seed_other_prompts():
    def draw(seed):
        rng = random.Random(seed)
        return [sample_prompt(rng) for _ in range(50)]

    assert draw(1) == draw(1) != draw(2)
