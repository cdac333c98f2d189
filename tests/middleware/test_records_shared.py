"""What processes remember of exchanges, asked over Redis: the listening connection breaks in whatever way."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from redis.asyncio import Redis

from sidecar import records_shared
from sidecar.records_shared import SharedRecords

pytestmark = pytest.mark.anyio


class Remembered:
    """Of one exchange."""

    def find(self, name: str) -> list[dict[str, Any]]:
        return [{"exchange_id": "e", "at": "2027"}] if name == "asked" else []


class Nothing:
    def find(self, name: str) -> list[dict[str, Any]]:
        return []


async def until_found(asking: SharedRecords) -> None:
    async with asyncio.timeout(60):
        while not await asking.find("asked"):
            await asyncio.sleep(0.05)


async def in_use(client: Redis) -> set[Any]:
    """The connection that listens, once the answer was sent over another."""
    async with asyncio.timeout(60):
        while len(found := client.connection_pool._in_use_connections) != 1:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
    return set(found)


async def test_a_connection_the_system_gave_up_holds_no_loop_and_is_replaced(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_shared, "_LISTEN_S", 0.5)
    client = Redis.from_url(redis_url)
    knows: Any = SharedRecords(client, Remembered())  # type: ignore[arg-type]
    asks = SharedRecords(Redis.from_url(redis_url), Nothing())  # type: ignore[arg-type]
    await knows.start()
    await asks.start()
    await until_found(asks)
    (connection,) = await in_use(client)
    # As asyncio tells a reader that the kernel sent again and again in vain.
    connection._reader.set_exception(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
    connection._writer.transport.abort()
    await until_found(asks)
    assert knows._is_down is False
    await knows.aclose()
    await asks.aclose()
