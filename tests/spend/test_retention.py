"""Rows older than the retention go, on both databases; what they added up to stays, in reports and in budgets."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from sidecar.db import Database
from sidecar.spend.ledger import Ledger
from sidecar.spend.reports import report
from sidecar.spend.retention import forget_rows
from sidecar.spend.verify import totals_that_differ
from tests.spend.rows import exchange_id, row
from tests.spend.totals import expected, stored

pytestmark = pytest.mark.anyio
DAY = 86_400
NOW = datetime(2027, 6, 15, 12, tzinfo=UTC).timestamp()


def at(month: int, day: int, hour: int = 0) -> float:
    return datetime(2027, month, day, hour, tzinfo=UTC).timestamp()


async def filled(url: str) -> tuple[Database, Ledger, list[object]]:
    now = [at(1, 1)]
    database = Database(url, clock=lambda: now[0])
    await database.migrate()
    for month in (1, 3, 6):
        now[0] = at(month, 15)
        await database.make_partitions()
    ledger = Ledger(database, retention_days=60)
    records = [
        row(number, exchange_id=exchange_id(number, instant), at=instant, cost_nano=10**number)
        for number, instant in enumerate([at(1, 10, 6), at(1, 10, 18), at(3, 1), at(4, 20), at(6, 14)])
    ]
    records.append(row(9, exchange_id="made elsewhere", at=at(1, 5), cost_nano=7 * 10**9))
    await ledger.insert(records)
    now[0] = NOW
    return database, ledger, list(records)


async def test_old_rows_go_and_their_totals_stay(database_url: str) -> None:
    database, ledger, records = await filled(database_url)
    everything = sum(record.cost_nano for record in records)  # type: ignore[attr-defined]
    await asyncio.gather(*(ledger.maintain() for _ in range(3)))
    kept = {record.cost_nano for record in (await ledger.logs()).records}
    assert kept == {10**3, 10**4}
    assert await stored(database) == expected(records)  # type: ignore[arg-type]
    assert await ledger.sum_all() == everything
    assert (await report(ledger, by=["key"])).total.cost_nano == everything
    assert await totals_that_differ(ledger) == []
    await ledger.maintain()
    await database.aclose()


async def test_a_part_of_a_day_without_rows_counts_as_the_whole_day(database_url: str) -> None:
    """A budget counts too much rather than too little."""
    database, ledger, _ = await filled(database_url)
    noon = at(1, 10, 12)
    assert await ledger.sum_all(noon, at(2, 1)) == 10
    await ledger.maintain()
    assert await ledger.sum_all(noon, at(2, 1)) == 11
    assert await ledger.sum_all(at(1, 1), noon) == 11 + 7 * 10**9
    assert await ledger.sum_all(at(6, 14) + 1) == 0
    await database.aclose()


async def test_months_are_dropped_whole_and_coming_ones_are_there(postgres_url: str) -> None:
    database, ledger, _ = await filled(postgres_url)
    await ledger.maintain()
    query = "SELECT relname FROM pg_class WHERE relname ~ '^spend_[0-9]' AND relkind = 'r' ORDER BY 1"
    async with database.engine.connect() as connection:
        found = (await connection.exec_driver_sql(query)).scalars().all()
    assert found == [f"spend_2027{month:02}" for month in range(4, 10)]
    await database.aclose()


async def test_a_long_reader_puts_the_dropping_off_and_blocks_nobody(postgres_url: str) -> None:
    database, ledger, _ = await filled(postgres_url)
    async with database.engine.connect() as reader:
        await reader.exec_driver_sql("SELECT count(*) FROM spend")  # its transaction stays open
        assert await forget_rows(database, now=NOW, days=60) == 0
        await ledger.insert([row(50, exchange_id=exchange_id(50, NOW), at=NOW)])
    assert await forget_rows(database, now=NOW, days=60) == 3
    await database.aclose()
