"""`durability: disk`: what a failed sync of the journal means to those who wait for it."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from sidecar.errors import UnavailableError
from tests.spend.rows import MemoryLedger, held, row
from tests.spend.test_journal import recorder, until

pytestmark = pytest.mark.anyio


async def test_a_failed_sync_refuses_whoever_waited_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger, durability="disk")
    await rows.intent(held(row(1), 111))
    real = os.fdatasync

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(UnavailableError):
        await rows.intent(held(row(2)))
    with pytest.raises(UnavailableError):
        await rows.record(row(1))
    monkeypatch.setattr(os, "fdatasync", real)
    await rows.intent(held(row(3), 333))
    await rows.aclose()
    heir = recorder(tmp_path, ledger)
    await heir.flush()
    assert ledger.records == [row(1), held(row(3), 333)]
    await heir.aclose()


async def test_a_failed_sync_is_told_to_whoever_waits_though_another_heard_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system reports a failed write-back once for an open file, to whoever syncs it first."""
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger, durability="disk")
    await rows.intent(held(row(1), 111))
    await rows.intent(held(row(2), 222))
    real, heard, gate, waits = os.fdatasync, threading.get_ident(), threading.Event(), threading.Event()

    def sync(fd: int) -> None:
        if threading.get_ident() == heard:
            raise OSError(errno.EIO, "Input/output error")
        waits.set()
        gate.wait(60)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", sync)
    waiting = asyncio.ensure_future(rows.journal.record(row(1)))  # nobody ships beside it
    await until(waits.is_set)
    with pytest.raises(UnavailableError):
        await rows.flush()  # rotates, and is the one who hears
    gate.set()
    with pytest.raises(UnavailableError):
        await waiting
    monkeypatch.setattr(os, "fdatasync", real)
    await rows.flush()
    await rows.aclose()
    heir = recorder(tmp_path, ledger)
    await heir.flush()
    assert ledger.records == [row(1), held(row(2), 222)]
    await heir.aclose()


async def test_a_sync_waits_for_nobody_elses_threads(tmp_path: Path) -> None:
    """Names of providers are looked up in the loop's threads, for as long as a nameserver is silent."""
    rows = recorder(tmp_path, MemoryLedger(), durability="disk")
    silent = threading.Event()
    lookups = [asyncio.get_running_loop().run_in_executor(None, silent.wait) for _ in range(64)]
    try:
        async with asyncio.timeout(30):
            await rows.intent(held(row(1)))
            await rows.record(row(1))
            await rows.aclose()
    finally:
        silent.set()
        await asyncio.gather(*lookups)
