"""Reward from a Python function: a rule, a checker, a unit test."""

from __future__ import annotations

import importlib
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_rlhf.config import check_type
from lit_rlhf.rewards.base import Reward, RewardError, RewardTimeoutError, parse_scores, quoted
from lit_rlhf.rewards.signature import Call, call_of
from lit_rlhf.types import RewardOutput, RewardRequest
from lit_rlhf.user_errors import PACKAGE

ScoreFunction = Callable[..., Any]

if TYPE_CHECKING:
    FunctionLike = str | ScoreFunction
    RewardLike = Reward | ScoreFunction
else:
    FunctionLike, RewardLike = str, Reward
"""What Python takes; YAML and command line name functions and classes."""


class PythonReward(Reward):
    """Score by a Python function.

    The function gets lists of length B and returns B numbers, or a dict with ``scores`` and ``token_scores`` (for each
    response as many numbers as it has tokens). It is called with what its signature asks for::

        def reward(prompts, responses): ...
        def reward(prompts, responses, records): ...
        def reward(responses, answer, **others): ...  # by name: `answer` is a key of the prompts' rows

    ``prompts`` and ``responses`` (or ``completions``) are strings. A record is the prompt's raw row plus ``ended``
    (bool: the response has its EOS) and ``response_ids`` (token ids, EOS included), which take the place of keys of the
    same name in the row. Where no argument has one of these names, two or three are passed by position.

    Args:
        function: ``package.module:function``, where modules in the current directory are found too; in Python also the
            function itself.
        timeout: Seconds one call may take; None waits. The function then runs in a thread of its own, which a timeout
            leaves behind (Python cannot end it) while the run stops with an error.
        name: Used in metrics and messages; None takes the function's name.

    Raises:
        ValueError: ``function`` is neither, cannot be called that way, or ``timeout`` is not positive.
    """

    def __init__(self, function: FunctionLike, *, timeout: float | None = None, name: str | None = None) -> None:
        check_type("timeout", timeout, float, optional=True)
        if timeout is not None and not timeout > 0:
            raise ValueError(f"`timeout` ({timeout}) must be positive, or None.")
        self._call: ScoreFunction | None = None
        self._form = Call()
        self.timeout = timeout
        if isinstance(function, str):
            if not re.fullmatch(r"[\w.]+:[\w.]+", function):
                raise ValueError(f"`function` ('{function}') must have the form 'package.module:function'.")
            self.function = function
        elif callable(function):
            own = getattr(function, "__qualname__", type(function).__qualname__)
            self.function = f"{getattr(function, '__module__', '?')}:{own}"
            self._call, self._form = function, call_of(function, self.function)
        else:
            raise ValueError(f"`function` ({function!r:.80}) must be a function, or name one.")
        self.name = name if name is not None else self.function.rpartition(":")[2].rpartition(".")[2]

    def prepare(self) -> None:
        """Import the function and look at its signature.

        Raises:
            ValueError: There is no such module or function, or it cannot be called with what a reward has.
        """
        if self._call is None:
            self._call = find_function(self.function)
            self._form = call_of(self._call, self.function)

    def setup(self, *, device: torch.device, tokenizer: Any) -> None:
        """Import the function; see :meth:`prepare`."""
        self.prepare()

    def score(self, request: RewardRequest) -> RewardOutput:
        """Call the function on the whole batch.

        Raises:
            RewardError: It raised; names the prompt (found by calling it again, one row at a time).
            RewardTimeoutError: It took too long; names the prompt, found the same way.
            ValueError: What it gave is not B numbers, it asks for a key that rows do not have, or :meth:`setup` was not
                called.
        """
        if self._call is None:
            raise ValueError(f"Reward '{self.name}' has no function yet: call `setup` first.")
        batch = _batch(request)
        self._form.arguments(*batch)
        try:
            value = self._timed(self._call, *batch)
        except (Exception, SystemExit) as error:
            raise self._blame(error, self._call, *batch) from error
        return parse_scores(value, request, source=f"Reward function '{self.function}'")

    def _timed(self, function: ScoreFunction, *batch: Any) -> Any:
        given, named = self._form.arguments(*batch)
        wanted = partial(function, *given, **named)
        return wanted() if self.timeout is None else run_within(self.timeout, wanted)

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
            return RewardTimeoutError(f"{source} took longer than {self.timeout} s for {where}.")
        place = _place(error)
        return RewardError(f"{source} raised {type(error).__name__}: {error} for {where}{place}.")

    def describe(self) -> dict[str, Any]:
        """The function, too."""
        return {**super().describe(), "function": self.function}


def _place(error: BaseException) -> str:
    """The line of the user's code that raised, where it is one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not Path(frame.filename).resolve().is_relative_to(PACKAGE)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _batch(request: RewardRequest) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    rollout = request.rollout
    ids = [
        row[keep].tolist() for row, keep in zip(rollout.response_ids.cpu(), rollout.response_mask.cpu(), strict=True)
    ]
    records = [
        {**record, "ended": ended, "response_ids": row}
        for record, ended, row in zip(request.records, request.ended, ids, strict=True)
    ]
    return list(request.prompts), list(request.responses), records


def as_reward(value: Any, name: str) -> Reward:
    """``value`` as a source of reward: itself, or a function of a program.

    Raises:
        ValueError: It is neither, or the function cannot be called with what a reward has.
    """
    if isinstance(value, Reward):
        return value
    if callable(value) and not isinstance(value, type):
        return PythonReward(value)
    shown = " ".join(repr(value).split())[:80]
    if isinstance(value, list | tuple):
        loaded = any(hasattr(item, "save_pretrained") for item in value)
        hint = "a loaded pair is `ModelReward((model, tokenizer))`" if loaded else "several are `MixtureReward([...])`"
    else:
        hint = "PythonReward('module:function'), ModelReward('folder or hub name'), ..."
    raise ValueError(f"`{name}` ({shown}) must be a function or a Reward: {hint}")


def as_rewards(values: Mapping[str, Any] | None, name: str) -> dict[str, Reward]:
    """Sources of reward by name, of the option ``name``; None is none.

    Raises:
        ValueError: It is no dict, or one of them is no source of reward.
    """
    if values is not None and not isinstance(values, Mapping):
        raise ValueError(f"`{name}` must be a dict of rewards by name, not a {type(values).__name__}.")
    return {key: as_reward(value, key) for key, value in (values or {}).items()}


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
