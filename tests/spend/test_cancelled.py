"""Whoever is told to stop while rows are written stops: a cancellation is never taken for a database that is away."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from sidecar.db import Database
from sidecar.errors import UnavailableError
from sidecar.spend import ledger_postgres
from sidecar.spend.journal import Journal
from sidecar.spend.ledger import Ledger
from sidecar.spend.recorder import Recorder
from sidecar.spend.rows import Row
from sidecar.types import SpendRecord
from tests.servers.relay import relayed
from tests.spend.rows import AT, MemoryLedger, row

pytestmark = pytest.mark.anyio


async def test_an_insert_cancelled_at_any_moment_is_cancelled(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/s.db", clock=lambda: AT)
    await database.migrate()
    ledger = Ledger(database)
    ended: list[str] = []
    kept: list[asyncio.Task[object]] = []  # and with each what its traceback holds: a cursor keeps SQLite's locks
    for turn in range(60):
        task = asyncio.ensure_future(ledger.insert([row(turn * 100 + number) for number in range(30)]))
        await asyncio.sleep(turn * 0.00025)
        task.cancel()
        await asyncio.wait({task})
        kept.append(task)
        ended.append("cancelled" if task.cancelled() else repr(task.exception()))
    assert "cancelled" in ended
    assert set(ended) <= {"cancelled", "None"}, [e for e in ended if e not in ("cancelled", "None")]
    assert await ledger.insert([row(1)]) == []
    await database.aclose()


@pytest.mark.parametrize(("what", "step"), [("insert", 1), ("read", 1), ("maintain", 9)])
async def test_cut_off_at_any_packet_and_cancelled_loses_no_later_row(postgres_url: str, what: str, step: int) -> None:
    """Pieces of data pass to and from PostgreSQL, then none. Whoever waits is cancelled, the network comes back, and
    what was under way arrives late: BEGIN too, of which the driver thinks that it failed."""
    async with relayed(postgres_url) as (relay, url):
        away, here = Database(url, clock=lambda: AT), Database(postgres_url, clock=lambda: AT)
        ledger = Ledger(away, retention_days=1)
        await ledger.insert([row(0)])
        is_whole = False
        cuts = 0
        while not is_whole:
            rows = [row(100 * (1 + cuts) + number) for number in range(3)]
            relay.freeze_after(cuts * step)
            task = asyncio.ensure_future(_do(ledger, what, rows))
            is_whole = not await relay.holds_up(task)
            task.cancel()
            await asyncio.wait({task}, timeout=0.02)
            relay.thaw()
            await asyncio.wait({task})
            await ledger.insert(rows)
            for its in rows:
                assert len(await Ledger(here).rows_of(its.exchange_id)) == 1, f"after {cuts * step} pieces"
            cuts += 1
        assert cuts > 5
        await away.aclose()
        await here.aclose()


async def test_who_is_cut_off_amid_a_batch_keeps_nobody_from_writing(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the daily totals locked, which everybody adds to."""
    assert "idle_in_transaction_session_timeout = '10s'" in ledger_postgres._STAGE
    monkeypatch.setattr(ledger_postgres, "_STAGE", ledger_postgres._STAGE.replace("'10s'", "'1s'"))
    async with relayed(postgres_url) as (relay, url):
        away, here = Database(url, clock=lambda: AT), Database(postgres_url, clock=lambda: AT)
        await Ledger(away).insert([row(0)])
        for cuts in itertools.count(1):
            relay.freeze_after(cuts)
            task = asyncio.ensure_future(Ledger(away).insert([row(2 * cuts)]))
            is_whole = not await relay.holds_up(task)
            async with asyncio.timeout(60):
                assert await Ledger(here).insert([row(2 * cuts + 1)]) == []
            relay.thaw()
            if is_whole:
                break
            with contextlib.suppress(UnavailableError):  # the server ended its session
                await task
        assert cuts > 5
        await away.aclose()
        await here.aclose()


async def _do(ledger: Ledger, what: str, rows: list[SpendRecord]) -> None:
    if what == "insert":
        await ledger.insert(rows)
    elif what == "read":
        await ledger.rows_of("x")
    else:
        await ledger.maintain()


async def test_a_recorder_closes_while_it_ships(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/s.db", clock=lambda: AT)
    await database.migrate()
    for turn in range(25):
        recorder = Recorder(Journal(tmp_path / f"journal-{turn}"), Ledger(database), interval_s=0.001)
        await recorder.start()
        for number in range(40):
            await recorder.record(row(turn * 100 + number))
            if number % 10 == turn % 10:
                await asyncio.sleep(0.002)
        async with asyncio.timeout(60):
            await recorder.aclose()
        assert recorder.failures == 0
    assert len((await Ledger(database).logs(limit=1000)).records) == 1000
    await database.aclose()


async def test_how_shipping_goes_is_kept_for_whoever_asks(tmp_path: Path) -> None:
    ledger, told = MemoryLedger(), list[tuple[float, bool]]()
    recorder = Recorder(Journal(tmp_path / "journal"), ledger, interval_s=0.001, clock=lambda: AT)
    recorder.flushed = lambda at, is_failure: told.append((at, is_failure))
    ledger.is_down = True
    await recorder.record(row(1))
    async with asyncio.timeout(60):
        while not recorder.flushes.failures:
            await asyncio.sleep(0.001)
        assert (recorder.flushes.error, recorder.flushes.ended_at, recorder.flushes.ok_at) == ("down", AT, None)
        ledger.is_down = False
        while recorder.flushes.ok_at is None:
            await asyncio.sleep(0.001)
    assert recorder.flushes.error is None
    assert (AT, True) in told
    assert told[-1] == (AT, False)
    assert recorder.flushes.runs == len(told)
    await recorder.aclose()


async def test_what_is_recorded_after_the_close_waits_in_the_journal_and_starts_nothing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/s.db", clock=lambda: AT)
    await database.migrate()
    recorder = Recorder(Journal(tmp_path / "journal"), Ledger(database), interval_s=0.001)
    await recorder.record(row(1))
    await recorder.aclose()
    before = asyncio.all_tasks()
    await recorder.record(row(2))
    assert asyncio.all_tasks() == before
    await recorder.aclose()
    heir = Recorder(Journal(tmp_path / "journal"), Ledger(database))
    await heir.flush()
    assert len((await Ledger(database).logs()).records) == 2
    await heir.aclose()
    await database.aclose()


async def test_a_ledger_that_does_not_let_itself_be_cancelled_delays_a_close_only_so_long(tmp_path: Path) -> None:
    release = asyncio.Event()

    class Stubborn(MemoryLedger):
        async def insert_rows(self, rows: Sequence[Row]) -> list[Row]:
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()
            return []

    recorder = Recorder(Journal(tmp_path / "journal"), Stubborn(), interval_s=0.001)
    await recorder.record(row(1))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(60):
        await recorder.aclose(timeout_s=0.1)
    release.set()
    assert list((tmp_path / "journal").glob("*.seg")), "the row stays"
