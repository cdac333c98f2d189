"""What every store of answers has to do, over memory, Redis and Valkey; and what only the shared one can."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from sidecar.errors import UnavailableError
from sidecar.idempotency.memory import MemoryAnswers
from sidecar.idempotency.redis import PREFIX, RedisAnswers
from sidecar.middleware.idempotency import Answer, AnswerStore
from tests.servers.redis import LocalServer

pytestmark = pytest.mark.anyio
ANSWER = Answer("x1", 200, [(b"content-type", b"application/json"), (b"x-odd", b"\xff")], b'{"a":"\xc3\xbc"}\x00')
ONE, OTHER = b"1" * 32, b"2" * 32


@contextlib.asynccontextmanager
async def redis_answers(url: str, **options: Any) -> AsyncIterator[RedisAnswers]:
    store = RedisAnswers(url, **({"deadline_s": 5} | options))
    try:
        yield store
    finally:
        await store.aclose()


Two = tuple[AnswerStore, AnswerStore]


@pytest.fixture(params=["memory", "redis_url", "valkey_url"])
async def two(request: pytest.FixtureRequest) -> AsyncIterator[Two]:
    """The store as two processes see it; in memory there is one only."""
    if request.param == "memory":
        store = MemoryAnswers()
        yield store, store
        return
    url = request.getfixturevalue(request.param)
    async with redis_answers(url) as first, redis_answers(url) as second:
        yield first, second


async def test_one_runs_it_the_others_get_what_it_kept(two: Two) -> None:
    first, second = two
    assert await first.claim("n", ONE, "x1") == "mine"
    assert await second.claim("n", ONE, "x2") == "busy"
    assert await second.claim("n", OTHER, "x3") == "other"
    await first.keep("n", "x1", ANSWER)
    assert await second.claim("n", ONE, "x2") == ANSWER
    assert await first.claim("n", ONE, "x4") == ANSWER
    assert await first.claim("n", OTHER, "x5") == "other"
    assert await second.claim("m", OTHER, "x6") == "mine"


async def test_what_is_released_is_free(two: Two) -> None:
    first, second = two
    assert await first.claim("n", ONE, "x1") == "mine"
    await second.release("n", "x2")  # not its own
    assert await second.claim("n", ONE, "x2") == "busy"
    await first.release("n", "x1")
    assert await second.claim("n", OTHER, "x2") == "mine"
    await first.keep("n", "x1", ANSWER)  # too late
    assert await first.claim("n", OTHER, "x3") == "busy"


async def test_that_an_answer_was_too_large_is_kept(two: Two) -> None:
    first, second = two
    assert await first.claim("n", ONE, "x1") == "mine"
    await first.keep("n", "x1", None)
    assert await second.claim("n", ONE, "x2") == "not_kept"
    assert await second.claim("n", OTHER, "x2") == "other"


@pytest.mark.parametrize("how", ["keep", "release"])
async def test_whoever_waits_is_woken(two: Two, how: str) -> None:
    first, second = two
    assert await first.claim("n", ONE, "x1") == "mine"
    woken = [asyncio.Event() for _ in range(20)]
    for number, event in enumerate(woken):
        two[number % 2].watch("n", event.set)
    gone = asyncio.Event()
    second.watch("n", gone.set)
    second.unwatch("n", gone.set)
    await asyncio.sleep(0.3)
    assert not any(event.is_set() for event in woken)
    await (first.keep("n", "x1", ANSWER) if how == "keep" else first.release("n", "x1"))
    async with asyncio.timeout(10):
        for event in woken:
            await event.wait()
    assert not gone.is_set()


async def test_of_many_at_once_one_runs_it(two: Two) -> None:
    found = await asyncio.gather(*(two[i % 2].claim("n", ONE, f"x{i}") for i in range(100)))
    assert sorted(map(str, found)).count("mine") == 1
    assert found.count("busy") == 99


async def holds(url: str, what: Callable[[Redis], Any]) -> Any:
    client = Redis.from_url(url)
    try:
        return await what(client)
    finally:
        await client.aclose()


async def test_a_process_that_dies_holds_no_name_and_one_that_lives_keeps_it(redis_like_url: str) -> None:
    async with redis_answers(redis_like_url, lease_s=0.6) as survivor:
        async with redis_answers(redis_like_url, lease_s=0.6) as victim:
            assert await victim.claim("n", ONE, "x1") == "mine"
            assert await survivor.claim("own", ONE, "x1") == "mine"
            await asyncio.sleep(1.5)
            assert await survivor.claim("n", ONE, "x2") == "busy", "its lease is renewed while it lives"
        woken = asyncio.Event()
        survivor.watch("n", woken.set)
        async with asyncio.timeout(20):
            while await survivor.claim("n", ONE, "x2") == "busy":
                woken.clear()
                survivor.watch("n", woken.set)
                await woken.wait()
                survivor.unwatch("n", woken.set)
        assert await survivor.claim("own", ONE, "x3") == "busy"


async def test_who_lost_its_lease_neither_keeps_nor_frees_what_another_runs_by_now(redis_url: str) -> None:
    async with redis_answers(redis_url) as store:
        assert await store.claim("n", ONE, "x1") == "mine"
        await holds(redis_url, lambda client: client.delete(PREFIX + "n"))
        assert await store.claim("n", ONE, "x2") == "mine"
        await store.keep("n", "x1", ANSWER)
        await store.release("n", "x1")
        assert await store.claim("n", ONE, "x3") == "busy"
        await store.keep("n", "x2", Answer("x2", 200, [], b"{}"))
        assert await store.claim("n", ONE, "x3") == Answer("x2", 200, [], b"{}")


async def test_redis_holds_no_more_than_allowed_and_forgets_in_time(redis_like_url: str) -> None:
    body = b"x" * 1000
    async with redis_answers(redis_like_url, max_bytes=20_000, keep_s=1.5) as store:
        for number in range(60):
            assert await store.claim(f"n{number}", ONE, "x") == "mine"
            await store.keep(f"n{number}", "x", Answer("x", 200, [], body))
        entries = await holds(redis_like_url, lambda client: client.keys(PREFIX + "n*"))
        total = int(await holds(redis_like_url, lambda client: client.get(PREFIX + "!bytes")))
        indexed = await holds(redis_like_url, lambda client: client.zcard(PREFIX + "!index"))
        assert 10 <= len(entries) <= 18
        assert len(entries) == indexed
        assert len(entries) * 1000 < total <= 20_000
        assert type(await store.claim("n59", ONE, "y")) is Answer
        assert await store.claim("n0", ONE, "y") == "mine"
        await asyncio.sleep(1.6)
        assert await store.claim("n59", ONE, "y") == "mine"
        await store.keep("n59", "y", Answer("x", 200, [], body))
        assert int(await holds(redis_like_url, lambda client: client.get(PREFIX + "!bytes"))) < 2000


async def test_redis_gone_is_a_clear_refusal_or_this_process_alone(start_redis: Callable[..., LocalServer]) -> None:
    server = start_redis()
    async with redis_answers(server.url) as closed, redis_answers(server.url, on_failure="open") as opened:
        assert await closed.claim("before", ONE, "x1") == "mine"
        server.kill()
        await closed.keep("before", "x1", ANSWER)
        await closed.release("before", "x1")
        with pytest.raises(UnavailableError) as refused:
            await closed.claim("n", ONE, "x1")
        assert refused.value.code == "idempotency_store_unavailable"
        assert await opened.claim("n", ONE, "x1") == "mine"
        assert await opened.claim("n", ONE, "x2") == "busy"
        woken = asyncio.Event()
        opened.watch("n", woken.set)
        await opened.keep("n", "x1", ANSWER)
        async with asyncio.timeout(10):
            await woken.wait()
        assert await opened.claim("n", ONE, "x2") == ANSWER


async def test_a_claim_cancelled_on_its_way_leaves_the_name_free(redis_like_url: str) -> None:
    async with redis_answers(redis_like_url) as store:
        await store.claim("other", ONE, "x0")
        task = asyncio.create_task(store.claim("n", ONE, "x1"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            while await store.claim("n", ONE, "x2") != "mine":
                await asyncio.sleep(0.01)
