"""One call in progress shared by all who need its result.

Rule: a caller who leaves takes nothing from the others; what nobody waits for any more still ends, in `aclose` at the
latest, and its failure is not an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

from sidecar.tasks import end

T = TypeVar("T")


class ClosedError(Exception):
    """The flights were ended while somebody waited."""


class Flights(Generic[T]):
    """Calls in progress, by what they find out."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}
        self._is_closed = False

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tasks

    def launch(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """The call for `key`, started unless it is under way. Raises `ClosedError` after `aclose`."""
        if self._is_closed:
            raise ClosedError
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.get_running_loop().create_task(start())
            task.add_done_callback(partial(self._landed, key))
        return task

    async def join(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the call for `key`, or its exception."""
        task = self.launch(key, start)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self._is_closed:
                raise ClosedError from None
            raise

    async def aclose(self) -> None:
        """Ends what is under way."""
        self._is_closed = True
        await end(list(self._tasks.values()))

    def _landed(self, key: Hashable, task: asyncio.Task[T]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()
