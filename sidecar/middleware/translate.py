"""Client dialect to provider dialect and back: rewrites path, headers and body on the way in, the (streamed) answer on
the way out. Wraps the reverse proxy, or anything else that speaks the provider's dialect.

Neighbours: `translate.registry` (pure providers), the exchange (attempt, edits, usage). Rule: a translator never sees
a credential; the proxy below authorises last. Errors travel up as exceptions until content began; after that this
layer, which knows the dialect, ends the answer with an error event.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from sidecar.admit import cap_at
from sidecar.asgi import (
    MAX_BODY_BYTES,
    Applies,
    ASGIApp,
    ClientDisconnectedError,
    Front,
    Message,
    Receive,
    Replay,
    Scope,
    Send,
    aside,
    close_exchange,
    is_call,
    open_exchange,
    read_body,
    refuse,
)
from sidecar.errors import BadRequestError, RefusedError, UpstreamBrokenError, UpstreamError
from sidecar.exchange import ATTEMPT_KEY, Attempt, Exchange, attempt_in
from sidecar.translate.dialects import CHAT
from sidecar.translate.fields import shown_names
from sidecar.translate.pieces import BIG_BYTES
from sidecar.translate.provider import Call, Head, Media, Provider, StreamTranslator
from sidecar.translate.registry import get_provider
from sidecar.types import Deployment
from sidecar.upstream.conceal import conceal

FetchMedia = Callable[[tuple[str, ...]], Awaitable[Mapping[str, Media]]]
"""Raises `RefusedError` for a URL that cannot be had, or may not."""

_KEPT_HEADERS = frozenset({b"openai-processing-ms", b"openai-version", b"request-id", b"retry-after"})


BIG_SCHEMA_BYTES = 32_768
"""From here on a body with schemas to rewrite goes to a worker thread; they cost more than other bytes."""


def has_schemas(provider: Provider, call: Call) -> bool:
    return not provider.is_same_dialect and ("tools" in call.payload or "response_format" in call.payload)


class TranslateMiddleware:
    """`deployment` is needed only without a RouteMiddleware above, which chooses one per attempt. `fetch_media` gets
    the bytes behind URLs for providers that take none; without it such requests are refused."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        deployment: Deployment | None = None,
        fetch_media: FetchMedia | None = None,
        applies: Applies = is_call,
    ) -> None:
        self.app = app
        self.deployment = deployment
        self.fetch_media = fetch_media
        self.applies = applies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.applies(scope):
            await self.app(scope, receive, send)
            return
        exchange, is_mine = open_exchange(scope, receive)
        if is_mine:
            send = Front(exchange, send)
        try:
            await read_body(scope, exchange)
            exchange.is_translated = True
            attempt = attempt_in(scope, exchange)
            if attempt is None or attempt.first_byte_at is not None:
                if self.deployment is None:
                    raise ValueError("TranslateMiddleware without RouteMiddleware above needs deployment=")
                attempt = await exchange.begin_attempt(self.deployment)
            await self._attempt(scope, exchange, attempt, send)
        except (RefusedError, UpstreamError) as error:
            if exchange.is_routed:
                raise
            await refuse(exchange, error, send)
        except ClientDisconnectedError:
            exchange.outcome = "client_left"
        finally:
            if is_mine:
                close_exchange(exchange)

    async def _media(self, urls: tuple[str, ...]) -> Mapping[str, Media]:
        if self.fetch_media is None:
            raise BadRequestError(
                "The gateway refused the request: this provider takes no URLs of images or files, and the gateway does "
                "not fetch them. Send the bytes as a data: URL.",
                code="media_not_fetched",
            )
        return await self.fetch_media(urls)

    async def _attempt(self, scope: Scope, exchange: Exchange, attempt: Attempt, send: Send) -> None:
        deployment = attempt.deployment
        provider = get_provider(deployment.provider)
        if exchange.dialect is not CHAT:
            provider = exchange.dialect.speaker(provider)
        payload, raw = exchange.payload, exchange.raw
        if exchange.continuation is not None and exchange.continuation.raw is not None:
            payload, raw = exchange.continuation.payload, exchange.continuation.raw
        assert payload is not None
        assert raw is not None
        edits = exchange.edits
        if "output_cap" in edits:
            edits = {**edits, "output_cap": cap_at(deployment, edits["output_cap"])}
        call = Call(
            payload=payload,
            raw=raw,
            model=deployment.model,
            edits=edits,
            is_stream=exchange.is_stream,
            exchange_id=exchange.exchange_id,
            now=exchange.started_at,
            params=deployment.params,
            drop_params=deployment.drop_params,
            allowed_params=deployment.allowed_params,
            max_output_tokens=deployment.max_output_tokens,
            options=deployment.options,
            ids=exchange.ids.at(exchange, deployment) if exchange.ids is not None else None,
        )
        try:
            if wanted := provider.needs(call):
                call.media = await self._media(wanted)
            is_big = len(call.raw) >= BIG_SCHEMA_BYTES and (len(call.raw) >= BIG_BYTES or has_schemas(provider, call))
            request = await aside(provider.request, call) if is_big else provider.request(call)
        except RefusedError:
            attempt.is_sent = False
            raise
        attempt.dropped = shown_names(request.dropped) if request.dropped else ()
        path = request.path
        below = dict(scope)
        below[ATTEMPT_KEY] = attempt
        below["path"] = path
        below["raw_path"] = path.encode("ascii")
        below["query_string"] = request.query.encode("ascii")
        below["root_path"] = ""
        below["headers"] = [*request.headers, (b"content-length", str(len(request.body)).encode())]
        answer = _Answer(exchange, attempt, provider, call, send)
        error: UpstreamError | None = None
        try:
            await self.app(below, Replay(exchange.inbox, request.body), answer)
            if not answer.is_done and not exchange.client_left:
                error = UpstreamBrokenError(f"Provider {provider.name} gave no complete answer.")
        except UpstreamError as raised:
            error = raised
        if error is not None:
            conceal(error, deployment)
            attempt.error = error
            if not answer.has_sent:
                raise error
            if not exchange.client_left:
                if exchange.continuation is not None and exchange.continuation.may_follow(attempt, error):
                    raise error
                await answer.end_with(error)


class _Answer:
    """Translates one attempt's answer as it comes by."""

    __slots__ = (
        "_attempt",
        "_call",
        "_exchange",
        "_head",
        "_mark",
        "_parts",
        "_provider",
        "_send",
        "_size",
        "_start",
        "_stream",
        "has_sent",
        "is_done",
    )

    def __init__(self, exchange: Exchange, attempt: Attempt, provider: Provider, call: Call, send: Send) -> None:
        self._exchange = exchange
        self._attempt = attempt
        self._provider = provider
        self._call = call
        self._mark = exchange.dialect.event_mark
        self._send = send
        self._head: Head | None = None
        self._stream: StreamTranslator | None = None
        self._start: Message | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self.has_sent = False
        self.is_done = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            if self._stream is not None:
                await self._piece(self._stream, body, message.get("more_body", False))
            else:
                await self._whole(body, message.get("more_body", False))
        elif message["type"] == "http.response.start":
            self._begin(message)

    def _begin(self, message: Message) -> None:
        self._head = Head(message["status"], message["headers"])
        self._attempt.status = message["status"]
        if message["status"] < 300 and self._call.is_stream:
            if not self._provider.is_stream(self._head):
                # Some vendors answer a stream request with one JSON error or answer; it is judged when whole.
                return
            self._stream = self._provider.stream(self._call, self._head)
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            self._start = {"type": "http.response.start", "status": 200, "headers": self._headers(headers)}

    def _headers(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        assert self._head is not None
        for name, value in self._head.headers:
            if name in _KEPT_HEADERS:
                headers.append((b"x-sidecar-upstream-request-id" if name == b"request-id" else name, value))
        headers.append((b"x-request-id", self._exchange.exchange_id.encode()))
        if self._attempt.dropped:
            headers.append((b"x-sidecar-dropped", ",".join(self._attempt.dropped).encode("ascii", "replace")))
        return headers

    async def _piece(self, stream: StreamTranslator, body: bytes, more: bool) -> None:
        attempt = self._attempt
        try:
            out = stream.feed(body) if body else b""
        except UpstreamError:
            attempt.usage = stream.usage  # of what came before, in this piece too
            raise
        if out:
            attempt.events_seen += out.count(self._mark)
            if not attempt.content_started and stream.content_started:
                attempt.content_started = True
        attempt.usage = stream.usage
        if more or stream.error is not None:
            if out:
                await self._emit(out, True)
            if stream.error is not None:
                raise stream.error
            return
        try:
            end = stream.end()
        except UpstreamError:
            if out:  # what came before the break, as if it had come in a piece of its own
                await self._emit(out, True)
            raise
        out += end
        attempt.usage = stream.usage
        attempt.is_complete = True
        attempt.ended_at = self._exchange.now()
        self.is_done = True
        await self._emit(out, False)

    async def _emit(self, out: bytes, more: bool) -> None:
        if self._start is not None:
            start, self._start = self._start, None
            await self._send(start)
        if self._attempt.content_started or not more or not self._exchange.is_routed:
            self.has_sent = True  # else Route holds it back, and may try elsewhere
        await self._send({"type": "http.response.body", "body": out, "more_body": more})

    async def _whole(self, body: bytes, more: bool) -> None:
        if more or self._parts:
            self._size += len(body)
            if self._size > MAX_BODY_BYTES:
                raise UpstreamBrokenError(f"Provider {self._provider.name} sent an answer over {MAX_BODY_BYTES} bytes.")
            self._parts.append(body)
            if more:
                return
            body = b"".join(self._parts)
        assert self._head is not None
        attempt = self._attempt
        attempt.ended_at = self._exchange.now()
        if self._head.status >= 300:
            error = self._provider.error(self._call, self._head, body)
            raise error
        if self._call.is_stream:
            if len(body) < BIG_BYTES:
                self._provider.response(self._call, self._head, body)  # raises the error it states, if it states one
            raise UpstreamBrokenError(
                f"Provider {self._provider.name} did not answer the stream request with a stream."
            )
        given = (self._call, self._head, body)
        is_big = len(body) >= BIG_BYTES
        reply = await aside(self._provider.response, *given) if is_big else self._provider.response(*given)
        attempt.usage = reply.usage
        attempt.content_started = True
        attempt.is_complete = True
        self.is_done = True
        self.has_sent = True
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(reply.body)).encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers(headers)})
        await self._send({"type": "http.response.body", "body": reply.body, "more_body": False})

    async def end_with(self, error: UpstreamError) -> None:
        """In-protocol: an error event, no `[DONE]`, no finish reason. The stock SDK raises on it."""
        self._exchange.outcome = "incomplete"
        self._exchange.error = error
        self.is_done = True
        event = self._exchange.dialect.error_event(error, self._stream)
        await self._send({"type": "http.response.body", "body": event, "more_body": False})
