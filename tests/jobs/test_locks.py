"""What all locks promise – one holder, given back, renewed – and what a broken connection means to each."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import pytest

from sidecar.db import Database, migrate
from sidecar.identity.table import Store
from sidecar.jobs.leader import Leader, LostLeadershipError
from sidecar.jobs.locks import AdvisoryLock, Lock, RedisLock, RowLock, open_lock

pytestmark = pytest.mark.anyio
Make = Callable[[str], Lock]
LEASE_S = 60.0


@pytest.fixture(params=["advisory", "redis", "row", "sqlite"])
async def make(request: pytest.FixtureRequest, tmp_path: object) -> AsyncIterator[Make]:
    kind = request.param
    if kind == "redis":
        url = request.getfixturevalue("redis_url")
        yield lambda holder: RedisLock(url, holder=holder, lease_s=LEASE_S)
        return
    url = f"sqlite:///{tmp_path}/x.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    await migrate(url)
    databases: list[Database] = []

    def one(holder: str) -> Lock:
        databases.append(Database(url))
        if kind == "advisory":
            return AdvisoryLock(databases[-1], lease_s=LEASE_S)
        return RowLock(Store(databases[-1]), holder=holder, lease_s=LEASE_S, clock=time.time)

    yield one
    for database in databases:
        await database.aclose()


async def test_one_holds_it_until_it_gives_it_back(make: Make) -> None:
    first, second = make("first"), make("second")
    assert await first.hold()
    assert not await second.hold()
    assert await first.hold(), "again: it is kept"
    await second.aclose()
    assert await first.hold(), "who does not have it gives nothing back"
    third = make("third")
    assert not await third.hold()
    await first.aclose()
    assert await third.hold()
    await third.aclose()


async def test_a_leader_whose_session_the_server_ends_leads_no_more(postgres_url: str) -> None:
    """At once, not after the lease: PostgreSQL has freed the lock, too."""
    await migrate(postgres_url)
    databases = [Database(postgres_url) for _ in range(2)]
    first, second = (Leader(AdvisoryLock(one, lease_s=LEASE_S), lease_s=LEASE_S) for one in databases)
    assert await first.take()
    assert not await second.take()
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    with pytest.raises(LostLeadershipError):
        await first.confirm()
    assert not first.leads
    assert await second.take()
    await connection.close()
    for leader in (first, second):
        await leader.aclose()
    for database in databases:
        await database.aclose()


def test_a_lock_is_where_the_jobs_rows_are() -> None:
    def kind(url: str, redis_url: str | None) -> type[Lock]:
        store = Store(Database(url))
        return type(open_lock(store, redis_url=redis_url, holder="h", lease_s=1.0, clock=time.time))

    redis_url = "redis://127.0.0.1:1/0"
    assert kind("postgresql://h/d", redis_url) is AdvisoryLock
    assert kind("postgres://h/d?sslmode=require", None) is AdvisoryLock
    assert kind("postgresql://h/d?pgbouncer=true", redis_url) is RedisLock
    assert kind("postgresql://h/d?statement_cache_size=0", None) is RowLock
    assert kind("sqlite:///x.db", redis_url) is RowLock, "another machine's SQLite has jobs of its own"


async def test_a_clock_that_is_set_back_does_not_leave_a_dead_holders_row_in_place(tmp_path: Path) -> None:
    """Its end is a year ahead then. One that lives renews it, and keeps it."""
    url = f"sqlite:///{tmp_path}/x.db"
    await migrate(url)
    database = Database(url)
    wall, steady = [time.time() + 365 * 86_400], [0.0]
    first, second = (
        RowLock(Store(database), holder=holder, lease_s=LEASE_S, clock=lambda: wall[0], monotonic=lambda: steady[0])
        for holder in ("first", "second")
    )
    assert await first.hold()
    wall[0] -= 365 * 86_400
    for _ in range(3):
        steady[0] += LEASE_S * 0.9
        wall[0] += LEASE_S * 0.9
        assert not await second.hold()
        assert await first.hold()
    wall[0] -= 365 * 86_400
    assert not await second.hold()
    steady[0] += LEASE_S
    wall[0] += LEASE_S
    assert not await second.hold(), "the first may have asked just before"
    steady[0] += 1.0
    assert await second.hold()
    assert not await first.hold()
    await database.aclose()
