"""Database URLs as people have them: with libpq's options, behind PgBouncer, with a password that must not show."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sidecar.db import Database
from sidecar.errors import UnavailableError

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "options",
    [
        "",
        "?sslmode=disable",
        "?sslmode=prefer&application_name=billing&connect_timeout=50",
        "?channel_binding=prefer&keepalives_idle=30&target_session_attrs=any",
        "?options=-c%20statement_timeout%3D50000",
        "?statement_cache_size=0",
        "?prepared_statement_cache_size=0",
        "?pgbouncer=true",
    ],
)
async def test_a_url_with_libpqs_options_connects(postgres_url: str, options: str) -> None:
    database = Database(postgres_url + options)
    await database.connect()
    await database.aclose()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql+asyncpg", "postgresql+psycopg"])
async def test_every_way_to_write_the_scheme_connects(postgres_url: str, scheme: str) -> None:
    database = Database(scheme + postgres_url.removeprefix("postgresql"))
    await database.connect()
    await database.aclose()


async def test_the_options_reach_the_server(postgres_url: str) -> None:
    database = Database(postgres_url + "?application_name=billing&options=-c%20statement_timeout%3D50000")
    async with database.engine.connect() as connection:
        assert (await connection.exec_driver_sql("SHOW application_name")).scalar() == "billing"
        assert (await connection.exec_driver_sql("SHOW statement_timeout")).scalar() == "50s"
    await database.aclose()


KERNEL = Path("/proc/sys/net/ipv4/tcp_keepalive_time")


@pytest.mark.skipif(not KERNEL.exists() or KERNEL.read_text() != "7200\n", reason="the kernel's keep-alives are set")
async def test_a_session_whose_client_is_gone_does_not_keep_its_locks_for_hours(postgres_url: str) -> None:
    async def shown(options: str) -> tuple[str, str]:
        session = await Database(postgres_url + options).session()
        try:
            return (
                await session.fetchval("SHOW idle_in_transaction_session_timeout"),
                await session.fetchval("SHOW tcp_keepalives_idle"),
            )
        finally:
            await session.close()

    assert await shown("") == ("1min", "60")
    assert await shown("?options=-c%20idle_in_transaction_session_timeout%3D5s") == ("5s", "60"), "the operator's own"
    assert await shown("?pgbouncer=true") == ("0", "7200"), "the session is somebody else's next"


async def test_behind_pgbouncer_no_statement_stays_prepared(postgres_url: str) -> None:
    database = Database(postgres_url + "?statement_cache_size=0")
    await database.migrate()
    async with database.engine.connect() as connection:
        for _ in range(3):
            await connection.exec_driver_sql("SELECT 1 WHERE 1 = $1", (1,))
        held = int((await connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements")).scalar_one())
        assert held <= 1  # this query itself
    await database.aclose()


async def test_many_workers_share_a_server_with_few_connections(postgres_url: str) -> None:
    owner = Database(postgres_url)
    role = f"worker_{urlsplit(postgres_url).path.strip('/')}"
    async with owner.engine.begin() as connection:
        await connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 8")
    workers = [Database(postgres_url.replace("//postgres@", f"//{role}@") + "?connect_timeout=60") for _ in range(6)]

    async def ask(database: Database) -> None:
        async with database.engine.connect() as connection:
            await connection.exec_driver_sql("SELECT pg_sleep(0.02)")

    await asyncio.gather(*(ask(database) for database in workers for _ in range(10)))
    for database in workers:
        await database.aclose()
    async with owner.engine.begin() as connection:
        await connection.exec_driver_sql(f"DROP ROLE {role}")
    await owner.aclose()


async def test_a_server_that_is_not_there_is_unavailable_and_the_password_stays_in() -> None:
    database = Database("postgresql://someone:canary-password@127.0.0.1:1/none")
    with pytest.raises(UnavailableError) as caught:
        await database.connect()
    shown = [repr(caught.value), str(caught.value.__cause__), repr(database), repr(database.engine.url)]
    assert "canary-password" not in "".join(shown)
    await database.aclose()


@pytest.mark.parametrize("url", ["mysql://x/y", "postgresql", "", "sqlite", "postgresql://h/n?connect_timeout=soon"])
async def test_what_is_no_url_of_ours_is_refused_with_the_fix(url: str) -> None:
    with pytest.raises(ValueError, match="database URL"):
        _ = Database(url).engine
