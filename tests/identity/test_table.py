"""The key table on SQLite and PostgreSQL, and `Keys` on top of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sidecar.db import Database, migrate
from sidecar.errors import AuthenticationError, ConflictError, UnavailableError
from sidecar.identity.keys import Keys, hash_key, new_key
from sidecar.identity.row import KeyRow
from sidecar.identity.table import KeyTable, Store
from tests.identity.source import Clock

pytestmark = pytest.mark.anyio

FULL = KeyRow(
    key_hash="a" * 64,
    key_name="sk-...abcd",
    key_alias="ключ 🔑",
    models=("gpt-4o", "claude/*"),
    max_budget_nano=2**53 + 1,
    budget_duration="30d",
    budget_anchor_at=1_800_000_000.123456,
    rpm_limit=1,
    tpm_limit=10**12,
    max_parallel_requests=3,
    user_id="u",
    team_id="t",
    organization_id="o",
    metadata={"a": [1, 2.5, None, "ü"], "b": {"c": True}},
    expires_at=1_900_000_000.000001,
    blocked=True,
    created_at=1_800_000_000.5,
    updated_at=1_800_000_000.75,
)


@pytest.fixture
async def table(database_url: str) -> AsyncIterator[KeyTable]:
    await migrate(database_url)
    database = Database(database_url)
    yield KeyTable(Store(database))
    await database.aclose()


async def test_every_field_comes_back_as_it_went_in(table: KeyTable) -> None:
    for row in (FULL, KeyRow(key_hash="b" * 64)):
        await table.create(row)
        assert await table.get(row.key_hash) == row
    assert await table.get("c" * 64) is None


async def test_update_sets_what_is_named(table: KeyTable) -> None:
    await table.create(FULL)
    changed = await table.update(
        FULL.key_hash, changes={"models": (), "metadata": {}, "expires_at": None, "rpm_limit": 9}
    )
    assert changed is not None
    assert changed == await table.get(FULL.key_hash)
    assert (changed.models, changed.metadata, changed.expires_at, changed.rpm_limit) == ((), {}, None, 9)
    assert changed.max_budget_nano == FULL.max_budget_nano
    assert await table.update("c" * 64, changes={"rpm_limit": 1}) is None


async def test_blocking_is_one_call(table: KeyTable) -> None:
    await table.create(KeyRow(key_hash="b" * 64))
    for is_blocked in (True, True, False):
        row = await table.set_blocked("b" * 64, is_blocked, at=5.0)
        assert row is not None
        assert (row.blocked, row.updated_at) == (is_blocked, 5.0)


async def test_an_alias_belongs_to_one_key(table: KeyTable) -> None:
    await table.create(FULL)
    with pytest.raises(ConflictError):
        await table.create(KeyRow(key_hash="b" * 64, key_alias=FULL.key_alias))
    await table.create(KeyRow(key_hash="c" * 64))
    await table.create(KeyRow(key_hash="d" * 64))
    with pytest.raises(ConflictError):
        await table.update("c" * 64, changes={"key_alias": FULL.key_alias})
    assert (await table.list(limit=10))[1] == 3


async def test_deleting_is_all_or_nothing(table: KeyTable) -> None:
    for letter in "abc":
        await table.create(KeyRow(key_hash=letter * 64))
    assert [row.key_hash for row in await table.delete([("a" * 64,), ("x" * 64,)])] == []
    assert (await table.list(limit=10))[1] == 3
    assert [row.key_hash for row in await table.delete([("b" * 64,), ("a" * 64,), ("b" * 64,)])] == ["a" * 64, "b" * 64]
    assert [row.key_hash for row in (await table.list(limit=10))[0]] == ["c" * 64]


async def test_rows_are_found_by_hash_or_alias_and_text_is_never_a_query(table: KeyTable) -> None:
    await table.create(FULL)
    await table.create(KeyRow(key_hash="b" * 64, key_alias="' OR 1=1 --"))
    assert await table.find(hashes=[FULL.key_hash]) == [FULL]
    assert [row.key_hash for row in await table.find(aliases=["' OR 1=1 --"])] == ["b" * 64]
    assert len(await table.find(hashes=["b" * 64], aliases=[FULL.key_alias or ""])) == 2
    assert await table.find() == []
    assert await table.list(limit=10, user_id="' OR 1=1 --") == ([], 0)


async def test_a_database_that_cannot_be_reached_is_503(tmp_path: object) -> None:
    for url in ("postgresql://nobody:x@127.0.0.1:1/none", f"sqlite:///{tmp_path}/empty.db"):
        database = Database(url)
        table = KeyTable(Store(database))
        with pytest.raises(UnavailableError):
            await table.get("a" * 64)
        with pytest.raises(UnavailableError):
            await table.create(FULL)
        keys = Keys(table, master_key=None, clock=Clock(), deadline_s=60)
        with pytest.raises(UnavailableError):
            await keys.lookup(new_key(lambda n: b"1" * n))
        await database.aclose()


async def test_a_frozen_postgres_costs_the_deadline_and_then_nothing_waits(table: KeyTable) -> None:
    token = new_key(lambda n: b"7" * n)
    await table.create(KeyRow(key_hash=hash_key(token)))

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(65536):
                pass
        finally:
            writer.close()

    server = await asyncio.start_server(nothing, "127.0.0.1", 0)
    database = Database(f"postgresql://a:b@127.0.0.1:{server.sockets[0].getsockname()[1]}/c?sslmode=disable")
    keys = Keys(KeyTable(Store(database)), master_key=None, clock=Clock(), deadline_s=0.1)
    async with asyncio.timeout(30):
        for _ in range(3):
            with pytest.raises(UnavailableError):
                await keys.lookup(token)
    await keys.aclose()
    await database.aclose()
    server.close()
    await server.wait_closed()


async def test_keys_change_hands_between_processes_through_the_table_alone(table: KeyTable) -> None:
    clock = Clock()
    here, there = (Keys(table, master_key=None, clock=clock, deadline_s=60) for _ in range(2))
    token = new_key(lambda n: b"7" * n)
    with pytest.raises(AuthenticationError):
        await there.lookup(token)
    await table.create(KeyRow(key_hash=hash_key(token)))
    here.forget(hash_key(token))
    await here.lookup(token)
    clock.now += 1.0
    await there.lookup(token)
    await table.set_blocked(hash_key(token), True, at=clock.now)
    clock.now += 1.0
    for keys in (here, there):
        with pytest.raises(AuthenticationError, match="blocked"):
            await keys.lookup(token)
