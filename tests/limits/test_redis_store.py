"""What only a shared store does: leases, replicas, and a server that dies, freezes, forgets or would evict."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from sidecar.errors import RateLimitedError
from sidecar.limits.admission import Admission
from sidecar.limits.claims import Admitted, Cold, Denied, Gone, Settled, SilentHold
from sidecar.limits.store import LimitStore, StoreDownError
from sidecar.limits.store.base import StoreUnsafeError
from sidecar.types import Identity, Limits
from tests.clock import LoopClock
from tests.limits.making import NOW, claims, new_id, patience, take, window
from tests.servers.redis import LocalServer

pytestmark = pytest.mark.anyio
Open = Callable[..., LimitStore]


# leases -----------------------------------------------------------------------------------------------------------


async def test_slots_of_a_killed_process_come_back_when_its_lease_ends(redis_like_url: str, open_stores: Open) -> None:
    dead, alive = open_stores(redis_like_url), open_stores(redis_like_url)
    wanted = claims(slots={"key": 1})
    await take(dead, wanted, lease_s=10.0)
    for after in (0.0, 3.0, 6.0, 9.999):
        await alive.renew([], 10.0, NOW + after)
        assert isinstance(await take(alive, wanted, NOW + after), Denied)
    assert isinstance(await take(alive, wanted, NOW + 10.0), Admitted)


async def test_a_renewed_lease_keeps_slot_and_hold(shared: LimitStore) -> None:
    wanted = claims(slots={"key": 1})
    await take(shared, wanted, exchange="a", lease_s=10.0)
    for after in range(3, 60, 3):
        assert await shared.renew(["a", "settled-long-ago"], 10.0, NOW + after) == ["settled-long-ago"]
        assert await shared.reap(NOW + after) == []
        assert isinstance(await take(shared, wanted, NOW + after), Denied)


async def test_a_silent_hold_is_charged_by_one_and_a_late_settle_corrects(
    redis_like_url: str, open_stores: Open
) -> None:
    stores = [open_stores(redis_like_url) for _ in range(4)]
    today = window()
    await stores[0].seed({}, now=NOW)
    wanted = claims(slots={"key": 1}, windows=(today,))
    await take(stores[0], wanted, exchange="a", hold=60, owner="k1")
    reaped = await asyncio.gather(*(store.reap(NOW + 10) for store in stores))
    assert [hold for holds in reaped for hold in holds] == [SilentHold("a", 60, NOW, "k1", (today.key,))]
    await stores[3].written("a", is_over=False)
    assert (await stores[1].spent([today.key]))[today.key] == 60
    await stores[0].renew(["a"], 10.0, NOW + 11)
    assert await stores[2].reap(NOW + 500) == [], "charged once, whatever its owner does later"
    for _ in range(3):  # an answer may get lost: whoever asks again is told the same, and nothing is done twice
        assert await stores[0].settle("a", tokens=None, cost_nano=25) is Settled.WAS_SILENT
    assert await stores[0].renew([], 10.0, NOW + 500) == []
    late = await asyncio.gather(*(store.reap(NOW + 501) for store in stores))
    assert [hold for holds in late for hold in holds] == [SilentHold("a", 0, NOW, "k1", (today.key,), is_over=True)]
    await stores[2].written("a", is_over=True)
    assert await stores[1].reap(NOW + 1000) == []
    assert await stores[0].settle("a", tokens=None, cost_nano=25) is Settled.UNKNOWN
    assert (await stores[1].spent([today.key]))[today.key] == 25


async def test_a_silent_hold_is_told_to_another_unless_its_row_is_written(
    redis_like_url: str, open_stores: Open
) -> None:
    """Whoever was told may die, or never get the answer."""
    first, second = open_stores(redis_like_url), open_stores(redis_like_url)
    today = window()
    await first.seed({}, now=NOW)
    await take(first, claims(windows=(today,)), exchange="a", hold=60, owner="k1")
    await take(first, claims(slots={"place": 1}), exchange="no money in it", hold=0)
    silent = SilentHold("a", 60, NOW, "k1", (today.key,))
    assert await first.reap(NOW + 10) == [silent]
    assert await second.reap(NOW + 39) == []
    assert await second.reap(NOW + 41) == [silent]
    assert (await first.spent([today.key]))[today.key] == 60, "charged once"
    # Its owner turns up before the row is written, by the one or by the other.
    assert await first.cancel("a") is Settled.WAS_SILENT
    over = SilentHold("a", 0, NOW, "k1", (today.key,), is_over=True)
    assert await first.reap(NOW + 42) == [over]
    await second.written("a", is_over=False)
    assert await second.reap(NOW + 100) == [over], "that the row is written does not take it back"
    await second.written("a", is_over=True)
    assert await first.reap(NOW + 200) == []
    assert (await first.spent([today.key]))[today.key] == 0


async def test_after_the_store_was_out_of_reach_nobody_is_taken_for_silent(shared: LimitStore) -> None:
    await shared.seed({}, now=NOW)
    wanted = claims(slots={"key": 1}, windows=(window(),))
    await shared.renew([], 10.0, NOW)
    await take(shared, wanted, exchange="a", hold=60)
    # A minute in which no process could renew: the expired lease proves nothing.
    assert isinstance(await take(shared, wanted, NOW + 60, hold=1), Denied)
    await shared.renew([], 10.0, NOW + 60)
    assert await shared.reap(NOW + 60) == []
    assert isinstance(await take(shared, wanted, NOW + 61, hold=1), Denied)
    await shared.renew([], 10.0, NOW + 65)
    await shared.renew([], 10.0, NOW + 70)
    assert [hold.exchange_id for hold in await shared.reap(NOW + 70)] == ["a"]
    assert isinstance(await take(shared, wanted, NOW + 70, hold=1), Admitted)


# replicas ---------------------------------------------------------------------------------------------------------


async def test_replicas_together_admit_exactly_the_limit(redis_like_url: str, open_stores: Open) -> None:
    stores = [open_stores(redis_like_url) for _ in range(5)]
    await stores[0].seed({}, now=NOW)
    today = window(max_nano=1000)
    by_money = claims(rpm={"global": 1000}, windows=(today,))
    results = await asyncio.gather(*(take(stores[i % 5], by_money, hold=13) for i in range(300)))
    assert sum(isinstance(r, Admitted) for r in results) == 1000 // 13
    by_count = claims(rpm={"key": 60}, slots={"key": 45})
    results = await asyncio.gather(*(take(stores[i % 5], by_count) for i in range(300)))
    assert sum(isinstance(r, Admitted) for r in results) == 45


async def test_the_servers_own_clock_counts_when_none_is_given(shared: LimitStore) -> None:
    before = time.time()
    result = await shared.acquire(new_id(), claims(rpm={"key": 1}), tokens=0, hold_nano=0, min_hold_nano=0, lease_s=1.0)
    assert isinstance(result, Admitted)
    assert before - 1 < result.at < time.time() + 1


async def test_calls_of_one_tick_leave_in_one_write(redis_url: str, open_stores: Open) -> None:
    store = open_stores(redis_url)
    wanted = claims(rpm={"key": 1000})
    await take(store, wanted)
    async with Redis.from_url(redis_url) as client:
        before = (await client.info("stats"))["total_reads_processed"]
        await asyncio.gather(*(take(store, wanted) for _ in range(100)))
        after = (await client.info("stats"))["total_reads_processed"]
    assert after - before <= 4


# cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancelled_acquisition_leaves_nothing_and_disturbs_nobody(
    redis_url: str, open_stores: Open, turns: int
) -> None:
    store = open_stores(redis_url)
    today = window()
    await store.seed({}, now=NOW)
    wanted = claims(rpm={"key": 2}, slots={"key": 2}, windows=(today,))
    leaver = asyncio.ensure_future(take(store, wanted, exchange="leaver", hold=50))
    other = asyncio.ensure_future(take(store, wanted, exchange="other", hold=10))
    for _ in range(turns):
        await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.wait([leaver])
    assert isinstance(await other, Admitted)
    if not leaver.cancelled():  # its answer came first: it was admitted, for its caller to settle
        await store.cancel("leaver")
    assert isinstance(await take(store, wanted, hold=1), Admitted)
    assert (await store.spent([today.key]))[today.key] == 11


async def test_an_acquisition_that_arrives_after_its_cancellation_takes_nothing(shared: LimitStore) -> None:
    wanted = claims(slots={"key": 1})
    await shared.cancel("a")
    assert isinstance(await take(shared, wanted, exchange="a"), Gone)
    assert isinstance(await take(shared, wanted, exchange="b"), Admitted)


# a server in trouble ----------------------------------------------------------------------------------------------


async def test_a_flushed_server_is_cold_and_gets_its_scripts_again(
    start_redis: Callable[..., LocalServer], open_stores: Open
) -> None:
    server = start_redis()
    store = open_stores(server.url)
    today = window()
    wanted = claims(windows=(today,))
    await store.seed({today.key: 7}, [today], now=NOW)
    assert isinstance(await take(store, wanted, exchange="a", hold=1), Admitted)
    async with Redis.from_url(server.url) as client:
        await client.flushall()
        await client.script_flush()
    results = await asyncio.gather(*(take(store, wanted, hold=1) for _ in range(5)))
    assert results == [Cold((today,))] * 5
    assert await store.settle("a", tokens=None, cost_nano=5) is Settled.UNKNOWN
    await store.seed({today.key: 7}, [today], now=NOW)
    for _ in range(2):
        await store.charge("a", wanted, 5)
    assert (await store.spent([today.key]))[today.key] == 12


async def test_a_dead_server_is_noticed_at_once_and_found_again(
    start_redis: Callable[..., LocalServer], open_stores: Open
) -> None:
    server = start_redis("valkey")
    store = open_stores(server.url, deadline_s=60.0)
    wanted = claims(rpm={"key": 5})
    assert isinstance(await take(store, wanted), Admitted)
    server.kill()
    begin = time.monotonic()
    for _ in range(50):
        with pytest.raises(StoreDownError):
            await take(store, wanted)
    assert time.monotonic() - begin < 60.0, "less than one deadline"
    server.start()
    assert isinstance(await _retried(store), Admitted)


async def test_a_frozen_server_costs_one_deadline_and_then_nothing(
    start_redis: Callable[..., LocalServer], open_stores: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_redis()
    store = open_stores(server.url)
    wanted = claims(slots={"key": 3})
    await take(store, wanted)
    server.freeze()
    patience(store, 3000)
    clock = LoopClock(monkeypatch)
    calls = [asyncio.ensure_future(take(store, wanted, exchange=f"f{i}")) for i in range(20)]
    await clock.forward(0)
    await clock.forward(2700)
    assert not any(call.done() for call in calls)
    await clock.forward(400)
    assert all(call.done() for call in calls)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(r, StoreDownError) for r in results)
    begin = time.monotonic()
    for _ in range(100):
        with pytest.raises(StoreDownError):
            await take(store, wanted)
    assert time.monotonic() - begin < 60.0, "less than one deadline"
    patience(store, 30.0)
    server.thaw()
    assert isinstance(await _retried(store), Admitted)


async def test_time_this_process_stood_still_is_not_the_servers(
    start_redis: Callable[..., LocalServer], open_stores: Open
) -> None:
    store = open_stores(start_redis().url)
    assert isinstance(await take(store, claims(rpm={"key": 5})), Admitted)
    patience(store, 1.0)
    for _ in range(2):
        waiting = asyncio.ensure_future(take(store, claims(rpm={"key": 50})))
        await asyncio.sleep(0)
        time.sleep(1.2)  # noqa: ASYNC251 – the answer comes meanwhile and lies unread
        assert isinstance(await waiting, Admitted)


async def _retried(store: LimitStore) -> object:
    async with asyncio.timeout(60):
        while True:
            try:
                return await take(store, claims(rpm={"other": 5}))
            except StoreDownError:
                await asyncio.sleep(0.05)


async def test_a_server_that_would_evict_counters_is_refused(
    start_redis: Callable[..., LocalServer], open_stores: Open
) -> None:
    store = open_stores(start_redis("redis", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru").url)
    with pytest.raises(StoreUnsafeError, match="noeviction"):
        await take(store, claims(rpm={"key": 1}))


async def test_a_wrong_password_is_a_store_that_is_down(
    start_redis: Callable[..., LocalServer], open_stores: Open
) -> None:
    server = start_redis("redis", "--requirepass", "right")
    with pytest.raises(StoreDownError):
        await take(open_stores(server.url), claims(rpm={"key": 1}))
    url = server.url.replace("redis://", "redis://:right@").removesuffix("/0") + "/3"
    assert isinstance(await take(open_stores(url), claims(rpm={"key": 1})), Admitted)


async def test_nothing_stays_in_the_server_for_ever(shared: LimitStore, redis_like_url: str) -> None:
    await shared.seed({}, now=NOW)
    wanted = claims(rpm={"key": 9}, tpm={"key": 9}, slots={"key": 9}, windows=(window(),))
    await take(shared, wanted, exchange="a", tokens=1, hold=1)
    await take(shared, wanted, exchange="b", tokens=1, hold=1)
    await shared.settle("a", tokens=3, cost_nano=1)
    await shared.cancel("never-seen")
    await shared.charge("c", wanted, 1)
    async with Redis.from_url(redis_like_url, decode_responses=True) as client:
        lasting = {key for key in await client.keys("*") if await client.ttl(key) < 0}
        assert lasting == {"{sidecar}:gen", "{sidecar}:leases", "{sidecar}:run"}
        assert await client.zcard("{sidecar}:leases") == 1


async def test_a_process_killed_for_real_gives_its_slots_back_within_a_lease(
    redis_url: str, open_stores: Open, tmp_path: Path
) -> None:
    holder = tmp_path / "holder.py"
    holder.write_text(
        """
import asyncio, sys
from sidecar.limits.admission import Admission
from sidecar.limits.store import open_store
from sidecar.types import Identity, Limits

async def main():
    admission = Admission(open_store(sys.argv[1], deadline_s=30.0), lease_s=5.0)
    await admission.acquire("held", Identity("k", limits=Limits(concurrency=1)), "m", tokens=0, hold_nano=0)
    print("held", flush=True)
    while True:
        await admission.tick()
        await asyncio.sleep(0.3)

asyncio.run(main())
"""
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(holder),
        redis_url,
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"held\n"
    admission = Admission(open_stores(redis_url), lease_s=5.0)
    identity = Identity("k", limits=Limits(concurrency=1))
    with pytest.raises(RateLimitedError):
        await admission.acquire(new_id(), identity, "m", tokens=0, hold_nano=0)
    process.kill()
    await process.wait()
    async with asyncio.timeout(60):  # what lives goes on renewing, as a gateway does: the store was never without
        while True:
            await admission.tick()
            try:
                await admission.acquire(new_id(), identity, "m", tokens=0, hold_nano=0)
                break
            except RateLimitedError:
                await asyncio.sleep(0.2)
