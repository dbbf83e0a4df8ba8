"""Requests to a running `vllm serve`: many at a time, tried again after failures, the token from the environment."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_rlhf.http_service import (
    RETRY_STATUS,
    RetryableError,
    ask_all,
    check_limits,
    check_url,
    error_in_words,
    proxy_for,
    read_all,
    retried,
    run_async,
)

if TYPE_CHECKING:
    from aiohttp import ClientSession

MAX_BACKOFF = 30.0
"""Most seconds of any wait."""
MAX_REPLY_BYTES = 256 * 1024 * 1024


class VLLMClient:
    """JSON to a server and back.

    Connection errors, timeouts and statuses 408, 425, 429 and 5xx are tried again after an exponential backoff with
    full jitter; any other status ends the run. Asking twice is harmless: a response depends on its request alone.

    Args:
        url: ``http://`` or ``https://`` address of the server, without a path.
        timeout: Seconds for one attempt.
        concurrency: Most requests at a time.
        retries: Further attempts after the first.
        backoff: Seconds that the first wait may take at most; doubles with each attempt.
        token_env: Environment variable that holds a bearer token; only its name is kept.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 600.0,
        concurrency: int = 256,
        retries: int = 4,
        backoff: float = 1.0,
        token_env: str | None = None,
    ) -> None:
        check_url(url)
        check_limits(timeout=timeout, concurrency=concurrency, retries=retries, backoff=backoff)
        self.url, self.timeout, self.concurrency = url.rstrip("/"), timeout, concurrency
        self.retries, self.backoff, self.token_env = retries, backoff, token_env

    def get(self, path: str) -> Any:
        """What is at ``path``."""
        return self._all("GET", path, [None], retries=self.retries)[0]

    def post(self, path: str, payload: dict[str, Any], *, once: bool = False) -> Any:
        """The answer to one request; ``once`` where a second attempt would not be the same.

        Raises:
            RuntimeError: The server failed in every attempt, or refused.
        """
        return self._all("POST", path, [payload], retries=0 if once else self.retries)[0]

    def post_all(self, path: str, payloads: list[dict[str, Any]]) -> list[Any]:
        """The answers to several requests, in their order; as :meth:`post`."""
        return self._all("POST", path, payloads, retries=self.retries)

    def _all(self, method: str, path: str, payloads: list[Any], *, retries: int) -> list[Any]:
        asks = [partial(self._answer, method, path, payload, retries) for payload in payloads]
        work = ask_all(asks, token_env=self.token_env, timeout=self.timeout, concurrency=self.concurrency)
        return run_async(work)

    async def _answer(self, method: str, path: str, payload: Any, retries: int, session: ClientSession) -> Any:
        attempt = partial(self._attempt, session, method, path, payload)
        try:
            return await retried(attempt, retries=retries, backoff=self.backoff, max_backoff=MAX_BACKOFF)
        except RetryableError as error:
            tried = f"vLLM's server {self.url}{path} failed {retries + 1} times, last with {error}."
            raise RuntimeError(tried) from None

    async def _attempt(self, session: ClientSession, method: str, path: str, payload: Any) -> Any:
        """One attempt: the answer's JSON. ``RetryableError`` when another may help."""
        import aiohttp

        where = f"{self.url}{path}"
        body = None if payload is None else json.dumps(payload).encode()
        try:
            proxy = proxy_for(where)
            async with session.request(method, where, data=body, allow_redirects=False, proxy=proxy) as response:
                if response.status in RETRY_STATUS or response.status >= 500:
                    raise RetryableError(f"HTTP {response.status}", response.headers.get("Retry-After"))
                reply = await read_all(response, MAX_REPLY_BYTES)
                if response.status >= 300:
                    raise RuntimeError(
                        f"vLLM's server {where} refused with HTTP {response.status}{self._shown(reply)}."
                    )
        except (asyncio.TimeoutError, aiohttp.ClientError) as error:
            raise error_in_words(error, self.timeout) from None
        try:
            return json.loads(reply) if reply else None
        except ValueError:
            raise RuntimeError(f"vLLM's server {where} did not answer with JSON{self._shown(reply)}.") from None

    def _shown(self, reply: bytes) -> str:
        """What the server said, unless it might be the token."""
        return f": {reply[:300].decode(errors='replace')}" if self.token_env is None else ""
