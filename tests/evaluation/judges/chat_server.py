"""A real chat server on loopback whose answers, faults and manners a test decides."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behavior = Callable[[str], Any]
SAYS = {
    "A": "The first one is better.\nVerdict: A",
    "B": "The second one is better.\nVerdict: B",
    "tie": "Verdict: tie",
}


class ChatServer:
    """Attributes: texts and headers of all requests so far, and the most that were open at one time."""

    def __init__(self, behavior: Behavior) -> None:
        self.behavior = behavior
        self.texts: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self.url = ""


def says(verdict: str) -> dict[str, Any]:
    """A completion that ends in a verdict, or is any text."""
    text = SAYS.get(verdict, verdict)
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def quoted_answers(text: str) -> tuple[str, str]:
    """What stands between the marks of A and B."""
    found = re.search(r"<answer A (\d+)>\n(.*)\n</answer A \1>.*<answer B \1>\n(.*)\n</answer B \1>", text, re.DOTALL)
    assert found is not None
    return found[2], found[3]


def longer(text: str) -> dict[str, Any]:
    """A judge that likes the longer answer."""
    a, b = quoted_answers(text)
    return says("A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        server: ChatServer = self.server.state  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with server.lock:
            server.texts.append(text)
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.open += 1
            server.most_open = max(server.most_open, server.open)
        try:
            self._answer(server.behavior(text))
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with server.lock:
                server.open -= 1

    def _answer(self, what: Any) -> None:
        if what == "hang up":
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(what, tuple) and what[0] == "drip":  # a byte now and then, for ever
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            for _ in range(what[1]):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
            return
        status, payload = what if isinstance(what, tuple) else (200, what)
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(behavior: Behavior) -> Iterator[ChatServer]:
    """The server, for as long as the block lasts."""
    state = ChatServer(behavior)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.state = state  # type: ignore[attr-defined]
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
