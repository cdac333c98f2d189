"""What other processes changed: every write of keys, principals and models notes a change, every process reads on.

`table.py` notes changes in the transaction they belong to, `keys.py` and the catalog forget what changed. Rules:
writers take one lock, so a change never becomes visible after a later one; as long as the feed is read, memory is as
good as the database; when it cannot be read, nobody claims so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from sidecar.errors import UnavailableError
from sidecar.identity.deadline import Deadline
from sidecar.tasks import end

Change = tuple[int, str, str]
"""(sequence number, kind, id)."""
KEPT_S = 3600.0
PAGE = 1000
_log = logging.getLogger(__name__)


class ChangeSource(Protocol):
    """Raises `UnavailableError` when it cannot tell."""

    async def changes_since(self, seq: int, limit: int) -> tuple[list[Change], int | None]:
        """The next changes after `seq`, in order, and `None`; or, if some of them are no longer kept (or `seq` is of
        another database's log), the number to go on from after forgetting everything."""

    async def last_change(self) -> int: ...


class Follower(Protocol):
    """Who wants to know."""

    def changed(self, seq: int, kind: str, subject_id: str) -> None: ...

    def forget_all(self, seq: int) -> None:
        """Anything may have changed."""

    def confirm(self, at: float) -> None:
        """Every change committed before `at` was told."""


class ChangeFeed:
    """Asks every `interval_s`, each time with a deadline, as long as it runs."""

    def __init__(
        self,
        source: ChangeSource,
        followers: Sequence[Follower],
        *,
        clock: Callable[[], float],
        interval_s: float = 0.25,
        deadline_s: float = 2.0,
    ) -> None:
        self._source = source
        self._followers = followers
        self._clock = clock
        self._interval_s = interval_s
        self._deadline = Deadline(deadline_s)
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self.seq: int | None = None

    async def start(self) -> None:
        """The first answer is waited for: who does not know what changed last cannot tell an old shared row."""
        if self._task is None:
            with contextlib.suppress(UnavailableError):
                await self.poll()
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        task, self._task = self._task, None
        await end([task])

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self.poll()
                failures = 0
            except UnavailableError:
                failures += 1
                if failures == 1:
                    _log.warning("changes made elsewhere cannot be read: the database does not answer")
            except Exception:  # noqa: BLE001 - logged, and tried again
                # Whoever failed may have missed a change: all start over. A feed that ended would be noticed by nobody.
                failures += 1
                self.seq = None
                _log.exception("changes made elsewhere could not be told")
            await asyncio.sleep(self._interval_s * min(8, 1 + failures))

    async def poll(self) -> None:
        """Tell all followers what changed since the last time. Raises `UnavailableError`."""
        async with self._turn:  # what was read earlier must not be told later
            try:
                await self._poll()
            except TimeoutError as error:
                raise UnavailableError(
                    "The gateway's database does not answer.", code="key_store_unavailable"
                ) from error

    async def _poll(self) -> None:
        asked_at = self._clock()
        if self.seq is None:
            seq = await self._deadline.run(self._source.last_change())
            for follower in self._followers:
                follower.forget_all(seq)
            self.seq = seq
        else:
            while True:
                found, restart = await self._deadline.run(self._source.changes_since(self.seq, PAGE))
                if restart is not None:  # we slept longer than changes are kept, or the database was put back
                    for follower in self._followers:
                        follower.forget_all(restart)
                    self.seq = restart
                    break
                for seq, kind, subject_id in found:
                    for follower in self._followers:
                        follower.changed(seq, kind, subject_id)
                    self.seq = seq
                if len(found) < PAGE:
                    break
        for follower in self._followers:
            follower.confirm(asked_at)
