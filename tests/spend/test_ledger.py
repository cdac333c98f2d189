"""The ledger on both databases: inserting twice is inserting once, pages meet without gap or overlap, sums agree."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.db import Database
from sidecar.errors import BadRequestError, UnavailableError
from sidecar.spend.ledger import Ledger
from sidecar.types import SpendRecord, Usage
from tests.spend.rows import AT, exchange_id, row

pytestmark = pytest.mark.anyio


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    database = Database(database_url, clock=lambda: AT)
    await database.migrate()
    yield Ledger(database)
    await database.aclose()


FULL = row(
    7,
    at=AT + 0.123456,
    key_alias="alias",
    user_id="user",
    team_id="team",
    organization_id="organization",
    end_user_id="end ü \u2028 \U0001f600",
    request_id="request",
    usage=Usage(*range(1, 11)),
    is_stream=True,
    first_byte_ms=3,
    dropped=("logit_bias", "a,b"),
    budget_keys=("b:key:1",),
)


async def test_a_row_comes_back_as_it_went_in(ledger: Ledger) -> None:
    assert await ledger.insert([FULL, row(1)]) == []
    assert (await ledger.logs()).records == [FULL, row(1)]


async def test_inserting_again_changes_nothing(ledger: Ledger) -> None:
    rows = [row(number) for number in range(450)]
    await asyncio.gather(*(ledger.insert(random.Random(seed).sample(rows, 450)) for seed in range(3)))
    await ledger.insert([row(0, cost_nano=999)])
    assert await ledger.sum_all() == sum(record.cost_nano for record in rows)


async def test_a_correction_is_a_row_of_its_own_and_counts(ledger: Ledger) -> None:
    await ledger.insert([row(9), row(9, revision=1, cost_nano=-4, usage=Usage())])
    assert await ledger.sum_nano("k" * 64) == 6
    (total,) = await ledger.totals()
    assert (total.cost_nano, total.rows) == (6, 1)
    assert [record.revision for record in await ledger.rows_of(row(9).exchange_id)] == [0, 1]


async def test_pages_meet_without_gap_or_overlap_also_where_instants_are_equal(ledger: Ledger) -> None:
    rows = [row(number, at=AT + number // 10) for number in range(95)]
    await ledger.insert(rows)
    found: list[SpendRecord] = []
    cursor = None
    while True:
        page = await ledger.logs(limit=7, cursor=cursor)
        found += page.records
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == sorted(rows, key=lambda r: (r.at, r.exchange_id), reverse=True)


@pytest.mark.parametrize("limit", [1, 3, 1000])
@pytest.mark.parametrize(
    "filters",
    [
        {"status": "unknown"},
        {"outcome": "client_left", "key_hash": "k0"},
        {"deployment_id": "d2", "team_id": "t", "since_at": AT + 1},
        {"group": "g1", "status": "unknown"},
        {"tag": "x", "until_at": AT + 8},
        {"deployment_id": "nobody"},
    ],
)
async def test_a_page_looks_through_so_many_rows_and_the_next_goes_on(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any], limit: int
) -> None:
    monkeypatch.setattr("sidecar.spend.ledger.SCAN_ROWS", 10)
    rows = [
        row(n, at=AT + n // 6, key_hash=f"k{n % 2}", group=f"g{n % 3}", deployment_id=f"d{n % 5}", team_id="t",
            status="unknown" if n in (3, 4, 50) else "settled", outcome="client_left" if n % 31 == 0 else "ok",
            tags=("x",) if n % 40 == 7 else ())
        for n in range(95)
    ]  # fmt: skip
    await ledger.insert(rows)
    monkeypatch.setattr("sidecar.spend.ledger.SCAN_ROWS", 1000)
    expected = (await ledger.logs(limit=1000, **filters)).records
    monkeypatch.setattr("sidecar.spend.ledger.SCAN_ROWS", 10)
    found: list[SpendRecord] = []
    pages: list[int] = []
    cursor = None
    while True:
        page = await ledger.logs(limit=limit, cursor=cursor, **filters)
        found += page.records
        pages.append(len(page.records))
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == expected
    assert bool(expected) == ("nobody" not in filters.values())
    assert max(pages) <= limit
    assert len(pages) > 2


async def test_a_page_of_one_indexed_filter_is_never_cut_short(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.spend.ledger.SCAN_ROWS", 2)
    whose: dict[str, Any] = {"user_id": "u", "team_id": "t", "end_user_id": "e", "request_id": "r"}
    await ledger.insert([row(n, exchange_id=exchange_id(1), attempt=n, **whose) for n in range(9)])
    asked: list[dict[str, Any]] = [{}, {"key_hash": "k" * 64}, *({name: value} for name, value in whose.items())]
    asked += [{"exchange_id": exchange_id(1), "status": "settled"}, {"request_id": "r", "group": "gpt"}]
    for filters in asked:
        page = await ledger.logs(**filters)
        assert (len(page.records), page.next_cursor) == (9, None), filters


async def test_every_filter_filters(ledger: Ledger) -> None:
    other = row(
        1, key_hash="other", request_id="r1", group="claude", status="unknown", at=AT + 500, outcome="client_left",
        user_id="u", team_id="t", organization_id="o", end_user_id="e", model="m", provider="p", deployment_id="d",
        tags=("x", "y"),
    )  # fmt: skip
    await ledger.insert([row(0), other, row(2)])
    for filters in (
        {"key_hash": "other"},
        {"request_id": "r1"},
        {"group": "claude"},
        {"status": "unknown"},
        {"outcome": "client_left"},
        {"user_id": "u"},
        {"team_id": "t"},
        {"organization_id": "o"},
        {"end_user_id": "e"},
        {"model": "m"},
        {"provider": "p"},
        {"deployment_id": "d"},
        {"tag": "y"},
        {"team_id": "t", "tag": "x"},
        {"exchange_id": other.exchange_id},
        {"since_at": AT + 500},
        {"since_at": AT + 500, "until_at": AT + 500.000001},
    ):
        assert (await ledger.logs(**filters)).records == [other], filters  # type: ignore[arg-type]
    assert (await ledger.logs(until_at=AT + 500)).records == [row(2), row(0)]
    assert (await ledger.logs(key_hash="\0\ud800")).records == []


async def test_sums_are_of_the_window_from_its_start_to_before_its_end(ledger: Ledger) -> None:
    await ledger.insert([row(n, at=AT + n, cost_nano=10**n, key_hash=f"k{n % 2}") for n in range(6)])
    assert await ledger.sum_all(AT + 1, AT + 3) == 110
    assert await ledger.sum_nano("k0", AT + 1, AT + 5) == 10_100
    assert await ledger.sum_nano("nobody") == 0
    assert await ledger.sum_all(AT + 100) == 0
    assert await ledger.sum_by_keys(["k0", "k1", "k2"]) == {"k0": 10_101, "k1": 101_010}
    totals = await ledger.totals(by="key_hash", since_at=AT + 1)
    assert [(total.name, total.cost_nano, total.rows, total.input_tokens) for total in totals] == [
        ("k1", 101_010, 3, 30),
        ("k0", 10_100, 2, 20),
    ]
    assert [total.name for total in await ledger.totals(by="team_id")] == [""]
    (of_one,) = await ledger.totals(by="model", key_hash="k1", since_at=AT + 1, until_at=AT + 5)
    assert (of_one.name, of_one.cost_nano) == ("gpt-4o-mini", 1010)


async def test_hostile_text_and_counts_are_stored_as_far_as_they_can_be(ledger: Ledger) -> None:
    hostile = row(1, request_id="a\0b", end_user_id="\ud800", usage=Usage(input=10**25), cost_nano=2**62)
    assert await ledger.insert([row(0), hostile, row(2)]) == []
    (found,) = await ledger.rows_of(hostile.exchange_id)
    assert found.request_id == "a\ufffdb"
    assert found.usage.input == 2**63 - 1
    assert await ledger.sum_all() == 2**62 + 1 + 3


@pytest.mark.parametrize("cursor", ["", "x", "%%%", "bnVsbA", "WzFd", "é", "A" * 5000, "W10="])
async def test_a_cursor_that_is_not_ours_is_refused(cursor: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('db')}/a.db")
    await database.migrate()
    with pytest.raises(BadRequestError, match="cursor"):
        await Ledger(database).logs(cursor=cursor)
    await database.aclose()


async def test_a_database_without_tables_or_without_a_server_is_unavailable(
    bare_postgres_url: str, tmp_path: Path
) -> None:
    for url in (bare_postgres_url, f"sqlite:///{tmp_path}/bare.db", "postgresql://nobody@127.0.0.1:1/none"):
        database = Database(url)
        ledger = Ledger(database)
        with pytest.raises(UnavailableError):
            await ledger.insert([row(1)])
        with pytest.raises(UnavailableError):
            await ledger.logs()
        with pytest.raises(UnavailableError):
            await ledger.sum_all()
        await database.aclose()


async def test_rows_land_in_the_partition_of_their_month(postgres_url: str) -> None:
    database = Database(postgres_url, clock=lambda: AT)
    await database.migrate()
    await Ledger(database).insert([row(1), row(2, exchange_id="not a uuid")])
    async with database.engine.connect() as connection:
        found = await connection.exec_driver_sql("SELECT tableoid::regclass::text FROM spend ORDER BY 1")
        assert found.scalars().all() == ["spend_202701", "spend_default"]
    await database.aclose()


async def test_names_that_no_row_has_cost_no_reading_of_rows(ledger: Ledger) -> None:
    """The totals know the days on which a name occurs; one that does not is not looked for among the rows."""
    old, new = row(0, group="gpt", tags=("x",)), row(1, at=1_900_000_000.0, group="o3", organization_id="acme")
    await ledger.insert([old, new])
    for filters, found in (
        ({"group": "gpt"}, [old]), ({"group": "o3", "tag": "x"}, []), ({"organization_id": "acme"}, [new]),
        ({"tag": "x", "model": old.model}, [old]), ({"model": "nobody"}, []), ({"provider": "nobody"}, []),
        ({"group": "gpt", "since_at": 1_850_000_000.0}, []), ({"tag": "X"}, []),
    ):  # fmt: skip
        page = await ledger.logs(**filters)  # type: ignore[arg-type]
        assert [record.exchange_id for record in page.records] == [record.exchange_id for record in found], filters
    async with ledger.database.engine.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE spend")
    assert (await ledger.logs(model="nobody")).records == []
