"""One contract for every limit store: exact in any rolling window, all or nothing, settled once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest

from sidecar.limits.claims import Admitted, Claims, Cold, Denied, RateClaim
from sidecar.limits.store import LimitStore, StoreDownError, open_store
from sidecar.limits.windows import BudgetWindow
from tests.servers.redis import LocalServer

pytestmark = pytest.mark.anyio
T0 = 1_800_000_000.0
LIFE = BudgetWindow("key:k:life:0", "key", "k", 0.0, float("inf"), 1000)


@pytest.fixture(params=["memory", "redis", "valkey"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[LimitStore]:
    url = "memory://" if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")
    opened = open_store(url, deadline_s=5)
    yield opened
    await opened.aclose()


def claims(
    *, rpm: dict[str, int] | None = None, tpm: int | None = None, slots: int | None = None, budgets: tuple = ()
) -> Claims:
    return Claims(
        tuple(RateClaim(name, name, limit) for name, limit in (rpm or {}).items()),
        (RateClaim("k", "key", tpm),) if tpm is not None else (),
        (RateClaim("k", "key", slots),) if slots is not None else (),
        budgets,
        float("inf"),
    )


async def ask(
    store: LimitStore, name: str, what: Claims, now: float, *, tokens: int = 0, hold: int = 0, least: int | None = None
):
    return await store.acquire(
        name,
        what,
        tokens=tokens,
        hold_nano=hold,
        min_hold_nano=hold if least is None else least,
        lease_s=10.0,
        now=now,
    )


async def test_no_more_than_the_limit_in_any_rolling_minute(store: LimitStore) -> None:
    chance = random.Random(7)
    now, admitted = T0, []
    what = claims(rpm={"key": 5})
    for i in range(300):
        now += chance.choice([0.0, 0.5, 3.0, 11.0])
        result = await ask(store, f"x{i}", what, now)
        if isinstance(result, Admitted):
            admitted.append(now)
        else:
            assert isinstance(result, Denied)
            recent = [t for t in admitted if t > now - 60]
            assert len(recent) == 5
            assert result.retry_after_s == pytest.approx(recent[0] + 60 - now, abs=1e-5)
    for start in admitted:
        assert len([t for t in admitted if start <= t < start + 60]) <= 5
    assert len(admitted) > 50


async def test_retry_after_is_exact_to_the_microsecond(store: LimitStore) -> None:
    what = claims(rpm={"key": 1})
    await ask(store, "a", what, T0)
    denied = await ask(store, "b", what, T0 + 12.25)
    assert denied.retry_after_s == pytest.approx(47.75, abs=1e-6)
    assert isinstance(await ask(store, "c", what, T0 + 59.999), Denied)
    assert isinstance(await ask(store, "d", what, T0 + 60.0), Admitted)


async def test_a_refusal_consumes_nothing_on_any_scope(store: LimitStore) -> None:
    tight = claims(rpm={"key": 100, "team": 1}, tpm=1000, slots=10, budgets=(LIFE,))
    await store.seed({LIFE.key: 0}, (LIFE,))
    assert isinstance(await ask(store, "a", tight, T0, tokens=10, hold=10), Admitted)
    for i in range(20):
        denied = await ask(store, f"r{i}", tight, T0 + 1, tokens=10, hold=10)
        assert (denied.what, denied.kind) == ("requests", "team")
    assert (await store.spent([LIFE.key]))[LIFE.key] == 10
    result = await ask(store, "b", claims(rpm={"key": 100}, tpm=1000, slots=10), T0 + 2, tokens=10)
    assert result.remaining_requests == 98
    assert result.remaining_tokens == 980


async def test_acquiring_again_gives_the_first_admission(store: LimitStore) -> None:
    what = claims(rpm={"key": 2})
    first = await ask(store, "a", what, T0)
    again = await ask(store, "a", what, T0 + 5)
    assert (again.at, again.remaining_requests) == (first.at, first.remaining_requests)
    assert isinstance(await ask(store, "b", what, T0 + 5), Admitted)


async def test_two_hundred_at_once_admit_exactly_the_limit(store: LimitStore) -> None:
    what = claims(rpm={"key": 60}, slots=500)
    results = await asyncio.gather(*(ask(store, f"x{i}", what, T0) for i in range(200)))
    assert sum(isinstance(r, Admitted) for r in results) == 60


async def test_tokens_count_at_admission_and_are_corrected_at_settle(store: LimitStore) -> None:
    what = claims(tpm=100)
    await ask(store, "a", what, T0, tokens=80)
    denied = await ask(store, "b", what, T0 + 1, tokens=30)
    assert denied.what == "tokens"
    assert denied.retry_after_s == pytest.approx(60.0, abs=1.0)
    await store.settle("a", tokens=20, cost_nano=None, now=T0 + 2)
    assert isinstance(await ask(store, "b", what, T0 + 2, tokens=30), Admitted)
    await store.settle("b", tokens=80, cost_nano=None, now=T0 + 3)
    assert isinstance(await ask(store, "c", what, T0 + 3, tokens=1), Denied)
    assert isinstance(await ask(store, "never", what, T0 + 500, tokens=101), Denied)
    assert (await ask(store, "never", what, T0 + 500, tokens=101)).retry_after_s is None


async def test_slots_come_back_when_settled_and_only_once(store: LimitStore) -> None:
    what = claims(slots=2)
    await ask(store, "a", what, T0)
    await ask(store, "b", what, T0)
    assert (await ask(store, "c", what, T0)).what == "concurrency"
    await store.settle("a", tokens=None, cost_nano=None, now=T0)
    await store.settle("a", tokens=None, cost_nano=None, now=T0)
    assert isinstance(await ask(store, "c", what, T0), Admitted)
    assert isinstance(await ask(store, "d", what, T0), Denied)


async def test_a_budget_is_a_ceiling_and_settles_to_the_real_cost(store: LimitStore) -> None:
    await store.seed({LIFE.key: 100}, (LIFE,))
    what = claims(budgets=(LIFE,))
    assert (await ask(store, "a", what, T0, hold=600)).hold_nano == 600
    assert (await ask(store, "b", what, T0, hold=600)).what == "budget"
    assert (await ask(store, "b", what, T0, hold=600, least=50)).hold_nano == 300
    await store.settle("a", tokens=None, cost_nano=7)
    await store.settle("a", tokens=None, cost_nano=7)
    await store.settle("b", tokens=None, cost_nano=None)
    assert (await store.spent([LIFE.key]))[LIFE.key] == 100 + 7 + 300
    assert await store.extend("a", what, 1) is None


async def test_extending_a_hold_is_all_or_nothing(store: LimitStore) -> None:
    small = BudgetWindow("global:all:life:0", "global", "all", 0.0, float("inf"), 500)
    await store.seed({LIFE.key: 0, small.key: 0}, (LIFE, small))
    what = claims(budgets=(LIFE, small))
    await ask(store, "a", what, T0, hold=400)
    assert await store.extend("a", what, 101) is False
    assert await store.spent([LIFE.key, small.key]) == {LIFE.key: 400, small.key: 400}
    assert await store.extend("a", what, 100) is True
    await store.settle("a", tokens=None, cost_nano=450)
    assert await store.spent([LIFE.key, small.key]) == {LIFE.key: 450, small.key: 450}


async def test_what_costs_nothing_passes_over_budget(store: LimitStore) -> None:
    await store.seed({LIFE.key: 5000}, (LIFE,))
    assert isinstance(await ask(store, "a", claims(budgets=(LIFE,)), T0, hold=0), Admitted)
    assert isinstance(await ask(store, "b", claims(budgets=(LIFE,)), T0, hold=1), Denied)


async def test_money_is_exact_up_to_the_largest_budget(store: LimitStore) -> None:
    big = BudgetWindow("key:big:life:0", "key", "big", 0.0, float("inf"), 9_000_000 * 10**9)
    await store.seed({big.key: 9_000_000 * 10**9 - 3}, (big,))
    what = claims(budgets=(big,))
    assert isinstance(await ask(store, "a", what, T0, hold=4), Denied)
    assert isinstance(await ask(store, "b", what, T0, hold=3), Admitted)
    await store.settle("b", tokens=None, cost_nano=1)
    assert (await store.spent([big.key]))[big.key] == 9_000_000 * 10**9 - 2


async def test_an_unseeded_store_is_cold_and_a_rollover_is_not(store: LimitStore) -> None:
    what = claims(budgets=(LIFE,))
    cold = await ask(store, "a", what, T0, hold=1)
    assert isinstance(cold, Cold)
    assert cold.windows == (LIFE,)
    await store.seed({LIFE.key: 900}, (LIFE,))
    await store.seed({LIFE.key: 0}, (LIFE,))
    assert isinstance(await ask(store, "a", what, T0, hold=101), Denied)
    later = BudgetWindow("key:k:1d:x", "key", "k", 4e9, 4e9 + 86400, 1000)
    assert isinstance(await ask(store, "b", claims(budgets=(later,)), 4e9 + 1, hold=1000), Admitted)


async def test_cancelling_is_as_if_never_admitted(store: LimitStore) -> None:
    await store.seed({LIFE.key: 0}, (LIFE,))
    what = claims(rpm={"key": 1}, tpm=100, slots=1, budgets=(LIFE,))
    await ask(store, "a", what, T0, tokens=90, hold=900)
    await store.cancel("a")
    assert isinstance(await ask(store, "b", what, T0, tokens=90, hold=900), Admitted)
    assert (await store.spent([LIFE.key]))[LIFE.key] == 900


async def test_random_work_leaves_the_counter_at_the_sum(store: LimitStore) -> None:
    chance = random.Random(3)
    await store.seed({LIFE.key: 0}, (LIFE,))
    what = claims(slots=20, budgets=(LIFE,))
    live: list[str] = []
    total, now = 0, T0
    for i in range(400):
        now += 0.01
        if live and chance.random() < 0.5:
            name = live.pop(chance.randrange(len(live)))
            action = chance.choice(["settle", "cancel", "twice"])
            if action == "cancel":
                await store.cancel(name)
            else:
                cost = chance.randrange(0, 20)
                total += cost
                await store.settle(name, tokens=None, cost_nano=cost)
                if action == "twice":
                    await store.settle(name, tokens=None, cost_nano=999)
        elif isinstance(await ask(store, f"x{i}", what, now, hold=30), Admitted):
            live.append(f"x{i}")
    for name in live:
        await store.cancel(name)
    assert (await store.spent([LIFE.key]))[LIFE.key] == total


async def test_a_silent_owner_is_charged_once_and_a_late_settle_corrects(redis_like_url: str) -> None:
    one, two = open_store(redis_like_url, deadline_s=5), open_store(redis_like_url, deadline_s=5)
    await one.seed({LIFE.key: 0}, (LIFE,))
    what = claims(slots=1, budgets=(LIFE,))
    await ask(one, "a", what, T0, hold=400)
    await one.renew(["a"], 10.0, T0 + 5)
    assert await two.reap(T0 + 14) == []
    reaped = await asyncio.gather(one.reap(T0 + 16), two.reap(T0 + 16))
    assert [(h.exchange_id, h.hold_nano, h.at) for hs in reaped for h in hs] == [("a", 400, T0)]
    assert (await two.spent([LIFE.key]))[LIFE.key] == 400
    assert isinstance(await ask(two, "b", what, T0 + 16, hold=100), Admitted)
    await one.settle("a", tokens=None, cost_nano=50)
    assert (await two.spent([LIFE.key]))[LIFE.key] == 150
    await one.aclose()
    await two.aclose()


async def test_a_cancelled_caller_leaves_nothing_held(redis_url: str) -> None:
    store = open_store(redis_url, deadline_s=5)
    await store.seed({LIFE.key: 0}, (LIFE,))
    task = asyncio.ensure_future(ask(store, "a", claims(slots=1, budgets=(LIFE,)), T0, hold=400))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(200):
        if (await store.spent([LIFE.key]))[LIFE.key] == 0:
            break
        await asyncio.sleep(0.01)
    assert isinstance(await ask(store, "b", claims(slots=1, budgets=(LIFE,)), T0, hold=400), Admitted)
    assert (await store.spent([LIFE.key]))[LIFE.key] == 400
    await store.aclose()


async def test_a_flushed_server_is_cold_and_its_scripts_are_loaded_again(
    start_redis: Callable[..., LocalServer],
) -> None:
    import redis.asyncio

    own_redis = start_redis()
    store = open_store(own_redis.url, deadline_s=5)
    await store.seed({LIFE.key: 7}, (LIFE,))
    client = redis.asyncio.Redis.from_url(own_redis.url)
    await client.flushall()
    await client.script_flush()
    await client.aclose()
    assert isinstance(await ask(store, "a", claims(budgets=(LIFE,)), T0, hold=1), Cold)
    await store.aclose()


async def test_a_dead_server_is_told_within_the_deadline_and_found_again(
    start_redis: Callable[..., LocalServer],
) -> None:
    own_redis = start_redis()
    store = open_store(own_redis.url, deadline_s=0.3)
    what = claims(rpm={"key": 5})
    assert isinstance(await ask(store, "a", what, T0), Admitted)
    own_redis.kill()
    with pytest.raises(StoreDownError):
        await ask(store, "b", what, T0)
    own_redis.start()
    async with asyncio.timeout(10):
        while True:
            try:
                assert isinstance(await ask(store, "c", what, T0), Admitted)
                break
            except StoreDownError:
                await asyncio.sleep(0.1)
    await store.aclose()
