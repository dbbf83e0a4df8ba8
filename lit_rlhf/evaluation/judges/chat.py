"""A language model as the judge, through any OpenAI-compatible chat endpoint."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import re
import threading
from collections.abc import Coroutine, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, TypeVar

from lit_rlhf.evaluation.answers import Answer, Pair
from lit_rlhf.evaluation.judges.base import REVERSED, Judge, Outcome, Verdict, settled
from lit_rlhf.evaluation.judges.chat_cache import ChatCache, request_key

SHIPPED = ("helpful", "harmless")
_FIELDS = {"mark", "prompt", "a", "b"}
_VERDICT = re.compile(r"[\s*_`#>]*verdict\s*:[\s*_`\[\"']*(a|b|tie)[\s*_`\]\"'.!]*", re.IGNORECASE)
_READ: dict[str, Outcome] = {"a": "win", "b": "lose", "tie": "tie"}
LONGEST_WAIT = 8.0
"""Seconds that the client waits between two attempts at most."""
ResultT = TypeVar("ResultT")


class JudgeError(ValueError):
    """A judge cannot go on: its endpoint failed or its budget is spent. What it answered is kept."""


class _StopError(Exception):
    """Why nothing more is asked: what follows the judge's name in the message."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that one command may spend; answers from the cache are free.

    Attributes:
        requests: Requests sent, or None; the client's retries of a request that failed are not counted.
        tokens: Tokens of prompts and answers together, or None. Never exceeded: a request is only sent when the bytes
            of its text and the longest answer still fit.
    """

    requests: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("requests", self.requests), ("tokens", self.tokens)):
            if value is not None and value < 1:
                raise ValueError(f"`budget.{name}` ({value}) must be at least 1, or null for no limit.")


class ChatJudge(Judge):
    """Asks a chat model which answer is better, in both orders; where the two verdicts differ it is a tie.

    The answers are quoted between marks with a number that they cannot know, and the verdict is read from the last line
    of the judge's own answer only. An answer that names itself the winner can still sway a weak judge: it then wins or
    loses with its place rather than its content, which the two orders expose and count.

    Equal answers tie and an empty one loses to any other; nobody is asked.

    Args:
        model: Name of the model at the endpoint.
        base_url: Address of the endpoint; default: the client's own.
        api_key_env: Environment variable with the key, or None where the endpoint wants none. The key is in no
            attribute, message, result or cache.
        template: "helpful" or "harmless", or a file of your own with ``$prompt``, ``$a``, ``$b`` and ``$mark``.
        templates: Instead of ``template``: which one by the value of ``template_key`` in the prompt's record.
        template_key: See ``templates``.
        both_orders: Whether to ask in both orders; once costs half and keeps the judge's bias for a place.
        max_answer_tokens: Most tokens of a verdict with its reasons.
        concurrency: Most requests at a time.
        timeout: Seconds that a request may take.
        retries: Further attempts after connection errors, timeouts and statuses 408, 409, 429 and 5xx.
        budget: The most to spend.
        cache: File of the raw answers, appended to as they come.
        name: Used in tables and messages; default: ``model``.

    Attributes:
        sent: Requests sent by this object.
        tokens: Tokens they cost, by the endpoint's own count.

    Raises:
        ValueError: An argument is out of range, or a template cannot be used.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key_env: str | None = "OPENAI_API_KEY",
        template: str = "helpful",
        templates: dict[str, str] | None = None,
        template_key: str | None = None,
        both_orders: bool = True,
        max_answer_tokens: int = 512,
        concurrency: int = 4,
        timeout: float = 60.0,
        retries: int = 4,
        budget: Budget = Budget(),
        cache: str = "chat_judge.jsonl",
        name: str | None = None,
    ) -> None:
        for key, value in (("max_answer_tokens", max_answer_tokens), ("concurrency", concurrency)):
            if value < 1:
                raise ValueError(f"`{key}` ({value}) must be at least 1.")
        if not timeout > 0 or retries < 0:
            raise ValueError(f"`timeout` ({timeout}) must be positive and `retries` ({retries}) not negative.")
        if (templates is None) != (template_key is None):
            raise ValueError("`templates` and `template_key` belong together: which template for which kind of prompt.")
        self.model, self.base_url, self.api_key_env = model, base_url, api_key_env
        self.template_key = template_key
        self._templates = {key: read_template(path) for key, path in (templates or {"": template}).items()}
        self.both_orders, self.max_answer_tokens = both_orders, max_answer_tokens
        self.concurrency, self.timeout, self.retries, self.budget = concurrency, timeout, retries, budget
        self.cache_path, self.name = cache, name or model
        self.sent, self.tokens = 0, 0
        self._reserved, self._stopped = 0, False
        self._asking: dict[str, asyncio.Lock] = {}
        self._cache: ChatCache | None = None

    def setup(self) -> None:
        """Open the cache; look for the client and the key.

        Raises:
            ValueError: The extra `judge` is not installed, the key is not set, or the cache is another file.
        """
        _openai()
        self._key()
        self._cache = ChatCache(self.cache_path)

    def compare(self, prompt: str, a: Answer, b: Answer) -> Verdict:
        """Ask about one pair."""
        return self.judge([Pair(a=a, b=b)])[0]

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Ask about all pairs, several at a time.

        Raises:
            JudgeError: The endpoint failed in every attempt or refused, the budget is spent, or no answer at all could
                be read.
        """
        try:
            verdicts = run_apart(self._judge_all(pairs))
        except _StopError as stopped:
            kept = 0 if self._cache is None else len(self._cache)
            raise JudgeError(
                f"{self._source} {stopped}. {kept} answers are kept in {self.cache_path}; the same command resumes."
            ) from None
        asked = [vote for verdict in verdicts for vote in verdict.votes]
        if len(asked) > 1 and all(vote is None for vote in asked):
            raise JudgeError(
                f"{self._source} gave no verdict in {len(asked)} answers; the last was {verdicts[-1].reason[:200]!r}."
            )
        return verdicts

    async def _judge_all(self, pairs: Sequence[Pair]) -> list[Verdict]:
        limit, self._stopped, self._asking = asyncio.Semaphore(self.concurrency), False, {}
        async with self._client() as client:
            # After the first failure nothing new is asked; what is on its way is paid for: it is waited for and kept.
            found = await asyncio.gather(
                *[self._judge_pair(client, pair, limit) for pair in pairs], return_exceptions=True
            )
        failures = [each for each in found if isinstance(each, BaseException)]
        if failures:
            raise next((each for each in failures if not isinstance(each, asyncio.CancelledError)), failures[0])
        return [verdict for verdict in found if isinstance(verdict, Verdict)]

    async def _judge_pair(self, client: Any, pair: Pair, limit: asyncio.Semaphore) -> Verdict:
        known = settled(pair.a, pair.b)
        if known is not None:
            return known
        template = self._template(pair.a)
        orders = [(pair.a, pair.b), (pair.b, pair.a)][: 1 + self.both_orders]
        answers = [await self._answer(client, question(template, pair.prompt, *order), limit) for order in orders]
        return verdict_of(answers, boasts=[name for name, x in (("a", pair.a), ("b", pair.b)) if _boasts(x.text)])

    async def _answer(self, client: Any, text: str, limit: asyncio.Semaphore) -> str:
        """The raw answer, from the cache or from the endpoint."""
        assert self._cache is not None, "call `setup` first"
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0.0,
            "max_tokens": self.max_answer_tokens,
        }
        key = request_key({**request, "base_url": self.base_url})
        # Equal questions wait for the first one's answer outside the limit: it is then in the cache, and paid for once.
        async with self._asking.setdefault(key, asyncio.Lock()), limit:
            found = self._cache.get(key)
            if found is None:
                if self._stopped:
                    raise asyncio.CancelledError
                try:
                    found, tokens = await self._ask(client, request, cost=len(text.encode()) + self.max_answer_tokens)
                except BaseException:
                    self._stopped = True
                    raise
                self._cache.put(key, found, tokens=tokens)
        return found

    async def _ask(self, client: Any, request: Mapping[str, Any], *, cost: int) -> tuple[str, int]:
        self._check_budget(cost)
        self.sent += 1
        self._reserved += cost
        # The client's timeout is for every read; a server that sends a byte now and then would hold us for ever.
        whole = (self.retries + 1) * (self.timeout + LONGEST_WAIT)
        openai = _openai()
        try:
            reply = await asyncio.wait_for(client.chat.completions.create(**request), whole)
        except (asyncio.TimeoutError, openai.APITimeoutError):
            raise _StopError(f"did not answer within {self.timeout:g} s, {self.retries + 1} times") from None
        except openai.APIStatusError as error:
            raise _StopError(f"answered HTTP {error.status_code}: {self._without_key(str(error))[:300]}") from None
        except openai.APIConnectionError as error:
            raise _StopError(f"cannot be reached ({self._without_key(str(error.__cause__ or error))[:200]})") from None
        except (openai.OpenAIError, ValueError) as error:
            raise _StopError(f"gave what is no chat completion: {self._without_key(str(error))[:200]}") from None
        finally:
            self._reserved -= cost
        content, used = _content(reply)
        self.tokens += cost if used is None else used
        if content is None:
            raise _StopError("gave what is no chat completion: it has no message with text")
        return content, cost if used is None else used

    def _check_budget(self, cost: int) -> None:
        limits = self.budget
        if limits.requests is not None and self.sent >= limits.requests:
            raise _StopError(f"was asked `budget.requests` ({limits.requests}) times")
        if limits.tokens is not None and self.tokens + self._reserved + cost > limits.tokens:
            raise _StopError(
                f"has used {self.tokens} tokens; one more question could exceed `budget.tokens` ({limits.tokens})"
            )

    @property
    def _source(self) -> str:
        return f"Judge {self.model!r}" + (f" at {self.base_url}" if self.base_url else "")

    def _template(self, answer: Answer) -> Template:
        if self.template_key is None:
            return self._templates[""]
        kind = str(answer.record.get(self.template_key))
        if kind not in self._templates:
            raise ValueError(
                f"`templates` has none for {self.template_key} = {kind!r} (prompt {answer.key}); it has "
                f"{', '.join(self._templates)}."
            )
        return self._templates[kind]

    def _client(self) -> Any:
        return _openai().AsyncOpenAI(
            api_key=self._key(), base_url=self.base_url, timeout=self.timeout, max_retries=self.retries
        )

    def _key(self) -> str:
        if self.api_key_env is None:
            return "none"
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(
                f"`api_key_env`: the environment variable {self.api_key_env} is not set (null where no key is wanted)."
            )
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"`api_key_env`: the environment variable {self.api_key_env} holds what a header cannot.")
        return key

    def _without_key(self, text: str) -> str:
        key = self._key()
        return " ".join((text if key == "none" else text.replace(key, "***")).split())

    def describe(self) -> dict[str, Any]:
        """Model, endpoint, orders and a digest of the templates; never the key."""
        joined = "\0".join(template.template for template in self._templates.values())
        return {
            **super().describe(),
            "model": self.model,
            "base_url": self.base_url,
            "both_orders": self.both_orders,
            "templates": hashlib.sha256(joined.encode()).hexdigest()[:12],
        }


def read_template(name: str) -> Template:
    """A shipped template, or that of a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A placeholder is missing or unknown.
    """
    if name in SHIPPED:
        text = (files("lit_rlhf.evaluation.judges") / "templates" / f"{name}.txt").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(f"`template` ({name}): no such file; {' and '.join(SHIPPED)} are shipped.")
    template = Template(text)
    if not template.is_valid() or set(template.get_identifiers()) != _FIELDS:
        raise ValueError(
            f"`template` ({name}) must hold {', '.join('$' + f for f in sorted(_FIELDS))}, and `$$` for a dollar."
        )
    return template


def question(template: Template, prompt: str, first: Answer, second: Answer) -> str:
    """The text that the judge is sent, with ``first`` in A's place.

    The marks carry a number made of what they enclose: equal questions are equal (the cache finds them), and no
    response could know it when it was written.
    """
    inner = "\0".join([prompt, first.text, second.text])
    mark = str(int(hashlib.sha256(inner.encode("utf-8", "replace")).hexdigest()[:12], 16))
    return template.substitute(mark=mark, prompt=prompt, a=first.text, b=second.text)


def read_vote(answer: str) -> Outcome | None:
    """What an answer says of the one shown first: its last line must be a verdict and nothing else."""
    lines = [line for line in answer.splitlines() if line.strip()]
    found = _VERDICT.fullmatch(lines[-1]) if lines else None
    return None if found is None else _READ[found[1].lower()]


def verdict_of(answers: Sequence[str], *, boasts: Sequence[str] = ()) -> Verdict:
    """One verdict from the answers in both orders, or in one.

    Votes that differ, and an answer that cannot be read beside one that can, are ties.

    Args:
        answers: Raw answers, with ``a`` shown first and then second.
        boasts: Which of "a" and "b" speak to the judge in the verdict's own words.
    """
    votes = [read_vote(answer) for answer in answers]
    votes = [vote if place == 0 or vote is None else REVERSED[vote] for place, vote in enumerate(votes)]
    agreed = votes[0] if len(set(votes)) == 1 else None
    notes = [f"answer {name} speaks to the judge" for name in boasts]
    notes += ["an answer of the judge could not be read"] if None in votes else []
    reason = "\n\n".join(
        answer if len(answers) == 1 else f"[shown {order}] {answer}"
        for order, answer in zip(("first", "second"), answers, strict=False)
    )
    return Verdict(outcome=agreed or "tie", reason=reason, votes=tuple(votes), note="; ".join(notes))


def _boasts(text: str) -> bool:
    """Whether a response holds the line that only the judge should write, or the marks around it."""
    return any(_VERDICT.fullmatch(line) for line in text.splitlines()) or "</answer" in text.lower()


def _content(reply: Any) -> tuple[str | None, int | None]:
    """Text and tokens of a completion; servers answer all kinds of JSON."""
    choices = getattr(reply, "choices", None)
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    content = getattr(message, "content", None)
    used = getattr(getattr(reply, "usage", None), "total_tokens", None)
    return content if isinstance(content, str) else None, used if isinstance(used, int) and used >= 0 else None


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise ValueError("ChatJudge needs the extra `judge`: pip install 'lit-rlhf[judge]'.") from None
    return openai


def run_apart(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of a coroutine, run in a thread of its own: a notebook's thread has a loop already."""
    outcome: list[ResultT] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(asyncio.run(coroutine))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="chat-judge", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
