"""Processes that tokenize: as many as there are cores, started for large data alone.

They are interpreters of their own that read chunks from a pipe and answer on another: no fork of a process that may
have threads, CUDA or open sockets, and no second import of a user's script. When this process is gone, however it
ended, their pipe ends and so do they.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")
_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from lit_rlhf.data.workers import serve; serve()"
)
_MOST = 32


def cores() -> int:
    """Processes worth starting: the cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, _MOST)


class Workers(AbstractContextManager["Workers"]):
    """``number`` processes that run ``function`` on what they are given.

    Args:
        function: Picklable, of one argument.
        number: Of processes.

    Raises:
        Exception: ``function`` cannot be pickled.
    """

    def __init__(self, function: Callable[[Any], Any], number: int) -> None:
        start = pickle.dumps(sys.path) + pickle.dumps(function)
        quiet = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **quiet},
                start_new_session=True,  # Ctrl-C is for this process, which then ends them
            )
            for _ in range(number)
        ]
        self._free: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(start)
            process.stdin.flush()
            self._free.put(process)
        self._threads = ThreadPoolExecutor(number)

    def map(self, chunks: Iterable[Any]) -> Iterator[Any]:
        """The answer to each chunk, in order; few more chunks are held than there are processes.

        Raises:
            Exception: What ``function`` raised.
            RuntimeError: A process ended, say for want of memory.
        """
        under_way: deque[Future[Any]] = deque()
        for chunk in chunks:
            under_way.append(self._threads.submit(self._ask, chunk))
            if len(under_way) > len(self._processes) + 1:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _ask(self, chunk: Any) -> Any:
        process = self._free.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(chunk, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (OSError, EOFError) as error:
            raise RuntimeError(f"A process that tokenizes has ended (exit code {process.wait()}).") from error
        finally:
            self._free.put(process)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except BrokenPipeError:  # what was still to be written to it
                    continue


def serve() -> None:
    """The other end: answer until the pipe ends."""
    source, out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a tokenizer prints must not come among the answers
    function = pickle.load(source)
    while True:
        try:
            chunk = pickle.load(source)
        except EOFError:
            return
        try:
            answer = function(chunk)
        except Exception as error:
            answer = error
        pickle.dump(answer, out, protocol=pickle.HIGHEST_PROTOCOL)
        out.flush()


def batched(items: Iterable[ItemT], *, rows: int, size: Callable[[ItemT], int], bytes: int) -> Iterator[list[ItemT]]:
    """Consecutive items in lists of at most ``rows``, cut earlier where they reach ``bytes``."""
    batch: list[ItemT] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if len(batch) >= rows or total >= bytes:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
