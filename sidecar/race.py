"""Two attempts of one request at once: the first to begin content answers, the other is ended at once.

Neighbours: `attempts.Dispatch` (one attempt), `routing.hedging` (when, and how often), RouteMiddleware (asks the plan
who else). Rule: whoever is left when the request is over is ended and waited for, and every attempt that was announced
has its row.
"""

from __future__ import annotations

import asyncio

from sidecar.attempts import Dispatch
from sidecar.errors import RefusedError
from sidecar.exchange import Exchange
from sidecar.routing.hedging import Hedges
from sidecar.routing.plan import SLOW, Failure, Full, Slow

_NOT_NOW_S = 60.0


class Race:
    """One per request of a group that hedges."""

    __slots__ = ("_after_s", "_exchange", "_first", "_group", "_has_asked", "_hedges", "_tasks", "is_over", "winner")

    def __init__(self, exchange: Exchange, group: str, hedges: Hedges) -> None:
        self._exchange = exchange
        self._group = group
        self._hedges = hedges
        self._after_s = hedges.after_s(group, exchange.is_stream)
        self._tasks: dict[asyncio.Task[Failure | Full | None], Dispatch] = {}
        self._first: Dispatch | None = None
        self._has_asked = False
        self.winner: Dispatch | None = None
        self.is_over = False

    @property
    def is_two(self) -> bool:
        return len(self._tasks) > 1

    async def run(self, dispatch: Dispatch | None) -> tuple[Dispatch, Failure | Full | Slow | None]:
        """Begin this one beside what runs (`None`: nothing new), and wait: for one that is over, or until it is time to
        ask for a second (`SLOW`, once per request)."""
        tasks = self._tasks
        if dispatch is not None:
            dispatch.race = self
            if not tasks:
                self._first = dispatch
                if self._after_s is None or self._has_asked:
                    return dispatch, await dispatch.run()
            tasks[asyncio.get_running_loop().create_task(dispatch.run())] = dispatch
            if self.is_two:
                for other in tasks.values():
                    if other.attempt is not None:
                        other.attempt.is_running = True
        assert self._first is not None
        while True:
            timeout = None if self._has_asked else self._after_s
            done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._has_asked = True
                if self.winner is None and self._first.attempt is not None and self._hedges.take(self._group):
                    return self._first, SLOW
                continue
            for task in done:
                one = tasks.pop(task)
                if one.attempt is not None:
                    one.attempt.is_running = False
                if self.winner is not None and one is not self.winner:
                    if not task.cancelled():
                        task.exception()  # whatever it was, nobody asks any more
                    continue
                if one is not self._first and not task.cancelled() and isinstance(task.exception(), RefusedError):
                    return one, Full(_NOT_NOW_S)  # there was no money or no room for it; the first goes on
                return one, task.result()

    def nobody_else(self) -> None:
        self._hedges.give_back(self._group)

    def won(self, dispatch: Dispatch) -> bool:
        """It begins its content: False if another did before."""
        if self.winner is not None:
            return self.winner is dispatch
        self.winner = dispatch
        first = self._first
        assert first is not None
        now = self._exchange.now()
        if first.attempt is not None:
            self._hedges.waited(self._group, self._exchange.is_stream, now - first.attempt.started_at)
        if dispatch is not first and self._tasks:
            self._hedges.won(self._group)
        self._end_others(dispatch)
        return True

    def _end_others(self, winner: Dispatch | None) -> None:
        """One that is not dispatched yet sees it by itself: what was announced is never left half announced."""
        now = self._exchange.now()
        for task, other in self._tasks.items():
            attempt = other.attempt
            if attempt is None or other is winner:
                continue
            attempt.is_running = False
            if attempt.ended_at is None and attempt.error is None and not attempt.is_lost:
                attempt.is_lost = True
                attempt.ended_at = now
                task.cancel()
        if winner is not None and winner.attempt is not None:
            winner.attempt.is_running = False

    async def aclose(self) -> None:
        """The request is over: nothing of it goes on."""
        self.is_over = True
        tasks = self._tasks
        if not tasks:
            return
        self._end_others(None)
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise
        for task in tasks:
            if not task.cancelled():
                task.exception()
        tasks.clear()
