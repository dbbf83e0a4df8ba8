"""Rewards that go wrong on one rank, in the second iteration; functions for a PythonReward."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

_CALLS = [0]


def _then(rank: int, act: Callable[[], Any]) -> Callable[..., list[float]]:
    def reward(prompts: Any, responses: Any, records: Any) -> list[float]:
        _CALLS[0] += 1
        if _CALLS[0] == 2 and int(os.environ.get("LOCAL_RANK", "0")) == rank:
            act()
        return [float(len(response)) for response in responses]

    return reward


def _raise() -> None:
    raise ArithmeticError("the reward's own error")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


raises_on_0, raises_on_1 = _then(0, _raise), _then(1, _raise)
killed_on_0, killed_on_1 = _then(0, _kill), _then(1, _kill)
frozen_on_1 = _then(1, _freeze)
hangs_on_1 = _then(1, lambda: time.sleep(3600))
