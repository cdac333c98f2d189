"""Key rows shared by replicas through Redis, between the memory of one process and the database.

`Keys` (keys.py) asks it on a memory miss. Failure is a miss: Redis gone or frozen costs `deadline_s` once, then it is
left alone for `pause_s`. Rule: a deleted entry leaves a tombstone and entries are written with NX, so a replica that
read the database before a revocation cannot write the old row back. No secret is stored: hashes and limits only.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sidecar.identity.deadline import Deadline

if TYPE_CHECKING:
    from redis.asyncio import Redis

TOMBSTONE = b""

T = TypeVar("T")


class SharedCache(Protocol):
    """Bytes by key hash. `get` and `set` never raise for a store that is down; `delete` says whether it was told."""

    async def get(self, key_hash: str) -> bytes | None: ...

    async def set(self, key_hash: str, value: bytes) -> None: ...

    async def delete(self, key_hash: str) -> bool: ...


class RedisSharedCache:
    """`SharedCache` on a `redis.asyncio.Redis` client (with `decode_responses=False`, the default).

    age_s: how long an entry may stand. tombstone_s: how long after a deletion nobody may write an entry; it has to be
    longer than any database lookup lasts.
    """

    def __init__(
        self,
        client: Redis,
        *,
        clock: Callable[[], float],
        prefix: str = "sidecar:key:",
        age_s: float = 30.0,
        tombstone_s: float = 30.0,
        deadline_s: float = 0.25,
        pause_s: float = 1.0,
    ) -> None:
        self._client = client
        self._clock = clock
        self._prefix = prefix
        self._age_ms = max(1, round(age_s * 1000))
        self._tombstone_ms = max(1, round(tombstone_s * 1000))
        self._deadline = Deadline(deadline_s)
        self._pause_s = pause_s
        self._failed_at: float | None = None

    async def get(self, key_hash: str) -> bytes | None:
        if self._is_paused():
            return None
        found = await self._try(self._read(key_hash))
        return found or None

    async def set(self, key_hash: str, value: bytes) -> None:
        if not self._is_paused():
            await self._try(self._write(key_hash, value))

    async def delete(self, key_hash: str) -> bool:
        return await self._try(self._bury(key_hash)) is True

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _read(self, key_hash: str) -> bytes | None:
        found = await self._client.get(self._prefix + key_hash)
        return found.encode() if isinstance(found, str) else found

    async def _write(self, key_hash: str, value: bytes) -> None:
        await self._client.set(self._prefix + key_hash, value, nx=True, px=self._age_ms)

    async def _bury(self, key_hash: str) -> bool:
        await self._client.set(self._prefix + key_hash, TOMBSTONE, px=self._tombstone_ms)
        return True

    def _is_paused(self) -> bool:
        return self._failed_at is not None and self._failed_at <= self._clock() < self._failed_at + self._pause_s

    async def _try(self, call: Coroutine[Any, Any, T]) -> T | None:
        from redis.exceptions import RedisError

        if self._failed_at is not None:
            self._failed_at = self._clock()  # this call finds out whether it is back; nobody else waits meanwhile
        try:
            answer = await self._deadline.run(call)
        except (RedisError, OSError, TimeoutError):
            self._failed_at = self._clock()
            return None
        self._failed_at = None
        return answer
