"""Request id, metrics, access log: the outermost layer, which sees every exchange end.

Neighbours: `metrics.Metrics`, any callable as access log. Never touches global logging.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from sidecar.asgi import (
    Applies,
    ASGIApp,
    Front,
    Receive,
    Scope,
    Send,
    close_exchange,
    is_call,
    open_exchange,
)
from sidecar.exchange import Exchange
from sidecar.metrics import Metrics
from sidecar.types import format_usd

AccessLog = Callable[[dict[str, Any]], None]


class Records(Protocol):
    """What keeps an account of each exchange, such as `sidecar.records.Records`."""

    def note(self, exchange: Exchange, ended_at: float) -> None: ...


class ObserveMiddleware:
    """`access_log` gets one dictionary per exchange: no body, no header, no credential."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        access_log: AccessLog | None = None,
        records: Records | None = None,
        applies: Applies = is_call,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.access_log = access_log
        self.records = records
        self.applies = applies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.applies(scope):
            await self.app(scope, receive, send)
            return
        exchange, is_mine = open_exchange(scope, receive)
        if is_mine:
            send = Front(exchange, send)
            receive = exchange.inbox.pass_through
        metrics = self.metrics
        metrics.in_flight += 1
        try:
            await self.app(scope, receive, send)
        except BaseException:
            if exchange.outcome is None:
                exchange.outcome = "gateway_error"
            raise
        finally:
            metrics.in_flight -= 1
            ended_at = exchange.now()
            if exchange.client_left and exchange.outcome in (None, "ok"):
                exchange.outcome = "client_left"
            elif exchange.outcome is None:
                exchange.outcome = "ok"
            metrics.observe_exchange(exchange, ended_at)
            if self.access_log is not None:
                self.access_log(_line(exchange, ended_at))
            if self.records is not None:
                self.records.note(exchange, ended_at)
            if is_mine:
                close_exchange(exchange)


def _line(exchange: Exchange, ended_at: float) -> dict[str, Any]:
    attempt = exchange.attempt
    return {
        "exchange_id": exchange.exchange_id,
        "request_id": exchange.request_id,
        "key": exchange.caller.key_alias or exchange.caller.key_name,
        "model": exchange.model,
        "deployment": attempt.deployment.deployment_id if attempt is not None else None,
        "attempts": len(exchange.attempts),
        "status": exchange.status,
        "outcome": exchange.outcome,
        "code": exchange.error.code if exchange.error is not None else None,
        "cost_usd": format_usd(exchange.cost_nano),
        "duration_ms": int((ended_at - exchange.started_at) * 1000),
    }
