"""The HTTP reward against a real server that works, fails, hangs, drips, redirects, and talks nonsense."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from lit_rlhf import http_service
from lit_rlhf.http_service import seconds_to_wait
from lit_rlhf.rewards.http import HTTPReward
from tests.rewards.requests import make_request

TOKEN = "s3cret-t0ken"


class Service:
    """A server on the loopback device; ``behave(handler, payload, attempt)`` answers."""

    def __init__(self):
        self.requests, self.headers, self.behave = [], [], answer
        self.lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with service.lock:
                    service.requests.append(payload)
                    service.headers.append(dict(self.headers))
                    attempt = len(service.requests)
                with contextlib.suppress(OSError):  # the client went away, as some tests mean it to
                    service.behave(self, payload, attempt)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


def reply(handler, body, status=200, headers=()):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for key, value in headers:
        handler.send_header(key, value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def answer(handler, payload, attempt):
    reply(handler, {"scores": [len(r) for r in payload["responses"]]})


def failing(times, status=500, headers=()):
    def behave(handler, payload, attempt):
        answer(handler, payload, attempt) if attempt > times else reply(handler, b"oops", status, headers)

    return behave


@pytest.fixture
def service(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Service()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def request_(tokenizer):
    words = ["a", "bb", "ccc", "dddd", "eeeee"]
    return make_request(
        tokenizer, [f"prompt {i}" for i in range(5)], words, ended=[True, False, True, True, True],
        records=[{"id": i} for i in range(5)],
    )  # fmt: skip


def _reward(service, **options):
    return HTTPReward(service.url, **{"timeout": 20.0, "backoff": 0.01, "retries": 3, **options})


class TestWorks:
    def test_batches_come_back_in_order(self, service, request_):
        def slow_first(handler, payload, attempt):
            if payload["prompts"][0] == "prompt 0":
                time.sleep(0.2)
            answer(handler, payload, attempt)

        service.behave = slow_first
        output = _reward(service, batch_size=2)(request_)
        assert output.scores.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert output.token_scores is None
        assert sorted(len(r["prompts"]) for r in service.requests) == [1, 2, 2]

    def test_payload(self, service, request_):
        _reward(service, send_records=True)(request_)
        assert service.requests == [
            {
                "prompts": [f"prompt {i}" for i in range(5)],
                "responses": ["a", "bb", "ccc", "dddd", "eeeee"],
                "ended": [True, False, True, True, True],
                "response_lengths": [2, 2, 4, 5, 6],
                "records": [{"id": i} for i in range(5)],
            }
        ]
        _reward(service)(request_)
        assert "records" not in service.requests[-1]

    def test_token_scores(self, service, request_):
        def behave(handler, payload, attempt):
            reply(
                handler,
                {
                    "scores": [0] * len(payload["prompts"]),
                    "token_scores": [[0.5] * n for n in payload["response_lengths"]],
                },
            )

        service.behave = behave
        output = _reward(service, batch_size=2)(request_)
        assert torch.equal(output.token_scores, 0.5 * request_.rollout.response_mask)

    def test_concurrency_is_bounded(self, service, request_):
        waiting, most = set(), []

        def slow(handler, payload, attempt):
            waiting.add(attempt)
            most.append(len(waiting))
            deadline = time.monotonic() + 2
            while max(most) < 2 and len(service.requests) < 5 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            waiting.remove(attempt)  # before the answer: the client sends its next request as soon as it has it
            answer(handler, payload, attempt)

        service.behave = slow
        _reward(service, batch_size=1, concurrency=2)(request_)
        assert max(most) == 2


class TestRetries:
    @pytest.mark.parametrize("status", [500, 503, 429, 408])
    def test_fails_then_works(self, service, request_, status):
        service.behave = failing(2, status)
        assert _reward(service)(request_).scores.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert len(service.requests) == 3

    def test_fails_for_good(self, service, request_):
        service.behave = failing(99)
        with pytest.raises(
            RuntimeError, match=r"failed 3 times, last with HTTP 500, for prompt 'prompt 0' \(batch of 5\)"
        ):
            _reward(service, retries=2)(request_)
        assert len(service.requests) == 3

    @pytest.mark.parametrize("status", [400, 401, 404, 422])
    def test_refusal_is_not_repeated(self, service, request_, status):
        service.behave = failing(99, status)
        with pytest.raises(RuntimeError, match=f"refused with HTTP {status} for prompt 'prompt 0'"):
            _reward(service)(request_)
        assert len(service.requests) == 1

    def test_hangs(self, service, request_):
        released = threading.Event()

        def hang(handler, payload, attempt):
            released.wait(30) if attempt == 1 else answer(handler, payload, attempt)

        service.behave = hang
        assert _reward(service, timeout=0.5)(request_).scores.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
        service.behave = lambda *_: released.wait(30)
        with pytest.raises(RuntimeError, match=r"failed 2 times, last with no reply within 0\.3 s"):
            _reward(service, timeout=0.3, retries=1)(request_)
        released.set()

    def test_drips(self, service, request_):
        """A byte now and then keeps the socket alive; the attempt still ends at its timeout."""

        def drip(handler, payload, attempt):
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            for _ in range(200):
                handler.wfile.write(b" ")
                time.sleep(0.1)

        service.behave = drip
        with pytest.raises(RuntimeError, match=r"no reply within 0\.5 s"):
            _reward(service, timeout=0.5, retries=0)(request_)

    @pytest.mark.parametrize("part", ["status line", "headers", "chunks"])
    def test_drips_before_the_body(self, service, request_, part):
        """The attempt's time runs from its start, not from the last byte that came."""

        def drip(handler, payload, attempt):
            begun = {"status line": b"", "headers": b"HTTP/1.1 200 OK\r\n", "chunks": b""}[part]
            if part == "chunks":
                begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            handler.wfile.write(begun)
            for i in range(200):
                piece = {"status line": b"H", "headers": b"X-%d: y\r\n" % i, "chunks": b"1\r\n \r\n"}[part]
                handler.wfile.write(piece)
                time.sleep(0.1)

        service.behave = drip
        started = time.monotonic()
        with pytest.raises(RuntimeError, match="failed 2 times"):
            _reward(service, timeout=0.5, retries=1)(request_)
        assert time.monotonic() - started < 10  # 40 s, were it the time between two bytes

    @pytest.mark.parametrize("cut", [b"", b'{"scores"', b'{"scores": [1.0, 2.0, 3.0, 4.0, 5.0]'])
    def test_breaks_off_without_a_length(self, service, request_, cut):
        def half(handler, payload, attempt):
            if attempt == 3:
                answer(handler, payload, attempt)
            else:
                handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + cut)

        service.behave = half
        assert len(_reward(service)(request_).scores) == 5
        assert len(service.requests) == 3

    @pytest.mark.parametrize("value", ["\xb2", "-1", "1e3", "Wed, 21 Oct 2015 07:28:00 GMT", "9" * 5000, "", "nan"])
    def test_any_retry_after(self, service, request_, value):
        service.behave = failing(1, 503, [("Retry-After", value)])
        assert len(_reward(service, max_backoff=0.1)(request_).scores) == 5

    def test_breaks_off(self, service, request_):
        def half(handler, payload, attempt):
            if attempt == 2:
                answer(handler, payload, attempt)
                return
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"scores"')

        service.behave = half
        assert len(_reward(service)(request_).scores) == 5

    def test_nobody_there(self, service, request_):
        reward = _reward(service, retries=1)
        service.server.server_close()
        with pytest.raises(RuntimeError, match=r"failed 2 times, last with .*refused"):
            reward(request_)

    def test_waits_grow_and_are_bounded(self):
        for attempt, limit in enumerate([1.0, 2.0, 4.0, 5.0, 5.0]):
            waits = [seconds_to_wait(attempt, 1.0, 5.0, None) for _ in range(200)]
            assert 0 <= min(waits) < 0.2 * limit
            assert 0.8 * limit < max(waits) <= limit
        assert seconds_to_wait(0, 1.0, 5.0, 3.0) == 3.0
        assert seconds_to_wait(0, 1.0, 5.0, 300.0) == 5.0

    def test_retry_after_is_honored(self, service, request_, monkeypatch):
        waits = []
        service.behave = failing(1, 429, [("Retry-After", "7")])
        monkeypatch.setattr(http_service, "seconds_to_wait", lambda *given: waits.append(given) or 0.0)
        _reward(service, backoff=0.5, max_backoff=9.0)(request_)
        assert waits == [(0, 0.5, 9.0, 7.0)]

    def test_global_generators_are_left_alone(self, service, request_):
        import random

        state, seeds = random.getstate(), torch.get_rng_state()
        service.behave = failing(2)
        _reward(service)(request_)
        assert random.getstate() == state
        assert torch.equal(torch.get_rng_state(), seeds)

    def test_one_failed_batch_ends_the_others(self, service, request_, monkeypatch):
        def behave(handler, payload, attempt):
            if payload["prompts"][0] == "prompt 0":
                time.sleep(0.2)
                reply(handler, b"", 400)
            else:
                reply(handler, b"", 500)

        service.behave = behave
        monkeypatch.setattr(http_service, "seconds_to_wait", lambda *_: 30.0)
        with pytest.raises(RuntimeError, match="HTTP 400"):
            _reward(service, batch_size=1, concurrency=2, retries=2, backoff=30.0)(request_)
        # The others did not sit out their backoff.

    def test_nothing_is_left_open(self, service, request_):
        reward = _reward(service, batch_size=1, concurrency=3, retries=1, timeout=0.3)
        open_files, threads = len(list(Path("/proc/self/fd").iterdir())), set(threading.enumerate())
        for behave in (answer, failing(99), failing(99, 404), lambda *_: time.sleep(1)):
            service.requests.clear()
            service.behave = behave
            with contextlib.suppress(RuntimeError):
                reward(request_)
        servers = [t for t in threading.enumerate() if "process_request_thread" in t.name]
        for thread in servers:
            thread.join(10)
        assert set(threading.enumerate()) <= threads
        assert len(list(Path("/proc/self/fd").iterdir())) <= open_files

    def test_inside_a_running_loop(self, service, request_):
        """As in a notebook."""

        async def cell():
            return _reward(service)(request_).scores.tolist()

        assert asyncio.run(cell()) == [1.0, 2.0, 3.0, 4.0, 5.0]

    def test_a_proxy_of_the_environment_is_asked(self, service, request_, monkeypatch):
        monkeypatch.setenv("http_proxy", service.url.removesuffix("/score"))
        reward = HTTPReward("http://reward.invalid/score", timeout=20.0)
        assert reward(request_).scores.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
        monkeypatch.setenv("no_proxy", "reward.invalid")
        reward = HTTPReward("http://reward.invalid/score", timeout=5.0, retries=0)
        with pytest.raises(RuntimeError, match="failed 1 times"):
            reward(request_)

    def test_a_password_file_is_not_read(self, service, request_, monkeypatch, tmp_path):
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        _reward(service)(request_)
        assert "Authorization" not in service.headers[0]


class TestNonsense:
    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"<html>gateway</html>", r"did not reply with JSON for prompt 'prompt 0' \(batch of 5\): b'<html>gateway"),
            (b"", "did not reply with JSON"),
            (b"\xff\xfe", "did not reply with JSON"),
            ([1, 2, 3, 4, 5], "must reply with an object that has `scores`"),
            ({"rewards": []}, "must reply with an object that has `scores`"),
            ({"scores": [1, 2]}, "gave 2 scores for 5 responses"),
            ({"scores": [1, 2, 3, 4, 5, 6]}, "gave 6 scores for 5 responses"),
            ({"scores": None}, "must give a list of 5 scores, not NoneType"),
            ({"scores": [1, 2, "x", 4, 5]}, "gave 'x', which is no number, for prompt 'prompt 2'"),
            (b'{"scores": [1, 2, 3, NaN, 5]}', "Reward 'http' gave nan for prompt 'prompt 3'"),
            (b'{"scores": [1, 2, 3, 4, 1e999]}', "Reward 'http' gave inf for prompt 'prompt 4'"),
            (b'{"scores": [1, 2, 3, 4, %s]}' % (b"1" * 400), "Reward 'http' gave inf for prompt 'prompt 4'"),
            (b'{"scores": [1, 2, 3, 4, %s]}' % (b"1" * 6000), "Reward 'http' gave inf for prompt 'prompt 4'"),
            (b'{"scores": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "did not reply with JSON"),
            ({"scores": [1] * 5, "token_scores": [[1]] * 5}, "gave 1 token scores for 2 tokens of prompt 'prompt 0'"),
        ],
    )
    def test_reply(self, service, request_, body, message):
        service.behave = lambda handler, *_: reply(handler, body)
        with pytest.raises(ValueError, match=message):
            _reward(service)(request_)
        assert len(service.requests) == 1

    def test_records_that_are_not_json(self, service, tokenizer):
        request = make_request(tokenizer, ["p"], ["r"], records=[{"when": object()}])
        with pytest.raises(ValueError, match=r"`send_records` needs records that are JSON: .*object.* prompt 'p'"):
            _reward(service, send_records=True)(request)

    def test_endless_reply(self, service, request_, monkeypatch):
        monkeypatch.setattr("lit_rlhf.rewards.http._MAX_REPLY_BYTES", 1000)
        service.behave = lambda handler, *_: reply(handler, b" " * 5000)
        with pytest.raises(RuntimeError, match="reply larger than 1000 bytes"):
            _reward(service, retries=0)(request_)


class TestToken:
    def test_is_sent_and_is_nowhere_else(self, service, request_, monkeypatch, caplog, capfd):
        monkeypatch.setenv("REWARD_TOKEN", TOKEN + "\n")
        caplog.set_level(logging.DEBUG)
        reward = _reward(service, token_env="REWARD_TOKEN", retries=1)
        reward.setup(device=torch.device("cpu"), tokenizer=None)
        reward(request_)
        assert service.headers[0]["Authorization"] == f"Bearer {TOKEN}"
        messages = []
        for behave in (failing(99), failing(99, 401), lambda h, *_: reply(h, h.headers["Authorization"].encode())):
            service.behave = behave
            with pytest.raises((RuntimeError, ValueError)) as caught:
                reward(request_)
            error = caught.value
            while error is not None:
                messages.append(repr(error))
                error = error.__cause__
        seen = "".join(
            [*messages, repr(reward), str(vars(reward)), str(reward.describe()), caplog.text, *capfd.readouterr()]
        )
        assert TOKEN not in seen

    @pytest.mark.parametrize("where", ["status line", "header", "JSON", "keys", "escapes", "base64", "cut", "no HTTP"])
    def test_an_echo_is_not_shown(self, service, request_, monkeypatch, where):
        """Not as it is, not escaped, encoded, cut in two or as a number."""
        monkeypatch.setenv("REWARD_TOKEN", TOKEN)
        escaped = "".join(f"\\u{ord(c):04x}" for c in TOKEN)
        encoded = base64.b64encode(TOKEN.encode()).decode()
        raw = {
            "status line": f"HTTP/1.1 {TOKEN} {TOKEN}\r\n\r\n",
            "header": f"HTTP/1.1 400 {TOKEN}\r\nX-{TOKEN}: {TOKEN}\r\nContent-Length: {TOKEN}\r\n\r\n",
            "no HTTP": f"{TOKEN}\r\n{TOKEN}",
        }
        bodies = {
            "JSON": json.dumps({"scores": [TOKEN] * 5}),
            "keys": json.dumps({"scores": {TOKEN: TOKEN}}),
            "escapes": f'{{"scores": ["{escaped}", 1, 2, 3, {{"{escaped}": 1}}]}}',
            "base64": f"<html>{encoded}</html>",
            "cut": f"{'.' * 74}{TOKEN}",
        }

        def behave(handler, payload, attempt):
            if where in raw:
                handler.wfile.write(raw[where].encode())
            else:
                reply(handler, bodies[where].encode())

        service.behave = behave
        with pytest.raises((RuntimeError, ValueError)) as caught:
            _reward(service, token_env="REWARD_TOKEN", retries=0)(request_)
        told = str(caught.value)
        assert not [part for part in (TOKEN, TOKEN[:5], encoded[:6], escaped[:12]) if part in told], told
        assert "Reward service http://127.0.0.1" in told

    def test_missing_at_setup(self, service, monkeypatch):
        monkeypatch.delenv("REWARD_TOKEN", raising=False)
        with pytest.raises(ValueError, match="environment variable REWARD_TOKEN is not set"):
            _reward(service, token_env="REWARD_TOKEN").setup(device=torch.device("cpu"), tokenizer=None)

    def test_malformed_is_not_shown(self, service, monkeypatch):
        monkeypatch.setenv("REWARD_TOKEN", f"{TOKEN}\nX-Injected: 1")
        with pytest.raises(ValueError, match="holds what a header cannot") as caught:
            _reward(service, token_env="REWARD_TOKEN").setup(device=torch.device("cpu"), tokenizer=None)
        assert TOKEN not in str(caught.value)

    def test_redirect_does_not_carry_it_away(self, service, request_, monkeypatch):
        monkeypatch.setenv("REWARD_TOKEN", TOKEN)
        elsewhere = Service()
        service.behave = failing(99, 307, [("Location", elsewhere.url)])
        with pytest.raises(RuntimeError, match="refused with HTTP 307"):
            _reward(service, token_env="REWARD_TOKEN")(request_)
        service.behave = failing(99, 302, [("Location", elsewhere.url)])
        with pytest.raises(RuntimeError, match="refused with HTTP 302"):
            _reward(service, token_env="REWARD_TOKEN")(request_)
        assert elsewhere.requests == []
        elsewhere.server.shutdown()
        elsewhere.server.server_close()


class TestArguments:
    @pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/x", "http://", "file:///etc/passwd"])
    def test_url(self, url):
        with pytest.raises(ValueError, match="must start with http:// or https:// and name a host"):
            HTTPReward(url)

    def test_password_in_url(self):
        with pytest.raises(ValueError, match="Use `token_env`") as caught:
            HTTPReward(f"http://user:{TOKEN}@host/")
        assert TOKEN not in str(caught.value)

    @pytest.mark.parametrize("name", ["timeout", "batch_size", "concurrency"])
    def test_positive(self, name):
        with pytest.raises(ValueError, match=rf"`{name}` \(0\) must be positive"):
            HTTPReward("http://host/", **{name: 0})

    @pytest.mark.parametrize("name", ["retries", "backoff", "max_backoff"])
    def test_not_negative(self, name):
        with pytest.raises(ValueError, match=rf"`{name}` \(-1\) must not be negative"):
            HTTPReward("http://host/", **{name: -1})
