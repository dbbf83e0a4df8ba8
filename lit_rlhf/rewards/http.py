"""Reward from an HTTP service: batches, retries, timeouts, and a token that never leaves the environment."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lit_rlhf.http_service import (
    RETRY_STATUS,
    RetryableError,
    ask_all,
    check_limits,
    check_url,
    error_in_words,
    json_headers,
    proxy_for,
    read_all,
    retried,
    run_async,
)
from lit_rlhf.rewards.base import Reward, RewardError, parse_scores, quoted
from lit_rlhf.types import RewardOutput, RewardRequest

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

_MAX_REPLY_BYTES = 64 * 1024 * 1024


class HTTPReward(Reward):
    """Score by a service: ``POST url`` with a JSON object, JSON back.

    The request holds ``prompts``, ``responses``, ``ended``, ``response_lengths`` (tokens, EOS included) and, if asked
    for, ``records``; all lists of the same length. The reply holds ``scores`` (as many numbers) and optionally
    ``token_scores`` (for each response as many numbers as it has tokens).

    Connection errors, timeouts, replies that break off and statuses 408, 425, 429 and 5xx are tried again after an
    exponential backoff with full jitter (``Retry-After`` in seconds is honored); any other status and any malformed
    reply ends the run. Redirects are not followed: they would carry the token to another host.

    Args:
        url: ``http://`` or ``https://`` address, without user name or password.
        timeout: Seconds for one attempt, from looking up the host to the last byte.
        batch_size: Most responses in one request.
        concurrency: Most requests at a time (of one rank).
        retries: Further attempts after the first.
        backoff: Seconds that the first wait may take at most; doubles with each attempt.
        max_backoff: Most seconds of any wait.
        token_env: Environment variable that holds a bearer token. Only its name is kept; the token is read for each
            request and is in no attribute, message or log. With a token nothing of a reply's text is in a message
            either: a service that echoes its request would put the token there.
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
        check_url(url)
        check_limits(timeout=timeout, batch_size=batch_size, concurrency=concurrency)
        check_limits(retries=retries, backoff=backoff, max_backoff=max_backoff)
        self.url, self.timeout, self.batch_size, self.concurrency = url, timeout, batch_size, concurrency
        self.retries, self.backoff, self.max_backoff = retries, backoff, max_backoff
        self.token_env, self.send_records, self.name = token_env, send_records, name

    def setup(self, *, device: torch.device, tokenizer: Any) -> None:
        """Check that the token is there.

        Raises:
            ValueError: The environment variable is not set, or holds what a header cannot.
        """
        json_headers(self.token_env)

    def score(self, request: RewardRequest) -> RewardOutput:
        """Ask the service, in batches and concurrently.

        Raises:
            RewardError: The service failed in every attempt, or refused; names the first prompt of the batch.
            ValueError: It gave something else than numbers for its responses, or a record is not JSON.
        """
        size = self.batch_size
        parts = [_rows(request, i, min(i + size, len(request.prompts))) for i in range(0, len(request.prompts), size)]
        asks = [partial(self._score_part, part) for part in parts]
        work = ask_all(asks, token_env=self.token_env, timeout=self.timeout, concurrency=self.concurrency)
        return _joined(run_async(work))

    async def _score_part(self, part: RewardRequest, session: ClientSession) -> RewardOutput:
        where = f"{quoted(part.prompts[0])} (batch of {len(part.prompts)})"
        try:
            body = json.dumps(self._payload(part)).encode()
        except TypeError as error:
            what = f"`send_records` needs records that are JSON: {error}"
            raise ValueError(f"{what}, in the batch of {where}.") from None
        attempt = partial(self._post, session, body, where)
        try:
            value = await retried(attempt, retries=self.retries, backoff=self.backoff, max_backoff=self.max_backoff)
        except RetryableError as error:
            tried = f"{self._source} failed {self.retries + 1} times, last with {error}, for {where}."
            raise RewardError(tried) from None
        return parse_scores(value, part, source=self._source)

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

    async def _post(self, session: ClientSession, body: bytes, where: str) -> Any:
        """One attempt: the reply's JSON. ``RetryableError`` when another may help."""
        import aiohttp

        try:
            proxy = proxy_for(self.url)
            async with session.post(self.url, data=body, allow_redirects=False, proxy=proxy) as response:
                if response.status in RETRY_STATUS or response.status >= 500:
                    raise RetryableError(f"HTTP {response.status}", response.headers.get("Retry-After"))
                if response.status >= 300:
                    raise RewardError(f"{self._source} refused with HTTP {response.status} for {where}.")
                return self._parsed(await read_all(response, _MAX_REPLY_BYTES), response, where)
        except (asyncio.TimeoutError, aiohttp.ClientError) as error:
            raise error_in_words(error, self.timeout) from None

    def _parsed(self, reply: bytes, response: ClientResponse, where: str) -> Any:
        shown = f": {reply[:80]!r}" if self.token_env is None else f" ({len(reply)} bytes)"
        try:
            # As floats: a whole number may have more digits than Python converts.
            value = json.loads(reply, parse_int=float)
            value = value if self.token_env is None else _without_text(value)
        except (ValueError, RecursionError):
            if response.content_length is None and "Transfer-Encoding" not in response.headers:
                raise RetryableError("a reply that broke off or is no JSON") from None
            raise ValueError(f"{self._source} did not reply with JSON for {where}{shown}.") from None
        if not isinstance(value, dict) or "scores" not in value:
            raise ValueError(f"{self._source} must reply with an object that has `scores`, for {where}.")
        return value

    def describe(self) -> dict[str, Any]:
        """The address, too; never the token."""
        return {**super().describe(), "url": self.url}


def _without_text(value: Any) -> Any:
    """The value with nothing in it that a message could quote."""
    if isinstance(value, list):
        return [_without_text(x) for x in value]
    if isinstance(value, dict):
        return {key: _without_text(value[key]) for key in ("scores", "token_scores") if key in value}
    return "(text)" if isinstance(value, str) else value


def _rows(request: RewardRequest, start: int, stop: int) -> RewardRequest:
    """Rows ``start`` to ``stop`` of a request."""
    return RewardRequest(
        rollout=request.rollout.rows(torch.arange(start, stop)),
        prompts=request.prompts[start:stop],
        responses=request.responses[start:stop],
        records=request.records[start:stop],
        template=request.template,
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
