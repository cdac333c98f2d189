"""A deadline that holds also when the awaited client does not let itself be cancelled.

Database and Redis clients clean up inside a shield (a rollback on a frozen connection waits for the same frozen
server), so `asyncio.timeout` around them is no bound. Here the call runs in a task of its own; after the deadline it
is cancelled and left to its clean-up, and the caller goes on. Rule: nothing that waits for a store waits longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from sidecar.tasks import stood_still

PARTS = 4
"""Of a deadline. As one it would not be told from a standstill that ends with it."""
T = TypeVar("T")


class Deadline:
    """Runs calls with a bound of `seconds` each. Holds the tasks that were cancelled and still clean up."""

    __slots__ = ("_leaving", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._leaving: set[asyncio.Task[Any]] = set()

    async def run(self, call: Coroutine[Any, Any, T]) -> T:
        """The call's result or its exception; `TimeoutError` once the time is over; cancelled along with the caller.
        If this process itself stood still meanwhile, an answer may lie there unread: that part of the time does not
        count. However often that is, it is over after twice as long."""
        task = asyncio.ensure_future(call)
        loop, part = asyncio.get_running_loop(), self.seconds / PARTS
        left = spare = PARTS
        try:
            while left:
                due = loop.time() + part
                done, _ = await asyncio.wait((task,), timeout=part)
                if done:
                    return task.result()
                if spare and stood_still(due, part):
                    spare -= 1
                else:
                    left -= 1
        except asyncio.CancelledError:
            self._let_go(task)
            raise
        self._let_go(task)
        raise TimeoutError

    def _let_go(self, task: asyncio.Task[Any]) -> None:
        self._leaving.add(task)
        task.add_done_callback(self._left)
        if not task.cancelling():  # together with its caller, by the loop's end: a second time breaks off its clean-up
            task.cancel()

    def _left(self, task: asyncio.Task[Any]) -> None:
        self._leaving.discard(task)
        if not task.cancelled():
            task.exception()
