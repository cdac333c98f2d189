"""The only ASGI plumbing: read the body once, replay it, tap the answer, watch for the client leaving, refuse.

Neighbours: every middleware. Rule: one owner of `receive()` for the whole stack (`Inbox`), one tap that counts
(`Tap`, owned by the innermost layer that has one); per-request state lives here and on the exchange, never on a
middleware.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from sidecar.errors import BadRequestError, BodyTooLargeError, RefusedError, SidecarError, without_credentials
from sidecar.exchange import SCOPE_KEY, Exchange, new_exchange_id
from sidecar.routing.candidates import Candidates
from sidecar.routing.catalog import Catalog
from sidecar.translate.dialects import AT, CHAT
from sidecar.translate.dialects.base import Dialect, Sniffer
from sidecar.translate.pieces import BIG_BYTES, decode_big
from sidecar.types import Deployment

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Applies = Callable[[Scope], bool]
T = TypeVar("T")

MAX_BODY_BYTES = 32 * 1024 * 1024
SETTLE_LIMIT_S = 10.0
"""How long settling may take once the request itself was cancelled."""

_BODY_HEADERS = frozenset({b"content-length", b"content-encoding", b"x-sidecar-timeout"})
_SECONDS = re.compile(rb"\d{1,6}(\.\d{1,6})?")
_PATHS = frozenset(AT)
_CHAT_PATHS = frozenset(CHAT.paths)
_decode = msgspec.json.Decoder().decode


class ClientDisconnectedError(Exception):
    """The client left before its request was complete. Nobody is there to answer; nothing was dispatched."""


def route_path(scope: Scope) -> str:
    """The path below the mount point. Decides on `scope["path"]` and `root_path` only, never on a URL."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("/", ""):
        return path[len(root) :]
    return path


def is_call(scope: Scope) -> bool:
    """The default `applies=`: POST to the dialects' paths below `root_path`."""
    if not scope.get("root_path"):
        return scope["path"] in _PATHS and scope["method"] == "POST"
    return scope["method"] == "POST" and route_path(scope) in _PATHS


def paths(*names: str) -> Applies:
    """An `applies=` for your own endpoints: POST to exactly these paths below `root_path`."""
    wanted = frozenset(names)

    def applies(scope: Scope) -> bool:
        return scope["method"] == "POST" and route_path(scope) in wanted

    return applies


def header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return value  # type: ignore[no-any-return]
    return None


WATCH_AFTER_S = 0.03


class _Young(threading.local):
    """Requests too young for a task of their own that waits for the disconnect: it costs more than a short answer's
    whole routing (8 µs), and a disconnect that came first is reported all the same. One per thread, so per loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._young: list[Inbox] = []
        self._older: list[Inbox] = []

    def add(self, inbox: Inbox) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._young, self._older = loop, [], []
        if not self._young and not self._older:
            loop.call_later(WATCH_AFTER_S, self._tick, loop)
        self._young.append(inbox)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            return
        grown, self._older, self._young = self._older, self._young, []
        for inbox in grown:
            inbox.watch_now()
        if self._older:
            loop.call_later(WATCH_AFTER_S, self._tick, loop)


_young = _Young()


class Inbox:
    """Owns `receive()`. Before the body is read, calls pass through; afterwards one task waits for the disconnect."""

    __slots__ = ("_callbacks", "_is_closed", "_is_watched", "_left", "_receive", "_watcher", "client_left", "exchange")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._left: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._is_watched = False
        self._is_closed = False
        self.client_left = False
        self.exchange: Exchange | None = None

    async def read(self, limit: int) -> bytes:
        """The whole request body. Raises BodyTooLargeError or ClientDisconnectedError."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            body: bytes = message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            return body
        parts: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                self.leave()
                raise ClientDisconnectedError
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)
            message = await self._receive()

    def watch(self) -> None:
        """Wait for the disconnect from now on; idempotent."""
        if not self._is_watched:
            self._is_watched = True
            _young.add(self)

    def watch_now(self) -> None:
        self._is_watched = True
        if self._watcher is None and not self.client_left and not self._is_closed:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.leave()

    def leave(self) -> None:
        """The client is gone, or as good as gone."""
        # uvicorn also reports a disconnect once the answer is complete: that is not "the client left".
        if self.exchange is not None and not self.exchange.answer_ended:
            self.client_left = True
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback()
        if self._left is not None and not self._left.done():
            self._left.set_result(None)

    def on_left(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the client leaves, at once if it has."""
        if self.client_left:
            callback()
        else:
            self._callbacks.append(callback)

    def not_on_left(self, callback: Callable[[], None]) -> None:
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    async def wait_left(self) -> None:
        """Returns when the client has left or the answer is complete."""
        self.watch_now()
        if self.client_left or self._is_closed or (self._watcher is not None and self._watcher.done()):
            return
        if self._left is None:
            self._left = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._left)

    async def pass_through(self) -> Message:
        """`receive()` for apps below while nobody of ours has read the body."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.leave()
        return message

    def close(self) -> None:
        self._is_closed = True
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None
        if self._left is not None and not self._left.done():
            self._left.set_result(None)
        self._callbacks.clear()
        self._receive = _is_over


async def _is_over() -> Message:
    return {"type": "http.disconnect"}


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The gateway refused the request: its body is larger than {limit} bytes. Send less.")


class Replay:
    """A `receive()` that gives a body once, then waits for the client to leave. One per attempt."""

    __slots__ = ("_body", "_inbox", "_is_given")

    def __init__(self, inbox: Inbox, body: bytes) -> None:
        self._inbox = inbox
        self._body = body
        self._is_given = False

    async def __call__(self) -> Message:
        if not self._is_given:
            self._is_given = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._inbox.wait_left()
        return {"type": "http.disconnect"}


def open_exchange(scope: Scope, receive: Receive, *, now: Callable[[], float] = time.time) -> tuple[Exchange, bool]:
    """The request's exchange and whether this call made it (the maker closes it with `close_exchange`)."""
    exchange = scope.get(SCOPE_KEY)
    if exchange is not None:
        return exchange, False
    at = now()
    inbox = Inbox(receive)
    exchange = Exchange(new_exchange_id(at), at, inbox, now)
    inbox.exchange = exchange
    for name, value in scope["headers"]:  # once for both
        if name == b"x-request-id":
            if exchange.request_id is None:
                exchange.request_id = without_credentials(value[:128].decode("latin-1"))
        elif name == b"idempotency-key" and exchange.idempotency_key is None:
            exchange.idempotency_key = value
    scope[SCOPE_KEY] = exchange
    return exchange, True


def close_exchange(exchange: Exchange) -> None:
    """Afterwards nothing of it leads back to it, the server's `receive` least of all, which holds the scope: finished
    exchanges go without the garbage collector."""
    exchange.inbox.close()
    exchange.inbox.exchange = None
    exchange.front = exchange.begin = exchange.tap_owner = None
    exchange.before_attempt.clear()
    if exchange.error is not None:
        _forget_frames(exchange.error)
    for attempt in exchange.attempts:
        if attempt.error is not None:
            _forget_frames(attempt.error)


def _forget_frames(error: BaseException | None) -> None:
    for _ in range(20):  # causes may lead in a circle
        if error is None:
            return
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def receive_for(exchange: Exchange) -> Receive:
    """The `receive` to hand to the app below: a replay once the body was read, else the client's own."""
    if exchange.raw is None:
        return exchange.inbox.pass_through
    return Replay(exchange.inbox, exchange.raw)


async def read_body(scope: Scope, exchange: Exchange, limit: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """Read and parse the body, once for the whole stack. Raises BadRequestError, BodyTooLargeError,
    ClientDisconnectedError. The payload is shared: never mutate it."""
    if exchange.payload is not None:
        return exchange.payload
    for name, value in scope["headers"]:
        if name in _BODY_HEADERS:
            if name == b"content-length":
                if not value.isdigit() or int(value[:20]) > limit:
                    raise _too_large(limit)
            elif name == b"x-sidecar-timeout":
                exchange.deadline_s = _seconds(value)
            elif value != b"identity":
                raise BadRequestError(
                    "The gateway refused the request: it does not read compressed bodies. "
                    "Send it without content-encoding.",
                    code="unsupported_encoding",
                )
    raw = await exchange.inbox.read(limit)
    try:
        payload = _decode(raw) if len(raw) < BIG_BYTES else await aside(decode_big, raw)
    except RecursionError:
        raise BadRequestError("The gateway refused the request: its JSON is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(
            f"The gateway refused the request: its body is not valid JSON ({error}).", code="invalid_json"
        ) from None
    if type(payload) is not dict:
        raise BadRequestError("The gateway refused the request: its body must be a JSON object.", code="invalid_json")
    model = payload.get("model")
    if type(model) is not str or not model:
        raise BadRequestError("The gateway refused the request: 'model' must be a non-empty string.", param="model")
    if len(model) > 256:
        raise BadRequestError("The gateway refused the request: 'model' is longer than 256.", param="model")
    stream = payload.get("stream")
    if stream is not None and type(stream) is not bool:
        raise BadRequestError("The gateway refused the request: 'stream' must be a boolean.", param="stream")
    if scope["path"] not in _CHAT_PATHS:
        exchange.dialect = AT.get(route_path(scope), CHAT)
    exchange.dialect.check(payload)
    exchange.raw = raw
    exchange.payload = payload
    exchange.model = without_credentials(model)  # it goes into answers, logs and rows
    exchange.is_stream = stream is True
    exchange.inbox.watch()
    return payload


def _seconds(value: bytes) -> float:
    """Of `x-sidecar-timeout`."""
    if _SECONDS.fullmatch(value.strip()) is None or not (seconds := float(value)):
        raise BadRequestError(
            "The gateway refused the request: 'x-sidecar-timeout' must be a number of seconds above 0, such as 30 or "
            "2.5.",
            param="x-sidecar-timeout",
            code="bad_timeout",
        )
    return seconds


_worker = ThreadPoolExecutor(1, "sidecar-big-bodies")


async def aside(work: Callable[..., T], *args: Any) -> T:
    """Do what grows with a big body beside the loop. One thread for all: each more that computes would make the loop
    wait another switch interval for its turn."""
    return await asyncio.get_running_loop().run_in_executor(_worker, work, *args)


def candidates_of(exchange: Exchange, catalog: Catalog) -> tuple[Deployment, ...]:
    """The deployments this caller may be served by; computed once per exchange, by the first who asks."""
    if exchange.candidates is None:
        found = catalog.candidates(exchange.model, exchange.caller)
        exchange.candidates = found if exchange.dialect is CHAT else served(exchange, found)
    return exchange.candidates


def served(exchange: Exchange, candidates: Candidates) -> Candidates:
    """Those whose provider speaks the client's dialect, and that know what the request refers to. Raises
    BadRequestError, NotFoundError."""
    from sidecar.translate.registry import PROVIDERS, get_provider

    dialect = exchange.dialect
    found = candidates.only(lambda d: dialect.name in get_provider(d.provider).endpoints, dialect.name)
    if not found:
        names = sorted({name for name, provider in PROVIDERS.items() if dialect.name in provider.endpoints})
        raise BadRequestError(
            f"The gateway refused the request: no deployment of '{exchange.model[:128]}' has {dialect.title}. "
            f"Providers that have it: {', '.join(names)}. Ask for this model at /v1/chat/completions.",
            code="dialect_not_served",
            param="model",
        )
    return found if exchange.ids is None else exchange.ids.known_to(found)


async def refuse(
    exchange: Exchange, error: SidecarError, send: Send, extra: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Answer with an OpenAI error and set the outcome. If the answer has started, only one that a heartbeat began is
    ended; nothing happens if nobody is there."""
    if exchange.outcome is None:
        exchange.outcome = "refused" if isinstance(error, RefusedError) else "provider_error"
        exchange.error = error
    if exchange.answer_started or exchange.client_left:
        if exchange.front is not None and exchange.front.is_early and not exchange.client_left:
            await exchange.front.end_with(error)
        return
    body = error.body_bytes()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", exchange.exchange_id.encode()),
        *error.headers,
        *extra,
    ]
    if error.retry_after_s is not None:
        # Whole seconds, rounded up: coming back earlier would be refused again.
        headers.append((b"retry-after", str(max(1, int(-(-error.retry_after_s // 1)))).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class Tap:
    """A send wrapper that notes how the answer went and, without Translate, reads its usage.

    Every layer that must know may put one in; the innermost claims the exchange and does the work, the others pass on.
    Like `Front` it hands the inner awaitable on instead of awaiting it: no coroutine per layer and piece.
    """

    __slots__ = ("_exchange", "_send", "_sniffer")

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self._exchange = exchange
        self._send = send
        self._sniffer: Sniffer | None = None

    def __call__(self, message: Message) -> Awaitable[None]:
        exchange = self._exchange
        if exchange.tap_owner is None:
            exchange.tap_owner = self
        if exchange.tap_owner is self and not exchange.is_translated:
            self._note(exchange, message)
        return self._send(message)

    def _note(self, exchange: Exchange, message: Message) -> None:
        attempt = exchange.attempt
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            is_last = not message.get("more_body", False)
            sniffer = self._sniffer
            if sniffer is not None and body:
                sniffer.feed(body)
            if attempt is not None:
                attempt.events_seen += body.count(exchange.dialect.event_mark)
                attempt.content_started = attempt.content_started or bool(body)
                if is_last:
                    attempt.is_complete = True
                    attempt.ended_at = exchange.now()
            if sniffer is not None and (is_last or exchange.is_stream):
                exchange.seen_usage = sniffer.usage
                if attempt is not None:
                    attempt.usage = sniffer.usage
        elif message["type"] == "http.response.start":
            if message["status"] < 400:
                self._sniffer = exchange.dialect.sniffer(is_stream=is_event_stream(message["headers"]))
            if attempt is not None:
                attempt.status = message["status"]
                if attempt.first_byte_at is None:
                    attempt.first_byte_at = exchange.now()


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if name == b"content-type":
            return value.startswith(b"text/event-stream")
    return False


COMMENT = b": keep-alive\n\n"


class Front:
    """The outermost send wrapper: knows whether the answer has started and ended as the client sees it, and writes into
    the silence of a stream (`sidecar.heartbeat`). `is_early`: a heartbeat began the answer, and nothing else of it is
    out yet."""

    __slots__ = ("_exchange", "_send", "beating", "is_early", "last")

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self._exchange = exchange
        self._send = send
        self.beating: asyncio.Task[None] | None = None
        self.is_early = False
        self.last: Message | None = None
        exchange.front = self

    def __call__(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.body":
            self.last = message
            if not message.get("more_body", False):
                self._exchange.answer_ended = True
        elif message["type"] == "http.response.start":
            if self.is_early:
                return self._second_start(message)
            self._exchange.answer_started = True
            self._exchange.status = message["status"]
        return self._send(message)

    def start_beat(self, loop: asyncio.AbstractEventLoop) -> None:
        """Only while nobody else sends; who sends next awaits `quiet` first."""
        if self.beating is None or self.beating.done():
            self.beating = loop.create_task(self._beat())

    async def quiet(self) -> None:
        beating, self.beating = self.beating, None
        if beating is not None and not beating.done():
            await asyncio.wait({beating})

    async def _beat(self) -> None:
        exchange = self._exchange
        if exchange.answer_ended or exchange.client_left:
            return
        try:
            if not exchange.answer_started:
                attempt = exchange.attempt
                headers = [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-cache"),
                    (b"x-request-id", exchange.exchange_id.encode()),
                ]
                if attempt is not None and attempt.dropped:
                    headers.append((b"x-sidecar-dropped", ",".join(attempt.dropped).encode("ascii", "replace")))
                start = {"type": "http.response.start", "status": 200, "headers": headers}
                await (exchange.begin or self)(start)
                self.is_early = True
            await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
        except Exception:  # noqa: BLE001 - whoever went, `receive` tells it
            return

    async def _second_start(self, message: Message) -> None:
        """The client has a 200 and comments: an answer that is no stream has to become an event of one."""
        self.is_early = False
        if message["status"] >= 300 or not is_event_stream(message["headers"]):
            self._send = _AsEvent(self._send, self._exchange.dialect)

    async def end_with(self, error: SidecarError) -> None:
        """After an early beginning: an error event, no `[DONE]`."""
        await self.quiet()
        self.is_early = False
        event = self._exchange.dialect.error_event(error)
        await self({"type": "http.response.body", "body": event, "more_body": False})


class _AsEvent:
    """Makes an answer's whole body the data of one event."""

    __slots__ = ("_dialect", "_parts", "_send")

    def __init__(self, send: Send, dialect: Dialect) -> None:
        self._send = send
        self._dialect = dialect
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        self._parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            event = self._dialect.event_of(b"".join(self._parts))
            await self._send({"type": "http.response.body", "body": event, "more_body": False})
