"""Three locks that one process has at a time: a PostgreSQL session's advisory lock, a Redis key, a database row.

`leader.py` decides what holding one means. Rule: a holder that stays silent for `lease_s` loses it, whether it ended,
stands still or cannot be reached – never before `lease_s` have gone by since it last asked.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Protocol

import sqlalchemy as sa

from sidecar.db import Database
from sidecar.db.schema import leases
from sidecar.errors import UnavailableError
from sidecar.identity.table import Store

ADVISORY_LOCK = 0x51DECA7
LEADER = "leader"


class Lock(Protocol):
    @property
    def outlives_silence(self) -> bool:
        """False: a failure of `hold` may have given it back already."""

    async def hold(self) -> bool:
        """Take it, or keep it: whether this process has it now. Raises if that cannot be told."""

    async def aclose(self) -> None:
        """Give it back, if that can be done."""


_IS_TAKEN = sa.text(
    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = 0 AND objid = :number AND objsubid = 1"
    " AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
).bindparams(sa.bindparam("number", type_=sa.BigInteger))


class AdvisoryLock:
    """On a connection of its own: PostgreSQL frees the lock when that ends – by `idle_session_timeout`, too, so that a
    process that stands still does not keep it (PostgreSQL 14 and later; before, it does).
    https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-IDLE-SESSION-TIMEOUT"""

    outlives_silence = False

    def __init__(self, database: Database, *, lease_s: float, number: int = ADVISORY_LOCK) -> None:
        self._database = database
        self._lease_s = lease_s
        self._number = number
        self._connection: Any = None

    async def hold(self) -> bool:
        if self._connection is not None:
            try:
                await self._connection.execute("SELECT 1")
                return True
            except BaseException:
                self._drop()
                raise
        if await self._is_taken():
            return False
        connection = await self._database.session()
        try:
            with contextlib.suppress(_unknown_setting()):
                await connection.execute(f"SET idle_session_timeout = {max(1, int(self._lease_s * 1000))}")
            is_ours = bool(await connection.fetchval("SELECT pg_try_advisory_lock($1)", self._number))
        except BaseException:
            connection.terminate()
            raise
        if is_ours:
            self._connection = connection
        else:
            await _close(connection)
        return is_ours

    async def _is_taken(self) -> bool:
        """Asked through the pool: those who wait open no connection each time."""
        async with Store(self._database).read() as connection:
            found = await connection.execute(_IS_TAKEN, {"number": self._number})
            return found.first() is not None

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await _close(connection)


def _unknown_setting() -> type[Exception]:
    from asyncpg import UndefinedObjectError

    return UndefinedObjectError


async def _close(connection: Any) -> None:
    try:
        await connection.close(timeout=2.0)
    except Exception:  # noqa: BLE001 - whatever it is, the connection goes
        connection.terminate()


_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder == false or holder == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 1
end
return 0
"""
_GIVE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class RedisLock:
    """A key that expires unless its holder says again that it is there."""

    outlives_silence = True

    def __init__(self, url: str, *, holder: str, lease_s: float, name: str = LEADER) -> None:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        timeout_s = lease_s / 3
        self._redis: Any = Redis.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_timeout=timeout_s, socket_connect_timeout=timeout_s
        )
        self._has_it = False
        self._key = f"{{sidecar}}:jobs:{name}"
        self._holder = holder
        self._lease_ms = max(1, int(lease_s * 1000))

    async def hold(self) -> bool:
        self._has_it = bool(await self._redis.eval(_TAKE, 1, self._key, self._holder, self._lease_ms))
        return self._has_it

    async def aclose(self) -> None:
        from redis.exceptions import RedisError

        with contextlib.suppress(RedisError, OSError, TimeoutError):
            if self._has_it:
                await self._redis.eval(_GIVE, 1, self._key, self._holder)
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._redis.aclose()


class RowLock:
    """A row that says who leads until when: on SQLite by this machine's clock, else by the database's. A holder that is
    there renews it: one that stays as it is for a lease is nobody's, though the clock was set back since."""

    outlives_silence = True

    def __init__(
        self,
        store: Store,
        *,
        holder: str,
        lease_s: float,
        clock: Callable[[], float],
        name: str = LEADER,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._monotonic = monotonic
        self._seen: tuple[str, int, float] = ("", 0, 0.0)  # the row of somebody else, and since when it stands so
        self._holder = holder
        self._lease = round(lease_s * 1_000_000)
        self._clock = clock
        self._name = name
        self._has_it = False

    async def hold(self) -> bool:
        self._has_it = await self._hold()
        return self._has_it

    async def _hold(self) -> bool:
        async with self._store.read() as connection:
            now = await self._now(connection)
            row = (
                await connection.execute(
                    sa.select(leases.c.holder, leases.c.until_at).where(leases.c.name == self._name)
                )
            ).first()
            if row is None:
                insert = sa.insert(leases).values(
                    name=self._name, holder=self._holder, since_at=now, until_at=now + self._lease
                )
                try:
                    await connection.execute(insert)
                except sa.exc.IntegrityError:
                    return False
                return True
            if row.holder != self._holder and row.until_at > now and not self._stands_still(row.holder, row.until_at):
                return False
            values: dict[str, Any] = {"until_at": now + self._lease}
            if row.holder != self._holder:
                values |= {"holder": self._holder, "since_at": now}
            was = (leases.c.name == self._name, leases.c.holder == row.holder, leases.c.until_at == row.until_at)
            done = await connection.execute(sa.update(leases).where(*was).values(values))
            return bool(done.rowcount == 1)

    def _stands_still(self, holder: str, until_at: int) -> bool:
        now = self._monotonic()
        if self._seen[:2] != (holder, until_at):
            self._seen = (holder, until_at, now)
        return now - self._seen[2] > self._lease / 1_000_000

    async def _now(self, connection: Any) -> int:
        if connection.dialect.name == "sqlite":
            return round(self._clock() * 1_000_000)
        found = await connection.exec_driver_sql("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        return int(found.scalar_one())

    async def aclose(self) -> None:
        if not self._has_it:
            return
        self._has_it = False
        with contextlib.suppress(UnavailableError):
            async with self._store.read() as connection:
                mine = (leases.c.name == self._name, leases.c.holder == self._holder)
                await connection.execute(sa.update(leases).where(*mine).values(until_at=0))


def open_lock(store: Store, *, redis_url: str | None, holder: str, lease_s: float, clock: Callable[[], float]) -> Lock:
    """The strongest there is where the jobs' own rows stand: another place could be reachable when they are not."""
    if store.database.has_sessions:
        return AdvisoryLock(store.database, lease_s=lease_s)
    if store.database.dialect == "postgresql" and redis_url is not None:
        return RedisLock(redis_url, holder=holder, lease_s=lease_s)
    return RowLock(store, holder=holder, lease_s=lease_s, clock=clock)
