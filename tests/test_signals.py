"""Signals are noted, and do nothing else; who asks is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from lit_rlhf import signals
from tests.distributed_harness import clean_environment


def python(code: str) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_the_first_one_is_noted(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with signals.listening():
        assert signals.received() == 0
        os.kill(os.getpid(), number)
        assert signals.received() == number
    assert signal.getsignal(number) == before
    assert capfd.readouterr().err == ""
    with signals.listening():
        assert signals.received() == 0


def test_a_second_one_says_how_long_it_will_take(capfd: pytest.CaptureFixture[str]) -> None:
    with signals.listening():
        signals.note_save(12.34)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received() == signal.SIGUSR1
        told = capfd.readouterr().err
        assert told == (
            "lit-rlhf: SIGTERM after SIGUSR1: the run ends after the update under way and a save, which took 12.3 s "
            "the last time.\n"
        )
        signals.ending()
        os.kill(os.getpid(), signal.SIGTERM)
        assert capfd.readouterr().err == ""


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with signals.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == ""


def test_a_rollout_is_given_up_only_where_somebody_acts_on_it() -> None:
    with signals.listening():
        signals.check()
        os.kill(os.getpid(), signal.SIGTERM)
        signals.check()
        signals.rollout_may_end(allowed=True)
        with pytest.raises(signals.Interrupted):
            signals.check()
        signals.rollout_may_end(allowed=False)
        signals.check()


def test_what_came_while_signals_were_blocked_is_noted() -> None:
    """As `env --block-signal` starts a program: not even its first lines can be killed."""
    code = (
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "from lit_rlhf import signals\n"
        "with signals.listening():\n"
        "    print(signals.received())\n"
    )
    ended = python(code)
    assert ended.stdout == f"{int(signal.SIGUSR1)}\n", ended.stderr


def test_other_threads_change_no_handlers() -> None:
    before, got = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=lambda: got.append(signals.listen()))
    thread.start()
    thread.join()
    assert got == [{}]
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_program_listens_before_anything_heavy_is_imported() -> None:
    """A signal during the imports ends `fit` where it can be requeued, not in the middle of them."""
    code = (
        "import sys, os, signal\n"
        "from lit_rlhf import cli\n"
        "assert 'torch' not in sys.modules\n"
        "def found(words):\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    from lit_rlhf import signals\n"
        "    return lambda argv: print('noted', signals.received()), words\n"
        "cli._find = found\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"  # as bin/launch-slurm starts a task
        "cli.main(['fit'])\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "cli.main(['validate'])\n"
    )
    ended = python(code)
    assert ended.stdout == f"noted {int(signal.SIGUSR1)}\n", ended.stderr
    assert ended.returncode == -signal.SIGUSR1  # only `fit` has something to save


def test_a_run_that_is_done_does_not_die_of_a_signal_while_python_shuts_down() -> None:
    code = (
        "import atexit, os, signal, sys\n"
        "from lit_rlhf import cli\n"
        "cli._find = lambda words: (lambda argv: None, words)\n"
        "sys.argv = ['lit-rlhf', 'fit']\n"
        "kill = lambda end=os.kill, me=os.getpid(), number=signal.SIGTERM: end(me, number)\n"
        "class Last:\n"
        "    def __del__(self, kill=kill):\n"
        "        kill()\n"
        "last = Last()\n"  # goes when Python has no handlers any more
        "atexit.register(kill)\n"
        "cli.main()\n"
    )
    ended = python(code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
