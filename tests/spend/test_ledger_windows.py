"""What budgets ask of the ledger: the sum of a window, to the microsecond and without an end."""

from __future__ import annotations

import math

import pytest

from sidecar.db import Database, migrate
from sidecar.errors import BadRequestError
from sidecar.spend.ledger import Ledger
from sidecar.types import SpendRecord

pytestmark = pytest.mark.anyio
START = 1_796_083_200.0
DAY = 86_400.0


def row(number: int, at: float, cost_nano: int) -> SpendRecord:
    return SpendRecord(
        exchange_id=f"019a0000-0000-7000-8000-{number:012x}", attempt=1, revision=0, at=at, key_hash="a" * 64,
        status="settled", outcome="ok", cost_nano=cost_nano,
    )  # fmt: skip


async def test_a_window_has_its_start_but_not_its_end(database_url: str) -> None:
    await migrate(database_url)
    database = Database(database_url)
    ledger = Ledger(database)
    await ledger.insert(
        [
            row(1, START, 1),
            row(2, math.nextafter(START + DAY, 0), 10),  # the last instant before the end
            row(3, START + DAY, 100),
            row(4, START - 0.000_001, 1000),
        ]
    )
    assert await ledger.sum_nano("a" * 64, START, START + DAY) == 11
    assert await ledger.sum_all(START, START + DAY) == 11
    assert await ledger.sum_all(START + DAY, START + 2 * DAY) == 100
    await database.aclose()


async def test_a_lifetime_has_no_end(database_url: str) -> None:
    await migrate(database_url)
    database = Database(database_url)
    ledger = Ledger(database)
    await ledger.insert([row(1, START, 1), row(2, START + 9999 * DAY, 10)])
    assert await ledger.sum_nano("a" * 64, 0.0, math.inf) == 11
    assert await ledger.sum_all(-math.inf, math.inf) == 11
    with pytest.raises(BadRequestError):
        await ledger.sum_all(math.nan)
    await database.aclose()


@pytest.mark.parametrize("micros", [0, 1, 1_796_083_200_123_457, 4_102_444_800_999_999])
async def test_an_instant_comes_back_as_it_was(database_url: str, micros: int) -> None:
    await migrate(database_url)
    database = Database(database_url)
    ledger = Ledger(database)
    await ledger.insert([row(1, micros / 1_000_000, 1)])
    assert [record.at for record in (await ledger.logs()).records] == [micros / 1_000_000]
    await database.aclose()


@pytest.mark.parametrize("kind", ["global", "key"])
async def test_a_sum_before_an_instant_is_that_of_the_rows_before_it(database_url: str, kind: str) -> None:
    await migrate(database_url)
    database = Database(database_url)
    ledger = Ledger(database)
    instants = [START + hours * 3600 for hours in (-30, -1, 0, 1, 11.9, 12, 12.1, 23.9, 24, 40)]
    await ledger.insert([row(number, at, 1 << number) for number, at in enumerate(instants)])
    for since in (None, START - 86_400, START - 7000, START, START + 3601):
        for until in (START, START + 3600, START + 12 * 3600, START + DAY, START + DAY + 1):
            wanted = sum(1 << n for n, at in enumerate(instants) if (since is None or since <= at) and at < until)
            assert await ledger.sum_before(kind, "a" * 64, since, until) == wanted, (since, until)
    assert await ledger.sum_before(kind, "a" * 64, None, math.inf) == (1 << len(instants)) - 1
    async with database.engine.begin() as connection:  # rows of that day may be gone: nobody can tell
        gone = f"INSERT INTO spend_state VALUES ('rows_since', {int((START + DAY) * 1e6)})"
        await connection.exec_driver_sql(gone)
    assert await ledger.sum_before(kind, "a" * 64, None, START + 12 * 3600) is None
    assert await ledger.sum_before(kind, "a" * 64, None, START) == 3
    await database.aclose()
