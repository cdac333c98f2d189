"""No row blocks the ledger: what clients and vendors can put into one is stored, or set aside alone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sidecar.admin.spend import described_record
from sidecar.db import Database, migrate
from sidecar.spend.ledger import Ledger
from sidecar.spend.reports import report
from sidecar.spend.sinks.payload import encoded_payload
from sidecar.spend.verify import totals_that_differ
from sidecar.types import Usage
from tests.spend.rows import AT, row

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
    {"at": -1e15},
]  # fmt: skip


async def test_what_clients_and_vendors_say_always_fits_a_row(database_url: str) -> None:
    await migrate(database_url)
    database = Database(database_url)
    ledger = Ledger(database)
    records = [row(number, **fields) for number, fields in enumerate(HOSTILE)]
    assert await ledger.insert(records) == []
    stored = (await ledger.logs(limit=1000)).records
    assert {record.exchange_id for record in stored} == {record.exchange_id for record in records}
    assert all(described_record(record)["at"] and encoded_payload(record) for record in stored)
    assert all(encoded_payload(record) for record in records)
    days = {line.names[0] for line in (await report(ledger, by=["day"])).lines}
    assert {"0001-01-01", "9999-12-31"} <= days
    await database.aclose()


async def test_absurd_counts_keep_nobody_from_reading_sums(database_url: str) -> None:
    """More than 64 bits hold, on several days and in one; what others spent is still exact."""
    await migrate(database_url)
    ledger = Ledger(Database(database_url))
    absurd = {"cost_nano": 2**63 - 1, "usage": Usage(input=2**63 - 1, cached_input=2**62, output=2**63 - 1)}
    others = [row(n, key_hash="other", cost_nano=c) for n, c in enumerate((5, 2**62, -(2**61), -7))]
    await ledger.insert([row(10 + n, at=AT + 40_000 * n, model=f"m{n}", **absurd) for n in range(6)])
    await ledger.insert(others)
    since, until = AT - 50, AT + 90_000  # two parts of days
    assert await ledger.sum_by_keys(["other"], since, until) == {"other": 2**61 - 2}
    assert await ledger.sum_of("global", "", None, None) >= 2**63 - 1
    assert await ledger.sum_before("global", "", AT - 90_000, until) is not None
    assert await ledger.sum_before("key", "other", AT - 90_000, until) == 2**61 - 2
    for by in ("model", "day", "key", "team"):
        assert (await report(ledger, by=[by], since_at=since, until_at=until)).total.cost_nano >= 2**63 - 1
    assert {total.name: total.cost_nano for total in await ledger.totals()}["other"] == 2**61 - 2
    assert await ledger.costs_of([others[1].exchange_id]) == {others[1].exchange_id: 2**62}
    await totals_that_differ(ledger)
    await ledger.database.aclose()


async def test_names_too_long_for_an_index_are_shortened_and_stay_apart(database_url: str) -> None:
    """A text that compresses well may fit, this one does not."""
    await migrate(database_url)
    database = Database(database_url)
    ledger = Ledger(database)
    chance = random.Random(7)
    long = "".join(map(chr, chance.choices(range(0x4E00, 0x9FFF), k=3000)))
    names = ("model", "group", "provider", "end_user_id", "user_id", "team_id", "key_hash", "request_id")
    records = [row(number, **{name: long}) for number, name in enumerate(names)]
    records.append(row(len(names), **dict.fromkeys(names, long), tags=(long, long + "!", "short")))
    assert await ledger.insert([row(100), *records]) == []
    assert len((await ledger.logs(limit=100)).records) == len(records) + 1
    tags = (await ledger.rows_of(records[-1].exchange_id))[0].tags
    assert len(set(tags)) == 3
    assert all(long.startswith(tag[:150]) for tag in tags[:2])
    assert await totals_that_differ(ledger) == []
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
