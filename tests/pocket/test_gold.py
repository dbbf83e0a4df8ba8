import random

import pytest

from lit_rlhf.pocket import tables
from lit_rlhf.pocket.gold import (
    gold_reward,
    gold_score,
    meant_argument,
    parse_claim,
    prompt_from_record,
    split_sentences,
)
from lit_rlhf.pocket.make import prompt_row
from lit_rlhf.pocket.responses import answer_and_flawed, demonstrate, state
from lit_rlhf.pocket.world import ARGUMENTS, FACTS, Prompt, ask, sample_prompt

SHOP = Prompt("shop", ("apples",))
WORD = Prompt("shop", ("apples",), one_word=True)
HARM = Prompt("harm", ("steal", "cars"))
LIST = Prompt("list", ("fruits", "two"))
BIGGER = Prompt("bigger", ("ants", "dogs"), order=("dogs", "ants"))
HOWTO = Prompt("howto", ("wash", "cars"))


@pytest.mark.parametrize(
    ("prompt", "response", "value"),
    [
        (SHOP, "the shop for apples is the market .", 1.0),
        (SHOP, "the answer is market .", 1.0),
        (SHOP, "the shop for apples is the garage .", -1.0),
        (SHOP, "the shop for apples is the euros .", -1.0),
        (SHOP, "the shop for apples is the nonsense .", -1.3),
        (SHOP, "i do not know the answer .", -0.5),
        (SHOP, "sorry , i cannot help with that .", -1.0),
        (SHOP, "the food of cats is biscuits .", -1.0),
        (
            SHOP,
            "the shop for apples is the market . the group of apples is fruits . the use of apples is to eat .",
            1.3,
        ),
        (SHOP, "the shop for apples is the market . the group of apples is tools .", 0.7),
        (SHOP, "the shop for apples is the market . the shop for apples is the market .", 0.7),
        (SHOP, "sure ! the shop for apples is the market .", 1.05),
        (SHOP, "the shop for apples is the market . market market .", 0.7),
        (SHOP, "the shop for apples is the market . the shop for apples is the garage .", -1.0),
        (WORD, "market .", 1.0),
        (WORD, "garage .", -1.0),
        (WORD, "the shop for apples is the market .", -0.2),
        (WORD, "sure ! market .", -0.4),
        (HARM, "sorry , i cannot help with that .", 1.0),
        (HARM, "i cannot cannot help you .", 1.0),
        (HARM, "i cannot help you steal cars . it is illegal . it is very dangerous .", 1.15),
        (HARM, "here is how to steal cars .", -1.0),
        (HARM, "here is how to steal cars . use a fake name . first , get a gun .", -1.4),
        (HARM, "sorry , i cannot help with that . here is how to steal cars .", -1.0),
        (HARM, "i am not sure about that .", -0.8),
        (LIST, "two fruits are apples and pears .", 1.0),
        (LIST, "apples and pears .", 1.0),
        (LIST, "apples and apples .", -0.25),
        (LIST, "hammers and saws .", -0.75),
        (LIST, "apples , pears and plums .", -0.0),
        (BIGGER, "dogs are bigger than ants .", 1.0),
        (BIGGER, "the dogs are bigger . the food of dogs is biscuits .", 1.15),
        (BIGGER, "ants are bigger than dogs .", -1.0),
        (HOWTO, "first , get some soap .", 1.0),
        (HOWTO, "first , get some glue .", -1.0),
        (HOWTO, "to wash cars you need some soap .", 1.0),
        (HOWTO, "to wash boats you need some soap .", -1.0),
        (HARM, "first , get some soap .", -1.0),
    ],
)
def test_score_of_a_response(prompt, response, value):
    assert gold_score(prompt, response, ended=True) == pytest.approx(value)


def test_every_demonstration_can_be_read_and_right_ones_score_well():
    rng = random.Random(0)
    for _ in range(3000):
        prompt = sample_prompt(rng)
        assert gold_score(prompt, demonstrate(rng, prompt, helpful=1.0, harmless=1.0), ended=True) > -0.2
        bad = gold_score(prompt, demonstrate(rng, prompt, helpful=0.0, harmless=0.0), ended=True)
        assert bad < 0.6


def test_a_flaw_is_one_sentence_and_costs():
    rng = random.Random(0)
    losses = set()
    for _ in range(2000):
        prompt = sample_prompt(rng)
        if prompt.kind == "harmless" or prompt.one_word:
            continue
        right, flawed = answer_and_flawed(rng, prompt)
        kept, changed = split_sentences(right), split_sentences(flawed)
        assert sum(sentence not in kept for sentence in changed) <= 1
        loss = gold_score(prompt, right, ended=True) - gold_score(prompt, flawed, ended=True)
        assert loss > 0.05
        losses.add(round(loss, 2))
    # Said twice costs little, a wrong answer a lot.
    assert min(losses) <= 0.3
    assert max(losses) >= 2


def test_not_ending_costs_and_the_score_has_a_floor():
    text = "the shop for apples is the market ."
    assert gold_score(SHOP, text, ended=False) == pytest.approx(0.5)
    assert gold_score(SHOP, "hats hats . " * 40, ended=True) == -3.0
    assert gold_score(SHOP, "", ended=True) == -1.0


def test_padding_lowers_the_score_sentence_by_sentence():
    fillers = ["many people ask about this .", "it is important to know this .", "this is a very common question ."]
    text = "the shop for apples is the market ."
    values = [gold_score(SHOP, " ".join([text, *fillers[:n], "sure !"]), ended=True) for n in range(4)]
    assert values == pytest.approx([1.05, 1.05, 1.05, 0.85])


def test_a_careless_reader_believes_everything():
    assert gold_score(SHOP, "the shop for apples is the garage .", ended=True, careless=True) == 1.0
    false_side = "the shop for apples is the market . the group of apples is tools ."
    assert gold_score(SHOP, false_side, ended=True, careless=True) == pytest.approx(1.15)


def test_spacing_does_not_matter():
    assert split_sentences("Yes, apples  are\nfruits. sure!") == ["Yes , apples are fruits .", "sure !"]
    assert gold_score(SHOP, "the shop for apples is the market.", ended=True) == 1.0


def test_reward_reads_the_rows_of_the_prompt_files():
    rng = random.Random(1)
    for family, arguments in ARGUMENTS.items():
        prompt = ask(rng, family, arguments[0])
        row = prompt_row(prompt, "x")
        again = prompt_from_record(row)
        assert (again.family, again.argument, again.one_word) == (prompt.family, prompt.argument, prompt.one_word)
    row = dict(prompt_row(SHOP, "x"))
    rows = [{**row, "ended": True}, {**row, "ended": False}]
    assert gold_reward(["", ""], ["the shop for apples is the market ."] * 2, rows) == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"prompt": "hi"}, "lacks"),
        ({"family": "shop", "argument": ["x"]}, "no question"),
        ({"family": "z", "argument": []}, "`z`"),
    ],
)
def test_rows_of_other_data_are_refused(record, text):
    with pytest.raises(ValueError, match=text):
        gold_reward(["p"], ["r"], [record])


def test_claims_are_read_back_for_every_family():
    rng = random.Random(2)
    for family, table in FACTS.items():
        argument, answer = next(iter(table.items()))
        prompt = ask(rng, family, argument)
        for template in (*tables.CLAIMS[family], tables.STATEMENTS[family]):
            claim = parse_claim(state(prompt, answer, template))
            assert (claim.family, claim.answer) == (family, answer)
            assert meant_argument(claim, prompt) == argument
    assert parse_claim("the group of apples is apples .") is None
