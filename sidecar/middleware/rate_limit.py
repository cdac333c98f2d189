"""All windows of all scopes or none, adjusted to the real token count after the answer.

Neighbours: `admit.AdmissionPolicy`, shared with BudgetMiddleware: the first of the two to run claims for both in one
store round trip. Works alone in front of any ASGI app.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sidecar.admit import AdmissionPolicy, admit, finish, line_of, lines_of
from sidecar.asgi import (
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
    is_call,
    open_exchange,
    read_body,
    receive_for,
    refuse,
)
from sidecar.errors import RefusedError
from sidecar.exchange import Exchange
from sidecar.waiting import WaitingRoom, queue_headers


class RateLimitMiddleware:
    """Refuses with 429 and an exact `retry-after`; adds `x-ratelimit-*` to answers. With a `room`, requests wait there
    for what they would be refused."""

    def __init__(
        self, app: ASGIApp, *, policy: AdmissionPolicy, room: WaitingRoom | None = None, applies: Applies = is_call
    ) -> None:
        self.app = app
        self.policy = policy
        self.room = room
        self.applies = applies
        policy.parts.add("limits")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.applies(scope):
            await self.app(scope, receive, send)
            return
        exchange, is_mine = open_exchange(scope, receive)
        if is_mine:
            send = Front(exchange, send)
        try:
            try:
                if self.room is None:
                    await admit(scope, exchange, self.policy)
                else:
                    await self._in_line(self.room, scope, exchange)
            except RefusedError as error:
                await refuse(exchange, error, send, queue_headers(exchange) if exchange.queue_place else ())
                return
            except ClientDisconnectedError:
                exchange.outcome = "client_left"
                return
            grant = exchange.grant

            def send_with_headers(message: Message) -> Awaitable[None]:
                if message["type"] == "http.response.start" and grant is not None:
                    if grant.headers:
                        message = {**message, "headers": [*message["headers"], *grant.headers]}
                    if exchange.queue_place:
                        message = {**message, "headers": [*message["headers"], *queue_headers(exchange)]}
                return tap(message)

            tap = Tap(exchange, send)
            try:
                await self.app(scope, receive_for(exchange), send_with_headers)
            finally:
                await finish(exchange, self.policy)
                if self.room is not None:
                    self.room.freed(lambda: lines_of(exchange, self.policy))
        finally:
            if is_mine:
                close_exchange(exchange)

    async def _in_line(self, room: WaitingRoom, scope: Scope, exchange: Exchange) -> None:
        await read_body(scope, exchange)

        async def go(is_in: Callable[[], None]) -> None:
            await admit(scope, exchange, self.policy)

        await room.through(
            scope,
            exchange,
            go,
            lines=lambda: lines_of(exchange, self.policy),
            line_of=lambda error: line_of(exchange, self.policy, error),
            until_at=None if exchange.deadline_s is None else exchange.started_at + exchange.deadline_s,
        )
