"""The `jobs` table: when each job is due, who runs it, how the last run ended. One statement each, no transaction.

`runner.py` writes, `status.py` reads. Rule: a due instant is changed only by whoever saw it (`next_at` is compared), so
of two processes that both think they lead, one runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from sidecar.db.schema import jobs as j
from sidecar.db.schema import leases
from sidecar.identity.table import Store

MAX_ERROR = 300
NOTED = "jobs"
"""Its row in `leases` is for people; the row that is a lock (`locks.RowLock`) is another one."""


@dataclass(frozen=True, slots=True)
class JobState:
    """Instants in microseconds, as they stand in the row."""

    name: str
    next_at: int
    running_by: str | None
    started_at: int | None
    ended_at: int | None
    ok_at: int | None
    error: str | None
    runs: int
    failures: int


@dataclass(frozen=True, slots=True)
class LeaderState:
    holder: str
    since_at: int
    until_at: int


class JobTable:
    """Every method raises `UnavailableError`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def all(self) -> dict[str, JobState]:
        async with self._store.read() as connection:
            query = sa.select(*(j.c[name] for name in JobState.__slots__))
            return {row.name: JobState(*row) for row in await connection.execute(query)}

    async def add(self, name: str, next_at: int) -> None:
        """Unless another process just did."""
        async with self._store.read() as connection:
            try:
                await connection.execute(sa.insert(j).values(name=name, next_at=next_at, runs=0, failures=0))
            except IntegrityError:
                return

    async def move(self, seen: JobState, next_at: int, *, by: str | None = None, at: int | None = None) -> bool:
        """Another due instant for what nobody changed since it was seen; with `by`, who runs it from `at` on."""
        values: dict[str, Any] = {"next_at": next_at, "running_by": by}
        if by is not None:
            values["started_at"] = at
        return await self._set(seen.name, seen.next_at, values)

    async def end(self, name: str, claim: int, *, next_at: int, at: int, error: str | None) -> bool:
        """A run is over: false if another process has the job by now."""
        values: dict[str, Any] = {
            "next_at": next_at,
            "running_by": None,
            "ended_at": at,
            "error": error[:MAX_ERROR] if error is not None else None,
            "runs": j.c.runs + 1,
        }
        values |= {"ok_at": at} if error is None else {"failures": j.c.failures + 1}
        return await self._set(name, claim, values)

    async def _set(self, name: str, seen: int, values: dict[str, Any]) -> bool:
        async with self._store.read() as connection:
            done = await connection.execute(sa.update(j).where(j.c.name == name, j.c.next_at == seen).values(values))
            return bool(done.rowcount == 1)

    async def note_leader(self, holder: str, since_at: int, until_at: int) -> None:
        """So that people can see who leads."""
        async with self._store.read() as connection:
            values = {"holder": holder, "since_at": since_at, "until_at": until_at}
            done = await connection.execute(sa.update(leases).where(leases.c.name == NOTED).values(values))
            if done.rowcount == 0:
                try:
                    await connection.execute(sa.insert(leases).values(name=NOTED, **values))
                except IntegrityError:
                    return

    async def leader(self) -> LeaderState | None:
        async with self._store.read() as connection:
            columns: Sequence[Any] = (leases.c.holder, leases.c.since_at, leases.c.until_at)
            row = (await connection.execute(sa.select(*columns).where(leases.c.name == NOTED))).first()
            return LeaderState(*row) if row is not None else None
