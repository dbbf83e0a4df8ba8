"""A real `vllm serve` on the loopback device, as docs/engines.md starts one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_rlhf.models.plain_weights import save_plain_config
from tests.vllm.worlds import VOCABULARY

KEY = "s3cret-k3y"
PATIENCE = 900.0
"""Seconds for a start: 15 on a quiet machine."""


def write_served(policy: Any, folder: Path) -> Path:
    """What a server starts from: a configuration and a tokenizer, no weights."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    save_plain_config(policy, str(folder))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="t0").save_pretrained(folder)
    return folder


@contextlib.contextmanager
def vllm_serve(folder: Path, *words: str) -> Iterator[str]:
    """The address of a server, ended with all it started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", "127.0.0.1",
        "--port", str(port), "--load-format", "dummy", "--dtype", "float32", "--max-model-len", "512",
        "--max-num-seqs", "64", "--kv-cache-memory-bytes", "100000000", "--enforce-eager",
        "--generation-config", "vllm", "--api-key", KEY,
        "--worker-extension-cls", "lit_rlhf.rollout.vllm_inside.PolicyWeights", *words,
    ]  # fmt: skip
    own = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    own["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # two workers may share a NUMA node
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, **own, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _end(process)


def _wait(process: subprocess.Popen[Any], address: str, log: Path) -> None:
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError(f"no server at {address}:\n{log.read_text()[-3000:]}")


def _end(process: subprocess.Popen[Any]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
