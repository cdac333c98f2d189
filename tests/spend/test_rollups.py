"""The daily totals are the sums of the rows, whoever flushes what how often, together with whom, killed or not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.db import Database, migrate
from sidecar.errors import UnavailableError
from sidecar.spend.ledger import Ledger
from sidecar.spend.rollups import DAY, span
from sidecar.spend.rows import micros, row_of
from sidecar.spend.verify import totals_that_differ
from sidecar.types import SpendRecord, Usage
from tests.spend.rows import AT, exchange_id, row
from tests.spend.totals import expected, stored

pytestmark = pytest.mark.anyio


def company(seed: int, count: int) -> list[SpendRecord]:
    """Rows of three days in every constellation, a correction here and there, and texts that look alike."""
    chosen = random.Random(seed)
    made = []
    for number in range(count):
        record = row(
            number,
            exchange_id=exchange_id(number + seed * 10_000),
            at=AT + chosen.uniform(-86_400, 86_400),
            key_hash=chosen.choice("ab") * 64,
            status=chosen.choice(["settled", "estimated", "unknown", "unpriced", "free", "not_billed"]),
            outcome=chosen.choice(["ok", "ok", "client_left"]),
            group=chosen.choice(["fast", "good"]),
            provider=chosen.choice(["openai", "anthropic"]),
            model=chosen.choice(["m1", "m2", "M1"]),
            user_id=chosen.choice([None, "", "ü", "u:1"]),
            team_id=chosen.choice([None, "t", "ü:"]),
            organization_id=chosen.choice([None, "o"]),
            end_user_id=chosen.choice([None, "e1", "e 2"]),
            tags=chosen.choice([(), ("x",), ("x", "y"), ("y", "x", "y"), ("10",)]),
            usage=chosen.choice([Usage(), Usage(*range(1, 11)), Usage(input=3)]),
        )
        made.append(record)
        if chosen.random() < 0.1:
            made.append(replace(record, revision=1, cost_nano=-chosen.randrange(50), status="settled", usage=Usage()))
    chosen.shuffle(made)
    return made


@pytest.mark.parametrize("seed", range(3))
async def test_totals_are_the_sums_of_the_rows_after_any_interleaving(database_url: str, seed: int) -> None:
    """Six flushers with a connection pool each ship overlapping shares in batches of their own size and order."""
    await migrate(database_url)
    records = company(seed, 400)
    chosen = random.Random(seed)
    databases = [Database(database_url) for _ in range(6)]

    async def flusher(database: Database, order: random.Random) -> None:
        share = order.sample(records, len(records) * 2 // 3)
        while share:
            batch, share = share[: (size := order.randrange(1, 90))], share[size:]
            assert await Ledger(database).insert(batch) == []
            if order.random() < 0.2:
                share += order.sample(batch, len(batch) // 2)  # it was killed before it could drop the segment

    await asyncio.gather(*(flusher(database, random.Random(chosen.random())) for database in databases))
    await Ledger(databases[0]).insert(records)
    assert await stored(databases[0]) == expected(records)
    assert await totals_that_differ(Ledger(databases[0])) == []
    assert await Ledger(databases[0]).sum_all() == sum(record.cost_nano for record in records)
    for database in databases:
        await database.aclose()


async def test_a_connection_that_breaks_in_the_middle_of_a_flush_neither_loses_nor_doubles(postgres_url: str) -> None:
    """The server ends flushers' sessions at random while they write; each goes on until its rows are told durable."""
    await migrate(postgres_url)
    records = company(7, 1500)
    ended = 0

    async def flusher(order: random.Random) -> None:
        nonlocal ended
        database = Database(postgres_url)
        share = order.sample(records, len(records))
        while share or ended < 3:
            try:
                await Ledger(database).insert(share[:100] or records[:100])  # what is there already changes nothing
                share = share[100:]
            except UnavailableError:
                ended += 1
        await database.aclose()

    flushers = [asyncio.create_task(flusher(random.Random(number))) for number in range(3)]
    watcher = Database(postgres_url)
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND state <> 'idle' AND query ~ 'COPY|INSERT' LIMIT 1"
    )
    while not all(task.done() for task in flushers) and ended < 25:
        async with watcher.engine.connect() as connection:
            await connection.exec_driver_sql(end)
        await asyncio.sleep(0.005)
    await asyncio.gather(*flushers)
    assert await stored(watcher) == expected(records)
    assert await Ledger(watcher).sum_all() == sum(record.cost_nano for record in records)
    await watcher.aclose()


FLUSHER = """
import asyncio, os, random, sys
from sidecar.db import Database
from sidecar.spend.ledger import Ledger
from tests.spend.test_rollups import company
async def main():
    ledger = Ledger(Database(sys.argv[1]))
    order = random.Random(sys.argv[2])
    records = company(3, 600)
    while True:
        await ledger.insert(order.sample(records, order.randrange(1, 40)))
        os.write(1, b"x")
asyncio.run(main())
"""


async def test_flushers_killed_in_the_middle_leave_totals_that_are_the_sums(database_url: str) -> None:
    await migrate(database_url)
    records = company(3, 600)
    for round_ in range(2):
        processes = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                FLUSHER,
                database_url,
                f"{round_}{number}",
                stdout=subprocess.PIPE,
                cwd=os.getcwd(),
            )
            for number in range(2)
        ]
        for process in processes:
            assert process.stdout is not None
            await process.stdout.readexactly(3)
        await asyncio.sleep(random.Random(round_).uniform(0, 0.05))
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(*(process.communicate() for process in processes))
        database = Database(database_url)
        assert await totals_that_differ(Ledger(database)) == []
        await database.aclose()
    database = Database(database_url)
    await Ledger(database).insert(records)
    assert await stored(database) == expected(records)
    await database.aclose()


async def test_a_row_the_totals_cannot_hold_is_kept_and_they_stop_at_their_end(database_url: str) -> None:
    await migrate(database_url)
    database = Database(database_url)
    ledger = Ledger(database)
    assert await ledger.insert([row(n, cost_nano=2**62) for n in range(3)]) == []
    assert {sums[0] for sums in (await stored(database)).values()} == {2**63 - 1}
    assert len((await ledger.logs()).records) == 3
    await database.aclose()


HUGE = (2**31 - 1, 2**31, 2**33 + 7, 2**62 // 1000)


@pytest.mark.parametrize("seed", range(2))
async def test_numbers_of_any_size_are_added_up_exactly(database_url: str, seed: int) -> None:
    """PostgreSQL has a quicker way for small ones; negative ones and those beyond it come out the same."""
    await migrate(database_url)
    database, chosen = Database(database_url), random.Random(seed)
    ledger = Ledger(database)
    records = [
        replace(record, cost_nano=chosen.choice([-1, 1]) * chosen.choice([0, 1, 5 * 10**9, *HUGE]) + number)
        for number, record in enumerate(company(seed + 20, 150))
    ]
    assert await ledger.insert(records) == []
    many = row(9000, exchange_id=exchange_id(1, AT + 5), usage=Usage(input=2**31, output=2**40), tags=("x", "x"))
    assert await ledger.insert([*records[:3], many]) == []
    assert await stored(database) == expected([*records, many])
    assert await totals_that_differ(ledger) == []
    await database.aclose()


async def test_a_batch_with_one_row_that_is_there_already_adds_the_others(database_url: str) -> None:
    await migrate(database_url)
    database = Database(database_url)
    records = company(5, 60)
    await Ledger(database).insert(records[7:8])
    await Ledger(database).insert(records)
    assert await stored(database) == expected(records)
    await Ledger(database).insert([*records, *records])
    assert await stored(database) == expected(records)
    await database.aclose()


async def test_whole_totals_that_differ_are_told(database_url: str) -> None:
    await migrate(database_url)
    database = Database(database_url)
    await Ledger(database).insert([row(1, cost_nano=5)])
    async with database.engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE spend_daily_whole SET cost_nano = 7 WHERE dimension = 'key'")
    (found,) = await totals_that_differ(Ledger(database))
    assert (found.dimension, found.provider, found.model, dict(found.by)) == ("key", "*", "*", {"cost_nano": 2})
    await database.aclose()


@pytest.fixture
async def year(database_url: str) -> tuple[Ledger, list[SpendRecord]]:
    await migrate(database_url)
    ledger = Ledger(Database(database_url))
    records = company(11, 300)
    await ledger.insert(records)
    return ledger, records


WHO: dict[str, tuple[str, Callable[[SpendRecord], bool]]] = {
    "key": ("a" * 64, lambda r: r.key_hash == "a" * 64),
    "team": ("ü:", lambda r: r.team_id == "ü:"),
    "user": ("u:1", lambda r: r.user_id == "u:1"),
    "member": ("2:ü::u:1", lambda r: (r.team_id, r.user_id) == ("ü:", "u:1")),
    "organization": ("o", lambda r: r.organization_id == "o"),
    "end_user": ("e 2", lambda r: r.end_user_id == "e 2"),
    "tag": ("y", lambda r: "y" in r.tags),
    "global": ("", lambda r: True),
}


async def test_a_budgets_sum_is_exact_whatever_the_window(year: tuple[Ledger, list[SpendRecord]]) -> None:
    """Windows begin and end within days, on their bounds, in one day, never."""
    ledger, records = year
    chosen = random.Random(5)
    midnight = AT // 86_400 * 86_400
    instants = [
        None,
        midnight,
        midnight + 86_400,
        midnight - 86_400,
        *(AT + chosen.uniform(-9e4, 9e4) for _ in range(6)),
    ]
    for since in instants:
        for until in instants:
            kind = chosen.choice(list(WHO))
            name, is_theirs = WHO[kind]
            found = await ledger.sum_of(kind, name, since, until)
            wanted = [
                r.cost_nano
                for r in records
                if is_theirs(r) and (since is None or r.at >= since) and (until is None or r.at < until)
            ]
            assert found == sum(wanted), (kind, since, until)
    await ledger.database.aclose()


instants = st.one_of(st.none(), st.integers(0, 5 * 86_400 * 1000).map(lambda ms: ms / 1000))


@given(instants, instants, st.integers(0, 5 * 86_400 * 1000).map(lambda ms: ms / 1000))
@settings(max_examples=500, deadline=None)
def test_a_window_is_its_whole_days_and_the_parts_beside_them(
    since: float | None, until: float | None, at: float
) -> None:
    window = span(since, until)
    instant = micros(at)
    day = instant // DAY * DAY
    in_days = (window.first is None or day >= window.first) and (window.last is None or day < window.last)
    in_parts = [(a is None or instant >= a) and (b is None or instant < b) for a, b in window.parts]
    is_inside = (since is None or instant >= micros(since)) and (until is None or instant < micros(until))
    assert in_days + sum(in_parts) == is_inside  # once, or not at all


def test_a_row_keeps_its_place_in_the_staging_table(tmp_path: Path) -> None:
    from sidecar.spend.rows import COLUMNS, record_of

    full = replace(company(1, 1)[0], at=1_790_000_000.5)  # whole microseconds, as rows have them
    assert record_of(row_of(full)) == full
    assert len(row_of(full)) == len(COLUMNS)
