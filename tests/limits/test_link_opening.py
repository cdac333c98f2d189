"""Opening the connection to the limit store: a process that stood still meanwhile does not take the server for dead."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from sidecar.limits.store.base import StoreDownError
from sidecar.limits.store.redis_link import RedisLink, pack
from tests.clock import LoopClock
from tests.servers.relay import relayed

pytestmark = pytest.mark.anyio
PING = pack([b"PING"])


@pytest.mark.parametrize("turns", range(1, 12))
async def test_a_process_that_stood_still_while_it_connected_asks_once_more(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    clock = LoopClock(monkeypatch)
    link = RedisLink(redis_url, {"one": "return 1", "two": "return 2"}, deadline_s=30)
    waiting = link.call(PING)
    for _ in range(turns):
        await asyncio.sleep(0)
    await clock.forward(60)
    assert await waiting == b"PONG"
    assert await link.call(PING) == b"PONG"
    await link.aclose()


async def test_a_server_that_does_not_answer_is_down_though_the_process_stood_still_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = 0

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    clock = LoopClock(monkeypatch)
    link = RedisLink(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", {}, deadline_s=0.2)
    waiting = link.call(PING)
    await clock.forward(0)
    await clock.forward(10)
    async with asyncio.timeout(60):
        with pytest.raises(StoreDownError):
            await waiting
    assert opened <= 2
    await link.aclose()
    server.close()
    await server.wait_closed()


async def test_nothing_is_sent_for_calls_that_were_told_of_a_failure(redis_url: str) -> None:
    """The client library connects anew by itself when it is to send on a connection that is gone."""
    async with relayed(redis_url) as (relay, url):
        for turns in range(12):
            link = RedisLink(url, {}, deadline_s=30.0)
            assert await link.call(PING) == b"PONG"
            relay.hang_up()
            relay.come_back()
            for _ in range(turns):
                await asyncio.sleep(0)
            with pytest.raises(StoreDownError):
                await link.call(pack((b"RPUSH", b"said", b"this")))
            await asyncio.sleep(0.05)
            await link.aclose()
            async with Redis.from_url(redis_url) as client:
                assert (await client.delete("said")) == 0, f"after {turns} turns of the loop"
