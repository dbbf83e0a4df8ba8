"""How a reward function wants to be called: read from its signature, before anything is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KNOWN = ("prompts", "responses", "completions", "records")
"""Arguments that every function can ask for by name; `completions` is another name of `responses`."""
FORMS = "`(prompts, responses)` or `(prompts, responses, records)`, or arguments named prompts, responses, records"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Call:
    """How a function is called.

    Attributes:
        positional: Number of arguments, of prompts, responses, records in this order; 0 where it goes by name.
        names: Known arguments that it asks for by name.
        columns: Keys of the records that it asks for by name.
        optional: Those among them that have a default.
        rest: Whether it takes all other keys of the records, too (``**columns``).
    """

    positional: int = 0
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()
    rest: bool = False

    def arguments(
        self, prompts: list[str], responses: list[str], records: list[dict[str, Any]]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Positional and named arguments for a batch.

        Raises:
            ValueError: A record lacks a key that the function asks for.
        """
        if self.positional:
            return (prompts, responses, records)[: self.positional], {}
        known = {"prompts": prompts, "responses": responses, "completions": responses, "records": records}
        named: dict[str, Any] = {name: known[name] for name in self.names}
        for column in self.columns:
            if all(column in record for record in records):
                named[column] = [record[column] for record in records]
            elif column not in self.optional:
                there = ", ".join(map(str, next(r for r in records if column not in r)))
                raise ValueError(
                    f"The reward function asks for `{column}`, which not every prompt's row has (there is {there}); "
                    f"other arguments it can have are {', '.join(KNOWN)}."
                )
        if self.rest:
            common = [key for key in records[0] if all(key in record for record in records)] if records else []
            named |= {key: [r[key] for r in records] for key in common if key not in named and key not in KNOWN}
        return (), named


def call_of(function: Callable[..., Any], name: str) -> Call:
    """How ``function`` is called.

    By name where it has an argument of a known name; the others are then keys of the records. Otherwise by position,
    with two or three arguments.

    Args:
        function: The function.
        name: What it is called in messages.

    Raises:
        ValueError: It cannot be called with what a reward has, or is a coroutine.
    """
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"Reward function '{name}' must be a plain function, not `async`.")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some written in C do not say
        return Call(positional=3)
    kinds = inspect.Parameter
    plain = [p for p in parameters if p.kind in (*_POSITIONAL, kinds.KEYWORD_ONLY)]
    by_name = [p for p in plain if p.kind != kinds.POSITIONAL_ONLY]
    if len(by_name) == len(plain) and any(p.name in KNOWN for p in plain):
        return Call(
            names=tuple(p.name for p in plain if p.name in KNOWN),
            columns=tuple(p.name for p in plain if p.name not in KNOWN),
            optional=frozenset(p.name for p in plain if p.default is not kinds.empty),
            rest=any(p.kind == kinds.VAR_KEYWORD for p in parameters),
        )
    needed = [p for p in plain if p.default is kinds.empty]
    positional = [p for p in needed if p.kind in _POSITIONAL]
    anything = any(p.kind == kinds.VAR_POSITIONAL for p in parameters)
    if len(positional) < len(needed) or len(needed) > 3 or (len(needed) < 2 and not anything):
        raise ValueError(f"Reward function '{name}{inspect.signature(function)}' must take {FORMS}.")
    return Call(positional=3 if anything else len(needed))
