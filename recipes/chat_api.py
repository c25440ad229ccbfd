# SPDX-License-Identifier: Apache-2.0
"""Requests to any OpenAI-compatible chat endpoint: many at once, patient with a busy server, each paid for once.

What can pass is tried again: time-outs, torn connections, unreadable bodies, and the statuses 408, 409, 425, 429 and
5xx, after the time that the server names or a growing one. What cannot pass ends the run in one sentence: no such
address or model, a key that is refused. Replies go to a [`Ledger`] at once; failures do not, so that a rerun tries
them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import ipaddress
import logging
import math
import random
import socket
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from .errors import ConfigError, PeFoMedError
from .ledger import Ledger, Reply, fingerprint

logger = logging.getLogger(__name__)

Messages = list[dict[str, Any]]
Complete = Callable[[Messages], Messages]

PASSING = {408, 409, 425, 429}  # and all from 500 on
FATAL = {
    401: "refuses the key (401); set the right one in the environment variable named by --key-variable",
    402: "wants to be paid first (402); look at the account's balance",
    403: "refuses the key (403) for this model; look at what the key may do",
    404: "knows no such address or model (404); check --url, which mostly ends in /v1, and --model",
}
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 120.0
CHARACTERS_PER_TOKEN = 4  # of English text; only for the estimate before the first reply
TOKENS_PER_IMAGE = 1000  # likewise: endpoints count images very differently
CALLS_BEFORE_PROJECTION = 20
FAILURES_BEFORE_GIVING_UP = 8  # requests in a row, each tried as often as it may be, before any has succeeded


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how fast. `api_key` "" sends none: never the key of the Hub that is stored on this machine.

    `per_minute` limits the requests that are started in a minute, `attempts` those of one request. Prices are in any
    currency for a million tokens.
    """

    url: str
    model: str
    api_key: str = field(default="", repr=False)
    concurrency: int = 8
    per_minute: float | None = None
    input_price: float = 0.0
    output_price: float = 0.0
    timeout_seconds: float = 120.0
    attempts: int = 6

    def __post_init__(self) -> None:
        """Refuse an address that holds a secret, without repeating it: addresses are stored and shown.

        Raises:
            ConfigError: the address names a user or password, has a query, or is none; "" stands for none yet.
        """
        if "@" in self.url or "?" in self.url or "#" in self.url:
            raise ConfigError(
                "the endpoint's address holds a user, a password or a query; expected https://HOST/v1 alone, and the "
                "key in the environment variable named by --key-variable"
            )
        if self.url:
            _host_of(self.url)


@dataclass(frozen=True)
class ChatRequest:
    """One request: OpenAI's `messages`, and how to sample. `sample` tells repeated askings of the same apart."""

    messages: Messages
    max_tokens: int
    temperature: float | None = 0.0
    sample: int = 0
    response_format: dict[str, Any] | None = None

    def key(self, endpoint: Endpoint) -> str:
        """Return the fingerprint under which its reply is kept: of the request, of where it goes, and of the model as
        it is asked for. Two endpoints that call their models alike share no replies."""
        where = {"url": endpoint.url.rstrip("/"), "model": endpoint.model}
        return fingerprint({"backend": "chat", **where, **self.__dict__})

    def input_tokens(self) -> int:
        """Estimate the tokens of the messages."""
        tokens = 0
        for message in self.messages:
            content = message["content"]
            for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
                text = part.get("text")
                tokens += TOKENS_PER_IMAGE if text is None else -(-len(text) // CHARACTERS_PER_TOKEN)
        return tokens


@dataclass(frozen=True)
class Estimate:
    """What a run would ask: requests whose reply is `kept` already, `new` ones, and their tokens and cost at most."""

    kept: int
    new: int
    input_tokens: int
    output_tokens: int
    cost: float

    def __str__(self) -> str:
        cost = f"cost at most {self.cost:,.2f} at the prices given"
        if self.new and not self.cost:
            cost = "cost unknown without --input-price and --output-price"
        return (
            f"{self.new:,} requests ({self.kept:,} more are answered already), about {self.input_tokens:,} tokens in "
            f"and at most {self.output_tokens:,} out, {cost}"
        )


def estimate(requests: Iterable[ChatRequest], endpoint: Endpoint, ledger: Ledger) -> Estimate:
    """Return what [`ask_all`] would ask; nothing is sent."""
    distinct = {request.key(endpoint): request for request in requests}
    new = [request for key, request in distinct.items() if key not in ledger]
    tokens_in, tokens_out = sum(r.input_tokens() for r in new), sum(r.max_tokens for r in new)
    return Estimate(len(distinct) - len(new), len(new), tokens_in, tokens_out, _cost(endpoint, tokens_in, tokens_out))


def ask_all(
    requests: Iterable[ChatRequest],
    endpoint: Endpoint,
    ledger: Ledger,
    *,
    max_cost: float | None = None,
    complete: Complete | None = None,
) -> dict[str, str]:
    """Ask everything that the ledger has no reply to; the replies are in the ledger then.

    Args:
        max_cost: the run does not start where its estimate is above, and stops where its replies so far say that it
            will be.
        complete: makes of a request's messages those that are sent, in a thread. Images need not lie in memory then:
            the request holds their fingerprints.

    Returns:
        By their keys, the requests that got no reply, each with the last reason.

    Raises:
        ConfigError: the cost is limited, and there are no prices.
        PeFoMedError: the endpoint refuses every request, the cost is above `max_cost`, or the ledger cannot be
            written; replies that came are kept.
    """
    if max_cost is not None and not endpoint.input_price and not endpoint.output_price:
        raise ConfigError("found --max-cost without prices; expected --input-price and --output-price beside it")
    distinct = {request.key(endpoint): request for request in requests}
    expected = estimate(distinct.values(), endpoint, ledger)
    if max_cost is not None and expected.cost > max_cost:
        raise PeFoMedError(f"nothing was asked: {expected}; the most that may be spent is {max_cost:,.2f}")
    if all(key in ledger for key in distinct):
        return {}
    with ledger.held():  # another run may have asked meanwhile: look again
        pending = {key: request for key, request in distinct.items() if key not in ledger}
        return asyncio.run(_Run(endpoint, ledger, pending, max_cost, complete).go()) if pending else {}


class _Run:
    """One run over pending requests: as many workers as may ask at once take them one by one."""

    def __init__(
        self,
        endpoint: Endpoint,
        ledger: Ledger,
        pending: Mapping[str, ChatRequest],
        max_cost: float | None,
        complete: Complete | None,
    ):
        self.endpoint, self.ledger, self.pending, self.max_cost = endpoint, ledger, pending, max_cost
        self.complete = complete
        self.failures: dict[str, str] = {}
        self.next_start = 0.0
        self.random = random.Random(0)
        self.spent, self.replies = 0.0, 0

    async def go(self) -> dict[str, str]:
        queue = iter(self.pending.items())
        with tqdm(total=len(self.pending), desc="requests", disable=not sys.stderr.isatty()) as self.progress:
            async with _client(self.endpoint) as self.client:
                workers = [asyncio.create_task(self._work(queue)) for _ in range(self.endpoint.concurrency)]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)
        return self.failures

    async def _work(self, queue: Iterator[tuple[str, ChatRequest]]) -> None:
        for key, request in queue:
            reply = await self._ask(key, request)
            if reply is not None:
                self.ledger.add(reply)
                self._count(request, reply)
            self.progress.update()

    async def _ask(self, key: str, request: ChatRequest) -> Reply | None:
        """Return the reply, or `None` after noting why there is none."""
        messages = request.messages
        if self.complete is not None:
            messages = await asyncio.to_thread(self.complete, messages)
        for attempt in range(1, self.endpoint.attempts + 1):
            await self._wait_for_turn()
            started = time.monotonic()
            try:
                output = await asyncio.wait_for(self._send(request, messages), self.endpoint.timeout_seconds)
                return _reply(key, output, time.monotonic() - started, attempt)
            except Exception as error:
                reason, wait = self._judge_failure(error)
            if wait is None or attempt == self.endpoint.attempts:
                self.failures[key] = reason
                if not self.replies and len(self.failures) >= FAILURES_BEFORE_GIVING_UP:
                    raise PeFoMedError(
                        f"{self.endpoint.url} answered none of {len(self.failures)} requests; the last time: {reason}"
                    )
                return None
            backoff = FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * self.random.uniform(0.5, 1.5)
            await asyncio.sleep(min(wait or backoff, LONGEST_WAIT_SECONDS))
        raise AssertionError("attempts is 1 or more")

    async def _send(self, request: ChatRequest, messages: Messages) -> Any:
        return await self.client.chat_completion(
            messages,
            model=self.endpoint.model,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.sample,
            response_format=request.response_format,
        )

    def _judge_failure(self, error: Exception) -> tuple[str, float | None]:
        """Return the reason, and the seconds to wait before the next attempt: 0 for a growing time, `None` for never.

        Raises:
            PeFoMedError: no request can ever pass.
        """
        from httpx2 import HTTPError
        from huggingface_hub.errors import HfHubHTTPError

        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            if status in FATAL:
                raise PeFoMedError(f"{self.endpoint.url} {FATAL[status]}") from None
            passing = status in PASSING or status >= 500
            return f"status {status}", _retry_after(error.response.headers) if passing else None
        if isinstance(error, TimeoutError):  # asyncio's, and huggingface_hub's own
            return "timed out", 0.0
        if isinstance(error, HTTPError | OSError):
            return f"connection failed ({type(error).__name__})", 0.0
        if isinstance(error, ValueError | TypeError | LookupError | AttributeError):
            return "the body is no chat completion", 0.0
        raise error

    async def _wait_for_turn(self) -> None:
        if self.endpoint.per_minute:
            now = time.monotonic()
            start = max(now, self.next_start)
            self.next_start = start + 60 / self.endpoint.per_minute
            await asyncio.sleep(start - now)

    def _count(self, request: ChatRequest, reply: Reply) -> None:
        """Add up what was spent, and stop where the whole run would cost too much.

        Raises:
            PeFoMedError: it would.
        """
        self.spent += cost_of(self.endpoint, request, reply)
        self.replies += 1
        projected = self.spent / self.replies * len(self.pending)
        if self.max_cost is None:
            return
        if self.spent > self.max_cost or (self.replies >= CALLS_BEFORE_PROJECTION and projected > self.max_cost):
            raise PeFoMedError(
                f"stopped after {self.replies:,} replies, which are kept: they cost {self.spent:,.2f}, all "
                f"{len(self.pending):,} would cost about {projected:,.2f}, and at most {self.max_cost:,.2f} may be "
                "spent"
            )


def cost_of(endpoint: Endpoint, request: ChatRequest, reply: Reply) -> float:
    """Return what a reply cost at the endpoint's prices, by the tokens that it reported, else by estimates."""
    tokens_in = request.input_tokens() if reply.input_tokens is None else reply.input_tokens
    tokens_out = request.max_tokens if reply.output_tokens is None else reply.output_tokens
    return _cost(endpoint, tokens_in, tokens_out)


def refuse_broken_text(item: str, texts: Iterable[str]) -> None:
    """Refuse texts that no UTF-8 can carry, before anything is asked.

    Raises:
        PeFoMedError: one holds half of a surrogate pair; the sentence names the item.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PeFoMedError(
                f"item {item!a} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text and cannot be "
                "sent; correct it in the file"
            ) from None


def is_in_house(url: str) -> bool:
    """Whether an endpoint is on this machine or in a private network: by all addresses of its host.

    Raises:
        ConfigError: the URL names no host, or one that has no address.
    """
    host = _host_of(url)
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        pass  # a name
    try:
        found = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        raise ConfigError(f"{host}: no such host; check the endpoint's address") from None
    return all(ipaddress.ip_address(address).is_private for address in found)


def _host_of(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port  # a port that is none raises
    except ValueError:
        host, port = None, None
    if not host or port == 0 or not url.startswith(("http://", "https://")):
        raise ConfigError(f"found the endpoint {url!r}; expected an address such as https://HOST/v1")
    return host


@contextlib.asynccontextmanager
async def _client(endpoint: Endpoint) -> AsyncIterator[Any]:
    """Give a client for one run. It refuses redirects, which could carry texts to another server, and works in
    HF_HUB_OFFLINE, which is about the Hub and not about a server of the house."""
    import httpx2
    from huggingface_hub import AsyncInferenceClient

    class Client(AsyncInferenceClient):
        async def _get_async_client(self) -> httpx2.AsyncClient:
            return session

    async def refuse_redirects(response: httpx2.Response) -> None:
        if response.is_redirect:
            raise PeFoMedError(f"{endpoint.url} points elsewhere ({response.status_code}), which is not followed")

    async with httpx2.AsyncClient(
        trust_env=not is_in_house(endpoint.url),  # a proxy would carry what must stay in the house out of it
        timeout=endpoint.timeout_seconds,
        limits=httpx2.Limits(max_connections=endpoint.concurrency),
        event_hooks={"response": [refuse_redirects]},
    ) as session:
        # Without a key, the client would send the Hub's own to whatever server this is.
        yield Client(base_url=endpoint.url, api_key=endpoint.api_key or "none", timeout=endpoint.timeout_seconds)


def _reply(key: str, output: Any, seconds: float, attempts: int) -> Reply:
    """Return the record of a chat completion; raises one of the errors of a malformed body where it is none."""
    choice, usage = output.choices[0], output.usage
    text = choice.message.content
    if text is not None and not isinstance(text, str):
        raise TypeError
    return Reply(
        key=key,
        text=(text or "").encode("utf-8", "replace").decode(),  # half of a character pair cannot be stored
        model=output.model or "",
        system_fingerprint=output.system_fingerprint or "",
        finish_reason=choice.finish_reason or "",
        input_tokens=usage.prompt_tokens if usage else None,
        output_tokens=usage.completion_tokens if usage else None,
        seconds=round(seconds, 3),
        attempts=attempts,
        replied_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait, 0 where it does not say; a date without a zone is in UTC."""
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
    try:
        until = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    if until.tzinfo is None:
        until = until.replace(tzinfo=datetime.UTC)
    return max((until - datetime.datetime.now(datetime.UTC)).total_seconds(), 0.0)


def _cost(endpoint: Endpoint, input_tokens: int, output_tokens: int) -> float:
    return (input_tokens * endpoint.input_price + output_tokens * endpoint.output_price) / 1e6
