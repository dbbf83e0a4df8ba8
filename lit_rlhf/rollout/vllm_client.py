"""Requests to a running `vllm serve`: many at a time, tried again after failures, the token from the environment."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from lit_rlhf.http_service import (
    RETRY_STATUS,
    RetryableError,
    check_url,
    error_in_words,
    json_headers,
    proxy_for,
    read_all,
    run_async,
    seconds_to_wait,
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
        for name, value in (("timeout", timeout), ("concurrency", concurrency)):
            if not value > 0:
                raise ValueError(f"`{name}` ({value}) must be positive.")
        for name, value in (("retries", retries), ("backoff", backoff)):
            if not value >= 0:
                raise ValueError(f"`{name}` ({value}) must not be negative.")
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
        return run_async(self._answers(method, path, payloads, retries))

    async def _answers(self, method: str, path: str, payloads: list[Any], retries: int) -> list[Any]:
        import aiohttp

        free = asyncio.Semaphore(self.concurrency)
        async with aiohttp.ClientSession(
            headers=json_headers(self.token_env),
            timeout=aiohttp.ClientTimeout(total=self.timeout),
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        ) as session:

            async def answer(payload: Any) -> Any:
                async with free:
                    return await self._answer(session, method, path, payload, retries)

            tasks = [asyncio.ensure_future(answer(payload)) for payload in payloads]
            try:
                return list(await asyncio.gather(*tasks))
            finally:  # after an error nothing waits for the other requests
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, session: ClientSession, method: str, path: str, payload: Any, retries: int) -> Any:
        reason = ""
        for attempt in range(retries + 1):
            try:
                return await self._attempt(session, method, path, payload)
            except RetryableError as error:
                reason, after = str(error), error.retry_after
                if attempt < retries:
                    await asyncio.sleep(seconds_to_wait(attempt, self.backoff, MAX_BACKOFF, after))
        raise RuntimeError(f"vLLM's server {self.url}{path} failed {retries + 1} times, last with {reason}.")

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
