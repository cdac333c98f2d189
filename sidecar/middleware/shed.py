"""Refuses new requests before the process suffers: above so many in flight, or while its event loop lags.

Neighbours: composed below Observe, above everything that costs; `app.py` starts the clock. What runs already goes on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from sidecar.asgi import Applies, ASGIApp, Front, Receive, Scope, Send, close_exchange, is_call, open_exchange, refuse
from sidecar.errors import UnavailableError

_COME_BACK_S = 3.0
"""Clients are told to come back within so long, each at another moment."""


class LoopLag:
    """How late the event loop is: one timer, every `every_s`. `lag_s` is the least of the last three, so one long step
    is no overload; `worst_s` the most since it was asked last (a metric)."""

    def __init__(self, *, every_s: float = 0.1) -> None:
        self._every_s = every_s
        self._last = (0.0, 0.0)
        self._timer: asyncio.TimerHandle | None = None
        self._worst_s = 0.0
        self.lag_s = 0.0

    async def start(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._every_s, self._tick, loop, loop.time() + self._every_s)

    def _tick(self, loop: asyncio.AbstractEventLoop, due_at: float) -> None:
        now = loop.time()
        late = max(now - due_at, 0.0)
        one, other = self._last
        self.lag_s = min(late, one, other)
        self._last = (other, late)
        self._worst_s = max(self._worst_s, late)
        self._timer = loop.call_later(self._every_s, self._tick, loop, now + self._every_s)

    def worst_s(self) -> float:
        worst, self._worst_s = self._worst_s, 0.0
        return worst

    async def aclose(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


class ShedMiddleware:
    """`max_in_flight` requests at a time, those that wait included; `max_lag_s` of the loop. `None`: no bound."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_in_flight: int | None = None,
        max_lag_s: float | None = None,
        lag: LoopLag | None = None,
        draw: Callable[[], float] = random.random,
        applies: Applies = is_call,
    ) -> None:
        if max_lag_s is not None and lag is None:
            raise ValueError("max_lag_s needs a LoopLag that is started")
        self.app = app
        self.applies = applies
        self._max_in_flight = max_in_flight
        self._max_lag_s = max_lag_s
        self._lag = lag
        self._draw = draw
        self.in_flight = 0
        self.shed: dict[str, int] = {"in_flight": 0, "lag": 0}
        """Refused so far, by reason (a metric)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.applies(scope):
            await self.app(scope, receive, send)
            return
        if self._max_in_flight is not None and self.in_flight >= self._max_in_flight:
            await self._refuse(scope, receive, send, "in_flight")
            return
        if self._max_lag_s is not None and self._lag is not None and self._lag.lag_s > self._max_lag_s:
            await self._refuse(scope, receive, send, "lag")
            return
        self.in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.in_flight -= 1

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, reason: str) -> None:
        self.shed[reason] += 1
        exchange, is_mine = open_exchange(scope, receive)
        if is_mine:
            send = Front(exchange, send)
        try:
            error = UnavailableError(
                "The gateway refused the request: it has as much to do as it can. Try again as 'retry-after' says.",
                code="overloaded",
                retry_after_s=self._draw() * _COME_BACK_S,
            )
            await refuse(exchange, error, send)
        finally:
            if is_mine:
                close_exchange(exchange)
