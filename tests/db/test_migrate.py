"""The schema on both databases: made once however many start, equal to what the code says, partitioned ahead."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import sidecar.db
from sidecar.db import Database, migrate
from sidecar.db.partitions import bound, days, missing_partitions, months
from sidecar.db.schema import HEAD, metadata
from sidecar.errors import UnavailableError

pytestmark = pytest.mark.anyio
NOVEMBER = 1_795_000_000.0  # 2026-11-18


async def test_an_empty_database_becomes_current_and_stays_so(database_url: str) -> None:
    database = Database(database_url)
    assert not await database.schema_is_current()
    await database.migrate()
    assert await database.schema_is_current()
    await database.migrate()
    await database.aclose()


async def test_the_migrations_make_what_the_schema_says(database_url: str) -> None:
    await migrate(database_url)
    database = Database(database_url)

    def differences(connection: sa.Connection) -> list[object]:
        def ours(name: str | None, kind: str, _parents: object) -> bool:
            return kind != "table" or not (name or "").startswith(
                ("spend_20", "spend_default", "prompts_20", "prompts_default")
            )

        context = MigrationContext.configure(connection, opts={"include_name": ours, "compare_type": True})
        return list(compare_metadata(context, metadata))

    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await database.aclose()


def test_the_newest_migration_is_the_one_the_code_wants() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(sidecar.db.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


async def test_several_starters_at_once_all_find_the_schema(database_url: str) -> None:
    code = "import asyncio, sys; from sidecar.db import migrate; asyncio.run(migrate(sys.argv[1]))"
    command = [sys.executable, "-W", "error", "-c", code, database_url]
    starters = [await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE) for _ in range(3)]
    for starter in starters:
        _, errors = await starter.communicate()
        assert starter.returncode == 0, errors.decode()
    await asyncio.gather(*(migrate(database_url) for _ in range(4)))
    database = Database(database_url)
    assert await database.schema_is_current()
    await database.aclose()


async def test_databases_of_one_process_are_migrated_at_once(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/{number}.db" for number in range(8)]
    async with asyncio.timeout(240):
        await asyncio.gather(*map(migrate, urls[:4]), *(asyncio.to_thread(asyncio.run, migrate(u)) for u in urls[4:]))
    for url in urls:
        database = Database(url)
        assert await database.schema_is_current()
        await database.aclose()


async def test_alembic_is_not_imported_for_a_current_schema(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    await migrate(url)
    code = (
        "import asyncio, sys; from sidecar.db import migrate; assert 'sqlalchemy' not in sys.modules;"
        "asyncio.run(migrate(sys.argv[1])); assert 'alembic' not in sys.modules"
    )
    assert await (await asyncio.create_subprocess_exec(sys.executable, "-c", code, url)).wait() == 0


async def test_partitions_are_made_ahead_and_rows_of_the_default_one_move(postgres_url: str) -> None:
    now = [NOVEMBER - 400 * 86_400]
    database = Database(postgres_url, clock=lambda: now[0])
    await database.migrate()
    late = bound(datetime.fromtimestamp(NOVEMBER, UTC)) + "-7000-8000-000000000000"
    row = ", ".join(["''"] * 6)
    async with database.engine.begin() as connection:
        for exchange_id in (late, "no uuid"):
            await connection.exec_driver_sql(
                "INSERT INTO spend (exchange_id, attempt, revision, at, cost_nano, http_status, is_stream, duration_ms,"
                " key_hash, status, outcome, model_group, deployment_id, provider, model, dropped, budget_keys, tags)"
                f" VALUES ('{exchange_id}', 1, 0, 0, 5, 200, false, 1, {row}, '', '[]', '[]', '[]')"
            )
    now[0] = NOVEMBER
    await asyncio.gather(*(database.make_partitions() for _ in range(4)))
    async with database.engine.connect() as connection:
        found = await connection.exec_driver_sql("SELECT exchange_id, tableoid::regclass::text FROM spend")
        assert {tuple(row) for row in found} == {(late, months(NOVEMBER)[0][0]), ("no uuid", "spend_default")}
    await database.aclose()


async def test_a_long_reader_puts_the_next_partitions_off_and_blocks_nobody(postgres_url: str) -> None:
    """A backup, say. Without a bound everybody who reads the ledger would wait behind us, who wait for it."""
    now = [NOVEMBER - 400 * 86_400]
    database = Database(postgres_url, clock=lambda: now[0])
    await database.migrate()
    now[0] = NOVEMBER
    async with database.engine.connect() as reader, database.engine.connect() as connection:
        await reader.exec_driver_sql("SELECT count(*) FROM spend")  # its transaction stays open
        async with asyncio.timeout(120):
            waiting = asyncio.create_task(database.make_partitions())
            await asyncio.sleep(0.5)
            await connection.exec_driver_sql("SELECT count(*) FROM spend")
            await connection.rollback()
            await waiting
        assert [one for one in await missing_partitions(connection, NOVEMBER) if one[0] == "spend"]
        await connection.rollback()
    await database.make_partitions()
    async with database.engine.connect() as connection:
        assert await missing_partitions(connection, NOVEMBER) == []
    await database.aclose()


def test_a_month_begins_with_the_least_id_of_its_first_millisecond() -> None:
    (name, start, end), *_ = months(NOVEMBER)
    assert name == "spend_202611"
    assert start == f"{1_793_491_200_000:012x}"[:8] + "-" + f"{1_793_491_200_000:012x}"[8:]
    assert months(NOVEMBER)[1][1] == end


@pytest.mark.parametrize("url", ["mysql://x/y", "sidecar.db", "", "sqlite:"])
def test_a_url_of_another_database_is_refused_with_the_fix(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:/// or postgresql://"):
        Database(url)


async def test_a_child_process_migrates_too_and_its_failure_is_told_without_the_url(database_url: str) -> None:
    database = Database(database_url)
    await database.migrate(in_child=True)
    assert await database.schema_is_current()
    await database.aclose()
    broken = Database("postgresql://canary:secret-canary@127.0.0.1:1/x")
    with pytest.raises(UnavailableError) as error:
        await broken._migrate_in_child()
    assert "canary" not in str(error.value)


def test_a_day_of_prompts_ends_where_the_next_one_begins() -> None:
    found = days(NOVEMBER)
    assert [name for name, _, _ in found[:2]] == ["prompts_20261118", "prompts_20261119"]
    assert all(before[2] == after[1] for before, after in itertools.pairwise(found))
