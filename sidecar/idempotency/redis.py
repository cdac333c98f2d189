"""Kept answers shared by all replicas, in Redis or Valkey; every step is one Lua script (`lua/`).

Neighbours: `middleware.idempotency` (the contract), `limits.store.redis_link` (the wire), `memory` (instead, while the
server is away and `on_failure` is open). Who runs a name holds it by a lease: a process that dies holds it no longer.
A waiter asks again every quarter of a second, all waiters of a name and process together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from importlib import resources
from typing import Any, Literal

import msgspec

from sidecar.errors import UnavailableError
from sidecar.idempotency.memory import MemoryAnswers
from sidecar.limits.store.base import StoreDownError
from sidecar.limits.store.redis_link import RedisLink, pack
from sidecar.middleware.idempotency import Answer, Standing

PREFIX = "{sidecar}:idempotent:"
LEASE_S = 10.0
POLL_S = 0.25
_SCRIPTS = ("claim", "keep", "release", "renew")
_ENTRY_BYTES = 300
_FINGERPRINT = slice(1, 33)
_log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, int, list[tuple[bytes, bytes]], bytes]).decode


class RedisAnswers:
    """Answers are kept for `keep_s`, `max_bytes` of them in the server."""

    def __init__(
        self,
        url: str,
        *,
        keep_s: float = 3600.0,
        max_bytes: int = 64 * 1024 * 1024,
        on_failure: Literal["closed", "open"] = "closed",
        deadline_s: float = 0.5,
        lease_s: float = LEASE_S,
        prefix: str = "",
    ) -> None:
        folder = resources.files("sidecar.idempotency").joinpath("lua")
        scripts = {name: folder.joinpath(f"{name}.lua").read_text() for name in _SCRIPTS}
        self._link = RedisLink(url, scripts, deadline_s=deadline_s)
        self._prefix = PREFIX + prefix
        self._keep_ms = str(max(1, round(keep_s * 1000)))
        self._max_bytes = max_bytes
        self._lease_s = lease_s
        self._lease_ms = str(max(1, round(lease_s * 1000)))
        self._local = MemoryAnswers(keep_s=keep_s, max_bytes=max_bytes) if on_failure == "open" else None
        self._held: dict[tuple[str, str], bytes] = {}
        """(name, owner) -> what stands in the server while this process runs it."""
        self._watched: dict[str, list[Callable[[], None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None

    async def claim(self, name: str, fingerprint: bytes, owner: str) -> Answer | Standing:
        if self._local is not None and self._local.knows(name):  # of an outage
            return await self._local.claim(name, fingerprint, owner)
        mark = b"P" + fingerprint + owner.encode()
        try:
            found = await self._run("claim", [self._key(name)], [mark, self._lease_ms])
        except StoreDownError as error:
            self._later(self._drop(name, mark))  # it may have been ours all the same
            if self._local is None:
                raise UnavailableError(
                    "The gateway refused the request: its store of answers to Idempotency-Keys does not answer, so it "
                    "cannot tell whether this call was made before. Try again shortly.",
                    code="idempotency_store_unavailable",
                    retry_after_s=1.0,
                ) from error
            return await self._local.claim(name, fingerprint, owner)
        except asyncio.CancelledError:
            self._later(self._drop(name, mark))
            raise
        if found is None:
            self._held[name, owner] = mark
            if self._renewing is None:
                self._renewing = self._later(self._renew())
            return "mine"
        if found[_FINGERPRINT] != fingerprint:
            return "other"
        if found[:1] == b"P":
            return "busy"
        return Answer(*_decode(found[33:])) if found[:1] == b"A" else "not_kept"

    async def keep(self, name: str, owner: str, answer: Answer | None) -> None:
        mark = self._held.pop((name, owner), None)
        if mark is None:
            if self._local is not None:
                await self._local.keep(name, owner, answer)
            return
        value = b"N" + mark[_FINGERPRINT]
        if answer is not None:
            packed = _encode((answer.exchange_id, answer.status, answer.headers, answer.body))
            if len(value) + len(packed) + _ENTRY_BYTES <= self._max_bytes:  # else it is more than all may be
                value = b"A" + mark[_FINGERPRINT] + packed
        keys = [self._key(name), self._prefix + "!index", self._prefix + "!bytes"]
        size = str(len(value) + _ENTRY_BYTES)
        try:
            await self._run("keep", keys, [mark, value, self._keep_ms, size, str(self._max_bytes), name, self._prefix])
        except StoreDownError as error:
            _log.warning("an answer was not kept for its Idempotency-Key: %s", error)
        self._tell(name)

    async def release(self, name: str, owner: str) -> None:
        mark = self._held.pop((name, owner), None)
        if mark is not None:
            await self._drop(name, mark)
            self._tell(name)
        elif self._local is not None:
            await self._local.release(name, owner)

    def watch(self, name: str, wake: Callable[[], None]) -> None:
        wakes = self._watched.get(name)
        if wakes is None:
            self._watched[name] = [wake]
            self._later(self._poll(name))
        else:
            wakes.append(wake)

    def unwatch(self, name: str, wake: Callable[[], None]) -> None:
        wakes = self._watched.get(name, [])
        if wake in wakes:
            wakes.remove(wake)

    async def aclose(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._link.aclose()

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _run(self, script: str, keys: Sequence[str], args: Sequence[str | bytes]) -> asyncio.Future[Any]:
        parts = (
            b"EVALSHA",
            self._link.shas[script].encode(),
            b"%d" % len(keys),
            *map(_bytes, keys),
            *map(_bytes, args),
        )
        return self._link.call(pack(parts))

    async def _drop(self, name: str, mark: bytes) -> None:
        try:
            await self._run("release", [self._key(name)], [mark])
        except StoreDownError:
            return  # its lease runs out

    async def _renew(self) -> None:
        """As long as this process runs anything."""
        while self._held:
            await asyncio.sleep(self._lease_s / 3)
            try:
                calls = [
                    self._run("renew", [self._key(n)], [mark, self._lease_ms]) for (n, _), mark in self._held.items()
                ]
            except StoreDownError:
                continue
            await asyncio.gather(*calls, return_exceptions=True)
        self._renewing = None

    async def _poll(self, name: str) -> None:
        """Wakes those who wait once nobody runs the name, in whatever process; ends with the last of them."""
        while self._watched[name]:
            await asyncio.sleep(POLL_S)
            try:
                state = await self._link.call(pack([b"GETRANGE", self._key(name).encode(), b"0", b"0"]))
            except StoreDownError:
                state = b""  # they find out for themselves
            if state != b"P":
                self._tell(name)
        del self._watched[name]

    def _tell(self, name: str) -> None:
        for wake in list(self._watched.get(name, ())):
            wake()

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
