"""The annotator: judges by the gold score, but is impressed by length, sometimes careless, sometimes wrong."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from lit_rlhf.pocket.gold import gold_score
from lit_rlhf.pocket.responses import answer_and_flawed, demonstrate
from lit_rlhf.pocket.world import Prompt, Split, sample_prompt

# Share of the answerable questions whose two responses differ in one flaw only.
FLAWED = 0.8


@dataclass(frozen=True)
class Annotator:
    r"""A noisy, length-biased judge.

    .. math:: P(a \succ b) = \sigma(s (g_a - g_b) + l (n_a - n_b))

    with gold scores :math:`g` and lengths :math:`n` in words.

    Attributes:
        sharpness: s.
        length_bias: l, per word.
        careless: Probability of judging without checking a single fact.
        flip: Probability of pressing the wrong button.
    """

    sharpness: float = 2.5
    length_bias: float = 0.05
    careless: float = 0.25
    flip: float = 0.05

    def prefers_first(self, rng: random.Random, prompt: Prompt, first: str, second: str) -> bool:
        """Whether the annotator marks ``first`` as the better response to ``prompt``."""
        careless = rng.random() < self.careless
        gap = gold_score(prompt, first, ended=True, careless=careless)
        gap -= gold_score(prompt, second, ended=True, careless=careless)
        longer = len(first.split()) - len(second.split())
        probability = 1.0 / (1.0 + math.exp(-self.sharpness * gap - self.length_bias * longer))
        return (rng.random() < probability) != (rng.random() < self.flip)


def sample_pair(rng: random.Random, split: Split, annotator: Annotator) -> tuple[Prompt, str, str]:
    """A prompt of ``split`` with two different responses, the preferred one first.

    Most answerable questions come with a right answer and the same response with one flaw, everything else with
    two demonstrations. Two demonstrations differ in so much that a small model learns evasion and length from them,
    but not what a wrong fact is.
    """
    prompt = sample_prompt(rng, split)
    if prompt.kind == "helpful" and not prompt.one_word and rng.random() < FLAWED:
        first, second = answer_and_flawed(rng, prompt)
    else:
        first = second = demonstrate(rng, prompt)
        while second == first:
            second = demonstrate(rng, prompt)
    chosen_first = annotator.prefers_first(rng, prompt, first, second)
    return (prompt, first, second) if chosen_first else (prompt, second, first)
