"""All windows of all scopes or none, adjusted to the real token count after the answer.

Neighbours: `admit.AdmissionPolicy`, shared with BudgetMiddleware: the first of the two to run claims for both in one
store round trip. Works alone in front of any ASGI app.
"""

from __future__ import annotations

from collections.abc import Awaitable

from sidecar.admit import AdmissionPolicy, admit, finish
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
    is_chat,
    open_exchange,
    receive_for,
    refuse,
)
from sidecar.errors import RefusedError


class RateLimitMiddleware:
    """Refuses with 429 and an exact `retry-after`; adds `x-ratelimit-*` to answers."""

    def __init__(self, app: ASGIApp, *, policy: AdmissionPolicy, applies: Applies = is_chat) -> None:
        self.app = app
        self.policy = policy
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
                await admit(scope, exchange, self.policy)
            except RefusedError as error:
                await refuse(exchange, error, send)
                return
            except ClientDisconnectedError:
                exchange.outcome = "client_left"
                return
            grant = exchange.grant

            def send_with_headers(message: Message) -> Awaitable[None]:
                if message["type"] == "http.response.start" and grant is not None and grant.headers:
                    message = {**message, "headers": [*message["headers"], *grant.headers]}
                return tap(message)

            tap = Tap(exchange, send)
            try:
                await self.app(scope, receive_for(exchange), send_with_headers)
            finally:
                await finish(exchange, self.policy)
        finally:
            if is_mine:
                close_exchange(exchange)
