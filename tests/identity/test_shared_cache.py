"""The shared cache on a real Redis: entries, tombstones, and what a Redis that is gone or frozen costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sidecar.errors import AuthenticationError
from sidecar.identity.keys import Keys, hash_key
from sidecar.identity.shared_cache import RedisSharedCache
from sidecar.types import Secret
from tests.identity.source import Clock, Source
from tests.promises.support import eventually

pytestmark = pytest.mark.anyio

KEY = hash_key("sk-" + "a" * 43)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0)) as client:
        await client.flushdb()
        yield client


async def test_an_entry_is_read_back_and_leaves_by_itself(client: Redis) -> None:
    cache = RedisSharedCache(client, clock=Clock(), prefix="t:", age_s=3000, deadline_s=60)
    assert await cache.get(KEY) is None
    await cache.set(KEY, b"row")
    assert await cache.get(KEY) == b"row"
    assert 2_900_000 < await client.pttl("t:" + KEY) <= 3_000_000


async def test_after_a_deletion_nobody_writes_an_entry_for_a_while(client: Redis) -> None:
    here, there = (RedisSharedCache(client, clock=Clock(), tombstone_s=3000, deadline_s=60) for _ in range(2))
    await here.set(KEY, b"old")
    assert await here.delete(KEY)
    await there.set(KEY, b"old")
    assert await there.get(KEY) is None
    assert 2_900_000 < await client.pttl("sidecar:key:" + KEY) <= 3_000_000


async def test_replicas_share_a_row_and_a_revocation(client: Redis) -> None:
    source, clock = Source(), Clock()
    caches = [RedisSharedCache(client, clock=clock, deadline_s=60) for _ in range(2)]
    here, there = (Keys(source, master_key=Secret("m"), clock=clock, shared_cache=cache) for cache in caches)
    token = source.add(rpm_limit=5, models=("a",), metadata={"x": [1.5, None]})
    assert await here.lookup(token) == await there.lookup(token)
    assert len(source.queries) == 1
    stored = b"".join([await client.get(name) for name in await client.keys("*")])
    assert token.encode() not in stored
    source.add(blocked=True)
    assert await here.revoke(hash_key(token))
    clock.now += 1.0
    for keys in (here, there):
        with pytest.raises(AuthenticationError, match="blocked"):
            await keys.lookup(token)


async def test_a_redis_that_is_gone_is_a_miss_and_an_untold_revocation_says_so() -> None:
    client = Redis.from_url("redis://127.0.0.1:1", retry=Retry(NoBackoff(), 0))
    source, clock = Source(), Clock()
    keys = Keys(source, master_key=None, clock=clock, shared_cache=RedisSharedCache(client, clock=clock, deadline_s=60))
    token = source.add()
    await keys.lookup(token)
    assert len(source.queries) == 1
    assert not await keys.revoke(hash_key(token))
    await client.aclose()


async def test_a_frozen_redis_costs_one_deadline_per_pause() -> None:
    """Each question of this cache opens a connection here, since what hung is not used again."""
    questions = 0

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal questions
        questions += 1
        try:
            while await reader.read(65536):
                pass
        finally:
            writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = Redis.from_url(f"redis://127.0.0.1:{port}", retry=Retry(NoBackoff(), 0))
    clock = Clock()
    cache = RedisSharedCache(client, clock=clock, deadline_s=0.05, pause_s=1.0)
    for number in (1, 2):
        for _ in range(50):
            assert await cache.get(KEY) is None
            await cache.set(KEY, b"row")
        await eventually(lambda number=number: questions >= number)  # type: ignore[misc]
        assert questions == number
        clock.now += 1.0
    await client.aclose()
    server.close()
    await server.wait_closed()
