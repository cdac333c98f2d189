"""Admission: refusals in words, seeding, rollover, a store that fails, owed settlements, what it costs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from redis.asyncio import Redis

from sidecar.errors import BudgetExceededError, RateLimitedError, UnavailableError
from sidecar.limits.admission import Admission
from sidecar.limits.scopes import Scope, key_scope
from sidecar.limits.store import LimitStore, open_store
from sidecar.limits.store.memory import MemoryStore
from sidecar.limits.windows import BudgetWindow
from sidecar.types import Budget, Identity, Limits
from tests.limits.conftest import Clock
from tests.limits.making import NOW, caller, new_id, patience
from tests.servers.redis import LocalServer

pytestmark = pytest.mark.anyio
Open = Callable[..., LimitStore]
DAY = Budget(1000, "1d")


class Ledger:
    """Takes the ledger's place at its seam: sums by counter key."""

    def __init__(self, **sums: int) -> None:
        self.sums: dict[str, int] = dict(sums)
        self.asked: list[str] = []
        self.is_down = False

    async def __call__(self, windows: Sequence[BudgetWindow]) -> Mapping[str, int]:
        await asyncio.sleep(0.01)
        if self.is_down:
            raise OSError("no database")
        self.asked += [w.key for w in windows]
        return {w.key: self.sums.get(w.kind, 0) for w in windows}


def take(admission: Admission, identity: Identity, hold: int = 0, **more: Any) -> Awaitable[Any]:
    return admission.acquire(new_id(), identity, "m", tokens=more.pop("tokens", 1), hold_nano=hold, **more)


def money(admission: Admission, identity: Identity) -> Awaitable[dict[str, int]]:
    return admission.spent(identity)


async def spent(admission: Admission, identity: Identity) -> int:
    (value,) = set((await money(admission, identity)).values())
    return value


# what the client is told ------------------------------------------------------------------------------------------


async def test_a_refusal_names_kind_window_and_wait_but_no_ids(clock: Clock) -> None:
    admission = Admission(MemoryStore(clock), clock=clock, global_limits=Limits(rpm=100))
    identity = caller("deadbeef", rpm=1, budgets=(DAY,))
    grant = await take(admission, identity, 400)
    assert dict(grant.headers) == {
        b"x-ratelimit-limit-requests": b"1",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"60.000s",
    }
    clock.now += 12.5
    with pytest.raises(RateLimitedError, match="key limit is 1 requests per minute") as refused:
        await take(admission, identity)
    assert (refused.value.retry_after_s, refused.value.code) == (47.5, "requests_limit_exceeded")
    assert "deadbeef" not in refused.value.message
    rich = caller("deadbeef", budgets=(DAY,))
    with pytest.raises(BudgetExceededError, match=r"key budget of \$0\.000001") as broke:
        await take(admission, rich, 601)
    assert broke.value.retry_after_s == 86400 - clock.now % 86400
    assert "deadbeef" not in broke.value.message
    with pytest.raises(RateLimitedError, match="can never fit"):
        await take(admission, caller("other", tpm=10), tokens=11)


async def test_each_part_can_be_claimed_alone(clock: Clock) -> None:
    admission = Admission(MemoryStore(clock), clock=clock)
    identity = caller(rpm=1, budgets=(DAY,))
    await take(admission, identity, 100, limits=False)
    await take(admission, identity, 100, budgets=False)
    with pytest.raises(RateLimitedError):
        await take(admission, identity, 0, budgets=False)
    await take(admission, identity, 900, limits=False)
    with pytest.raises(BudgetExceededError):
        await take(admission, identity, 1, limits=False)


async def test_a_scope_is_one_function_and_may_depend_on_the_model(clock: Clock) -> None:
    def team(identity: Identity, model: str) -> list[Scope]:
        return [Scope("team", identity.team_id, Limits(rpm=1))] if identity.team_id else []

    def model_of_key(identity: Identity, model: str) -> list[Scope]:
        return [Scope("model", f"{identity.key_hash}:{model}", Limits(rpm=1))]

    model_of_key.by_model = True  # type: ignore[attr-defined]
    teams = Admission(MemoryStore(clock), clock=clock, scopes=(key_scope, team))
    await take(teams, Identity("a", team_id="t"))
    with pytest.raises(RateLimitedError, match="the team limit is 1"):
        await take(teams, Identity("b", team_id="t"))
    await take(teams, Identity("c"))
    models = Admission(MemoryStore(clock), clock=clock, scopes=(model_of_key,))
    identity = caller()
    for model in ("m1", "m2"):
        await models.acquire(new_id(), identity, model, tokens=0, hold_nano=0)
        with pytest.raises(RateLimitedError):
            await models.acquire(new_id(), identity, model, tokens=0, hold_nano=0)


# seeding and rollover ---------------------------------------------------------------------------------------------


async def test_budgets_survive_a_restart(store_uri: str, open_stores: Open) -> None:
    ledger = Ledger(key=990, **{"global": 5})
    for _ in range(2):
        admission = Admission(open_stores(store_uri), seed=ledger, global_budgets=(Budget(10_000, "1mo"),))
        with pytest.raises(BudgetExceededError):
            await take(admission, caller(budgets=(DAY,)), 11)
        await admission.cancel(await take(admission, caller(budgets=(DAY,)), 10))


async def test_many_starters_seed_a_counter_once(store_uri: str, open_stores: Open) -> None:
    ledgers = [Ledger(key=400), Ledger(key=400), Ledger(key=400)]
    stores = [open_stores(store_uri) for _ in ledgers]
    if store_uri == "memory://":
        stores = stores[:1] * 3
    admissions = [Admission(store, seed=ledger) for store, ledger in zip(stores, ledgers, strict=True)]
    await asyncio.gather(*(take(admissions[i % 3], caller(budgets=(DAY,)), 10) for i in range(30)))
    assert await spent(admissions[0], caller(budgets=(DAY,))) == 400 + 300


async def test_a_ledger_that_does_not_answer_is_503_and_admits_nothing(clock: Clock) -> None:
    ledger = Ledger(key=400)
    ledger.is_down = True
    admission = Admission(MemoryStore(clock), clock=clock, seed=ledger)
    with pytest.raises(UnavailableError) as refused:
        await take(admission, caller(budgets=(DAY,)), 10)
    assert refused.value.status == 503
    ledger.is_down = False
    await take(admission, caller(budgets=(DAY,)), 600)


async def test_a_rollover_asks_no_ledger_and_the_old_window_keeps_its_settle(clock: Clock) -> None:
    ledger = Ledger(key=900)
    admission = Admission(MemoryStore(clock), clock=clock, seed=ledger)
    identity = caller(budgets=(DAY,))
    clock.now = NOW - NOW % 86400 + 86399.5
    late = await take(admission, identity, 100)
    clock.now += 1.0
    early = await take(admission, identity, 1000)
    assert len(ledger.asked) == 1
    await admission.settle(late, tokens=None, cost_nano=40)
    await admission.settle(early, tokens=None, cost_nano=7)
    keys = [grant.windows[0].key for grant in (late, early)]
    assert await admission.store.spent(keys) == {keys[0]: 940, keys[1]: 7}


async def test_the_stores_clock_decides_which_window_is_held(shared: LimitStore) -> None:
    slow = Clock()
    slow.now = 1_600_000_000.0
    admission = Admission(shared, clock=slow)
    grant = await take(admission, caller(budgets=(Budget(1000, "1h"),)), 10)
    assert grant.windows[0].start_at <= grant.at < grant.windows[0].end_at
    assert grant.at > 1_700_000_000


async def test_a_changed_budget_is_seeded_when_it_is_made(clock: Clock) -> None:
    ledger = Ledger(key=300)
    admission = Admission(MemoryStore(clock), clock=clock, seed=ledger)
    identity = caller(budgets=(Budget(1000),))
    await admission.seed_identity(identity)
    assert await spent(admission, identity) == 300


# settling ---------------------------------------------------------------------------------------------------------


async def test_counter_equals_the_sum_of_real_costs_at_rest(store_uri: str, open_stores: Open) -> None:
    admission = Admission(open_stores(store_uri), global_budgets=(Budget(10**9, "1d"),))
    identity = caller(budgets=(Budget(5000, "1d"),), concurrency=50)
    total = 0

    async def one(number: int) -> None:
        nonlocal total
        try:
            grant = await take(admission, identity, 100, min_hold_nano=40)
        except (BudgetExceededError, RateLimitedError):
            return
        await asyncio.sleep(0)
        if number % 5 == 0:
            await admission.cancel(grant)
            await admission.settle(grant, tokens=1, cost_nano=99)
            return
        if number % 7 == 0:
            await admission.extend_hold(grant, 1)
        cost = grant.hold_nano if number % 3 == 0 else number % 97
        await admission.settle(grant, tokens=5, cost_nano=None if number % 3 == 0 else cost)
        await admission.settle(grant, tokens=5, cost_nano=7)
        total += cost

    await asyncio.gather(*(one(i) for i in range(300)))
    assert await spent(admission, identity) == total > 0


async def test_an_extension_the_budget_does_not_cover_holds_nothing_more(clock: Clock) -> None:
    admission = Admission(MemoryStore(clock), clock=clock)
    identity = caller(budgets=(DAY,))
    grant = await take(admission, identity, 600)
    with pytest.raises(BudgetExceededError, match="no further attempt"):
        await admission.extend_hold(grant, 401)
    await admission.extend_hold(grant, 400)
    assert grant.hold_nano == 1000
    await admission.settle(grant, tokens=None, cost_nano=None)
    assert await spent(admission, identity) == 1000


async def test_a_caller_without_limits_costs_the_store_nothing() -> None:
    admission = Admission(open_store("redis://127.0.0.1:1"))
    grant = await take(admission, caller(), 100)
    await admission.settle(grant, tokens=1, cost_nano=1)
    await admission.aclose()


# a store that fails -----------------------------------------------------------------------------------------------


async def test_closed_is_503_within_the_deadline_and_names_no_host() -> None:
    admission = Admission(open_store("redis://127.0.0.1:1", deadline_s=0.3))
    for _ in range(3):
        with pytest.raises(UnavailableError) as refused:
            await take(admission, caller(rpm=1))
        assert refused.value.status == 503
        assert refused.value.retry_after_s == 1.0
        assert "127.0.0.1" not in refused.value.message
    await admission.aclose()


async def test_a_store_that_would_evict_is_503_and_says_the_fix(start_redis: Callable[..., LocalServer]) -> None:
    server = start_redis("valkey", "--maxmemory", "100mb", "--maxmemory-policy", "volatile-ttl")
    admission = Admission(open_store(server.url, deadline_s=30.0))
    with pytest.raises(UnavailableError, match="set maxmemory-policy to noeviction"):
        await take(admission, caller(rpm=1))
    await admission.aclose()


async def test_open_bounds_this_process_and_the_shared_counters_learn_of_it(
    start_redis: Callable[..., LocalServer],
) -> None:
    server = start_redis()
    ledger = Ledger(key=100)
    admission = Admission(open_store(server.url, deadline_s=30.0), on_store_failure="open", seed=ledger)
    identity = caller(rpm=3, budgets=(DAY,))
    before = await take(admission, identity, 200)
    server.freeze()
    patience(admission.store, 0.3)
    during = await take(admission, identity, 300)
    assert not during.store.is_shared
    with pytest.raises(BudgetExceededError):
        await take(admission, identity, 601)
    await admission.settle(during, tokens=None, cost_nano=30)
    await admission.settle(before, tokens=None, cost_nano=20)
    assert await admission.tick() == []
    patience(admission.store, 30.0)
    server.thaw()
    await _back(admission, identity)
    await admission.tick()
    assert await spent(admission, identity) == 100 + 30 + 20
    assert not admission._owed
    await admission.aclose()


async def test_a_server_that_comes_and_goes_does_not_open_the_rates_each_time(
    start_redis: Callable[..., LocalServer],
) -> None:
    server = start_redis()
    admission = Admission(open_store(server.url, deadline_s=30.0), on_store_failure="open", seed=Ledger())
    identity, other = caller(rpm=2, tpm=9, budgets=(DAY,)), caller("other", rpm=9)
    for outage in range(2):
        server.freeze()
        patience(admission.store, 0.2)
        assert not (await take(admission, identity)).store.is_shared, f"outage {outage}: two in any minute"
        patience(admission.store, 30.0)
        server.thaw()
        await _back(admission, identity)
        assert (await take(admission, other)).store.is_shared
    server.freeze()
    patience(admission.store, 0.2)
    with pytest.raises(RateLimitedError):
        await take(admission, identity)
    server.thaw()
    await admission.aclose()


async def _back(admission: Admission, identity: Identity) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await admission.spent(identity)
                return
            except UnavailableError:
                await asyncio.sleep(0.05)


async def test_what_timed_out_is_taken_back_and_what_could_not_be_settled_is_settled_later(
    start_redis: Callable[..., LocalServer],
) -> None:
    server = start_redis()
    admission = Admission(open_store(server.url, deadline_s=30.0), seed=Ledger())
    identity = caller(concurrency=2, budgets=(DAY,))
    first = await take(admission, identity, 200)
    server.freeze()
    patience(admission.store, 0.2)
    with pytest.raises(UnavailableError):
        await take(admission, identity, 300)
    await admission.settle(first, tokens=None, cost_nano=20)
    patience(admission.store, 30.0)
    server.thaw()
    await _back(admission, identity)
    await admission.tick()
    assert await spent(admission, identity) == 20
    for _ in range(2):
        await take(admission, identity, 10)
    await admission.aclose()


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_settle_happens_all_the_same(redis_url: str, turns: int) -> None:
    admission = Admission(open_store(redis_url, deadline_s=30.0))
    identity = caller(concurrency=1, budgets=(DAY,))
    grant = await take(admission, identity, 200)
    settling = asyncio.ensure_future(admission.settle(grant, tokens=None, cost_nano=20))
    for _ in range(turns):
        await asyncio.sleep(0)
    settling.cancel()
    await asyncio.wait([settling])
    if turns:
        await admission.tick()
        assert await spent(admission, identity) == 20
        assert not admission._owed
    await admission.aclose()


async def test_a_cancelled_acquisition_holds_nothing(redis_url: str) -> None:
    admission = Admission(open_store(redis_url, deadline_s=30.0))
    identity = caller(concurrency=1, budgets=(DAY,))
    await admission.seed_identity(identity)
    for turns in range(8):
        leaver = asyncio.ensure_future(take(admission, identity, 1000))
        for _ in range(turns):
            await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.wait([leaver])
        if not leaver.cancelled():
            await admission.cancel(leaver.result())
        await admission.tick()
        assert await spent(admission, identity) == 0
    await take(admission, identity, 1000)
    await admission.aclose()


# replicas ---------------------------------------------------------------------------------------------------------


async def test_a_killed_replicas_hold_is_charged_and_its_owner_named(redis_like_url: str) -> None:
    dead, alive = (Admission(open_store(redis_like_url, deadline_s=30.0), lease_s=1.0) for _ in range(2))
    identity = caller("k9", concurrency=1, budgets=(DAY,))
    grant = await take(dead, identity, 300)
    silent = []
    async with asyncio.timeout(60):
        while not silent:
            silent = await alive.tick()
            await asyncio.sleep(0.1)
    assert [(h.exchange_id, h.hold_nano, h.at, h.key_hash) for h in silent] == [
        (grant.exchange_id, 300, grant.at, "k9")
    ]
    assert silent[0].windows == (grant.windows[0].key,)
    await take(alive, identity, 700)
    await dead.aclose()
    await alive.aclose()


async def test_who_was_taken_for_dead_and_settles_after_all_is_told_once(redis_like_url: str) -> None:
    """Whoever ticks for it then takes back the row that was written of its silence."""
    slow, other = (Admission(open_store(redis_like_url, deadline_s=30.0), lease_s=1.0) for _ in range(2))
    identity = caller("k9", budgets=(DAY,))
    settled, cancelled, dead = [await take(slow, identity, 100) for _ in range(3)]
    silent: set[str] = set()
    async with asyncio.timeout(60):
        while len(silent) < 3:
            silent |= {hold.exchange_id for hold in await other.tick()}
            await asyncio.sleep(0.1)
    await slow.settle(settled, tokens=0, cost_nano=30)
    await slow.cancel(cancelled)
    late = await slow.tick()
    assert {(h.exchange_id, h.is_over) for h in late} == {(settled.exchange_id, True), (cancelled.exchange_id, True)}
    assert await other.tick() == []
    for hold in late:
        await slow.written(hold)
    assert await spent(other, identity) == 130
    # The journal of one that never came back says what it cost.
    for _ in range(2):  # whoever asks again did not hear the answer
        assert await other.settle_dead({dead.exchange_id: 20, "unheard-of": 7}) == [dead.exchange_id]
    assert await spent(other, identity) == 50
    await slow.aclose()
    await other.aclose()


async def test_ticking_keeps_what_is_alive(redis_like_url: str) -> None:
    one, other = (Admission(open_store(redis_like_url, deadline_s=30.0), lease_s=1.0) for _ in range(2))
    identity = caller(concurrency=1)
    grant = await take(one, identity)
    for _ in range(8):
        assert await one.tick() == await other.tick() == []
        await asyncio.sleep(0.15)
    with pytest.raises(RateLimitedError):
        await take(other, identity)
    await one.settle(grant, tokens=None, cost_nano=None)
    await take(other, identity)
    await one.aclose()
    await other.aclose()


async def test_a_flushed_store_learns_again_what_is_running_and_what_was_spent(redis_like_url: str) -> None:
    ledger = Ledger(key=100)
    admission = Admission(open_store(redis_like_url), seed=ledger)
    identity = caller(concurrency=2, budgets=(DAY,))
    running, settled = await take(admission, identity, 200), await take(admission, identity, 300)
    async with Redis.from_url(redis_like_url) as client:
        await client.flushdb()
    await admission.settle(settled, tokens=None, cost_nano=30)
    ledger.sums["key"] = 130
    await admission.tick()
    assert await spent(admission, identity) == 130 + 200
    await take(admission, identity, 10)
    with pytest.raises(RateLimitedError, match="key limit is 2 requests at a time"):
        await take(admission, identity, 10)
    await admission.settle(running, tokens=None, cost_nano=7)
    assert await spent(admission, identity) == 130 + 7 + 10
    # Its rows, and one of another process that was on its way: the ledger says them, nothing is counted twice.
    ledger.sums["key"] = 130 + 7 + 5
    assert admission.reseed_due.is_set()
    for _ in range(2):
        await admission.reseed()
        assert await spent(admission, identity) == 142 + 10
    assert not admission.reseed_due.is_set()
    await admission.aclose()


# memory and speed -------------------------------------------------------------------------------------------------


async def test_memory_is_bounded_by_what_is_live(clock: Clock) -> None:
    store = MemoryStore(clock)
    admission = Admission(store, clock=clock)
    for number in range(20_000):
        clock.now += 1.0
        grant = await take(admission, caller(f"k{number}", rpm=5, tpm=100, budgets=(Budget(10**6, "1h"),)), 5)
        await admission.settle(grant, tokens=2, cost_nano=1)
    assert not store._live
    assert not store._slots
    assert not admission._live
    assert len(store._requests) < 5000
    assert len(store._tokens) < 5000
    clock.now += 10 * 86400
    for _ in range(5000):
        await take(admission, caller("one", rpm=10**6), 0)
    assert len(store._counters) == 0
    assert len(store._requests) == 1


def test_admitting_and_settling_in_memory_is_a_matter_of_a_thousand_instructions() -> None:
    """Python's, which do not depend on what else the machine does; thousands would be work for each that waits."""
    admission = Admission(MemoryStore(), global_limits=Limits(rpm=10**6))
    identity = caller(rpm=10**6, tpm=10**9, concurrency=100, budgets=(Budget(10**15, "1d"),))
    steps = 0

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        steps += event == "opcode"
        return count

    async def once() -> None:
        grant = await admission.acquire("x", identity, "m", tokens=100, hold_nano=1000)
        await admission.settle(grant, tokens=90, cost_nano=900)

    def run() -> None:
        with pytest.raises(StopIteration):
            once().send(None)  # never suspends

    for _ in range(500):
        run()
    exchange, before = once(), sys.gettrace()
    sys.settrace(count)
    try:
        with suppress(StopIteration):
            exchange.send(None)
    finally:
        sys.settrace(before)
    assert 500 < steps < 1500
