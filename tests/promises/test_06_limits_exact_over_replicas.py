"""*Limits are exact over replicas.* Four processes of `sidecar serve` share a Redis and a PostgreSQL; a team may make
60 requests a minute. 200 calls at once, over all four, admit exactly 60; refused calls consume nothing on any scope; no
rolling minute holds more. Time passes by making the counters' entries older, so that a minute need not be waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from redis.asyncio import Redis

from sidecar.identity.keys import new_key
from sidecar.limits.claims import Admitted, Denied
from sidecar.limits.store import open_store
from tests.faults.provider import FaultProvider
from tests.identity.making import Tree, opened
from tests.limits.making import NOW, claims, take
from tests.promises.sizes import measured, size
from tests.promises.support import Running, body, eventually, is_busy, process

pytestmark = pytest.mark.anyio
PROCESSES = 4
LIMIT = 60
SECONDS = size("PROMISE_6_SECONDS", 2, full=75)
"""How long the test with real time lasts; past 60 it sees whole windows roll by."""


@dataclass
class Replicas:
    running: list[Running]
    tree: Tree
    redis: Redis
    faults: FaultProvider
    slowest_s: float = 0.0

    async def team(self, **limits: object) -> tuple[str, list[str]]:
        """A team with as many keys as there are processes."""
        name = f"team-{new_key(os.urandom)[-8:]}"
        await self.tree.add("team", name, **limits)
        return name, [await self.key(name) for _ in self.running]

    async def key(self, team: str, **values: object) -> str:
        token = new_key(os.urandom)
        await self.tree.key(token, team_id=team, **values)
        return token

    async def burst(self, keys: list[str], count: int) -> list[httpx2.Response]:
        """`count` calls at once, spread over processes and keys."""
        calls = [
            self.call(running, key)
            for running, key, _ in zip(itertools.cycle(self.running), itertools.cycle(keys), range(count))
        ]
        random.Random(6).shuffle(calls)
        return await asyncio.gather(*calls)

    async def call(self, running: Running, key: str) -> httpx2.Response:
        began = time.monotonic()
        while is_busy(answer := await running.chat(key, body())):
            await asyncio.sleep(0.5)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        return answer

    async def age(self, seconds: float) -> None:
        """Whatever was counted was counted that much earlier."""
        async for name in self.redis.scan_iter("{sidecar}:r:*"):
            entries = await self.redis.zrange(name, 0, -1, withscores=True)
            aged = {member: score - seconds * 1e6 for member, score in entries}
            if aged:
                await self.redis.zadd(name, aged)


@pytest.fixture
async def replicas(tmp_path: Path, postgres_url: str, redis_url: str, faults: FaultProvider) -> AsyncIterator[Replicas]:
    store = {"database_url": postgres_url, "redis_url": redis_url, "deadline_s": 30}
    async with contextlib.AsyncExitStack() as stack:
        tree = await stack.enter_async_context(opened(postgres_url))
        folders = [tmp_path / str(number) for number in range(PROCESSES)]
        for folder in folders:
            folder.mkdir()
        running = await asyncio.gather(
            *(stack.enter_async_context(process(folder, faults.base_url, top={"store": store})) for folder in folders)
        )
        redis = Redis.from_url(redis_url)
        stack.push_async_callback(redis.aclose)
        yield Replicas(list(running), tree, redis, faults)


def statuses(answers: list[httpx2.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


async def test_a_teams_limit_over_four_processes(replicas: Replicas) -> None:
    """One start of the processes, several questions."""
    await exactly_the_limit_is_admitted(replicas)
    await the_minute_rolls(replicas)
    await no_rolling_minute_holds_more(replicas)


async def exactly_the_limit_is_admitted(replicas: Replicas) -> None:
    team, keys = await replicas.team(rpm_limit=LIMIT)
    share = LIMIT // PROCESSES
    replicas.faults.reset()
    answers = await replicas.burst(keys, 200)
    assert statuses(answers) == {200: LIMIT, 429: 200 - LIMIT}
    assert len(replicas.faults.requests) == LIMIT
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "requests_limit_exceeded"
            assert f"the team limit is {LIMIT} requests per minute" in answer.json()["error"]["message"]
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert team not in answer.text
    # A refused call consumed nothing: keys of a team that is full have all of their own limit left.
    lone = await replicas.key(team, rpm_limit=share, max_budget_nano=10**9, max_parallel_requests=share)
    assert statuses(await replicas.burst([lone], 50)) == {429: 50}
    await replicas.tree.change("team", team, rpm_limit=LIMIT + 1000)

    async def is_known() -> bool:
        answers = await asyncio.gather(*(running.chat(keys[0], body()) for running in replicas.running))
        return statuses(answers) == {200: PROCESSES}

    await eventually(is_known)
    answers = await replicas.burst([lone], 50)
    admitted = statuses(answers)[200]
    assert {a.json()["error"]["code"] for a in answers if a.status_code == 429} <= {
        "requests_limit_exceeded", "concurrency_limit_exceeded",
    }  # fmt: skip

    async def are_all_admitted() -> bool:
        nonlocal admitted
        (again,) = await replicas.burst([lone], 1)
        admitted += again.status_code == 200
        # A process may have been told of the team, and not yet of it for a key nobody asked it for.
        return again.status_code == 429 and "the team limit" not in again.json()["error"]["message"]

    await eventually(are_all_admitted)
    assert admitted == share
    last = (await replicas.burst([lone], 1))[0]
    assert f"the key limit is {share} requests per minute" in last.json()["error"]["message"]
    rows = await replicas.running[0].rows(lone, at_least=share)
    assert len(rows) == share
    spent = sum(row["spend"] for row in rows)
    assert await replicas.running[1].spend(lone) == pytest.approx(spent)


async def the_minute_rolls(replicas: Replicas) -> None:
    """Half of the limit, 40 s later the other half; after 20 s more the first half is free again, and no more."""
    half = LIMIT // 2
    _, keys = await replicas.team(rpm_limit=LIMIT)
    assert statuses(await replicas.burst(keys, half)) == {200: half}
    await replicas.age(40)
    assert statuses(await replicas.burst(keys, half)) == {200: half}
    refused = await replicas.burst(keys, 20)
    assert statuses(refused) == {429: 20}
    waits = [int(answer.headers["retry-after"]) for answer in refused]
    assert all(1 <= wait <= 20 for wait in waits), waits  # less what the calls themselves took
    await replicas.age(max(waits))
    assert statuses(await replicas.burst(keys, 200)) == {200: half, 429: 200 - half}
    await replicas.age(60)
    assert statuses(await replicas.burst(keys, 200)) == {200: LIMIT, 429: 200 - LIMIT}


async def no_rolling_minute_holds_more(replicas: Replicas) -> None:
    """Calls all the time; when they arrived at the provider is what counts."""
    _, keys = await replicas.team(rpm_limit=LIMIT)
    replicas.faults.reset()
    end = time.monotonic() + SECONDS
    admitted = calls = 0
    replicas.slowest_s = 0.0
    while time.monotonic() < end or calls < 3 * LIMIT:
        answers = await replicas.burst(keys, 40)
        calls += len(answers)
        admitted += statuses(answers)[200]
        assert set(statuses(answers)) <= {200, 429}
    times = sorted(seen.at for seen in replicas.faults.requests)
    assert len(times) == admitted
    # A call is counted before it goes out: two may come closer together than they were counted by what that takes.
    slack = 1.0 + replicas.slowest_s
    most = max(sum(at <= other < at + 60 - slack for other in times) for at in times)
    measured(6, f"{calls} calls in {SECONDS} s, {admitted} admitted, {most} in the fullest minute of {LIMIT}")
    assert most <= LIMIT
    assert admitted >= LIMIT


async def test_any_minute_of_a_long_day_holds_the_limit(redis_like_url: str) -> None:
    """Four processes' connections to one store, 1500 calls over a quarter of an hour by a clock of the test's own."""
    stores = [open_store(redis_like_url, deadline_s=30) for _ in range(PROCESSES)]
    wanted = claims(rpm={"team": LIMIT, "key": 10_000})
    picks = random.Random(60)
    at, minute = 0, 60_000_000  # microseconds since NOW, so that sums are exact
    admitted: list[int] = []
    try:
        for number in range(1500):
            at += picks.choice((0, 1, 1_000, 50_000, 300_000, round(picks.expovariate(2) * 1e6)))
            result = await take(stores[number % PROCESSES], wanted, NOW + at / 1e6)
            if isinstance(result, Admitted):
                admitted.append(at)
                continue
            assert isinstance(result, Denied)
            assert result.kind == "team"
            # It could not have been admitted, and will be at the instant told.
            assert sum(at - minute < earlier for earlier in admitted) == LIMIT
            assert result.retry_after_s == pytest.approx((admitted[-LIMIT] + minute - at) / 1e6, abs=2e-6)
    finally:
        for store in stores:
            await store.aclose()
    assert len(admitted) > 3 * LIMIT
    assert max(sum(a <= b < a + minute for b in admitted) for a in admitted) == LIMIT
