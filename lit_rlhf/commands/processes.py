"""`lit-rlhf` commands as child processes: started, waited for, and ended together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.user_errors import fail

_TAIL = 5


class Running:
    """A `lit-rlhf` command that has been started.

    Args:
        words: Its arguments.
        log: Where its output goes instead of the terminal.
        threads: Threads of PyTorch, unless OMP_NUM_THREADS says otherwise.
    """

    def __init__(self, words: Sequence[str], log: Path | None = None, threads: int = 1) -> None:
        self.words, self.log = words, log
        # The child must find the very package that starts it, also from a checkout that is not installed.
        path = os.pathsep.join(map(str, sys.path))
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-m", "lit_rlhf", *words]
        if log is None:
            self.process = subprocess.Popen(command, env=environment)
            return
        with log.open("w", encoding="utf-8") as out:
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)

    def check(self) -> None:
        """Wait for its end; where it failed, show the last lines of its log and end this program as well.

        Raises:
            SystemExit: 1, if it failed.
        """
        code = self.process.wait()
        if code == 0:
            return
        if self.log is not None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            print(*lines[-_TAIL:], sep="\n", file=sys.stderr)  # noqa: T201
        fail(f"failed (exit code {code}): lit-rlhf {' '.join(self.words)}", code=1)


def wait_for(commands: Sequence[Running]) -> None:
    """Wait for all; as soon as one fails or Ctrl-C comes, none of the others is left behind.

    Raises:
        SystemExit: 1, if one failed.
    """
    running = list(commands)
    try:
        while running:
            for command in [command for command in running if command.process.poll() is not None]:
                command.check()
                running.remove(command)
            time.sleep(0.05)
    except BaseException:
        for command in commands:
            command.process.terminate()
        for command in commands:
            command.process.wait()
        raise
