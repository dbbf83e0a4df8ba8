"""What the processes of a job say when one is gone; whole jobs are in tests/strategies/test_failing_ranks.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lit_rlhf.callbacks import Heartbeat
from tests.distributed_harness import clean_environment

# The thread has seen that a child was killed and is about to say so; the main thread falls out of its collective.
BOTH_AT_ONCE = """
import threading, time
from lit_rlhf.callbacks.heartbeat import _Pulse

class Slow:
    said = b""
    def check(self, keys):
        return bool(self.said)
    def get(self, key):
        return self.said
    def compare_set(self, key, expected, new):
        self.said = self.said or new.encode()
        time.sleep(0.5)
        return self.said

class Killed:
    def poll(self):
        return -9
    def kill(self):
        pass

pulse = _Pulse.__new__(_Pulse)
threading.Thread.__init__(pulse)
vars(pulse).update(
    _children=[Killed()], _every=0.01, _rank=0, _heard={}, _store=Slow(), _speaking=threading.Lock(), place=("", 0.0)
)
threading.Thread(target=lambda: pulse._end(pulse._dead_child(), code=1), daemon=True).start()
time.sleep(0.2)
pulse.end_without(RuntimeError("Connection closed by peer"))
"""


def test_two_threads_that_notice_the_same_say_it_once() -> None:
    command = [sys.executable, "-c", BOTH_AT_ONCE]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
    assert (ended.returncode, ended.stderr) == (1, "lit-rlhf: the process with local rank 1 was killed by SIGKILL.\n")


@pytest.mark.parametrize(("options", "told"), [({"every": 0.0}, "`every`"), ({"silence": 2.0}, "`silence`")])
def test_options_are_checked(options: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Heartbeat(**options)
