"""What `vllm serve` answers, by a tiny transformers model over real HTTP: the protocol without vLLM."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lit_rlhf.rollout.exact_draws import Draw, draw_tokens
from lit_rlhf.rollout.weight_transfer import join, received


class Served:
    """A server's side: weights, prompt log-probabilities and responses.

    Attributes:
        model: Its own copy, whose weights arrive.
        behave: What is done in place of an answer, from path, payload and how often this was asked; or None.
        asked: Path and payload of every request.
        headers: Of every request.
    """

    def __init__(self, model: Any, *, exact: bool = True) -> None:
        self.model, self.exact, self.group = model, exact, None
        self.behave: Callable[[str, Any, int], tuple[int, Any] | None] = lambda *_: None
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()

    def answer(self, path: str, payload: Any) -> tuple[int, Any]:
        """Status and JSON."""
        with self.lock:
            count = sum(1 for known, given in self.asked if (known, given) == (path, payload))
            self.asked.append((path, payload))
        return self.behave(path, payload, count) or (200, self._plain(path, payload))

    def _plain(self, path: str, payload: Any) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "served", "max_model_len": 64}]}
        if path.startswith("/reset_prefix_cache"):
            return {"success": True}
        if path == "/collective_rpc":
            return {"results": [getattr(self, payload["method"])(*payload["args"])]}
        with self.lock, torch.no_grad():
            return {"choices": [self._completion(payload)]}

    def policy_weights_wanted(self) -> dict[str, Any]:
        return {"dtype": "float32", "lm_head": True}

    def policy_weights_from(self, folder: str) -> None:
        for path in sorted(Path(folder).glob("*.safetensors")):
            self.model.load_state_dict(load_file(path), strict=False)

    def policy_weights_join(self, address: str) -> None:
        self.group = join(address, rank=1)

    def policy_weights_received(self, told: str) -> None:
        self.model.load_state_dict(dict(received(self.group, json.loads(told), torch.device("cpu"))))

    def _completion(self, asked: Any) -> dict[str, Any]:
        prompt, tokens, logprobs = asked["prompt"], [], []
        draw = asked.get("vllm_xargs", {}).get("draw") if self.exact else None
        for _ in range(asked["max_tokens"]):
            logits = self.model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[:, -1].float()
            row = (Draw.from_json(draw), prompt, tokens) if draw else None
            token = int(draw_tokens(logits, [row]) if row else logits.argmax(-1))
            logprobs.append(float(logits.log_softmax(-1)[0, token]))
            tokens.append(token)
            if token in asked["stop_token_ids"]:
                break
        found = {"token_ids": tokens, "logprobs": {"token_logprobs": logprobs}}
        if asked.get("prompt_logprobs") is not None:
            table = self.model(input_ids=torch.tensor([prompt])).logits[0].float().log_softmax(-1)
            seen = [{str(i): {"logprob": float(table[at, i])}} for at, i in enumerate(prompt[1:])]
            found["prompt_logprobs"] = [None, *seen]
        return found


@contextlib.contextmanager
def serving(served: Served) -> Iterator[str]:
    """Its address, while it listens on the loopback device."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, payload: Any) -> None:
            served.headers.append(dict(self.headers))
            status, value = served.answer(self.path, payload)
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
