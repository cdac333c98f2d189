"""A silent owner's hold was charged, its row corrected, and then the owner settles after all: its rows alone count."""

from __future__ import annotations

import asyncio
from datetime import UTC
from pathlib import Path

import pytest

from sidecar.db import Database, migrate
from sidecar.jobs.ticker import silent_record
from sidecar.jobs.unknown import Unknown
from sidecar.limits.admission import Admission
from sidecar.limits.claims import SilentHold
from sidecar.limits.store import open_store
from sidecar.spend.journal import Journal
from sidecar.spend.ledger import Ledger
from sidecar.spend.recorder import Recorder
from sidecar.spend.verify import totals_that_differ
from tests.jobs.test_unknown import CALLER, HELD, REAL
from tests.spend.rows import exchange_id, row

pytestmark = pytest.mark.anyio
LEASE_S = 0.3


@pytest.mark.parametrize("resolved_at", [None, 0, REAL, HELD])
async def test_neither_ledger_nor_counters_keep_anything_of_it(
    tmp_path: Path, redis_url: str, resolved_at: int | None
) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    await migrate(url)
    ledger = Ledger(Database(url))
    slow, other = (Admission(open_store(redis_url, deadline_s=30), lease_s=LEASE_S) for _ in range(2))
    recorder, unknown = Recorder(Journal(tmp_path / "j"), ledger), Unknown(ledger, other.store, zone=UTC)
    recorder.uncorrect = unknown.uncorrect
    name = exchange_id(1)
    grant = await slow.acquire(name, CALLER, "m", tokens=0, hold_nano=HELD)
    silent: list[SilentHold] = []
    async with asyncio.timeout(60):
        while not (silent := await other.tick()):
            await asyncio.sleep(LEASE_S / 3)
    await recorder.silent(silent_record(silent[0]))
    await other.written(silent[0])
    await recorder.flush()
    if resolved_at is None:
        await unknown.write_off(grant.at + 3600)
    else:
        await unknown.resolve(name, resolved_at)
    assert set((await other.spent(CALLER)).values()) == {await ledger.sum_all()} == {resolved_at or 0}

    await ledger.insert([row(1, at=grant.at, cost_nano=2 * HELD, key_hash=CALLER.key_hash)])
    await slow.settle(grant, tokens=0, cost_nano=2 * HELD)
    [over] = await other.tick()
    for _ in range(2):  # whoever did it may have died before it said so
        await recorder.heard(silent_record(over))
    await other.written(over)
    assert set((await other.spent(CALLER)).values()) == {await ledger.sum_all()} == {2 * HELD}
    assert await unknown.write_off(grant.at + 3600) == 0, "nothing is unknown"
    assert await totals_that_differ(ledger) == []
    await recorder.aclose()
    for admission in (slow, other):
        await admission.aclose()
    await ledger.database.aclose()
