"""Killed with SIGKILL at any moment: every completed record is in the ledger exactly once, every intent is a row."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.db import Database, migrate
from sidecar.spend.journal import Journal
from sidecar.spend.ledger import Ledger
from sidecar.spend.recorder import Recorder
from sidecar.types import SpendRecord
from tests.spend.rows import MemoryLedger, held, row

pytestmark = pytest.mark.anyio


async def killed(folder: Path, url: str, name: str, durability: str, after_lines: int) -> tuple[set[str], set[str]]:
    """Run a crasher and kill it; the exchange ids whose intent, and whose record, it was promised."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.spend.crasher", str(folder), url, name, durability, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    first = b""
    while first.count(b"\n") < after_lines:
        line = await process.stdout.readline()
        assert line, "it ended by itself"
        first += line
    process.kill()
    lines = (first + await process.stdout.read()).decode().splitlines()
    await process.wait()
    promised = {letter: {line[2:] for line in lines if line[:2] == f"{letter} "} for letter in "IR"}
    return promised["I"], promised["R"]


async def all_rows(ledger: Ledger) -> list[SpendRecord]:
    records: list[SpendRecord] = []
    cursor = None
    while True:
        page = await ledger.logs(limit=1000, cursor=cursor)
        records += page.records
        cursor = page.next_cursor
        if cursor is None:
            return records


@pytest.mark.parametrize("durability", ["process", "disk"])
async def test_a_killed_process_loses_no_record_and_no_intent(
    database_url: str, tmp_path: Path, durability: str
) -> None:
    await migrate(database_url)
    folder = tmp_path / "journal"
    runs = await asyncio.gather(
        *(killed(folder, database_url, f"key{n}", durability, after_lines=300 + 250 * n) for n in range(3))
    )
    intents = set().union(*(run[0] for run in runs))
    records = set().union(*(run[1] for run in runs))
    assert len(records) > 100
    database = Database(database_url)
    ledger = Ledger(database)
    heirs = [Recorder(Journal(folder), ledger, interval_s=3600) for _ in range(3)]
    await asyncio.gather(*(heir.flush() for heir in heirs))
    for heir in heirs:
        await heir.aclose()
    rows = await all_rows(ledger)
    by_id = {record.exchange_id: record for record in rows}
    assert len(by_id) == len(rows)
    assert intents <= by_id.keys()
    for exchange_id in records:
        assert by_id[exchange_id].status == "settled"
        assert by_id[exchange_id].cost_nano < 5_000
    for exchange_id, record in by_id.items():
        if record.status == "unknown":
            assert record.cost_nano == 5_000
            assert exchange_id not in records
    assert await ledger.sum_all() == sum(record.cost_nano for record in rows)
    assert not list(folder.glob("*"))
    await database.aclose()


async def test_what_a_process_journalled_in_its_last_tick_before_the_kill_is_there(tmp_path: Path) -> None:
    """No shipping at all: the journal alone carries everything."""
    code = """
import asyncio, os, signal, sys
from sidecar.spend.journal import Journal
from tests.spend.rows import held, row
async def main():
    journal = Journal(sys.argv[1])
    await asyncio.gather(*(journal.intent(held(row(n))) for n in range(100)))
    await asyncio.gather(*(journal.record(row(n)) for n in range(60)))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(tmp_path), cwd=os.getcwd())
    assert await process.wait() == -9
    ledger = MemoryLedger()
    heir = Recorder(Journal(tmp_path), ledger, interval_s=3600)
    await heir.flush()
    assert ledger.records == [row(n) if n < 60 else held(row(n)) for n in range(100)]
    await heir.aclose()
