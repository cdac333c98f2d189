"""No row blocks the ledger: what clients and vendors can put into one is stored, or set aside alone."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.db import Database, migrate
from sidecar.spend.ledger import Ledger
from sidecar.types import Usage
from tests.spend.rows import row

pytestmark = pytest.mark.anyio

HOSTILE: list[dict[str, Any]] = [
    *({field: text} for field in ("request_id", "end_user_id", "model", "group") for text in (
        "\x00", "a\x00b", "\ud800", "é\u2028", "x" * 100_000, "😀", "'; DROP TABLE spend; --",
    )),
    {"usage": Usage(input=2**70, output=-(2**70))},
    {"cost_nano": 2**70},  # a vendor's huge count, times a price
    {"cost_nano": -(2**70)},
    {"http_status": 2**40},
    {"duration_ms": 2**70},
    {"dropped": ("\x00", "\ud800")},
    {"at": 1e15},
    {"at": float("inf")},
]  # fmt: skip


async def test_what_clients_and_vendors_say_always_fits_a_row(database_url: str) -> None:
    await migrate(database_url)
    database = Database(database_url)
    ledger = Ledger(database)
    records = [row(number, **fields) for number, fields in enumerate(HOSTILE)]
    assert await ledger.insert(records) == []
    stored = (await ledger.logs(limit=1000)).records
    assert {record.exchange_id for record in stored} == {record.exchange_id for record in records}
    await database.aclose()


async def test_a_row_the_database_refuses_is_set_aside_alone(database_url: str) -> None:
    await migrate(database_url)
    database = Database(database_url)
    ledger = Ledger(database)
    broken = [row(1, status=None), row(2, provider=None)]
    refused = await ledger.insert([row(0), *broken, row(3)])
    assert refused == broken
    assert [record.exchange_id for record in (await ledger.logs()).records] == [row(3).exchange_id, row(0).exchange_id]
    await database.aclose()
