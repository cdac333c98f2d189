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
from tests.servers.relay import relayed

pytestmark = pytest.mark.anyio
LEASE_S = 1.5


class Eager(Leader):
    """Asks often, and keeps what it has while this process stands still."""

    renew_s = LEASE_S / 3


class Told(AdvisoryLock):
    """What the server said of it."""

    def __init__(self, database: Database, *, lease_s: float) -> None:
        super().__init__(database, lease_s=lease_s)
        self.answers: list[bool] = []

    async def hold(self) -> bool:
        self.answers.append(await super().hold())
        return self.answers[-1]


async def test_a_leader_cut_off_stops_before_another_begins_and_does_not_come_back(postgres_url: str) -> None:
    await migrate(postgres_url)
    steps: list[str] = []
    runners: dict[str, Runner] = {}
    databases: list[Database] = []

    def add(name: str, url: str, make: type[Leader], lease_s: float) -> Told:
        async def run(leader: Leader) -> None:
            while True:
                leader.check()
                steps.append(name)
                await asyncio.sleep(0.01)

        databases.append(Database(url))
        lock = Told(databases[-1], lease_s=lease_s)
        runners[name] = Runner(
            [Job("job", "does", every(1), run)], make(lock, lease_s=lease_s), JobTable(Store(databases[-1])),
            Metrics().jobs, holder=name, clock=time.time, tick_s=0.02, first_s=0.0,
        )  # fmt: skip
        return lock

    async def until(is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_so():
                await asyncio.sleep(0.01)

    async with relayed(postgres_url) as (relay, through):
        far = add("far", through, Leader, LEASE_S)
        await runners["far"].start()
        await until(lambda: "far" in steps)
        add("near", postgres_url, Eager, 60.0)
        await runners["near"].start()
        relay.freeze()
        await until(lambda: not runners["far"].leader.leads)
        stopped = len(steps)
        await until(lambda: "near" in steps)
        assert steps[stopped:].count("far") == 0
        relay.thaw()
        count, told = len(steps), len(far.answers)
        await until(lambda: len(far.answers) > told + 1 and len(steps) > count)  # it asks again
        assert not any(far.answers[told:]), "and is not let in"
        assert set(steps[count:]) == {"near"}
        for runner in runners.values():
            await runner.aclose()
        for database in databases:
            await database.aclose()
