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
