"""Who runs the jobs: the one process that has the lock, and only as long as it surely has it.

`locks.py` has the locks, `runner.py` asks. Rule: this process leads until `lease_s` after it last *asked* with success,
by a clock that goes on while it is frozen; the lock itself is free no earlier. So two never lead at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable

from sidecar.jobs.locks import Lock

LEASE_S = 30.0
_log = logging.getLogger(__name__)


class LostLeadershipError(Exception):
    """Another process may lead by now: stop, without another effect."""


def holder_name() -> str:
    """Of this process: host, process id, and four digits because both may come again."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"


class Leader:
    def __init__(
        self, lock: Lock, *, lease_s: float = LEASE_S, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._lock = lock
        self._lease_s = lease_s
        self._monotonic = monotonic
        self._until = float("-inf")
        self._asking = asyncio.Lock()

    @property
    def renew_s(self) -> float:
        """How often to `take`."""
        return self._lease_s / 3

    @property
    def leads(self) -> bool:
        return self._monotonic() < self._until

    async def take(self) -> bool:
        """Become leader, or stay it; whether this process leads now. Where the lock has a lease, an answer that
        does not come changes nothing before that is over."""
        async with self._asking:
            asked_at = self._monotonic()
            try:
                async with asyncio.timeout(self._lease_s / 3):
                    has_it = await self._lock.hold()
            except Exception as error:  # noqa: BLE001 - three stores' errors; none of them is an answer
                _log.debug("the leader's lock does not answer: %s", type(error).__name__)
                if not self._lock.outlives_silence:
                    self._until = float("-inf")
                return self.leads
            self._until = asked_at + self._lease_s if has_it else float("-inf")
            return self.leads

    def check(self) -> None:
        """Before anything that is seen from outside. Raises `LostLeadershipError`."""
        if not self.leads:
            raise LostLeadershipError

    async def confirm(self) -> None:
        """The same, asked anew. Raises `LostLeadershipError`."""
        self.check()
        if not await self.take():
            raise LostLeadershipError

    async def aclose(self) -> None:
        self._until = float("-inf")
        try:
            async with asyncio.timeout(2.0):
                await self._lock.aclose()
        except TimeoutError:
            _log.debug("the leader's lock could not be given back; it runs out by itself")
