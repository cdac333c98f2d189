"""Hold the worst case before dispatch, settle the real cost after. A budget is a ceiling.

Neighbours: `admit.AdmissionPolicy`, shared with RateLimitMiddleware. Before an attempt that follows a possibly billed
one the hold is extended; refused means no further attempt. A stream is metered as it goes by: once it is longer than
its hold pays for, it ends with an error event. Works alone in front of any ASGI app.
"""

from __future__ import annotations

from collections.abc import Awaitable

from sidecar.admit import AdmissionPolicy, admit, extend, finish
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
    receive_for,
    refuse,
)
from sidecar.errors import HoldUsedUpError, RefusedError
from sidecar.exchange import Attempt, Exchange


class BudgetMiddleware:
    """`policy.catalog` names the prices the worst case is computed from."""

    def __init__(self, app: ASGIApp, *, policy: AdmissionPolicy, applies: Applies = is_call) -> None:
        if policy.catalog is None:
            raise ValueError("BudgetMiddleware needs a policy with a catalog: without prices all is free")
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
            meter = Meter(exchange, send)
            try:
                await self.app(scope, receive_for(exchange), meter)
            except HoldUsedUpError as error:
                # No translator below that could have ended the answer.
                if not exchange.answer_ended and not exchange.client_left:
                    event = exchange.dialect.error_event(error)
                    await send({"type": "http.response.body", "body": event, "more_body": False})
            finally:
                await finish(exchange, self.policy)
        finally:
            if is_mine:
                close_exchange(exchange)


class Meter(Tap):
    """Ends a stream that goes on when its hold is used up: it raises into the app below, whose translator, if there is
    one, ends the answer in the client's dialect."""

    __slots__ = ()

    def __call__(self, message: Message) -> Awaitable[None]:
        exchange = self._exchange
        if exchange.tap_owner is None:
            exchange.tap_owner = self
        if exchange.tap_owner is self and not exchange.is_translated:
            self._note(exchange, message)
        if exchange.attempts:
            attempt = exchange.answering or exchange.attempts[-1]
            usage = attempt.usage
            if attempt.events_seen > attempt.output_max or (
                usage.output is not None and usage.total_output > attempt.output_max
            ):
                _cut(attempt, message)
        return self._send(message)


def _cut(attempt: Attempt, message: Message) -> None:
    """Raises unless the answer is ending anyway."""
    if attempt.error is None and not attempt.is_complete and message["type"] == "http.response.body":
        attempt.error = HoldUsedUpError(
            "The gateway ended the answer: the provider sent more than the output it was asked for, and the money held "
            "for it is used up."
        )
        raise attempt.error
