"""What a shared store that goes and comes back must not cost: a spend it never hears of, a hold nobody settles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import pytest
from redis.asyncio import Redis

from sidecar.errors import UnavailableError
from sidecar.limits.admission import MAX_OWED, Admission, Grant
from sidecar.limits.claims import Settled
from sidecar.limits.store import LimitStore
from sidecar.limits.windows import BudgetWindow
from sidecar.types import Budget
from tests.limits.making import NOW, caller, claims, new_id, take, window
from tests.servers.redis import LocalServer
from tests.servers.relay import relayed

pytestmark = pytest.mark.anyio
Open = Callable[..., LimitStore]
CALLER = caller(budgets=(Budget(1000),))


async def nothing_spent(windows: Sequence[BudgetWindow]) -> Mapping[str, int]:
    return {}


async def until_back(admission: Admission) -> dict[str, int]:
    async with asyncio.timeout(60):
        while True:
            try:
                return await admission.spent(CALLER)
            except UnavailableError:
                await asyncio.sleep(0.05)


async def test_what_was_spent_elsewhere_counts_in_a_window_that_nobody_has_asked_for_yet(shared: LimitStore) -> None:
    """The store was out of reach when the window began: it counts from its beginning, so no ledger will tell."""
    await shared.seed({}, now=NOW - 1000)
    today, older = window(start=NOW), window("team", start=NOW - 2000)
    wanted = claims(windows=(today, older))
    for _ in range(2):
        assert await shared.charge("a:open", wanted, 400, NOW + 1)
    await shared.seed({older.key: 7}, now=NOW + 2)
    assert await shared.spent([today.key, older.key]) == {today.key: 400, older.key: 7}, "the ledger has it"
    granted = await take(shared, claims(windows=(today,)), NOW + 3, hold=1000, least=1)
    assert granted.hold_nano == 600  # type: ignore[union-attr]


async def test_what_was_spent_elsewhere_counts_in_a_counter_whose_reading_came_to_nothing(shared: LimitStore) -> None:
    """It is counted here from when the ledger was first asked on, so what the ledger says ends there."""
    today = window(start=NOW)
    wanted = claims(windows=(today,))
    assert await shared.begin([today], now=NOW + 10) is not None, "and the store was gone when the ledger had answered"
    assert await shared.charge("a:open", wanted, 400, NOW + 20)
    again = await shared.begin([today], now=NOW + 30)
    assert again is not None
    assert again.since == {today.key: NOW + 10}
    await shared.seed({today.key: 50}, [today], now=NOW + 31, reading=again)
    assert (await shared.spent([today.key]))[today.key] == 450
    later = await shared.begin([today], now=NOW + 40)
    await shared.seed({today.key: 60}, [today], now=NOW + 41, reading=later)
    assert (await shared.spent([today.key]))[today.key] == 460, "read again, it is not counted twice"


async def test_who_is_refused_in_an_outage_is_not_owed_anything(redis_url: str, open_stores: Open) -> None:
    """Else the many refused would take the room of those who were admitted and have to be settled."""
    async with relayed(redis_url) as (relay, url):
        admission = Admission(open_stores(url), seed=nothing_spent)
        grant = await admission.acquire("first", CALLER, "m", tokens=0, hold_nano=100)
        relay.hang_up()
        for _ in range(MAX_OWED + 10):
            with pytest.raises(UnavailableError):
                await admission.acquire(new_id(), CALLER, "m", tokens=0, hold_nano=100)
        await admission.settle(grant, tokens=0, cost_nano=30)
        relay.come_back()
        await until_back(admission)
        await admission.tick()
        assert set((await admission.spent(CALLER)).values()) == {30}


async def test_what_was_spent_elsewhere_is_told_however_much_it_was(redis_url: str, open_stores: Open) -> None:
    async with relayed(redis_url) as (relay, url):
        admission = Admission(open_stores(url), seed=nothing_spent, on_store_failure="open")
        who = [caller(f"k{number}", budgets=(Budget(10**9),)) for number in range(3)]
        for one in who:
            await admission.settle(
                await admission.acquire(new_id(), one, "m", tokens=0, hold_nano=5), tokens=0, cost_nano=1
            )
        relay.hang_up()
        for number in range(MAX_OWED + 300):
            grant = await admission.acquire(new_id(), who[number % 3], "m", tokens=0, hold_nano=5)
            await admission.settle(grant, tokens=0, cost_nano=3)
        relay.come_back()
        await until_back(admission)
        await admission.tick()
        spent = [nano for one in who for nano in (await admission.spent(one)).values()]
        assert sum(spent) == 3 + 3 * (MAX_OWED + 300)
        assert max(spent) - min(spent) <= 3


async def test_a_process_that_ends_waits_for_a_store_that_is_away_for_a_moment(
    redis_url: str, open_stores: Open
) -> None:
    """What it settled meanwhile nobody else knows: the whole hold would stay charged."""
    watcher = Admission(open_stores(redis_url), seed=nothing_spent)
    async with relayed(redis_url) as (relay, url):
        leaving = Admission(open_stores(url), seed=nothing_spent)
        grants = [await leaving.acquire(new_id(), CALLER, "m", tokens=0, hold_nano=100) for _ in range(3)]
        relay.hang_up()
        for grant in grants:
            await leaving.settle(grant, tokens=0, cost_nano=30)
        relay.come_back()
        await leaving.aclose()
    assert set((await watcher.spent(CALLER)).values()) == {90}


async def test_a_server_that_stood_still_before_it_read_of_the_silent_takes_nobody_for_silent(
    start_redis: Callable[..., LocalServer], open_stores: Open
) -> None:
    server = start_redis()
    one, other = open_stores(server.url), open_stores(server.url)
    now = time.time()
    today = window(start=now - 100, end=now + 1000)
    await one.seed({today.key: 0}, [today])
    wanted = claims(windows=(today,), slots={"key": 1})
    await one.acquire("live", wanted, tokens=0, hold_nano=50, min_hold_nano=50, lease_s=1.0)
    await one.renew(["live"], 1.0)
    await other.renew([], 1.0)
    server.freeze()
    late = asyncio.ensure_future(other.reap())
    await asyncio.sleep(1.2)
    server.thaw()
    assert await late == []
    await one.renew(["live"], 1.0)
    assert await other.reap() == []


class Rows:
    """A ledger: what was spent, by instant."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, int]] = []

    async def __call__(self, windows: Sequence[BudgetWindow]) -> Mapping[str, int]:
        return {w.key: sum(nano for at, nano in self.rows if w.start_at <= at < w.end_at) for w in windows}


@pytest.mark.parametrize("kind", ["redis", "valkey"])
@pytest.mark.parametrize("has_ledger", [True, False])
async def test_a_server_that_starts_with_what_it_saved_is_one_that_lost_its_memory(
    kind: str, has_ledger: bool, start_redis: Callable[..., LocalServer], open_stores: Open
) -> None:
    """As Redis does unless told otherwise. The ledger knows better; without one, that is the best there is."""
    server, ledger = start_redis(kind), Rows()
    admission = Admission(open_stores(server.url), seed=ledger if has_ledger else None, lease_s=1.0)

    async def start(hold_nano: int) -> Grant:
        return await admission.acquire(
            new_id(), CALLER, "m", tokens=0, hold_nano=hold_nano, min_hold_nano=min(hold_nano, 1)
        )

    async def end(grant: Grant, nano: int) -> None:
        await admission.settle(grant, tokens=0, cost_nano=nano)
        ledger.rows.append((grant.at, nano))

    await end(await start(200), 100)
    running, ended = await start(200), await start(200)
    async with Redis.from_url(server.url) as client:
        await client.save()
    await end(ended, 20)
    for _ in range(5):
        await end(await start(100), 100)
    server.kill()
    server.start()
    await until_back(admission)
    await admission.tick()
    if not has_ledger:
        assert set((await admission.spent(CALLER)).values()) == {100 + 200 + 200}
        return
    last = await start(1000)
    assert last.hold_nano == 1000 - 620 - 200, "all that was spent, and what the one that runs may cost"
    await end(last, 5)
    await end(running, 30)
    await asyncio.sleep(1.2)
    assert await admission.tick() == [], "nobody is silent of those that ended before"
    await admission.reseed()
    assert set((await admission.spent(CALLER)).values()) == {655}
    # Whoever connects anew to the same server forgets nothing.
    again = Admission(open_stores(server.url), seed=nothing_spent)
    await again.tick()
    assert set((await again.spent(CALLER)).values()) == {655}


async def test_a_hold_that_was_charged_is_taken_back_by_its_owner_also_after_a_restart(
    start_redis: Callable[..., LocalServer], open_stores: Open
) -> None:
    server, today = start_redis(), window()
    one = open_stores(server.url)
    reading = await one.begin([today], now=NOW - 5)
    await one.seed({today.key: 0}, [today], now=NOW - 5, reading=reading)
    await take(one, claims(windows=(today,)), exchange="slow", hold=60, owner="k1")
    assert [hold.exchange_id for hold in await one.reap(NOW + 11)] == ["slow"]
    async with Redis.from_url(server.url) as client:
        await client.save()
    server.kill()
    server.start()
    other = open_stores(server.url)
    assert (await other.spent([today.key])) == {today.key: 0}
    reading = await other.begin([today], now=NOW + 60)
    await other.seed({today.key: 60}, [today], now=NOW + 60, reading=reading)  # its row of attempt 0
    assert await other.settle("slow", tokens=None, cost_nano=25) is Settled.WAS_SILENT
    assert [(hold.exchange_id, hold.is_over) for hold in await other.reap(NOW + 200)] == [("slow", True)]
    assert (await other.spent([today.key])) == {today.key: 60}, "until the ledger is read again"


async def test_who_counts_anew_what_a_server_lost_keeps_its_leases_meanwhile(redis_url: str, open_stores: Open) -> None:
    """Each running request's counters are read from the ledger, one after the other: that may last."""

    async def slow(windows: Sequence[BudgetWindow]) -> Mapping[str, int]:
        await asyncio.sleep(0.15 if is_lost else 0.0)
        return {}

    is_lost = False
    one = Admission(open_stores(redis_url), seed=slow, lease_s=1.0)
    other = Admission(open_stores(redis_url), seed=nothing_spent, lease_s=1.0)
    for number in range(12):
        who = caller(f"k{number}", budgets=(Budget(1000),))
        await one.acquire(f"x{number}", who, "m", tokens=0, hold_nano=50)
    async with Redis.from_url(redis_url) as client:
        await client.flushdb()
    is_lost = True
    restoring = asyncio.ensure_future(one.tick())
    while not restoring.done():
        assert await other.tick() == [], "nobody is silent"
        await asyncio.sleep(0.1)
    assert await restoring == []
    assert await one.store.renew([f"x{number}" for number in range(12)], 1.0) == []
