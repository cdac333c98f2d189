"""Waiting instead of 429: a request that a limit refuses for now stands in the line of that limit until there is room,
its time is up, or its client leaves.

Neighbours: `routing.line` (who is next), RateLimitMiddleware and RouteMiddleware (which ask again when it is a
request's turn). Rules: only the first of a line asks, the others stand still; nothing a client sends moves it forward;
lines are this process's own, the limits they wait for may be shared by all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Literal, TypeVar

from sidecar.asgi import ClientDisconnectedError, Scope, header
from sidecar.errors import RateLimitedError
from sidecar.exchange import Exchange
from sidecar.routing.line import Lines, Waiter
from sidecar.types import Headers, Identity

T = TypeVar("T")
LOOK_AGAIN_S = 1.0
"""The first of a line asks again after this at the latest: others may make room sooner than it was told."""
LOOKS_A_SECOND = 100
"""All lines together; what ends in this process is known at once."""
_LOOK_APART_S = 0.02
"""And not more often than this, however many requests end meanwhile."""
PRIORITY_HEADER = b"x-sidecar-priority"

_Woken = Literal["turn", "late", "left", "displaced"]


class _Line:
    __slots__ = ("asked_at", "due_at", "handle", "has_news", "is_asking")

    def __init__(self) -> None:
        self.handle: asyncio.TimerHandle | None = None
        self.due_at = 0.0  # uvloop's handles do not tell
        self.is_asking = False
        self.has_news = False
        self.asked_at = 0.0


class WaitingRoom:
    """One per process. `size` requests may wait, each `max_wait_s` at most. `priorities` by `team:ID`,
    `organization:ID`, `user:ID` or `key:HASH` (the highest counts); with `is_header_read` a request may ask for a lower
    one."""

    def __init__(
        self,
        *,
        size: int,
        max_wait_s: float = 30.0,
        priorities: Mapping[str, int] | None = None,
        is_header_read: bool = False,
    ) -> None:
        self.lines = Lines(size)
        self.max_wait_s = max_wait_s
        self._priorities = dict(priorities or {})
        self._is_header_read = is_header_read
        self._states: dict[str, _Line] = {}
        self.results: dict[str, int] = {"served": 0, "late": 0, "full": 0, "left": 0}
        """How waits ended so far (a metric)."""

    def priority_of(self, caller: Identity, scope: Scope) -> int:
        priority = 0
        if self._priorities:
            names = (
                f"key:{caller.key_hash}",
                f"user:{caller.user_id}",
                f"team:{caller.team_id}",
                f"organization:{caller.organization_id}",
            )
            priority = max((self._priorities[name] for name in names if name in self._priorities), default=0)
        if self._is_header_read and (asked := header(scope, PRIORITY_HEADER)) is not None:
            try:
                priority = min(priority, int(asked[:12]))
            except ValueError:
                pass
        return priority

    async def through(
        self,
        scope: Scope,
        exchange: Exchange,
        go: Callable[[Callable[[], None]], Awaitable[T]],
        *,
        lines: Callable[[], Iterable[str]],
        line_of: Callable[[RateLimitedError], str | None],
        until_at: float | None = None,
    ) -> T:
        """What `go` gives, once it is not refused. It may call what it is given as soon as it is let in, so that the
        next one has its turn; else that is when it returns. `lines` are those this request might have to stand in: it
        does, if somebody else does. `line_of` a refusal; `None`: waiting does not help. Raises the refusal, or
        `ClientDisconnectedError`."""
        refusal: RateLimitedError | None = None
        name: str | None = None
        if self.lines.count:
            name = next((line for line in lines() if line in self.lines), None)
        if name is None:
            try:
                return await go(_nothing)
            except RateLimitedError as error:
                refusal, name = error, line_of(error)
                if name is None:
                    raise
        return await self._wait(scope, exchange, go, name, refusal, line_of, until_at)

    async def _wait(
        self,
        scope: Scope,
        exchange: Exchange,
        go: Callable[[Callable[[], None]], Awaitable[T]],
        name: str,
        refusal: RateLimitedError | None,
        line_of: Callable[[RateLimitedError], str | None],
        until_at: float | None,
    ) -> T:
        loop = asyncio.get_running_loop()
        began = loop.time()
        left_s = self.max_wait_s if until_at is None else min(self.max_wait_s, until_at - exchange.now())
        if exchange.deadline_s is not None:
            left_s = min(left_s, exchange.started_at + exchange.deadline_s - exchange.now())
        until = began + left_s
        caller = exchange.caller
        waiter = Waiter(caller.key_hash, self.priority_of(caller, scope))
        asking: _Line | None = None

        def is_in() -> None:
            nonlocal asking
            if asking is not None:
                asking.is_asking, asking = False, None
                self.results["served"] += 1
                self._leave(waiter, is_served=True)
                if name in self._states:
                    self._ask_after(name, 0.0)

        try:
            while True:
                after_s = refusal.retry_after_s if refusal is not None else 0.0
                if refusal is not None and (after_s is None or loop.time() + after_s > until):
                    raise refusal  # nobody is kept waiting for nothing
                if waiter.line != name:
                    self._stand(waiter, name, refusal)
                if after_s is not None and refusal is not None:
                    self._ask_after(name, min(after_s, max(LOOK_AGAIN_S, len(self._states) / LOOKS_A_SECOND)))
                if not exchange.queue_place:
                    exchange.queue_place = self.lines.place(waiter)
                woken = await self._turn(waiter, exchange, until)
                exchange.queue_s = loop.time() - began
                if woken == "left":
                    self.results["left"] += 1
                    raise ClientDisconnectedError
                if woken != "turn" or not waiter.line:
                    self.results["late" if woken == "late" else "full"] += 1
                    raise refusal or _refused(woken)
                asking = self._states[name]
                asking.is_asking, asking.has_news, asking.asked_at = True, False, loop.time()
                try:
                    result = await go(is_in)
                    is_in()
                    return result
                except RateLimitedError as error:
                    found = line_of(error)
                    if found is None:
                        raise
                    refusal = error
                finally:
                    if asking is not None:
                        asking.is_asking, asking = False, None
                if found != name:
                    self._leave(waiter)
                    name = found
        finally:
            self._leave(waiter)

    def _stand(self, waiter: Waiter, name: str, refusal: RateLimitedError | None) -> None:
        is_in, gone = self.lines.join(waiter, name)
        if not is_in:
            self.results["full"] += 1
            raise refusal or _refused("displaced")
        if name not in self._states:
            self._states[name] = _Line()
        if gone is not None:
            _wake(gone, "displaced")
            for line in [line for line in self._states if line not in self.lines]:
                self._forget(line)

    def _leave(self, waiter: Waiter, *, is_served: bool = False) -> None:
        name = waiter.line
        if not name:
            return
        self.lines.leave(waiter, is_served=is_served)
        if name not in self.lines:
            self._forget(name)
            return
        state = self._states[name]
        if not state.is_asking and (is_served or state.handle is None):
            self._ask_after(name, 0.0)

    def _forget(self, name: str) -> None:
        state = self._states.pop(name)
        if state.handle is not None:
            state.handle.cancel()

    def freed(self, lines: Callable[[], Iterable[str]]) -> None:
        """A request ended: what it had taken may be what the first of these wait for."""
        if not self.lines.count:
            return
        now = asyncio.get_running_loop().time()
        for name in lines():
            state = self._states.get(name)
            if state is None:
                continue
            if state.is_asking:
                state.has_news = True
            else:
                self._ask_after(name, max(state.asked_at + _LOOK_APART_S - now, 0.0))

    def _ask_after(self, name: str, after_s: float) -> None:
        """The first of the line asks after so long, or sooner if that was planned."""
        state = self._states[name]
        if state.has_news:
            state.has_news, after_s = False, min(after_s, _LOOK_APART_S)
        loop = asyncio.get_running_loop()
        at = loop.time() + after_s
        if state.handle is not None:
            if state.due_at <= at:
                return
            state.handle.cancel()
        state.due_at = at
        state.handle = loop.call_at(at, self._look, name)

    def _look(self, name: str) -> None:
        state = self._states.get(name)
        if state is None:
            return
        state.handle = None
        first = self.lines.first(name)
        if first is not None and not state.is_asking:
            _wake(first, "turn")

    async def _turn(self, waiter: Waiter, exchange: Exchange, until: float) -> _Woken:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[_Woken] = loop.create_future()
        waiter.payload = woken
        timer = loop.call_at(until, _wake, waiter, "late")
        left = lambda: _wake(waiter, "left")  # noqa: E731
        exchange.inbox.watch_now()
        exchange.inbox.on_left(left)
        try:
            return await woken
        finally:
            waiter.payload = None
            timer.cancel()
            exchange.inbox.not_on_left(left)


def _nothing() -> None:
    """Nobody waits behind this one."""


def _refused(why: _Woken) -> RateLimitedError:
    if why == "late":
        return RateLimitedError(
            "The gateway refused the request: its turn did not come in time. Wait as 'retry-after' says.",
            code="queue_timeout",
            retry_after_s=1.0,
        )
    return RateLimitedError(
        "The gateway refused the request: its limit is used up, and so is the room to wait for it. "
        "Wait as 'retry-after' says.",
        code="queue_full",
        retry_after_s=1.0,
    )


def queue_headers(exchange: Exchange) -> Headers:
    """Where it stood when it came, and how long it waited."""
    return [
        (b"x-sidecar-queue", b"%d" % exchange.queue_place),
        (b"x-sidecar-queue-ms", b"%d" % int(exchange.queue_s * 1000)),
    ]


def _wake(waiter: Waiter, why: _Woken) -> None:
    woken: asyncio.Future[_Woken] | None = waiter.payload
    if woken is not None and not woken.done():
        woken.set_result(why)
