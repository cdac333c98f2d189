"""Model group to attempts: calls the app below once per attempt, with the body replayed, and holds the answer's start
back until content began, so that fail-over is invisible.

Neighbours: `routing.plan` (pure generator), `routing.health` (cooldowns), the exchange (attempts are announced there).
After the first content byte nothing is retried: the layer that knows the dialect ends the answer with an error.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from sidecar.asgi import (
    Applies,
    ASGIApp,
    ClientDisconnectedError,
    Front,
    Message,
    Receive,
    Scope,
    Send,
    candidates_of,
    close_exchange,
    is_chat,
    open_exchange,
    read_body,
    receive_for,
    refuse,
)
from sidecar.errors import RefusedError, UpstreamConnectError, UpstreamError, UpstreamStaleError
from sidecar.exchange import Attempt, Exchange
from sidecar.routing.catalog import Catalog
from sidecar.routing.health import Health
from sidecar.routing.plan import Failure, attempts
from sidecar.types import Deployment

_RETRYABLE_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 529})


class RouteMiddleware:
    """`retries` is the number of further attempts over the whole request, fallbacks included."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        catalog: Catalog,
        retries: int = 2,
        health: Health | None = None,
        draw: Callable[[], float] = random.random,
        applies: Applies = is_chat,
    ) -> None:
        self.app = app
        self.catalog = catalog
        self.retries = retries
        self.health = health if health is not None else Health()
        self.draw = draw
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
            candidates = candidates_of(exchange, self.catalog)
            exchange.is_routed = True
            await self._dispatch(scope, exchange, candidates, send)
        except RefusedError as error:
            await refuse(exchange, error, send)
        except ClientDisconnectedError:
            exchange.outcome = "client_left"
        finally:
            if is_mine:
                close_exchange(exchange)

    async def _dispatch(self, scope: Scope, exchange: Exchange, candidates: tuple[Deployment, ...], send: Send) -> None:
        health = self.health
        plan = attempts(
            candidates,
            retries=self.retries,
            draw=self.draw,
            available=lambda deployments: health.available(deployments, exchange.now()),
        )
        deployment = next(plan)
        while True:
            attempt = await exchange.begin_attempt(deployment)
            gate = _Gate(exchange, attempt, send, can_retry=len(exchange.attempts) <= self.retries)
            error: UpstreamError | None = None
            try:
                await self.app(dict(scope), receive_for(exchange), gate)
            except UpstreamError as raised:
                error = attempt.error = raised
            if exchange.client_left:
                return
            if error is None and not gate.is_discarded:
                if attempt.error is None:
                    health.succeeded(deployment)
                elif attempt.error.cools_down:
                    health.failed(deployment, attempt.error.code, exchange.now(), attempt.error.retry_after_s)
                return
            attempt.ended_at = exchange.now()
            if error is not None and error.cools_down:
                health.failed(deployment, error.code, exchange.now(), error.retry_after_s)
            retryable = gate.is_discarded or (error is not None and error.is_retryable)
            failure = Failure(
                is_retryable=retryable and not gate.is_open,
                is_free=isinstance(error, (UpstreamConnectError, UpstreamStaleError)),
            )
            try:
                deployment = plan.send(failure)
            except StopIteration:
                if error is not None:
                    extra = [(b"x-sidecar-attempts", str(len(exchange.attempts)).encode())]
                    await refuse(exchange, error, send, extra)
                return


class _Gate:
    """Holds an attempt's messages back until its content began or it ended. One per attempt."""

    __slots__ = ("_attempt", "_can_retry", "_exchange", "_held", "_send", "is_discarded", "is_open")

    def __init__(self, exchange: Exchange, attempt: Attempt, send: Send, *, can_retry: bool) -> None:
        self._exchange = exchange
        self._attempt = attempt
        self._send = send
        self._can_retry = can_retry
        self._held: list[Message] = []
        self.is_open = False
        self.is_discarded = False

    def __call__(self, message: Message) -> Awaitable[None]:
        return self._send(message) if self.is_open else self._judge(message)

    async def _judge(self, message: Message) -> None:
        if self.is_discarded:
            return
        if message["type"] == "http.response.start":
            if message["status"] in _RETRYABLE_STATUSES and self._can_retry and not self._exchange.is_translated:
                # Without Translate below, the provider's own error answer comes by: try elsewhere instead.
                self.is_discarded = True
                self._attempt.status = message["status"]
                return
            deployment = self._attempt.deployment.deployment_id.encode("latin-1", "replace")
            headers = [
                *message["headers"],
                (b"x-sidecar-deployment", deployment),
                (b"x-sidecar-attempts", str(self._attempt.number).encode()),
            ]
            self._held.append({**message, "headers": headers})
            return
        self._held.append(message)
        if self._attempt.content_started or not message.get("more_body", False) or not self._exchange.is_translated:
            self.is_open = True
            for held in self._held:
                await self._send(held)
            self._held.clear()
