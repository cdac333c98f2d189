"""Rows of silent owners are written one after the other, whatever one of them meets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sidecar.jobs.ticker import Ticker
from sidecar.limits.admission import Admission
from sidecar.limits.store import open_store
from sidecar.metrics import Metrics
from sidecar.spend.journal import Journal
from sidecar.spend.recorder import Recorder
from sidecar.types import Budget, Identity, Principal
from tests.spend.rows import MemoryLedger, exchange_id

pytestmark = pytest.mark.anyio


class BreakingLedger(MemoryLedger):
    """Its first look at an exchange ends in an error nobody foresaw."""

    has_broken = False

    async def rows_of(self, exchange_id: str) -> list[object]:  # type: ignore[override]
        if not self.has_broken:
            self.has_broken = True
            raise RuntimeError("not foreseen")
        return list(await super().rows_of(exchange_id))


async def test_an_error_nobody_foresaw_delays_one_row_and_loses_none(redis_url: str, tmp_path: Path) -> None:
    dead, alive = (Admission(open_store(redis_url, deadline_s=30), lease_s=1.0) for _ in range(2))
    caller = Identity(
        key_hash="k" * 64,
        budgets=(Budget(10**9),),
        # A host application may call its members what it likes.
        principals=(Principal("member", "red/ann", budgets=(Budget(10**9),)),),
    )
    for number in range(3):
        await dead.acquire(exchange_id(number), caller, "m", tokens=0, hold_nano=1000 + number)
    ledger = BreakingLedger()
    recorder = Recorder(Journal(tmp_path), ledger, interval_s=0.01)
    ticker = Ticker(alive, recorder, Metrics(), every_s=0.1)
    await ticker.start()
    async with asyncio.timeout(60):
        while len(ledger.records) < 3:
            await asyncio.sleep(0.02)
    assert [(record.attempt, record.cost_nano) for record in ledger.records] == [(0, 1000), (0, 1001), (0, 1002)]
    await ticker.aclose()
    await recorder.aclose()
    await alive.aclose()
    await dead.aclose()
