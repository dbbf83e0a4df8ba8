"""`bin/bench ppo --engine vllm` beside the transformers engine: the same work on both sides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_both_engines_are_timed_on_the_same_tokens(tmp_path) -> None:
    pairs = [{"chosen": f"\n\nHuman: {word}?\n\nAssistant: {word}.", "rejected": ""} for word in ("one", "two", "six")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    found = {}
    for engine in ("transformers", "vllm"):
        words = ["--preset", "1m", "--data", str(tmp_path / "pairs.jsonl"), "--prompts", "8", "--prompt-len", "12"]
        size = ["--response-len", "6", "--iterations", "1", "--prompt-dist", "fixed", "--eos-rate", "0"]
        command = [sys.executable, str(ROOT / "bin" / "bench"), "ppo", *words, *size, "--engine", engine]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found[engine] = json.loads(done.stdout.splitlines()[-1])
    for name in ("response_tokens", "prompt_tokens"):
        assert found["vllm"][name] == found["transformers"][name]
    assert found["vllm"]["response_tokens"] == 8 * 6
    assert found["vllm"]["seconds"]["rollout"] > 0
