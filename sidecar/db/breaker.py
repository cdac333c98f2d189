"""Whether the database is known not to answer: then nobody waits for it again, but for one probe a second.

Neighbours: `Database.breaker` is one per process; key lookups and the change feed (which polls all the time, so it also
finds out that the database is back) are watched, everything else asks before it begins. Rule: an answer of any kind,
a refused row included, closes it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sidecar.errors import UnavailableError
from sidecar.tasks import stood_still

PAUSE_S = 1.0


class KnownDownError(TimeoutError):
    """Not asked: the database did not answer a moment ago."""


class Breaker:
    """`is_open`: the last that was heard of the database is that it did not answer."""

    def __init__(self, *, pause_s: float = PAUSE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._until: float | None = None

    @property
    def is_open(self) -> bool:
        return self._until is not None

    def fail(self) -> None:
        self._until = self._clock() + self._pause_s

    def answered(self) -> None:
        self._until = None

    @contextmanager
    def watch(self, slow_s: float | None = None) -> Iterator[None]:
        """Around one use of the database. Raises `KnownDownError` instead while it is open, but for one caller per
        pause. `slow_s`: a use that lasts longer opens it while it still waits; time this process itself stood still
        does not count."""
        if self._until is not None:
            now = self._clock()
            if now < self._until:
                raise KnownDownError
            self._until = now + self._pause_s
        timer = _Timer(slow_s, self.fail) if slow_s is not None else None
        try:
            yield
        except (OSError, TimeoutError):
            self.fail()
            raise
        except Exception as error:
            if _is_lost(error):
                self.fail()
            else:
                self.answered()
            raise
        else:
            self.answered()
        finally:
            if timer is not None:
                timer.cancel()


class _Timer:
    """Calls back after `seconds` of a loop that turns; a loop that comes much too late was stopped, and waits anew."""

    __slots__ = ("_call", "_handle", "_loop", "_seconds")

    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self._seconds = seconds
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._arm()

    def _arm(self) -> None:
        self._handle = self._loop.call_later(self._seconds, self._ring, self._loop.time() + self._seconds)

    def _ring(self, due: float) -> None:
        if stood_still(due, self._seconds):
            self._arm()
        else:
            self._call()

    def cancel(self) -> None:
        self._handle.cancel()


def _is_lost(error: Exception) -> bool:
    """A connection that broke, or could not be had, in our words, SQLAlchemy's or the driver's."""
    if isinstance(error, UnavailableError) or getattr(error, "connection_invalidated", False):
        return True
    if type(error).__name__ in ("CannotConnectNowError", "TooManyConnectionsError"):
        return True
    cause = getattr(error, "orig", None) or error.__cause__
    return isinstance(cause, (OSError, TimeoutError)) or "Connection" in type(error).__name__
