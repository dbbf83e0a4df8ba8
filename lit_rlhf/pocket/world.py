"""What is true, what can be asked, and which questions are held out.

A question is a *family* (what is asked) and an *argument* (about what). The split is by (family, argument): the
arguments of a family are shuffled once by a generator seeded with the family's name, and the held-out ones appear in
no training text of any stage, neither asked nor stated.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from lit_rlhf.pocket import tables

Argument = tuple[str, ...]
Split = Literal["train", "val", "test"]

HARM = "harm"
LIST = "list"
BIGGER = "bigger"
HOWTO = "howto"
# Share of a family's arguments in each of the validation and test splits.
HELD_OUT = 0.10
HELD_OUT_HARM = 0.25
MOST_HELD_OUT = 14
ONE_WORD_SHARE = 0.05
GREETING_SHARE = 0.15


def _rows(table: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for line in table.strip().splitlines():
        name, members, answers = (part.split() for part in line.split("|"))
        yield name[0], members, answers


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.split())


def _synonyms() -> Iterator[tuple[str, list[str], str]]:
    """(word, its synonyms, its opposite) for both sides of every line."""
    for line in tables.OPPOSITES.strip().splitlines():
        (left, lefts), (right, rights) = ((s.split(":")[0].strip(), s.split(":")[1].split()) for s in line.split("|"))
        yield left, lefts, right
        yield right, rights, left


def _build_facts() -> dict[str, dict[Argument, str]]:
    facts: dict[str, dict[Argument, str]] = {family: {} for family in tables.CLAIMS}
    for table, first, families in (
        (tables.THINGS, "kind", tables.THING_FAMILIES),
        (tables.ANIMALS, "kind", tables.ANIMAL_FAMILIES),
        (tables.CITIES, "country", tables.CITY_FAMILIES),
    ):
        for name, members, answers in _rows(table):
            for family, answer in zip((first, *families), (name, *answers), strict=True):
                facts[family] |= {(member,): answer for member in members}
    for word, synonyms, opposite in _synonyms():
        facts["meaning"] |= {(synonym,): word for synonym in synonyms}
        facts["opposite"] |= {(synonym,): opposite for synonym in synonyms}
    facts[BIGGER] = {pair: pair[1] for pair in itertools.combinations(tables.SIZES.split(), 2)}
    for verbs, objects in ((tables.HOWTO_THINGS, tables.OBJECTS), (tables.HOWTO_PEOPLE, tables.PEOPLE)):
        facts[HOWTO] |= {(verb, thing): tool for verb, tool in _pairs(verbs).items() for thing in objects.split()}
    return facts


# family -> argument -> the one right answer; `list` has many answers.
FACTS = _build_facts()
MEMBERS: dict[str, tuple[str, ...]] = {
    name: tuple(members) for table in (tables.THINGS, tables.ANIMALS) for name, members, _ in _rows(table)
}
# Entities that share most of their answers: plain text names them in one breath.
CLUSTERS: tuple[tuple[str, ...], ...] = (
    *(tuple(members) for table in (tables.THINGS, tables.ANIMALS, tables.CITIES) for _, members, _ in _rows(table)),
    *(tuple(synonyms) for _, synonyms, _ in _synonyms()),
)
HARMFUL: tuple[Argument, ...] = tuple(
    pair
    for verbs, objects in (
        (tables.HARM_THING_VERBS, tables.OBJECTS),
        (tables.HARM_PEOPLE_VERBS, tables.PEOPLE),
        (tables.HARM_OBJECT_VERBS, tables.HARM_OBJECTS),
    )
    for pair in itertools.product(verbs.split(), objects.split())
)
# family -> the answers that make sense there, right or wrong.
ANSWERS: dict[str, tuple[str, ...]] = {f: tuple(sorted(set(table.values()))) for f, table in FACTS.items()}
ANSWERS[BIGGER] = tuple(sorted(tables.SIZES.split()))
ALL_ANSWERS = tuple(sorted({answer for answers in ANSWERS.values() for answer in answers}))
ARGUMENTS: dict[str, tuple[Argument, ...]] = {f: tuple(table) for f, table in FACTS.items()}
ARGUMENTS[LIST] = tuple(itertools.product(MEMBERS, tables.COUNTS))
ARGUMENTS[HARM] = HARMFUL
# Families that one word answers.
ONE_WORD_FAMILIES = tuple(f for f in FACTS if f != HOWTO)


@dataclass(frozen=True)
class Prompt:
    """A question of the world.

    Attributes:
        family: What is asked, a key of :data:`ARGUMENTS`.
        argument: About what; (family, argument) is what the splits are made by.
        wording: Index into ``tables.QUESTIONS[family]``.
        one_word: Whether the answer must be a single word.
        greeting: Index of the greeting that opened the dialogue, or -1 for none.
        order: For `bigger` the pair in the order asked, else empty.
    """

    family: str
    argument: Argument
    wording: int = 0
    one_word: bool = False
    greeting: int = -1
    order: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["helpful", "harmless"]:
        """What a good response is judged by."""
        return "harmless" if self.family == HARM else "helpful"

    @property
    def answer(self) -> str | None:
        """The right answer where there is exactly one."""
        return FACTS[self.family][self.argument] if self.family in FACTS else None

    @property
    def slots(self) -> dict[str, str]:
        """The words that fill the templates of the family."""
        if self.family == BIGGER:
            first, second = self.order
            return {"x": first, "y": second}
        names = {LIST: "xn", HOWTO: "vo", HARM: "vo"}.get(self.family, "x")
        return dict(zip(names, self.argument, strict=True))

    @property
    def question(self) -> str:
        """The last human turn."""
        asked = tables.QUESTIONS[self.family][self.wording].format(**self.slots)
        return tables.ONE_WORD + asked if self.one_word else asked

    @property
    def messages(self) -> list[dict[str, str]]:
        """The dialogue up to the response, as ``role`` / ``content``."""
        turns = [{"role": "user", "content": self.question}]
        if self.greeting >= 0:
            turns.insert(0, {"role": "assistant", "content": tables.GREETING_RESPONSE})
            turns.insert(0, {"role": "user", "content": tables.GREETINGS[self.greeting]})
        return turns


@cache
def split_arguments(family: str, split: Split) -> tuple[Argument, ...]:
    """The arguments of ``family`` in ``split``: the same on every machine and for every data seed."""
    shuffled = sorted(ARGUMENTS[family])
    random.Random(f"pocket/{family}").shuffle(shuffled)
    if family == HARM:
        held_out = round(len(shuffled) * HELD_OUT_HARM)
    else:
        held_out = min(MOST_HELD_OUT, round(len(shuffled) * HELD_OUT))
    bounds = {"val": (0, held_out), "test": (held_out, 2 * held_out), "train": (2 * held_out, len(shuffled))}
    start, stop = bounds[split]
    return tuple(shuffled[start:stop])


@cache
def _train_set(family: str) -> frozenset[Argument]:
    return frozenset(split_arguments(family, "train"))


def may_be_stated(family: str, argument: Argument) -> bool:
    """Whether training text may speak of ``argument`` in ``family``."""
    return argument in _train_set(family)


def ask(rng: random.Random, family: str, argument: Argument, *, wording: int | None = None) -> Prompt:
    """Dress up a question: wording, style, an earlier turn, and the context it needs."""
    return Prompt(
        family=family,
        argument=argument,
        wording=rng.randrange(len(tables.QUESTIONS[family])) if wording is None else wording,
        one_word=family in ONE_WORD_FAMILIES and rng.random() < ONE_WORD_SHARE,
        greeting=rng.randrange(len(tables.GREETINGS)) if rng.random() < GREETING_SHARE else -1,
        order=tuple(rng.sample(argument, 2)) if family == BIGGER else (),
    )


def sample_prompt(rng: random.Random, split: Split = "train") -> Prompt:
    """A prompt of ``split`` with the family weights of the world."""
    family = rng.choices(list(tables.WEIGHTS), list(tables.WEIGHTS.values()))[0]
    return ask(rng, family, rng.choice(split_arguments(family, split)))


def entity_families(entity: str) -> tuple[str, ...]:
    """The single-argument families that know ``entity`` and may be stated about it in training text."""
    return tuple(f for f in FACTS if (entity,) in FACTS[f] and may_be_stated(f, (entity,)))
