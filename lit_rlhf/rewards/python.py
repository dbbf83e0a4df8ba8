"""Reward from a Python function: a rule, a checker, a unit test."""

from __future__ import annotations

import importlib
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_rlhf.rewards.base import Reward, parse_scores, quoted
from lit_rlhf.types import RewardOutput, RewardRequest

ScoreFunction = Callable[[list[str], list[str], list[dict[str, Any]]], Any]


class PythonReward(Reward):
    """Score by a function that is named, not pickled, so that a YAML file can say it.

    The function is called as ``function(prompts, responses, records)`` with three lists of length B and returns B
    numbers; or a dict with ``scores`` and ``token_scores`` (for each response as many numbers as it has tokens).
    A record is the prompt's raw row plus ``ended`` (bool: the response has its EOS) and ``response_ids`` (token ids,
    EOS included), which take the place of keys of the same name in the row.

    Args:
        function: ``package.module:function``; modules in the current directory are found too.
        timeout: Seconds one call may take; None waits. The function then runs in a thread of its own, which a timeout
            leaves behind (Python cannot end it) while the run stops with an error.
        name: Used in metrics and messages; None takes the function's name.

    Raises:
        ValueError: ``function`` is not of that form, or ``timeout`` is not positive.
    """

    def __init__(self, function: str, *, timeout: float | None = None, name: str | None = None) -> None:
        if not re.fullmatch(r"[\w.]+:[\w.]+", function):
            raise ValueError(f"`function` ('{function}') must have the form 'package.module:function'.")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"`timeout` ({timeout}) must be positive, or None.")
        self.function, self.timeout = function, timeout
        self.name = name if name is not None else function.rpartition(":")[2]
        self._call: ScoreFunction | None = None

    def setup(self, *, device: torch.device, tokenizer: Any) -> None:
        """Import the function.

        Raises:
            ValueError: There is no such module or function, or it cannot be called.
        """
        self._call = find_function(self.function)

    def score(self, request: RewardRequest) -> RewardOutput:
        """Call the function on the whole batch.

        Raises:
            RuntimeError: It raised; names the prompt (found by calling it again, one row at a time).
            TimeoutError: It took too long; names the prompt, found the same way.
            ValueError: What it gave is not B numbers, or :meth:`setup` was not called.
        """
        if self._call is None:
            raise ValueError(f"Reward '{self.name}' has no function yet: call `setup` first.")
        arguments = _arguments(request)
        try:
            value = self._timed(self._call, *arguments)
        except (Exception, SystemExit) as error:
            raise self._blame(error, self._call, *arguments) from error
        return parse_scores(value, request, source=f"Reward function '{self.function}'")

    def _timed(self, function: ScoreFunction, *arguments: Any) -> Any:
        return function(*arguments) if self.timeout is None else run_within(self.timeout, function, *arguments)

    def _blame(
        self,
        error: BaseException,
        function: ScoreFunction,
        prompts: list[str],
        responses: list[str],
        records: list[dict[str, Any]],
    ) -> Exception:
        """The error to raise, with the first prompt that fails when the function gets it alone."""
        where = f"{len(prompts)} prompts together, each alone is fine; the first is {quoted(prompts[0])}"
        for prompt, response, record in zip(prompts, responses, records, strict=True):
            try:
                self._timed(function, [prompt], [response], [record])
            except (Exception, SystemExit) as alone:
                error, where = alone, quoted(prompt)
                break
        source = f"Reward function '{self.function}'"
        if isinstance(error, _OutOfTimeError):
            return TimeoutError(f"{source} took longer than {self.timeout} s for {where}.")
        return RuntimeError(f"{source} raised {type(error).__name__}: {error} for {where}.")

    def describe(self) -> dict[str, Any]:
        """The function, too."""
        return {**super().describe(), "function": self.function}


def _arguments(request: RewardRequest) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    rollout = request.rollout
    ids = [
        row[keep].tolist() for row, keep in zip(rollout.response_ids.cpu(), rollout.response_mask.cpu(), strict=True)
    ]
    records = [
        {**record, "ended": ended, "response_ids": row}
        for record, ended, row in zip(request.records, request.ended, ids, strict=True)
    ]
    return list(request.prompts), list(request.responses), records


def find_function(name: str) -> ScoreFunction:
    """Import ``package.module:function``.

    Raises:
        ValueError: There is no such module or function, or it cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # a console script does not look where it is started
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"Reward function '{name}' cannot be imported: {error}.") from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        what = "has no such function" if found is None else "is not callable"
        raise ValueError(f"Reward function '{name}': module '{module_name}' {what}.")
    return found  # type: ignore[no-any-return]


class _OutOfTimeError(Exception):
    """A call did not come back in time (an exception the called function cannot raise itself)."""


def run_within(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, or an error when it takes longer than ``seconds``."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            # Grad mode belongs to the thread: without this a reward with torch inside would build a graph.
            with torch.no_grad():
                outcome.append(function(*arguments))
        except BaseException as error:
            failure.append(error)

    # A daemon: an executor's threads are waited for at exit, and a hanging one would keep the process alive.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise _OutOfTimeError
    if failure:
        raise failure[0]
    return outcome[0]
