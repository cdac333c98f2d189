"""Pauses shared by two processes' healths through a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from sidecar.pauses import KEY, SharedPauses
from sidecar.routing.health import Cooldown, Health
from tests.routing.support import deployment

pytestmark = pytest.mark.anyio
A, B = deployment("a"), deployment("b")


async def until(what: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not what():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def sharing(
    url: str, ids: tuple[str, ...] = ("a", "b"), clock: Callable[[], float] = time.time
) -> AsyncIterator[Health]:
    health = Health(cooldown_s=300)
    pauses = SharedPauses(Redis.from_url(url), health, ids=lambda: ids, clock=clock, every_s=0.02, deadline_s=30)
    await pauses.start()
    try:
        yield health
    finally:
        await pauses.aclose()


@pytest.fixture
async def url(redis_like_url: str) -> AsyncIterator[str]:
    async with Redis.from_url(redis_like_url) as client:
        await client.delete(KEY)
        yield redis_like_url
        await client.delete(KEY)


def fails(health: Health) -> None:
    health.failed(A, "rate_limit_exceeded", time.time(), 30.0, kind="rate_limit")


async def test_what_one_process_found_out_the_other_knows_with_reason_and_end(url: str) -> None:
    async with sharing(url) as one, sharing(url) as other:
        fails(one)
        await until(lambda: not other.healthy([A], time.time()))
        assert other.healthy([B], time.time()) == [B]
        (mine, its) = (health.cooling(time.time())["a"] for health in (one, other))
        assert its.reason == mine.reason == "rate_limit_exceeded"
        # Of 300 s; apart by what this process stood still between asking for Redis' clock and looking at its own.
        assert abs(its.until_at - mine.until_at) < 60


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
async def test_a_clock_that_is_wrong_makes_no_pause_longer_or_shorter(url: str, ahead_s: float) -> None:
    def clock() -> float:
        return time.time() + ahead_s

    async with sharing(url) as one, sharing(url, clock=clock) as wrong:
        fails(one)
        await until(lambda: "a" in wrong.cooling(clock()))
        assert 150 < wrong.cooling(clock())["a"].until_at - clock() < 301
        wrong.failed(B, "rate_limit_exceeded", clock(), 30.0, kind="rate_limit")
        await until(lambda: "b" in one.cooling(time.time()))
        assert 150 < one.cooling(time.time())["b"].until_at - time.time() < 301


async def test_what_it_told_itself_is_no_news_to_it(url: str) -> None:
    async with sharing(url) as one, Redis.from_url(url) as client:
        fails(one)
        mine = one._cooling["a"]
        while not await client.hlen(KEY):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert one._cooling["a"] is mine


async def test_a_passed_trial_is_told_too(url: str) -> None:
    async with sharing(url) as one, sharing(url) as other:
        fails(one)
        await until(lambda: not other.healthy([A], time.time()))
        other.succeeded(A)
        await until(lambda: bool(one.healthy([A], time.time())))
        fails(one)
        await until(lambda: not other.healthy([A], time.time()))


async def test_one_that_comes_later_learns_what_is_known(url: str) -> None:
    async with sharing(url) as one:
        fails(one)
        async with Redis.from_url(url) as client:
            while not await client.hlen(KEY):
                await asyncio.sleep(0.01)
    async with sharing(url) as later:
        await until(lambda: not later.healthy([A], time.time()))


async def test_only_configured_deployments_and_pauses_that_last_are_learned(url: str) -> None:
    async with Redis.from_url(url) as client:
        await client.hset(KEY, mapping={"a": "1.0 long over", "b": "nonsense", "else": f"{time.time() + 300} foreign"})
        async with sharing(url) as health:
            await client.hset(KEY, "b", f"{time.time() + 300} told")
            await until(lambda: not health.healthy([B], time.time()))
            assert health.healthy([A], time.time()) == [A]
            assert set(health._cooling) == {"b"}


async def test_redis_gone_harms_nobody_and_is_told_once_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    health = Health(cooldown_s=300)
    pauses = SharedPauses(
        Redis.from_url("redis://127.0.0.1:9"), health, ids=lambda: ("a",), clock=time.time, every_s=0.01
    )
    await pauses.start()
    fails(health)
    await until(lambda: "not shared" in caplog.text)
    assert health.cooling(time.time())["a"].reason == "rate_limit_exceeded"
    await asyncio.sleep(0.1)
    assert caplog.text.count("not shared") == 1
    await until(lambda: isinstance(pauses._news.get("a"), Cooldown))  # kept to be told later; now and then it is tried
    await pauses.aclose()
