"""Hold the worst case before dispatch, settle the real cost after. A budget is a ceiling.

Neighbours: `admit.AdmissionPolicy`, shared with RateLimitMiddleware. Before an attempt that follows a possibly billed
one the hold is extended; refused means no further attempt. Works alone in front of any ASGI app.
"""

from __future__ import annotations

from sidecar.admit import AdmissionPolicy, admit, extend, finish
from sidecar.asgi import (
    Applies,
    ASGIApp,
    ClientDisconnectedError,
    Front,
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
from sidecar.exchange import Attempt, Exchange


class BudgetMiddleware:
    """`policy.catalog` names the prices the worst case is computed from."""

    def __init__(self, app: ASGIApp, *, policy: AdmissionPolicy, applies: Applies = is_chat) -> None:
        self.app = app
        self.policy = policy
        self.applies = applies
        policy.parts.add("budgets")

    async def _before_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        await extend(exchange, attempt, self.policy)

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
            # Before Spend's hook, also when Spend is mounted outside: the intent carries the hold.
            exchange.before_attempt.insert(0, self._before_attempt)
            try:
                await self.app(scope, receive_for(exchange), Tap(exchange, send))
            finally:
                await finish(exchange, self.policy)
        finally:
            if is_mine:
                close_exchange(exchange)
