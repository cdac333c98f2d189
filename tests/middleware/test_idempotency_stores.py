"""What every store of answers has to do, over memory, Redis and Valkey; and what only the shared one can."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from sidecar.errors import UnavailableError
from sidecar.idempotency.memory import MemoryAnswers
from sidecar.idempotency.redis import PREFIX, RedisAnswers
from sidecar.middleware.idempotency import Answer, AnswerStore
from tests.clock import LoopClock
from tests.servers.redis import LocalServer

pytestmark = pytest.mark.anyio
ANSWER = Answer("x1", 200, [(b"content-type", b"application/json"), (b"x-odd", b"\xff")], b'{"a":"\xc3\xbc"}\x00')
ONE, OTHER = b"1" * 32, b"2" * 32


@contextlib.asynccontextmanager
async def redis_answers(url: str, **options: Any) -> AsyncIterator[RedisAnswers]:
    store = RedisAnswers(url, **({"deadline_s": 60, "lease_s": 600} | options))
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
    async with asyncio.timeout(60):
        for event in woken:
            await event.wait()
    assert not gone.is_set()


async def test_of_many_at_once_one_runs_it(two: Two) -> None:
    found = await asyncio.gather(*(two[i % 2].claim("n", ONE, f"x{i}") for i in range(100)))
    assert sorted(map(str, found)).count("mine") == 1
    assert found.count("busy") == 99


async def holds(url: str, what: Callable[[Redis], Any]) -> Any:
    client = Redis.from_url(url, socket_timeout=60, socket_connect_timeout=60)
    try:
        return await what(client)
    finally:
        await client.aclose()


async def test_a_process_that_dies_holds_no_name_and_one_that_lives_keeps_it(
    redis_like_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def left(name: str) -> int:
        return int(await holds(redis_like_url, lambda client: client.pttl(PREFIX + name)))

    async def age(name: str, left_ms: int) -> None:
        """The server's clock cannot be put forward, but what it has left can be made less."""
        await holds(redis_like_url, lambda client: client.pexpire(PREFIX + name, left_ms))

    clock = LoopClock(monkeypatch)
    async with redis_answers(redis_like_url, lease_s=600) as survivor:
        async with redis_answers(redis_like_url, lease_s=600) as victim:
            assert await victim.claim("n", ONE, "x1") == "mine"
            assert await survivor.claim("own", ONE, "x1") == "mine"
            for _ in range(3):
                for name in ("n", "own"):
                    assert 500_000 < await left(name) <= 600_000
                    await age(name, 400_000)
                await clock.forward(201)
                async with asyncio.timeout(60):
                    while min(await left("n"), await left("own")) <= 400_000:
                        await asyncio.sleep(0.01)
            assert await survivor.claim("n", ONE, "x2") == "busy", "its lease is renewed while it lives"
        for name in ("n", "own"):
            await age(name, 400_000)
        await clock.forward(201)
        async with asyncio.timeout(60):
            while await left("own") <= 400_000:
                await asyncio.sleep(0.01)
        assert await left("n") <= 400_000, "nobody renews it any more"
        await age("n", 1)
        woken = asyncio.Event()
        survivor.watch("n", woken.set)
        async with asyncio.timeout(60):
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


async def test_a_server_that_lost_its_memory_learns_again_who_runs_a_name(redis_like_url: str) -> None:
    async def lose(name: str) -> None:
        await holds(redis_like_url, lambda client: client.delete(PREFIX + name))

    async with redis_answers(redis_like_url, lease_s=1.5) as first, redis_answers(redis_like_url) as second:
        assert await first.claim("n", ONE, "x1") == "mine"
        await lose("n")
        async with asyncio.timeout(60):
            while not await holds(redis_like_url, lambda client: client.exists(PREFIX + "n")):
                await asyncio.sleep(0.01)
        assert await second.claim("n", ONE, "x2") == "busy"
        await lose("n")
        await first.keep("n", "x1", ANSWER)
        assert await second.claim("n", ONE, "x2") == ANSWER, "whoever comes again is not billed again"


async def test_what_ran_in_an_outage_is_not_run_again_after_it(start_redis: Callable[..., LocalServer]) -> None:
    server = start_redis()
    async with redis_answers(server.url, on_failure="open") as store:
        server.kill()
        for name in ("kept", "runs"):
            assert await store.claim(name, ONE, "x1") == "mine"
        await store.keep("kept", "x1", ANSWER)
        server.start()
        async with asyncio.timeout(60):
            for number in itertools.count():
                assert await store.claim(f"other {number}", ONE, "x") == "mine"
                if await holds(server.url, lambda client: client.dbsize()):
                    break
                await asyncio.sleep(0.05)
        assert await store.claim("kept", ONE, "x2") == ANSWER
        assert await store.claim("kept", OTHER, "x2") == "other"
        assert await store.claim("runs", ONE, "x2") == "busy"
        await store.release("runs", "x1")
        assert await store.claim("runs", ONE, "x2") == "mine"


async def test_redis_holds_no_more_than_allowed_and_forgets_in_time(redis_like_url: str) -> None:
    body = b"x" * 1000
    async with redis_answers(redis_like_url, max_bytes=20_000, keep_s=3600) as store:
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

        async def an_hour_later(client: Redis) -> None:
            """As if all of it had been kept an hour ago."""
            for key in [*entries, PREFIX.encode() + b"!index", PREFIX.encode() + b"!bytes"]:
                assert 3_000_000 < await client.pttl(key) <= 3_600_000
            for member, end_at in await client.zrange(PREFIX + "!index", 0, -1, withscores=True):
                await client.zadd(PREFIX + "!index", {member: end_at - 3_600_001})
            await client.delete(*entries)

        await holds(redis_like_url, an_hour_later)
        assert await store.claim("n59", ONE, "y") == "mine"
        await store.keep("n59", "y", Answer("x", 200, [], body))
        assert int(await holds(redis_like_url, lambda client: client.get(PREFIX + "!bytes"))) < 2000


@pytest.mark.parametrize("big", ["body", "headers"])
async def test_one_answer_larger_than_all_may_be_is_not_kept(big: str, redis_url: str) -> None:
    headers, body = ([(b"x-odd", b"x" * 30_000)], b"") if big == "headers" else ([], b"x" * 30_000)
    async with redis_answers(redis_url, max_bytes=20_000) as shared:
        memory = MemoryAnswers(max_bytes=20_000)
        for store in (memory, shared):
            assert await store.claim("small", ONE, "x1") == "mine"
            await store.keep("small", "x1", ANSWER)
            assert await store.claim("large", ONE, "x2") == "mine"
            await store.keep("large", "x2", Answer("x2", 200, headers, body))
            assert await store.claim("large", ONE, "x3") == "not_kept"
            assert await store.claim("small", ONE, "x3") == ANSWER, "it drives out no other"
        assert memory.bytes <= 20_000
        assert int(await holds(redis_url, lambda client: client.get(PREFIX + "!bytes"))) <= 20_000


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
        async with asyncio.timeout(60):
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
        async with asyncio.timeout(60):
            while await store.claim("n", ONE, "x2") != "mine":
                await asyncio.sleep(0.01)
