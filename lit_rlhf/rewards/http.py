"""Reward from an HTTP service: batches, retries, timeouts, and a token that never leaves the environment."""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import torch

from lit_rlhf.rewards.base import Reward, parse_scores, quoted
from lit_rlhf.types import RewardOutput, RewardRequest

_THREADS = "http-reward"
_RETRY_STATUS = {408, 425, 429}
_MAX_REPLY_BYTES = 64 * 1024 * 1024


class HTTPReward(Reward):
    """Score by a service: ``POST url`` with a JSON object, JSON back.

    The request holds ``prompts``, ``responses``, ``ended``, ``response_lengths`` (tokens, EOS included) and, if asked
    for, ``records``; all lists of the same length. The reply holds ``scores`` (as many numbers) and optionally
    ``token_scores`` (for each response as many numbers as it has tokens).

    Connection errors, timeouts and statuses 408, 425, 429 and 5xx are tried again after an exponential backoff with
    full jitter (``Retry-After`` in seconds is honored); any other status and any malformed reply ends the run.
    Redirects are not followed: they would carry the token to another host.

    Args:
        url: ``http://`` or ``https://`` address, without user name or password.
        timeout: Seconds for one attempt, from connecting to the last byte.
        batch_size: Most responses in one request.
        concurrency: Most requests at a time (of one rank).
        retries: Further attempts after the first.
        backoff: Seconds that the first wait may take at most; doubles with each attempt.
        max_backoff: Most seconds of any wait.
        token_env: Environment variable that holds a bearer token. Only its name is kept; the token is read for each
            request and is in no attribute, message or log.
        send_records: Send the raw rows too; they must be JSON.
        name: Used in metrics and messages.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 60.0,
        batch_size: int = 32,
        concurrency: int = 4,
        retries: int = 4,
        backoff: float = 1.0,
        max_backoff: float = 30.0,
        token_env: str | None = None,
        send_records: bool = False,
        name: str = "http",
    ) -> None:
        _check_url(url)
        for key, value in (("timeout", timeout), ("batch_size", batch_size), ("concurrency", concurrency)):
            if not value > 0:
                raise ValueError(f"`{key}` ({value}) must be positive.")
        for key, value in (("retries", retries), ("backoff", backoff), ("max_backoff", max_backoff)):
            if not value >= 0:
                raise ValueError(f"`{key}` ({value}) must not be negative.")
        self.url, self.timeout, self.batch_size, self.concurrency = url, timeout, batch_size, concurrency
        self.retries, self.backoff, self.max_backoff = retries, backoff, max_backoff
        self.token_env, self.send_records, self.name = token_env, send_records, name
        self._opener = urllib.request.build_opener(_NoRedirect())

    def setup(self, *, device: torch.device, tokenizer: Any) -> None:
        """Check that the token is there.

        Raises:
            ValueError: The environment variable is not set, or holds what a header cannot.
        """
        self._headers()

    def score(self, request: RewardRequest) -> RewardOutput:
        """Ask the service, in batches and concurrently.

        Raises:
            RuntimeError: The service failed in every attempt, or refused; names the first prompt of the batch.
            ValueError: It gave something else than numbers for its responses, or a record is not JSON.
        """
        size = self.batch_size
        parts = [_rows(request, i, min(i + size, len(request.prompts))) for i in range(0, len(request.prompts), size)]
        stop = threading.Event()
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix=_THREADS)
        try:
            futures: list[Future[RewardOutput]] = [pool.submit(self._score_part, part, stop) for part in parts]
            return _joined([future.result() for future in futures])
        finally:
            # After an error nothing waits for the other requests: they end at their timeout, without a retry.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _score_part(self, part: RewardRequest, stop: threading.Event) -> RewardOutput:
        reason, where = "", f"{quoted(part.prompts[0])} (batch of {len(part.prompts)})"
        try:
            body = json.dumps(self._payload(part)).encode()
        except TypeError as error:
            raise ValueError(f"`send_records` needs records that are JSON: {error}, in the batch of {where}.") from None
        for attempt in range(self.retries + 1):
            try:
                reply = self._post(body)
            except _RetryableError as error:
                reason = str(error)
                if attempt == self.retries or stop.wait(self._wait(attempt, error.retry_after)):
                    break
            except urllib.error.HTTPError as error:
                raise RuntimeError(f"{self._source} refused with HTTP {error.code} for {where}.") from None
            else:
                return parse_scores(_parsed(self._without_token(reply), self._source, where), part, source=self._source)
        raise RuntimeError(f"{self._source} failed {attempt + 1} times, last with {reason}, for {where}.")

    @property
    def _source(self) -> str:
        return f"Reward service {self.url}"

    def _payload(self, part: RewardRequest) -> dict[str, Any]:
        payload = {
            "prompts": list(part.prompts),
            "responses": list(part.responses),
            "ended": part.ended,
            "response_lengths": part.rollout.response_lengths.tolist(),
        }
        return payload | {"records": [dict(record) for record in part.records]} if self.send_records else payload

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.token_env is None:
            return headers
        token = os.environ.get(self.token_env, "").strip()
        if not token:
            raise ValueError(f"`token_env`: the environment variable {self.token_env} is not set.")
        if not (token.isascii() and token.isprintable()):
            # http.client would say so too, with the token in its message.
            raise ValueError(f"`token_env`: the environment variable {self.token_env} holds what a header cannot.")
        return headers | {"Authorization": f"Bearer {token}"}

    def _without_token(self, reply: bytes) -> bytes:
        """The reply as it may be shown: a service that echoes its request echoes the token."""
        _, _, token = self._headers().get("Authorization", "").partition(" ")
        return reply.replace(token.encode(), b"***") if token else reply

    def _post(self, body: bytes) -> bytes:
        """One attempt. ``_RetryableError`` when another may help, ``HTTPError`` when not."""
        request = urllib.request.Request(self.url, data=body, headers=self._headers(), method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return _read_all(response, deadline)
        except urllib.error.HTTPError as error:
            if error.code in _RETRY_STATUS or error.code >= 500:
                raise _RetryableError(f"HTTP {error.code}", error.headers.get("Retry-After")) from None
            raise
        except TimeoutError:
            raise _RetryableError(f"no reply within {self.timeout} s") from None
        except urllib.error.URLError as error:
            raise _RetryableError(f"{error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _RetryableError(f"{type(error).__name__}: {error}") from None

    def _wait(self, attempt: int, retry_after: float | None) -> float:
        """Seconds before the next attempt; not from the global generators, whose state a resume must reproduce."""
        limit = min(self.max_backoff, self.backoff * 2**attempt)
        jittered = random.SystemRandom().uniform(0, limit)
        return max(jittered, min(retry_after or 0.0, self.max_backoff))

    def describe(self) -> dict[str, Any]:
        """The address, too; never the token."""
        return {**super().describe(), "url": self.url}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the redirect becomes an ``HTTPError``."""


class _RetryableError(Exception):
    def __init__(self, reason: str, retry_after: str | None = None) -> None:
        super().__init__(reason)
        self.retry_after = float(retry_after) if retry_after and retry_after.isdigit() else None


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"`url` ('{url}') must start with http:// or https:// and name a host.")
    if parts.username or parts.password:
        raise ValueError("`url` must not hold a user name or password: it is logged. Use `token_env`.")


def _read_all(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole body by ``deadline``: a socket's own timeout starts anew with every byte that drips in."""
    pieces: list[bytes] = []
    size = 0
    while piece := response.read1(65536):
        pieces.append(piece)
        size += len(piece)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > _MAX_REPLY_BYTES:
            raise http.client.HTTPException(f"reply larger than {_MAX_REPLY_BYTES} bytes")
    announced = response.headers.get("Content-Length", "")
    if announced.isdigit() and size < int(announced):
        # Unlike read(), read1() takes a connection that broke off for the end.
        raise http.client.HTTPException(f"{size} of {announced} bytes came")
    return b"".join(pieces)


def _parsed(reply: bytes, source: str, where: str) -> Any:
    try:
        value = json.loads(reply)
    except ValueError:
        raise ValueError(f"{source} did not reply with JSON for {where}: {reply[:80]!r}.") from None
    if not isinstance(value, dict) or "scores" not in value:
        raise ValueError(f"{source} must reply with an object that has `scores`, for {where}.")
    return value


def _rows(request: RewardRequest, start: int, stop: int) -> RewardRequest:
    """Rows ``start`` to ``stop`` of a request."""
    return RewardRequest(
        rollout=request.rollout.rows(torch.arange(start, stop)),
        prompts=request.prompts[start:stop],
        responses=request.responses[start:stop],
        records=request.records[start:stop],
    )


def _joined(outputs: list[RewardOutput]) -> RewardOutput:
    """One output from those of consecutive rows; batches without per-token rewards count as zeros."""
    scores = torch.cat([output.scores for output in outputs])
    tables = [output.token_scores for output in outputs]
    width = next((table.size(1) for table in tables if table is not None), None)
    if width is None:
        return RewardOutput(scores=scores)
    whole = [o.scores.new_zeros(len(o.scores), width) if o.token_scores is None else o.token_scores for o in outputs]
    return RewardOutput(scores=scores, token_scores=torch.cat(whole))
