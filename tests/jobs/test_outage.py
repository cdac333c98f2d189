"""The network between a leader and PostgreSQL loses everything: the leader stops by itself, then another begins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from sidecar.db import Database, migrate
from sidecar.identity.table import Store
from sidecar.jobs.leader import Leader
from sidecar.jobs.locks import AdvisoryLock
from sidecar.jobs.runner import Job, Runner
from sidecar.jobs.schedule import every
from sidecar.jobs.state import JobTable
from sidecar.metrics import Metrics
from tests.identity.relay import relayed

pytestmark = pytest.mark.anyio
LEASE_S = 1.5


async def test_a_leader_cut_off_stops_before_another_begins_and_does_not_come_back(postgres_url: str) -> None:
    await migrate(postgres_url)
    steps: list[str] = []
    runners: dict[str, Runner] = {}
    databases: list[Database] = []

    def add(name: str, url: str) -> Runner:
        async def run(leader: Leader) -> None:
            while True:
                leader.check()
                steps.append(name)
                await asyncio.sleep(0.01)

        databases.append(Database(url))
        lock = AdvisoryLock(databases[-1], lease_s=LEASE_S)
        runners[name] = Runner(
            [Job("job", "does", every(1), run)], Leader(lock, lease_s=LEASE_S), JobTable(Store(databases[-1])),
            Metrics().jobs, holder=name, clock=time.time, tick_s=0.02, first_s=0.0,
        )  # fmt: skip
        return runners[name]

    async def until(is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_so():
                await asyncio.sleep(0.01)

    async with relayed(postgres_url) as (relay, through):
        await add("far", through).start()
        await until(lambda: "far" in steps)
        await add("near", postgres_url).start()
        relay.freeze()
        await until(lambda: not runners["far"].leader.leads)
        stopped = len(steps)
        await until(lambda: "near" in steps)
        assert steps[stopped:].count("far") == 0
        relay.thaw()
        count = len(steps)
        await until(lambda: len(steps) > count + 200)  # longer than a lease: it asks again, and is not let in
        assert set(steps[count:]) == {"near"}
        for runner in runners.values():
            await runner.aclose()
        for database in databases:
            await database.aclose()
