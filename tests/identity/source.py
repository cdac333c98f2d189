"""A key source in memory whose answers a test can hold back, and a clock a test can set."""

from __future__ import annotations

import asyncio

from sidecar.errors import UnavailableError
from sidecar.identity.keys import hash_key, new_key
from sidecar.identity.row import KeyRow, StoredKey


class Clock:
    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Source:
    """`rows` by hash; `queries` made; while `gate` is clear an answer, already read, waits; `is_down` raises."""

    def __init__(self) -> None:
        self.rows: dict[str, KeyRow] = {}
        self.queries: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_down = False
        self._was_asked = asyncio.Event()

    async def resolve(self, key_hash: str) -> StoredKey | None:
        self.queries.append(key_hash)
        self._was_asked.set()
        self._was_asked = asyncio.Event()
        if self.is_down:
            raise UnavailableError("down")
        row = self.rows.get(key_hash)
        await self.gate.wait()
        return None if row is None else StoredKey(row)

    async def asked(self, times: int) -> None:
        """Returns once that many queries were made."""
        async with asyncio.timeout(60):
            while len(self.queries) < times:
                await self._was_asked.wait()

    def add(self, number: int = 1, **values: object) -> str:
        token = new_key(lambda n: number.to_bytes(n, "big"))
        self.rows[hash_key(token)] = KeyRow(key_hash=hash_key(token), **values)  # type: ignore[arg-type]
        return token


class Shared:
    """A shared cache with the tombstone rule, in memory."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    async def get(self, key_hash: str) -> bytes | None:
        return self.values.get(key_hash) or None

    async def set(self, key_hash: str, value: bytes) -> None:
        self.values.setdefault(key_hash, value)

    async def delete(self, key_hash: str) -> bool:
        self.values[key_hash] = b""
        return True
