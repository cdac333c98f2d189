"""Whoever resolves an unknown cost may be cut off after any packet to either store: the next run ends what it began."""

from __future__ import annotations

import asyncio
from datetime import UTC

import pytest

from sidecar.db import Database
from sidecar.jobs.unknown import Unknown
from sidecar.limits.admission import Admission
from sidecar.limits.store import open_store
from sidecar.spend.ledger import Ledger
from sidecar.spend.verify import totals_that_differ
from sidecar.types import Budget
from tests.jobs.test_unknown import HELD, Books
from tests.servers.relay import relayed
from tests.spend.rows import exchange_id

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("counters", "cut", "step"), [("redis", "redis", 1), ("redis", "sql", 3), ("memory", "sql", 3)]
)
async def test_cut_off_after_any_packet_the_next_run_makes_counters_and_ledger_agree(
    redis_url: str, postgres_url: str, counters: str, cut: str, step: int
) -> None:
    async with relayed(redis_url) as (redis_relay, redis_away), relayed(postgres_url) as (sql_relay, sql_away):
        relay = redis_relay if cut == "redis" else sql_relay
        here, there = Ledger(Database(postgres_url)), Ledger(Database(sql_away))
        own = open_store(redis_url if counters == "redis" else "memory://", deadline_s=30)
        admission = Admission(own, global_budgets=[Budget(10**10)])
        books = Books(here, admission, Unknown(here, own, zone=UTC))
        job = Unknown(there, own, zone=UTC)
        is_whole = False
        cuts = 0
        while not is_whole:
            grant = await books.spend(cuts, "unknown", "settled")
            store = open_store(redis_away, deadline_s=30) if cut == "redis" else own
            if cut == "redis":
                job = Unknown(there, store, zone=UTC)
            await job.write_off(grant.at - 3600)  # the connection is made
            relay.freeze_after(cuts * step)
            task = asyncio.ensure_future(job.write_off(grant.at + 3600))
            is_whole = not await relay.holds_up(task)
            task.cancel()
            await asyncio.wait({task}, timeout=0.02)
            if cut == "redis":  # what is on its way is lost; to the database it arrives late
                relay.hang_up()
                relay.come_back()
            relay.thaw()
            await asyncio.wait({task})
            if cut == "redis":
                await store.aclose()
            await (job if counters == "memory" else books.unknown).write_off(grant.at + 3600)
            cuts += 1
            assert await books.counters(grant) == {cuts * HELD}, f"after {(cuts - 1) * step} pieces"
            assert [row.revision for row in await here.rows_of(exchange_id(cuts - 1))] == [0, 1, 2, 0]
        assert cuts > (5 if cut == "redis" else 15)
        assert await totals_that_differ(here) == []
        await admission.aclose()
        for ledger in (here, there):
            await ledger.database.aclose()
