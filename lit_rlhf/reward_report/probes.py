"""Degenerate responses: text no annotator would prefer, which a reward model should score below the chosen response.

PPO finds whatever the reward model overpays. These four are found first: saying nothing, saying it again, stopping
halfway, and answering another question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lit_rlhf.evaluation.intervals import Interval, cluster_bootstrap, proportion_interval
from lit_rlhf.reward_report.pairs import ScoredPair

ScoreRequest: TypeAlias = tuple[Any, str]
"""A prompt (messages, token ids or text: what ``ScoredPair.prompt_source`` holds) and a response's text."""

ScoreFunction: TypeAlias = Callable[[Sequence[ScoreRequest]], Sequence[float]]
"""Scores of many requests, in their order."""

DESCRIPTIONS = {
    "empty": "nothing at all",
    "repeated": "the chosen response three times over",
    "truncated": "the first half of the chosen response's words (or characters, where there are no spaces)",
    "swapped prompt": "the chosen response to another prompt",
}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the reward model makes of one kind of degenerate response.

    Attributes:
        name: A key of ``DESCRIPTIONS``.
        description: What the response is.
        responses: Number of responses scored.
        mean_score: Their mean score.
        change: Mean of score - score of the chosen response: should be well below 0.
        fooled: Share of responses scored at least as high as the chosen one: should be near 0.
    """

    name: str
    description: str
    responses: int
    mean_score: float
    change: Interval
    fooled: Interval


def probe(
    pairs: Sequence[ScoredPair], score_fn: ScoreFunction, *, confidence: float = 0.95, seed: int = 0
) -> tuple[Probe, ...]:
    """Scores every degenerate form of the pairs' chosen responses, in one call of ``score_fn``.

    The chosen responses are scored again by the same call, so that both sides of a comparison went the same way.

    Args:
        pairs: The pairs to spoil.
        score_fn: Scores of (prompt, response) requests.
        confidence: Coverage of the intervals.
        seed: Seed of the bootstrap.

    Returns:
        One result per kind; a kind that fits no pair (e.g. a swapped prompt with a single prompt) is skipped.

    Raises:
        ValueError: If ``score_fn`` returns another number of scores than requests, or one that is not finite.
    """
    spoiled = {name: degenerate_responses(name, pairs) for name in DESCRIPTIONS}
    prompts = [pair.prompt if pair.prompt_source is None else pair.prompt_source for pair in pairs]
    requests = [(prompt, pair.chosen) for prompt, pair in zip(prompts, pairs, strict=True)]
    requests += [(prompts[i], response) for responses in spoiled.values() for i, response in responses.items()]
    scores = iter(_checked(score_fn(requests), requests))
    chosen = [next(scores) for _ in pairs]
    results = []
    for name, responses in spoiled.items():
        got = {i: next(scores) for i in responses}
        if got:
            results.append(_result(name, pairs, chosen, got, confidence=confidence, seed=seed))
    return tuple(results)


def degenerate_responses(name: str, pairs: Sequence[ScoredPair]) -> dict[int, str]:
    """The responses of one kind by the position of their pair; pairs that the kind does not fit are absent."""
    if name == "empty":
        return dict.fromkeys(range(len(pairs)), "")
    if name == "repeated":
        return {i: " ".join([pair.chosen.strip()] * 3) for i, pair in enumerate(pairs) if pair.chosen.strip()}
    if name == "truncated":
        halves = {i: _first_half(pair.chosen) for i, pair in enumerate(pairs)}
        return {i: half for i, half in halves.items() if half}
    return _swapped(pairs)


def _first_half(response: str) -> str:
    words = response.split()
    if len(words) > 1:
        return " ".join(words[: len(words) // 2])
    return response.strip()[: len(response.strip()) // 2]


def _swapped(pairs: Sequence[ScoredPair]) -> dict[int, str]:
    """The chosen response of the next pair that has another prompt and another response, cyclically."""
    responses = {}
    for i, pair in enumerate(pairs):
        following = (pairs[(i + step) % len(pairs)] for step in range(1, len(pairs)))
        other = next((p for p in following if p.prompt != pair.prompt and p.chosen != pair.chosen), None)
        if other is not None:
            responses[i] = other.chosen
    return responses


def _result(
    name: str, pairs: Sequence[ScoredPair], chosen: list[float], got: dict[int, float], *, confidence: float, seed: int
) -> Probe:
    clusters = [pairs[i].cluster or pairs[i].prompt for i in got]
    changes = [score - chosen[i] for i, score in got.items()]
    fooled = [float(change >= 0) for change in changes]
    return Probe(
        name=name,
        description=DESCRIPTIONS[name],
        responses=len(got),
        mean_score=sum(got.values()) / len(got),
        change=cluster_bootstrap(changes, clusters, confidence=confidence, seed=seed),
        fooled=proportion_interval(fooled, clusters, confidence=confidence, seed=seed),
    )


def _checked(scores: Sequence[float], requests: Sequence[ScoreRequest]) -> Sequence[float]:
    if len(scores) != len(requests):
        raise ValueError(f"`score_fn` must return one score a request; got {len(scores)} for {len(requests)}.")
    for score, (_, response) in zip(scores, requests, strict=True):
        if not math.isfinite(score):
            raise ValueError(f"`score_fn` must return finite scores; got {score} for the response {response!r:.80}.")
    return scores
