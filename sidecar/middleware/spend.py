"""Intent before dispatch, record before the last byte.

Unstreamed answers up to 8 MB are held until their record is written, so that the cost header is true; of larger ones
and of streams only the end (the dialect's end event, or the last non-empty piece) waits for the record.
Neighbours: `spend.recorder.Recorder`. Works alone in front of any ASGI app.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

import anyio

from sidecar.admit import charge, worst_case
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
    Tap,
    close_exchange,
    header,
    is_call,
    is_event_stream,
    open_exchange,
    read_body,
    receive_for,
    refuse,
)
from sidecar.errors import RefusedError, UnavailableError
from sidecar.exchange import Attempt, Exchange
from sidecar.types import Deployment, Outcome, SpendRecord, format_usd

BUFFER_BYTES = 8 * 1024 * 1024
_NOT_WRITTEN = UnavailableError(
    "The gateway could not write the spend record, so the answer was cut.", code="record_not_written"
)


class Recorder(Protocol):
    """What Spend needs of `spend.recorder.Recorder`."""

    def intent(self, record: SpendRecord) -> Awaitable[None]: ...

    def record(self, record: SpendRecord) -> Awaitable[None]: ...


class SpendMiddleware:
    """Writes one row per attempt. `x-sidecar-cost-usd` is on unstreamed answers; a client that sends
    `x-sidecar-cost: trailer` gets the cost of a stream as an SSE comment after the end event. `deployment` says what an
    endpoint of your own is and costs, when no Route, Translate or UpstreamProxy below announces its attempts."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        recorder: Recorder,
        deployment: Deployment | None = None,
        applies: Applies = is_call,
    ) -> None:
        self.app = app
        self.recorder = recorder
        self.deployment = deployment
        self.applies = applies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.applies(scope):
            await self.app(scope, receive, send)
            return
        exchange, is_mine = open_exchange(scope, receive)
        if is_mine:
            send = Front(exchange, send)
        try:
            try:
                await read_body(scope, exchange)
                exchange.before_attempt.append(self._before_attempt)
                if self.deployment is not None and not exchange.attempts:
                    await exchange.begin_attempt(self.deployment)
            except RefusedError as error:
                await refuse(exchange, error, send)
                return
            except ClientDisconnectedError:
                exchange.outcome = "client_left"
                return
            except BaseException:
                await self._record_cut_off(exchange)
                raise
            answer = _Answer(self, exchange, send, has_trailer=header(scope, b"x-sidecar-cost") == b"trailer")
            try:
                await self.app(scope, receive_for(exchange), Tap(exchange, answer))
            except BaseException:
                await self._record_cut_off(exchange)
                raise
            await self._record_rest(exchange)
        finally:
            if is_mine:
                close_exchange(exchange)

    async def _before_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        if exchange.attempts:
            await self.record_all(exchange)
        if not attempt.hold_nano:
            attempt.hold_nano = worst_case(exchange, attempt.deployment)
        await self.recorder.intent(_row(exchange, attempt, "unknown", "incomplete", attempt.hold_nano))

    async def _record_cut_off(self, exchange: Exchange) -> None:
        with anyio.move_on_after(SETTLE_LIMIT_S, shield=True):
            await self._record_rest(exchange)

    async def _record_rest(self, exchange: Exchange) -> None:
        """What the answer's end did not record: failed and abandoned attempts. A row that cannot be written stays an
        open intent in the journal, whose adopter writes it at the held cost."""
        try:
            await self.record_all(exchange)
        except UnavailableError as error:
            exchange.error = exchange.error or error

    async def record_all(self, exchange: Exchange) -> None:
        """Every attempt so far has its row. A failed write raises UnavailableError and is tried again at the end."""
        for attempt in exchange.attempts:
            if not attempt.is_recorded and not attempt.is_running:
                charge(exchange, attempt)
                await self.recorder.record(
                    _row(exchange, attempt, attempt.cost_status, _outcome(exchange, attempt), attempt.cost_nano or 0)
                )
                attempt.is_recorded = True


def _outcome(exchange: Exchange, attempt: Attempt) -> Outcome:
    if attempt.error is not None:
        return "incomplete" if attempt.content_started else "provider_error"
    if attempt.is_complete:
        return "ok" if attempt.status < 400 else "provider_error"
    return "client_left" if exchange.client_left else "incomplete"


def _row(exchange: Exchange, attempt: Attempt, status: str, outcome: Outcome, cost_nano: int) -> SpendRecord:
    caller = exchange.caller
    deployment = attempt.deployment
    grant = exchange.grant
    ended_at = attempt.ended_at or exchange.now()
    first = attempt.first_byte_at
    return SpendRecord(
        exchange_id=exchange.exchange_id,
        attempt=attempt.number,
        revision=0,
        at=grant.at if grant is not None else exchange.started_at,
        key_hash=caller.key_hash,
        status=status,
        outcome=outcome,
        cost_nano=cost_nano,
        group=deployment.group,
        deployment_id=deployment.deployment_id,
        provider=deployment.provider,
        model=deployment.model,
        key_alias=caller.key_alias,
        user_id=caller.user_id,
        team_id=caller.team_id,
        organization_id=caller.organization_id,
        end_user_id=exchange.end_user_id or caller.end_user_id,
        request_id=exchange.request_id,
        usage=attempt.usage,
        http_status=attempt.status,
        is_stream=exchange.is_stream,
        duration_ms=max(0, int((ended_at - attempt.started_at) * 1000)),
        first_byte_ms=None if first is None else max(0, int((first - attempt.started_at) * 1000)),
        dropped=attempt.dropped,
        tags=exchange.tags or caller.tags,
        began_at=attempt.started_at,
    )


def _cost(exchange: Exchange) -> bytes | None:
    """USD as text; None where nothing was tried or an attempt has no price."""
    if not exchange.attempts or any(attempt.cost_status == "unpriced" for attempt in exchange.attempts):
        return None
    return format_usd(exchange.cost_nano).encode()


class _Answer:
    """Holds back what must not be sent before the record is written. One per request."""

    __slots__ = ("_exchange", "_has_trailer", "_held", "_is_stream", "_parts", "_send", "_size", "_spend", "_start")

    def __init__(self, spend: SpendMiddleware, exchange: Exchange, send: Send, *, has_trailer: bool) -> None:
        self._spend = spend
        self._exchange = exchange
        self._send = send
        self._has_trailer = has_trailer
        self._start: Message | None = None
        self._is_stream = False
        self._parts: list[bytes] = []
        self._size = 0
        self._held = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            if self._is_stream:
                await self._stream(message.get("body", b""), message.get("more_body", False))
            else:
                await self._body(message.get("body", b""), message.get("more_body", False))
        elif message["type"] == "http.response.start":
            self._is_stream = is_event_stream(message["headers"])
            if self._is_stream:
                await self._send(message)
            else:
                self._start = message
        else:
            await self._send(message)

    async def _body(self, body: bytes, more: bool) -> None:
        """Unstreamed: buffer, record, send; past the buffer only the last non-empty piece is held back."""
        if more:
            if self._start is None:
                if body:
                    held, self._held = self._held, body
                    if held:
                        await self._send({"type": "http.response.body", "body": held, "more_body": True})
                return
            self._parts.append(body)
            self._size += len(body)
            if self._size > BUFFER_BYTES:
                start, self._start = self._start, None
                *parts, self._held = [p for p in self._parts if p]
                self._parts.clear()
                await self._send(start)
                await self._send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})
            return
        exchange = self._exchange
        try:
            await self._spend.record_all(exchange)
        except UnavailableError as error:
            if self._start is None:
                raise  # part of a large answer is out: the connection is cut
            self._start = None
            await refuse(exchange, error, self._send)
            return
        if self._start is not None:
            start = self._start
            if (cost := _cost(exchange)) is not None:
                headers = [*start["headers"], (b"x-sidecar-cost-usd", cost)]
                start = {**start, "headers": headers}
            self._start = None
            await self._send(start)
        if self._parts or self._held:
            body = b"".join((*self._parts, self._held, body))
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _stream(self, body: bytes, more: bool) -> None:
        """Streamed: everything up to the end event goes at once; the end waits for the record."""
        if self._held:
            body = self._held + body
            self._held = b""
        cut = self._exchange.dialect.end_at(body) if more else 0
        if more and cut < 0:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            return
        if more:
            self._held = body[cut:]
            if cut:
                await self._send({"type": "http.response.body", "body": body[:cut], "more_body": True})
            return
        try:
            await self._spend.record_all(self._exchange)
        except UnavailableError as error:
            self._exchange.outcome, self._exchange.error = "incomplete", error
            # The record could not be written: the answer is cut, it must not look whole.
            event = self._exchange.dialect.error_event(_NOT_WRITTEN)
            await self._send({"type": "http.response.body", "body": event, "more_body": False})
            return
        if self._has_trailer and (cost := _cost(self._exchange)) is not None:
            body += b": x-sidecar-cost-usd " + cost + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
