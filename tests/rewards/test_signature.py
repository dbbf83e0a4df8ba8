"""How reward functions are called, by what their signature asks for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from lit_rlhf.rewards.signature import call_of

P, R = ["p", "q"], ["r", "s"]
RECORDS = [{"answer": 1, "id": 7}, {"answer": 2, "id": 8}]


class Scorer:
    def __call__(self, prompts: list[str], responses: list[str]) -> Any:
        return prompts, responses


def records_only(*, records: Any) -> Any:
    return records


def trl(completions: Any, answer: Any, **kwargs: Any) -> Any:
    return completions, answer, kwargs


WORKS: list[tuple[Callable[..., Any], Any]] = [
    (lambda a, b: (a, b), (P, R)),
    (lambda a, b, c: (a, b, c), (P, R, RECORDS)),
    (lambda a, b, c=3: (a, b, c), (P, R, 3)),
    (lambda *every: every, (P, R, RECORDS)),
    (lambda responses, prompts: (responses, prompts), (R, P)),
    (lambda responses: responses, R),
    (lambda prompts, responses, answer: answer, [1, 2]),
    (lambda responses, answer=None: answer, [1, 2]),
    (lambda responses, other=5: other, 5),
    (lambda responses, /, prompts: (responses, prompts), (P, R)),
    (trl, (R, [1, 2], {"id": [7, 8]})),
    (records_only, RECORDS),
    (functools.partial(lambda prompts, responses, k: (k, responses), k=2), (2, R)),
    (Scorer(), (P, R)),
    (Scorer().__call__, (P, R)),
]


@pytest.mark.parametrize(("function", "wanted"), WORKS)
def test_what_a_function_gets(function: Callable[..., Any], wanted: Any) -> None:
    given, named = call_of(function, "f").arguments(P, R, RECORDS)
    assert function(*given, **named) == wanted


async def waits(prompts: Any, responses: Any) -> Any:
    return responses


def keywords(a: Any, b: Any, *, c: Any) -> Any:
    return a, b, c


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda: 0, r"f\(\)' must take"),
        (lambda text: 0, r"f\(text\)' must take `\(prompts, responses\)`"),
        (lambda a, b, c, d: 0, r"f\(a, b, c, d\)' must take"),
        (keywords, r"\*, c.*must take"),
        (waits, "plain function, not `async`"),
    ],
)
def test_what_cannot_be_called(function: Callable[..., Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call_of(function, "f")


def test_a_key_that_rows_do_not_have_is_named_with_those_they_have() -> None:
    with pytest.raises(ValueError, match=r"asks for `solution`, which not every .* \(there is answer, id\)"):
        call_of(lambda responses, solution: 0, "f").arguments(P, R, RECORDS)
