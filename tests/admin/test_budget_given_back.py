"""A budget that was taken away for a while and is given back counts what was spent meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.db import Database, migrate
from sidecar.jobs.ticker import LedgerSeed
from sidecar.limits.admission import Admission
from sidecar.limits.store import open_store
from sidecar.spend.journal import Journal
from sidecar.spend.ledger import Ledger
from sidecar.spend.recorder import Recorder
from sidecar.types import Budget, Identity
from tests.faults.provider import FaultProvider
from tests.promises.support import body, served
from tests.spend.rows import row

pytestmark = pytest.mark.anyio
PLAIN = Identity(key_hash="k" * 64)
LIMITED = Identity(key_hash="k" * 64, budgets=(Budget(10**9), Budget(10**9, "30d")))


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_its_counters_are_what_the_ledger_says(
    tmp_path: Path, request: pytest.FixtureRequest, database_url: str, kind: str
) -> None:
    await migrate(database_url)
    ledger = Ledger(Database(database_url))
    recorder = Recorder(Journal(tmp_path), ledger, interval_s=3600, adopt_s=3600)
    seed = LedgerSeed(recorder, ledger, deadline_s=60)
    url = "memory://" if kind == "memory" else request.getfixturevalue("redis_url")
    admission = Admission(open_store(url, deadline_s=30), seed=seed)
    numbers = iter(range(100))

    async def spend(identity: Identity, nano: int) -> None:
        number = next(numbers)
        grant = await admission.acquire(f"x{number}", identity, "m", tokens=0, hold_nano=100)
        await recorder.record(row(number, at=grant.at, cost_nano=nano))
        await admission.settle(grant, tokens=0, cost_nano=nano)

    async def given() -> None:
        await admission.seed_identity(LIMITED)
        await admission.catch_up(LIMITED)

    await given()
    await spend(LIMITED, 30)
    await spend(PLAIN, 50)
    for _ in range(2):
        await given()
    under_way = await admission.acquire("under way", LIMITED, "m", tokens=0, hold_nano=4)
    await given()
    assert set((await admission.spent(LIMITED)).values()) == {84}
    await spend(LIMITED, 7)
    await admission.settle(under_way, tokens=0, cost_nano=0)
    await given()
    await recorder.flush()
    assert set((await admission.spent(LIMITED)).values()) == {87} == {await ledger.sum_all()}
    await recorder.aclose()
    await admission.aclose()
    await ledger.database.aclose()


async def test_a_key_that_spent_more_than_its_budget_meanwhile_is_refused(
    tmp_path: Path, faults: FaultProvider
) -> None:
    async with served(tmp_path, faults.base_url) as gateway:
        made = await gateway.admin("/key/generate", {"max_budget": 100})
        await gateway.admin("/key/update", {"key": made["token"], "max_budget": None})
        for _ in range(40):
            assert (await gateway.chat(made["key"], body())).status_code == 200
        spent = sum(float(row["spend"]) for row in await gateway.rows(made["token"], at_least=40))
        shown = await gateway.admin("/key/update", {"key": made["token"], "max_budget": round(0.75 * spent, 9)})
        assert shown["max_budget"] > 0
        assert (await gateway.chat(made["key"], body())).status_code != 200
