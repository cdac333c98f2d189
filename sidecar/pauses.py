"""Pauses of deployments, shared by all processes through one Redis hash: what one found out, the others need not.

Neighbours: `routing.health` (told and asked here), `app.py` makes and starts it. Rules: no request ever waits for this;
instants in the hash are by Redis' clock, so a process whose own is wrong locks out nobody. Redis gone: each process
knows its own. Bounded by the configured deployments.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sidecar.routing.health import MAX_PAUSE_S, Cooldown, Health
from sidecar.tasks import end

if TYPE_CHECKING:
    from redis.asyncio import Redis

KEY = "sidecar:pauses"
_FORGET_S = 600
_log = logging.getLogger(__name__)


class SharedPauses:
    """`ids` are the deployments configured now. Told at once, learned every `every_s`."""

    def __init__(
        self,
        client: Redis,
        health: Health,
        *,
        ids: Callable[[], Iterable[str]],
        clock: Callable[[], float],
        every_s: float = 0.5,
        deadline_s: float = 0.5,
        key: str = KEY,
    ) -> None:
        self._client: Any = client
        self._health = health
        self._ids = ids
        self._clock = clock
        self._every_s = every_s
        self._deadline_s = deadline_s
        self._key = key
        self._news: dict[str, Cooldown | None] = {}
        self._said: dict[str, str] = {}
        """By deployment: what the hash says and this process knows."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_down = False
        health.on_change = self._changed

    def _changed(self, name: str, cooldown: Cooldown | None) -> None:
        self._news[name] = cooldown
        self._wake.set()

    async def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        task, self._task = self._task, None
        await end([task])
        await self._client.aclose()

    async def _run(self) -> None:
        from redis.exceptions import RedisError

        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._wake.wait()
            self._wake.clear()
            try:
                async with asyncio.timeout(self._deadline_s):
                    seconds, micros = await self._client.time()
                    ahead_s = seconds + micros / 1e6 - self._clock()
                    await self._tell(ahead_s)
                    await self._learn(ahead_s)
                self._is_down = False
            except (RedisError, OSError, TimeoutError):
                if not self._is_down:
                    _log.warning("pauses of deployments are not shared: Redis does not answer")
                self._is_down = True
                await asyncio.sleep(self._every_s)

    async def _tell(self, ahead_s: float) -> None:
        news, self._news = self._news, {}
        if not news:
            return
        try:
            found = {name: f"{c.until_at + ahead_s:.3f} {c.reason}" for name, c in news.items() if c is not None}
            over = [name for name, c in news.items() if c is None]
            if over:
                await self._client.hdel(self._key, *over)
            if found:
                await self._client.hset(self._key, mapping=found)
                await self._client.expire(self._key, _FORGET_S)
                self._said |= found
        except BaseException:
            self._news = news | self._news
            raise

    async def _learn(self, ahead_s: float) -> None:
        said = await self._client.hgetall(self._key)
        pauses = {_text(name): _text(value) for name, value in said.items()}
        ids, now = set(self._ids()), self._clock()
        for name, value in pauses.items():
            if name not in ids or name in self._news or self._said.get(name) == value:
                continue
            until, _, reason = value.partition(" ")
            try:
                until_at = float(until) - ahead_s
            except ValueError:
                continue
            if until_at > now:
                self._said[name] = value
                self._health.learn(name, Cooldown(min(until_at, now + MAX_PAUSE_S), reason, now))
        for name in self._said.keys() - pauses.keys():
            # Another process' trial went well. A pause that is merely over stays in the hash, and half-open here.
            del self._said[name]
            if name not in self._news:
                self._health.learn(name, None)


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
