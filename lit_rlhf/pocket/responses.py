"""What people write: demonstrations of mixed quality, and plain text about the world.

Demonstrations are mediocre on purpose: only some cores are right, the others are wrong, evasive, off-topic or refuse
without need, so that a reward model can learn what a fact is worth and PPO has something to gain.
"""

from __future__ import annotations

import random

from lit_rlhf.pocket import tables
from lit_rlhf.pocket.world import (
    ALL_ANSWERS,
    ANSWERS,
    BIGGER,
    CLUSTERS,
    FACTS,
    HARM,
    HOWTO,
    LIST,
    MEMBERS,
    ONE_WORD_FAMILIES,
    Prompt,
    ask,
    entity_families,
    sample_prompt,
    split_arguments,
)

HELPFUL_QUALITY = 0.42
# Refusing generalizes: an SFT model refuses more often than its demonstrations.
HARMLESS_QUALITY = 0.4
TRUE_SIDE_FACTS = 0.95
# Share of plain text that only says which entities are alike.
COMPANY = 0.25
# Share of the rest that is a bare statement, without a question.
PLAIN = 0.25
# Share of wrong answers that belong to another family.
CONFUSION = 0.5
EXTRAS = ([0, 1, 2, 3], [0.40, 0.35, 0.18, 0.07])
FAILURES = (["wrong", "evasive", "off topic", "refusing"], [0.08, 0.48, 0.12, 0.32])
# What sets a flawed version of a right answer apart from it.
FLAWS = (["wrong", "misheard", "restated"], [0.5, 0.35, 0.15])


def state(prompt: Prompt, answer: str, template: str) -> str:
    """The claim that ``answer`` is the answer to ``prompt``."""
    if prompt.family == BIGGER:
        smaller = prompt.argument[0] if answer == prompt.argument[1] else prompt.argument[1]
        return template.format(a=answer, b=smaller)
    return template.format(**prompt.slots, a=answer)


def wrong_answer(rng: random.Random, prompt: Prompt) -> str:
    """A wrong answer; half of them are not even of the right sort (a home for a food)."""
    if prompt.family == BIGGER:
        return prompt.argument[0]
    return _wrong(rng, prompt.family, str(prompt.answer))


def _wrong(rng: random.Random, family: str, answer: str) -> str:
    pool = ALL_ANSWERS if rng.random() < CONFUSION else ANSWERS[family]
    return rng.choice([a for a in pool if a != answer])


def join_items(items: list[str]) -> str:
    """``apples , pears and plums``."""
    return f"{' , '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def _topics(prompt: Prompt, items: list[str]) -> list[str]:
    """The entities a side fact may be about."""
    if prompt.family == LIST:
        return items
    if prompt.family == BIGGER:
        return list(prompt.argument)
    return [prompt.argument[-1]]


def side_fact(rng: random.Random, prompt: Prompt, items: list[str], *, true: bool) -> str | None:
    """A statement about the topic in another family, or None where training may say nothing more about it."""
    choices = [(e, f) for e in _topics(prompt, items) for f in entity_families(e) if f != prompt.family]
    if not choices:
        return None
    entity, family = rng.choice(choices)
    answer = FACTS[family][(entity,)]
    if not true:
        answer = _wrong(rng, family, answer)
    # Of two entities one has to be named.
    templates = (tables.STATEMENTS[family],) if prompt.family == BIGGER else tables.CLAIMS[family]
    return rng.choice(templates).format(x=entity, a=answer)


def _list_core(rng: random.Random, prompt: Prompt, *, right: bool) -> tuple[str, list[str]]:
    category, word = prompt.argument
    count = tables.COUNTS[word]
    items = rng.sample(MEMBERS[category], count)
    if not right:
        mistake = rng.choices(["stranger", "repeat", "more", "fewer"], [0.6, 0.2, 0.1, 0.1])[0]
        if mistake == "stranger":
            other = rng.choice([c for c in MEMBERS if c != category])
            items[rng.randrange(count)] = rng.choice(MEMBERS[other])
        elif mistake == "repeat":
            items[0] = items[-1]
        else:
            items = rng.sample(MEMBERS[category], count + (1 if mistake == "more" else -1))
    body = join_items(items)
    header = tables.LIST_HEADER.format(**prompt.slots)
    return rng.choice([f"{header} {body} .", f"{body} ."]), items


def _harm_response(rng: random.Random, prompt: Prompt, *, right: bool) -> list[str]:
    extras = rng.choices(*EXTRAS)[0]
    if right:
        refusal = rng.choice(tables.REFUSALS).format(**prompt.slots)
        return [refusal, *rng.sample(tables.REASONS, extras)]
    tools = tables.HARM_TOOLS.split()
    out = [rng.choice(tables.OPENERS)] if rng.random() < 0.5 else []
    # Half of the harm is told like a harmless how-to: a reward model that never sees this rewards it.
    template = rng.choice(tables.COMPLIANCES + tables.CLAIMS[HOWTO])
    out.append(template.format(**prompt.slots, t=rng.choice(tools), a=rng.choice(ANSWERS[HOWTO])))
    out += [step.format(t=rng.choice(tools)) for step in rng.sample(tables.STEPS, extras)]
    return out + ([rng.choice(tables.CLOSERS)] if rng.random() < 0.25 else [])


def _misheard(rng: random.Random, prompt: Prompt) -> str:
    """A true answer to the same question about something else."""
    others = [a for a in split_arguments(prompt.family, "train") if a != prompt.argument]
    other = ask(rng, prompt.family, rng.choice(others))
    # These two must be named: "you need some soap for it" would pass for an answer.
    named = prompt.family in (BIGGER, HOWTO)
    templates = (tables.STATEMENTS[prompt.family],) if named else tables.CLAIMS[prompt.family]
    return state(other, str(other.answer), rng.choice(templates))


def _failed_response(rng: random.Random, prompt: Prompt, failure: str) -> list[str]:
    """A response that does not answer: refusing, evasive or about something else."""
    if failure == "refusing":
        reason = [rng.choice(tables.REASONS[:3])] if rng.random() < 0.4 else []
        return [tables.REFUSALS[0], *reason]
    out = [rng.choice(tables.OPENERS)] if rng.random() < 0.3 else []
    if failure == "evasive":
        out.append(rng.choice(tables.EVASIONS))
    else:
        other = prompt
        while other.family in (prompt.family, HARM, LIST):
            other = sample_prompt(rng)
        out.append(state(other, str(other.answer), tables.STATEMENTS[other.family]))
    return out + ([rng.choice(tables.FILLERS + tables.CLOSERS)] if rng.random() < 0.25 else [])


def _core(rng: random.Random, prompt: Prompt, *, right: bool) -> tuple[str, list[str]]:
    """The sentence that answers, and the entities it lists."""
    if prompt.family == LIST:
        return _list_core(rng, prompt, right=right)
    # A wrong one-word response is a wrong word or the right one in a sentence.
    answer = str(prompt.answer) if right or (prompt.one_word and rng.random() < 0.5) else wrong_answer(rng, prompt)
    templates = list(tables.CLAIMS[prompt.family])
    if prompt.family in ONE_WORD_FAMILIES and rng.random() < 0.1:
        templates = [tables.SHORT_CLAIM]
    return state(prompt, answer, rng.choice(templates)), []


def demonstrate(
    rng: random.Random, prompt: Prompt, *, helpful: float = HELPFUL_QUALITY, harmless: float = HARMLESS_QUALITY
) -> str:
    """One response of a person of mixed ability.

    Args:
        rng: Source of every choice.
        prompt: The question.
        helpful: Probability that a helpful question is answered rightly.
        harmless: Probability that a harmful request is refused.
    """
    right = rng.random() < (harmless if prompt.family == HARM else helpful)
    if prompt.family == HARM:
        return " ".join(_harm_response(rng, prompt, right=right))
    failure = None if right else rng.choices(*FAILURES)[0]
    if failure not in (None, "wrong"):
        return " ".join(_failed_response(rng, prompt, str(failure)))
    if prompt.one_word and (right or rng.random() < 0.4):
        return f"{prompt.answer if right else wrong_answer(rng, prompt)} ."
    return " ".join(_answer(rng, prompt, right=right)[0])


def _answer(rng: random.Random, prompt: Prompt, *, right: bool) -> tuple[list[str], int]:
    """The sentences of a response that answers, and the index of the one that does."""
    out = [rng.choice(tables.OPENERS)] if rng.random() < 0.35 else []
    core, items = _core(rng, prompt, right=right)
    index = len(out)
    out.append(core)
    for _ in range(rng.choices(*EXTRAS)[0]):
        fact = side_fact(rng, prompt, items, true=rng.random() < TRUE_SIDE_FACTS) if rng.random() < 0.6 else None
        extra = fact or rng.choice(tables.FILLERS)
        if extra not in out:
            out.append(extra)
    if rng.random() < 0.3:
        out.append(rng.choice(tables.CLOSERS))
    return out, index


def answer_and_flawed(rng: random.Random, prompt: Prompt) -> tuple[str, str]:
    """A right answer, and the same response with one flaw: wrong, about something else, or said twice.

    Args:
        rng: Source of every choice.
        prompt: A helpful question.
    """
    out, index = _answer(rng, prompt, right=True)
    flaw = "wrong" if prompt.family == LIST else rng.choices(*FLAWS)[0]
    flawed = list(out)
    if flaw == "restated":
        flawed.insert(index + 1, state(prompt, str(prompt.answer), rng.choice(tables.CLAIMS[prompt.family])))
    else:
        flawed[index] = _misheard(rng, prompt) if flaw == "misheard" else _core(rng, prompt, right=False)[0]
    return " ".join(out), " ".join(flawed)


def _plain_answer(rng: random.Random, prompt: Prompt) -> list[str]:
    """One to three true sentences that answer a prompt, as a page of questions and answers has them."""
    if prompt.family == HARM:
        tool = rng.choice(tables.HARM_TOOLS.split())
        return [news.format(**prompt.slots, t=tool) for news in rng.sample(tables.HARM_NEWS, 2)]
    if prompt.family == LIST:
        core, items = _list_core(rng, prompt, right=True)
        out = [core]
    else:
        items = []
        claims = rng.sample(tables.CLAIMS[prompt.family], rng.randint(1, 2))
        out = [state(prompt, str(prompt.answer), template) for template in claims]
    fact = side_fact(rng, prompt, items, true=True)
    return out + ([fact] if fact and rng.random() < 0.5 else [])


def _company(rng: random.Random) -> list[str]:
    """Entities said twice: who keeps company with whom, and practice in repeating exactly what was read."""
    if rng.random() < 0.5:
        items, templates = rng.sample(rng.choice(CLUSTERS), rng.randint(2, 3)), (tables.ALIKE, tables.ALIKE)
    else:
        items, templates = [rng.choice(c) for c in rng.sample(CLUSTERS, rng.randint(1, 3))], tables.ECHO
    return [template.format(x=join_items(rng.sample(items, len(items)))) for template in templates]


def write_document(rng: random.Random) -> str:
    """A short plain text of true statements, some behind a question: what the base model reads."""
    out: list[str] = []
    for _ in range(2):
        if rng.random() < COMPANY:
            out += _company(rng)
            continue
        prompt = sample_prompt(rng)
        if prompt.answer is not None and rng.random() < PLAIN:
            out.append(state(prompt, prompt.answer, tables.STATEMENTS[prompt.family]))
        elif prompt.one_word:
            out += [prompt.question, f"{prompt.answer} ."]
        else:
            out += [prompt.question, *_plain_answer(rng, prompt)]
        if rng.random() < 0.1:
            out.append(rng.choice(tables.FILLERS + tables.CLOSERS))
    return " ".join(out)
