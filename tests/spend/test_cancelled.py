"""Whoever is told to stop while rows are written stops: a cancellation is never taken for a database that is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from sidecar.db import Database
from sidecar.spend.journal import Journal
from sidecar.spend.ledger import Ledger
from sidecar.spend.recorder import Recorder
from sidecar.spend.rows import Row
from tests.spend.rows import AT, MemoryLedger, row

pytestmark = pytest.mark.anyio


async def test_an_insert_cancelled_at_any_moment_is_cancelled(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/s.db", clock=lambda: AT)
    await database.migrate()
    ledger = Ledger(database)
    ended: list[str] = []
    for turn in range(150):
        task = asyncio.ensure_future(ledger.insert([row(turn * 100 + number) for number in range(30)]))
        await asyncio.sleep(turn * 0.0001)
        task.cancel()
        await asyncio.wait({task})
        ended.append("cancelled" if task.cancelled() else repr(task.exception()))
    assert "cancelled" in ended
    assert set(ended) <= {"cancelled", "None"}, [e for e in ended if e not in ("cancelled", "None")]
    assert await ledger.insert([row(1)]) == []
    await database.aclose()


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
