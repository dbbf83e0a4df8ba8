"""What every client of an HTTP service here does alike: retries, backoff, proxies, and a token that stays hidden."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

ResultT = TypeVar("ResultT")

RETRY_STATUS = {408, 425, 429}
"""Beside 5xx."""


class RetryableError(Exception):
    """An attempt failed, and another may not.

    Args:
        reason: In words, nothing of them the service's.
        retry_after: The header of that name.
    """

    def __init__(self, reason: str, retry_after: str | None = None) -> None:
        super().__init__(reason)
        seconds = re.fullmatch("[0-9]+", retry_after or "")
        self.retry_after = float(seconds[0]) if seconds else None


def check_url(url: str) -> None:
    """Refuse, with ``ValueError``, what is no address, or has a user name or password in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"`url` ('{url}') must start with http:// or https:// and name a host.")
    if parts.username or parts.password:
        raise ValueError("`url` must not hold a user name or password: it is logged. Use `token_env`.")


def json_headers(token_env: str | None) -> dict[str, str]:
    """Headers of a request: JSON both ways, and the bearer token of the environment variable, if one is named.

    Raises:
        ValueError: The environment variable is not set, or holds what a header cannot.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
    if token_env is None:
        return headers
    token = os.environ.get(token_env, "").strip()
    if not token:
        raise ValueError(f"`token_env`: the environment variable {token_env} is not set.")
    if not (token.isascii() and token.isprintable()):
        # The HTTP library would say so too, with the token in its message.
        raise ValueError(f"`token_env`: the environment variable {token_env} holds what a header cannot.")
    return headers | {"Authorization": f"Bearer {token}"}


def check_limits(**values: float) -> None:
    """Refuse, with ``ValueError``, retries and waits below 0, and anything else that is not above it."""
    for name, value in values.items():
        if name in ("retries", "backoff", "max_backoff"):
            if not value >= 0:
                raise ValueError(f"`{name}` ({value}) must not be negative.")
        elif not value > 0:
            raise ValueError(f"`{name}` ({value}) must be positive.")


def proxy_for(url: str) -> str | None:
    """What the environment says (`http_proxy`, `no_proxy`), and nothing of a .netrc, as the library would have it."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def seconds_to_wait(attempt: int, backoff: float, max_backoff: float, retry_after: float | None) -> float:
    """Before the next attempt; not from the global generators, whose state a resume must reproduce."""
    limit = min(max_backoff, backoff * 2**attempt)
    jittered = random.SystemRandom().uniform(0, limit)
    return max(jittered, min(retry_after or 0.0, max_backoff))


async def retried(
    attempt: Callable[[], Awaitable[ResultT]], *, retries: int, backoff: float, max_backoff: float
) -> ResultT:
    """The result of the first attempt that does not fail.

    Raises:
        RetryableError: The last attempt's.
    """
    for number in range(retries):
        try:
            return await attempt()
        except RetryableError as error:
            wait = seconds_to_wait(number, backoff, max_backoff, error.retry_after)
        await asyncio.sleep(wait)
    return await attempt()


async def ask_all(
    asks: Sequence[Callable[[ClientSession], Awaitable[ResultT]]],
    *,
    token_env: str | None,
    timeout: float,
    concurrency: int,
) -> list[ResultT]:
    """What each of ``asks`` gets from a session that they share, in their order; the first error ends the others."""
    import aiohttp

    free = asyncio.Semaphore(concurrency)
    async with aiohttp.ClientSession(
        headers=json_headers(token_env),
        timeout=aiohttp.ClientTimeout(total=timeout),
        # As many connections as requests; an idle one may be closed under the next request.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    ) as session:

        async def one(ask: Callable[[ClientSession], Awaitable[ResultT]]) -> ResultT:
            async with free:
                return await ask(session)

        tasks = [asyncio.ensure_future(one(ask)) for ask in asks]
        try:
            return list(await asyncio.gather(*tasks))
        finally:  # after an error nothing waits for the other requests
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def run_async(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of a coroutine, in a notebook, too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:  # a notebook's loop runs in this thread
        return pool.submit(asyncio.run, work).result()


async def read_all(response: ClientResponse, most: int) -> bytes:
    """The whole answer.

    Raises:
        RetryableError: It is larger than ``most`` bytes.
    """
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise RetryableError(f"reply larger than {most} bytes")
    return b"".join(pieces)


def error_in_words(error: Exception, timeout: float) -> RetryableError:
    """A connection's error; not in its own words, which may quote what the service sent."""
    if isinstance(error, asyncio.TimeoutError):
        return RetryableError(f"no reply within {timeout} s")
    number = getattr(error, "errno", None) or 0
    return RetryableError(os.strerror(number) if number > 0 else type(error).__name__)
