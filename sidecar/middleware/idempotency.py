"""`Idempotency-Key`: the first call with it runs, every other one with the same body gets the answer of that call.

Neighbours: `sidecar.idempotency` (where answers are kept), Auth above (whose key it is), RateLimit below: a replay
takes no place in any limit, holds no money, calls no provider, writes no row. Works alone in front of any ASGI app.
Header and status codes follow https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/; a replay is
marked as Stripe marks its own (https://docs.stripe.com/error-low-level#idempotency): `idempotent-replayed: true`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import anyio

from sidecar.asgi import (
    SETTLE_LIMIT_S,
    Applies,
    ASGIApp,
    ClientDisconnectedError,
    Front,
    Message,
    Receive,
    Scope,
    Send,
    aside,
    close_exchange,
    header,
    is_call,
    open_exchange,
    read_body,
    receive_for,
    refuse,
    route_path,
)
from sidecar.errors import BadRequestError, ConflictError, RefusedError, UnprocessableError
from sidecar.exchange import SCOPE_KEY, Exchange
from sidecar.translate.pieces import BIG_BYTES
from sidecar.types import Headers

MAX_KEY_LENGTH = 255
MAX_ANSWER_BYTES = 1024 * 1024
MAX_WAITING = 1000
"""Requests of one process that wait for another's answer; more are told to come back."""
_OF_ONE_EXCHANGE = frozenset(
    {
        b"x-request-id", b"x-sidecar-cost-usd", b"retry-after", b"date", b"server", b"connection", b"keep-alive",
        b"transfer-encoding", b"set-cookie",
    }
)  # fmt: skip
_OF_LIMITS = (b"x-ratelimit-", b"x-sidecar-queue")
_NO_RETRY = ((b"x-should-retry", b"false"),)
"""OpenAI's SDKs repeat a 409 by themselves unless told not to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer and the exchange that got it."""

    exchange_id: str
    status: int
    headers: Headers
    body: bytes


Standing = Literal["mine", "busy", "other", "not_kept"]
"""Of a name: the caller's to run; somebody runs it; it is of another request; done, and the answer was too large."""


class AnswerStore(Protocol):
    """Answers by name, bounded in size and time. `owner` is the exchange that runs a name."""

    async def claim(self, name: str, fingerprint: bytes, owner: str) -> Answer | Standing:
        """Raises `UnavailableError`. Who gets `mine` calls `keep` or `release`."""

    async def keep(self, name: str, owner: str, answer: Answer | None) -> None:
        """`None`: there was one, too large to keep. Never fails."""

    async def release(self, name: str, owner: str) -> None:
        """There is no answer: whoever comes next runs it. Never fails."""

    def watch(self, name: str, wake: Callable[[], None]) -> None:
        """Call `wake` when nobody runs the name any more, perhaps more often."""

    def unwatch(self, name: str, wake: Callable[[], None]) -> None: ...


class IdempotencyMiddleware:
    """Names are the caller's key's own. Only whole, successful answers up to `max_answer_bytes` are kept; a second call
    waits up to `wait_s` (or what it gives itself) for the first, then gets 409."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: AnswerStore,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        wait_s: float = 60.0,
        applies: Applies = is_call,
    ) -> None:
        self.app = app
        self.store = store
        self.max_answer_bytes = max_answer_bytes
        self.wait_s = wait_s
        self.applies = applies
        self.waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        known: Exchange | None = scope.get(SCOPE_KEY)
        if known is not None and known.idempotency_key is None:  # at first: nearly every request is one of these
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http" or not self.applies(scope):
            await self.app(scope, receive, send)
            return
        key = known.idempotency_key if known is not None else header(scope, b"idempotency-key")
        if key is None:
            await self.app(scope, receive, send)
            return
        exchange, is_mine = open_exchange(scope, receive)
        if is_mine:
            send = Front(exchange, send)
        try:
            try:
                _check(key)
                await read_body(scope, exchange)
                name = _name(exchange, key)
                raw = exchange.raw or b""
                asked = (route_path(scope), exchange.end_user_id or "", exchange.tags, raw)
                fingerprint = await aside(_fingerprint, *asked) if len(raw) >= BIG_BYTES else _fingerprint(*asked)
                found = await self._claim(exchange, name, fingerprint)
            except RefusedError as error:
                await refuse(exchange, error, send)
                return
            except ClientDisconnectedError:
                exchange.outcome = "client_left"
                return
            if found is None:
                await self._run(scope, exchange, name, send)
            else:
                exchange.replay_of = found.exchange_id
                await _replay(exchange, found, send)
        finally:
            if is_mine:
                close_exchange(exchange)

    async def _claim(self, exchange: Exchange, name: str, fingerprint: bytes) -> Answer | None:
        """`None`: ours to run. Raises RefusedError subclasses and ClientDisconnectedError."""
        now = asyncio.get_running_loop().time
        until = now() + min(self.wait_s, exchange.deadline_s or self.wait_s)
        while True:
            found = await self.store.claim(name, fingerprint, exchange.exchange_id)
            if type(found) is Answer:
                return found
            if found == "mine":
                return None
            if found == "other":
                raise UnprocessableError(
                    "The gateway refused the request: this Idempotency-Key was used with another request. Use a new "
                    "key for each.",
                    code="idempotency_key_reused",
                    param="idempotency-key",
                )
            if found == "not_kept":
                raise ConflictError(
                    "The gateway refused the request: the call with this Idempotency-Key was answered, but its answer "
                    "was too large to keep. Use a new key to run it again.",
                    code="idempotency_answer_not_kept",
                    param="idempotency-key",
                    headers=_NO_RETRY,
                )
            left = until - now()
            if left <= 0 or self.waiting >= MAX_WAITING:
                raise ConflictError(
                    "The gateway refused the request: the first call with this Idempotency-Key is still running. Send "
                    "the same again later to get its answer.",
                    code="idempotency_in_flight",
                    param="idempotency-key",
                    retry_after_s=1.0,
                )
            self.waiting += 1
            try:
                await self._changes_within(exchange, name, left)
            finally:
                self.waiting -= 1
            if exchange.client_left:
                raise ClientDisconnectedError

    async def _changes_within(self, exchange: Exchange, name: str, seconds: float) -> None:
        """Until the name is free, the client left or the time is over."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        inbox = exchange.inbox
        inbox.watch_now()
        inbox.on_left(wake)
        self.store.watch(name, wake)
        try:
            async with asyncio.timeout(seconds):
                await woken
        except TimeoutError:
            pass
        finally:
            self.store.unwatch(name, wake)
            inbox.not_on_left(wake)

    async def _run(self, scope: Scope, exchange: Exchange, name: str, send: Send) -> None:
        keeper = _Keeper(self, exchange, name, send)
        try:
            await self.app(scope, receive_for(exchange), keeper)
        finally:
            if not keeper.is_kept:
                with anyio.move_on_after(SETTLE_LIMIT_S, shield=True):
                    await self.store.release(name, exchange.exchange_id)


class _Keeper:
    """Notes an answer as it goes by and has it kept before its last piece is sent: whoever got all of it will be given
    the same again. One per request."""

    __slots__ = ("_exchange", "_headers", "_name", "_of", "_parts", "_send", "_size", "_status", "is_kept")

    def __init__(self, of: IdempotencyMiddleware, exchange: Exchange, name: str, send: Send) -> None:
        self._of = of
        self._exchange = exchange
        self._name = name
        self._send = send
        self._status = 0
        self._headers: Headers = []
        self._parts: list[bytes] = []
        self._size = 0
        self.is_kept = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = [
                (name, value)
                for name, value in message["headers"]
                if name not in _OF_ONE_EXCHANGE and not name.startswith(_OF_LIMITS)
            ]
        elif message["type"] == "http.response.body" and 200 <= self._status < 300 and not self.is_kept:
            body = message.get("body", b"")
            self._size += len(body)
            is_small = self._size <= self._of.max_answer_bytes
            if is_small:
                self._parts.append(body)
            else:
                self._parts.clear()
            if not message.get("more_body", False) and _is_whole(self._exchange):
                owner = self._exchange.exchange_id
                answer = Answer(owner, self._status, self._headers, b"".join(self._parts)) if is_small else None
                self._parts.clear()
                await self._of.store.keep(self._name, owner, answer)
                self.is_kept = True
        await self._send(message)


def _is_whole(exchange: Exchange) -> bool:
    """True if the answer whose last piece came by is what the provider meant to say, and its row is written."""
    if exchange.error is not None or exchange.outcome not in (None, "ok"):
        return False
    attempt = exchange.attempt
    return attempt is None or (attempt.is_complete and attempt.error is None and attempt.status < 400)


async def _replay(exchange: Exchange, answer: Answer, send: Send) -> None:
    headers = [
        *answer.headers,
        (b"x-request-id", exchange.exchange_id.encode()),
        (b"x-sidecar-cost-usd", b"0"),
        (b"idempotent-replayed", b"true"),
        (b"x-sidecar-replay-of", answer.exchange_id.encode()),
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def _check(key: bytes) -> None:
    if not 0 < len(key) <= MAX_KEY_LENGTH or not all(0x20 <= byte < 0x7F for byte in key):
        raise BadRequestError(
            f"The gateway refused the request: Idempotency-Key has to be 1 to {MAX_KEY_LENGTH} printable ASCII "
            "characters, such as a UUID.",
            code="invalid_idempotency_key",
            param="idempotency-key",
        )


def _name(exchange: Exchange, key: bytes) -> str:
    """Nobody else's name is the same: neither another key's, nor another user's where the host app names users only."""
    caller = exchange.caller
    whose = "\0".join((caller.key_hash, caller.user_id or "", caller.team_id or ""))
    return hashlib.sha256(whose.encode("utf-8", "surrogatepass") + b"\0" + key).hexdigest()


def _fingerprint(path: str, end_user_id: str, tags: tuple[str, ...], raw: bytes) -> bytes:
    """Of all that says what is asked for and who may serve it."""
    text = "\0".join((path, end_user_id, *sorted(tags), ""))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    digest.update(raw)
    return digest.digest()
