"""*The ledger is the truth.* Random operations (`PROMISE_3_OPERATIONS`) on budgets of keys, teams, users and everybody,
by three processes on Redis and PostgreSQL, and by one in its own memory on SQLite, with a clock of its own: calls
that succeed, fail, are tried again, are cancelled; processes that are killed, or freeze and go on after others took
them for dead; a Redis that loses its memory; windows that roll over; corrections of what was unknown. A model that
adds up by hand says of every request whether there is money for it, and how much: it is admitted then, and only then.
At rest every counter, the sum of its rows, and the model agree to the nano-dollar. Nothing is ever reset: a counter's
name has its window's start.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from sidecar.db import Database, migrate
from sidecar.errors import BudgetExceededError
from sidecar.jobs.unknown import Unknown
from sidecar.limits.store.memory import MemoryStore
from sidecar.spend.ledger import Ledger
from sidecar.types import Budget, Identity, Principal, SpendRecord, Usage
from tests.promises.books import LEASE_S, Attempt, Clock, Exchange, Process, TimedRedisStore, World
from tests.promises.sizes import measured, size
from tests.spend.rows import exchange_id

pytestmark = pytest.mark.anyio
OPERATIONS = size("PROMISE_3_OPERATIONS", 3000, full=45_000)
NOW = 2_000_000_000.0
USD = 10**9
TEAM = {"t1": (Budget(2_000, "1h"), Budget(90_000, "1mo")), "t2": (Budget(40_000, "1w"),)}
USER = {"u1": (Budget(1_500, "90m", NOW - 777),), "u2": (Budget(30_000_000),)}
KEYS = tuple(
    Identity(
        f"key-{number}",
        team_id=team,
        user_id=user,
        budgets=budgets,
        principals=(Principal("team", team, budgets=TEAM[team]), Principal("user", user, budgets=USER[user])),
    )
    for number, (team, user, budgets) in enumerate(
        [
            ("t1", "u1", (Budget(1_000, "1h"),)),
            ("t1", "u2", (Budget(5_000, "1d"), Budget(700, "1h"))),
            ("t2", "u1", ()),
            ("t2", "u2", (Budget(9_000, "30d", NOW - 12_345),)),
        ]
    )
)


@pytest.fixture(params=["three processes on Redis and PostgreSQL", "one process on SQLite"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    clock = Clock(NOW)
    make_store: Callable[[], TimedRedisStore | MemoryStore]
    if request.param.startswith("three"):
        url, count = request.getfixturevalue("postgres_url"), 3
        redis_url = request.getfixturevalue("redis_url")
        make_store = lambda: TimedRedisStore(redis_url, clock)  # noqa: E731
    else:
        url, count = f"sqlite:///{tmp_path}/ledger.db", 1
        make_store = lambda: MemoryStore(clock)  # noqa: E731
    await migrate(url)
    database = Database(url)
    world = World(tmp_path / "journal", Ledger(database), make_store, clock)
    world.global_budgets = (Budget(50_000, "1d"),)
    for _ in range(count):
        await world.start()
    yield world
    await world.aclose()
    await database.aclose()


@dataclass
class Work:
    """What happens next, at random. Each operation returns whether there was anything to do."""

    world: World
    draw: random.Random
    done: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    unknown: list[Exchange] = field(default_factory=list)

    def awake(self) -> Process:
        return self.draw.choice([process for process in self.world.processes if not process.is_frozen])

    def pick(self, process: Process) -> Exchange | None:
        return self.draw.choice(process.live) if process.live else None

    def row(self, exchange: Exchange, number: int, status: str, cost: int, revision: int = 0) -> SpendRecord:
        who = exchange.identity
        return SpendRecord(
            exchange_id=exchange.name, attempt=number, revision=revision, at=exchange.grant.at, key_hash=who.key_hash,
            status=status, outcome="ok" if status == "settled" else "incomplete", cost_nano=cost, group="gpt",
            provider="openai", model="gpt", team_id=who.team_id, user_id=who.user_id,
            usage=Usage(input=1) if status == "settled" else Usage(),
        )  # fmt: skip

    async def ask(self) -> bool:
        process, identity = self.awake(), self.draw.choice(KEYS)
        hold = self.draw.choice((0, 1, 50, 400, 1_100))
        minimum = self.draw.choice((hold, hold, hold // 3))
        name = exchange_id(sum(self.done.values()), self.world.clock.now)
        windows = process.admission.claims_of(identity, "gpt", limits=False).windows
        expected = self.world.books.fits(windows, hold, minimum)
        try:
            grant = await process.admission.acquire(
                name, identity, "gpt", tokens=0, hold_nano=hold, min_hold_nano=minimum, limits=False
            )
        except BudgetExceededError:
            assert expected is None, f"refused wrongly: {hold} of {identity.key_hash}, there was {expected}"
            self.seen["refused"] += 1
            return True
        assert grant.hold_nano == expected, f"{hold} of {identity.key_hash}"
        exchange = Exchange(name, identity, grant, windows)
        self.world.books.put(exchange, grant.hold_nano)
        process.live.append(exchange)
        return True

    async def dispatch(self) -> bool:
        """Another attempt: within the hold the first time, else with more of it if earlier ones may be billed."""
        process = self.awake()
        exchange = self.pick(process)
        if exchange is None or len(exchange.attempts) > 3 or any(a.cost is None for a in exchange.attempts):
            return False
        grant = exchange.grant
        held = grant.hold_nano if not exchange.attempts else self.draw.choice((10, 50, 400))
        extra = exchange.cost + held - grant.hold_nano
        if extra > 0:
            expected = self.world.books.fits(exchange.windows, extra, extra) is not None
            try:
                await process.admission.extend_hold(grant, extra)
                assert expected
            except BudgetExceededError:
                assert not expected, "a retry was refused wrongly"
                return True
            self.world.books.put(exchange, grant.hold_nano)
        exchange.attempts.append(Attempt(held))
        exchange.is_journalled = True
        await process.recorder.intent(self.row(exchange, len(exchange.attempts), "unknown", held))
        return True

    async def answer(self) -> bool:
        """What is in flight ends: well, or unpaid, or nobody knows."""
        process = self.awake()
        exchange = self.pick(process)
        attempt = exchange.attempts[-1] if exchange and exchange.attempts else None
        if exchange is None or attempt is None or attempt.cost is not None:
            return False
        status = self.draw.choice(("settled", "settled", "not_billed", "unknown"))
        attempt.cost = {"settled": self.draw.randint(0, attempt.held), "not_billed": 0}.get(status, attempt.held)
        attempt.is_unknown = status == "unknown"
        await process.recorder.record(self.row(exchange, len(exchange.attempts), status, attempt.cost))
        return True

    async def settle(self, process: Process | None = None, exchange: Exchange | None = None) -> bool:
        process = process or self.awake()
        exchange = exchange or self.pick(process)
        if exchange is None or any(attempt.cost is None for attempt in exchange.attempts):
            return False
        process.live.remove(exchange)
        if exchange.attempts:
            await process.admission.settle(exchange.grant, tokens=None, cost_nano=exchange.cost)
            self.world.books.put(exchange, exchange.cost)
            self.unknown += [exchange] if any(a.is_unknown and a.held for a in exchange.attempts) else []
        else:
            await process.admission.cancel(exchange.grant)
            self.world.books.put(exchange, 0)
        return True

    async def correct(self) -> bool:
        """Of an attempt of unknown cost whose row is in the ledger it is found out what it cost."""
        if not self.unknown:
            return False
        process = self.awake()
        place = self.draw.randrange(len(self.unknown))
        exchange = self.unknown[place]
        number, attempt = next((n, a) for n, a in enumerate(exchange.attempts, 1) if a.is_unknown and a.held)
        rows = await self.world.ledger.rows_of(exchange.name)
        if sum(row.cost_nano for row in rows if row.attempt == number and row.status == "unknown") == 0:
            return False
        del self.unknown[place]
        real = self.draw.randint(0, attempt.held)
        unknown = Unknown(self.world.ledger, process.admission.store, zone=UTC)
        await unknown.resolve(exchange.name, real, attempt=number)
        attempt.cost, attempt.is_unknown = real, False
        self.world.books.put(exchange, exchange.cost)
        return True

    async def ship(self) -> bool:
        await self.world.flush(self.awake())
        return True

    async def wait(self) -> bool:
        await self.world.sleep(self.draw.choice((0.0, 0.001, 1.0, 4.0)))
        return True

    async def roll(self) -> bool:
        """Just before an hour, a day or a month ends, or long after."""
        hour = 3600 - self.world.clock.now % 3600
        await self.world.suspend(self.draw.choice((hour - 0.000_5, hour, hour + 1, 5_400, 86_400, 9 * 86_400)))
        return True

    async def kill(self) -> bool:
        await self.world.kill(self.awake())
        await self.world.start()
        return True

    async def freeze(self) -> bool:
        """One stands still until others take it for dead; then it goes on, and what it had in flight ends."""
        if len(self.world.processes) < 2:
            return False
        process = self.awake()
        process.is_frozen = True
        await self.world.sleep(self.draw.choice((LEASE_S / 2, 2 * LEASE_S, 3 * LEASE_S)))
        process.is_frozen = False
        await self.world.tick(process)
        for exchange in [e for e in process.live if e.name in process.silent]:
            if exchange.attempts and exchange.attempts[-1].cost is None:
                exchange.attempts[-1].cost = self.draw.randint(0, exchange.attempts[-1].held)
                number, cost = len(exchange.attempts), exchange.attempts[-1].cost
                await process.recorder.record(self.row(exchange, number, "settled", cost))
            await self.settle(process, exchange)
            self.seen["late"] += 1
        process.silent.clear()
        await self.world.tick(process)
        return True

    async def forget(self) -> bool:
        """Redis loses its memory, while calls run and rows wait in journals; its first words come in any order."""
        store = self.world.processes[0].admission.store
        if not isinstance(store, TimedRedisStore):
            return False
        await self.world.sleep(3 * LEASE_S)
        async with Redis.from_url(store.url) as client:
            await client.flushdb()
        self.world.clock.now += 0.000_001
        todo: list[Callable[[], Awaitable[object]]] = [self.answer, self.answer, self.settle, self.settle, self.ship]
        for process in self.world.processes:
            todo += [partial(self.world.tick, process), process.admission.reseed]
        self.draw.shuffle(todo)
        for what in todo:
            await what()
        await self.end()
        for process in self.world.processes:
            await self.world.tick(process)
            if process.admission.reseed_due.is_set():
                await process.admission.reseed()
        assert await self.world.differences() == []
        assert await self.world.ledger_differences(since_at=self.world.clock.now) == []
        return True

    async def rest(self) -> None:
        """Everything ends; what the dead held is given up."""
        await self.end()
        await self.world.sleep(3 * LEASE_S)
        for process in self.world.processes:
            await self.world.flush(process)

    async def end(self) -> None:
        for process in self.world.processes:
            for exchange in list(process.live):
                if exchange.attempts and exchange.attempts[-1].cost is None:
                    exchange.attempts[-1].cost = 7 if exchange.attempts[-1].held >= 7 else 0
                    number, cost = len(exchange.attempts), exchange.attempts[-1].cost
                    await process.recorder.record(self.row(exchange, number, "settled", cost))
                await self.settle(process, exchange)


WEIGHTS = {
    "ask": 30, "dispatch": 28, "answer": 28, "settle": 20, "correct": 2, "wait": 3, "ship": 1, "roll": 0.3, "kill": 0.3,
    "freeze": 0.2,
    "forget": 0.15,
}  # fmt: skip


async def test_counters_rows_and_a_model_agree_to_the_nano_dollar(world: World, request: pytest.FixtureRequest) -> None:
    draw = random.Random(3)
    work = Work(world, draw)
    names, weights = list(WEIGHTS), list(WEIGHTS.values())
    tried = 0
    while sum(work.done.values()) < OPERATIONS and tried < 10 * OPERATIONS:
        tried += 1
        (name,) = draw.choices(names, weights)
        if await getattr(work, name)():
            work.done[name] += 1
        if tried % 200 == 0:
            assert await world.differences() == [], f"after {tried} operations"
    await work.rest()
    assert await world.differences() == []
    assert await world.ledger_differences() == []
    done, seen = work.done, work.seen
    assert seen["refused"] > 0
    assert done["correct"] > 0
    assert done["kill"] > 0
    if len(world.processes) > 1:
        assert seen["late"] > 0
        assert done["forget"] > 0
    assert len(world.books.windows) > 20
    place = request.node.callspec.params["world"]
    measured(
        3,
        f"{place}: {sum(done.values())} operations ({seen['refused']} refusals, {done['kill']} kills, "
        f"{seen['late']} calls of frozen processes, {done['correct']} corrections, "
        f"Redis emptied {done['forget']} times), "
        f"{len(world.books.windows)} budget windows, differences 0, wrong refusals 0",
    )
