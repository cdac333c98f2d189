"""Asks the other processes what they remember of an exchange: one message to all through Redis, an answer from whoever
knows. Nothing is shared before somebody asks.

Neighbours: `records` (what is asked), `admin.exchanges` (who asks). Redis gone: each process knows its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from sidecar.records import Records, Shown
from sidecar.tasks import end

if TYPE_CHECKING:
    from redis.asyncio import Redis

CHANNEL = "{sidecar}:exchanges"
_KEPT_S = 10
_LISTEN_S = 5.0
_MOST_AT_ONCE = 5
"""Reads that end before their time: of a few there are, such as of the confirmation."""
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class SharedRecords:
    """`wait_s`: how long an answer is waited for."""

    def __init__(self, client: Redis, records: Records, *, wait_s: float = 0.5, channel: str = CHANNEL) -> None:
        self._client: Any = client
        self._records = records
        self._wait_s = wait_s
        self._channel = channel
        self._me = uuid.uuid4().hex
        self._task: asyncio.Task[None] | None = None
        self._is_down = False

    async def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        task, self._task = self._task, None
        await end([task])
        await self._client.aclose()

    async def find(self, name: str) -> Sequence[Shown]:
        """Of this process, and of the others unless this one has it by the gateway's own id; the newest first."""
        found = self._records.find(name)
        if not any(shown["exchange_id"] == name for shown in found):
            found += await self._ask(name)
        return sorted(found, key=lambda shown: str(shown["at"]), reverse=True)

    async def _ask(self, name: str) -> Sequence[Shown]:
        from redis.exceptions import RedisError

        reply = f"{self._channel}:{uuid.uuid4().hex}"
        question = _encode({"name": name, "reply": reply, "from": self._me})
        found: list[Shown] = []
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(2 * self._wait_s):
                others = await self._client.publish(self._channel, question) - 1
                until = asyncio.get_running_loop().time() + self._wait_s
                while others > 0 and (left := until - asyncio.get_running_loop().time()) > 0:
                    answer = await self._client.blpop([reply], timeout=max(left, 0.01))
                    if answer is None:
                        break
                    others -= 1
                    found += msgspec.json.decode(answer[1])
        return found

    async def _run(self) -> None:
        from redis.exceptions import RedisError

        while True:
            try:
                async with self._client.pubsub() as listening:
                    await listening.subscribe(self._channel)
                    self._is_down = False
                    await self._listen(listening)
            except (RedisError, OSError, TimeoutError):
                if not self._is_down:
                    _log.warning("what other processes remember of exchanges cannot be asked: Redis does not answer")
                self._is_down = True
                await asyncio.sleep(1.0)

    async def _listen(self, listening: Any) -> None:
        """Until the connection fails. A connection the system gave up (ETIMEDOUT) is for the client library a read that
        timed out: it says so at once, for ever, without giving the loop a turn."""
        clock = asyncio.get_running_loop().time
        at_once = 0
        while at_once < _MOST_AT_ONCE:
            began = clock()
            message = await listening.get_message(ignore_subscribe_messages=True, timeout=_LISTEN_S)
            if message is not None:
                await self._answer(message["data"])
            at_once = 0 if message is not None or clock() - began > _LISTEN_S / 2 else at_once + 1
        raise OSError("the connection is gone")

    async def _answer(self, data: bytes) -> None:
        try:
            question = msgspec.json.decode(data, type=dict[str, str])
            name, reply, who = question["name"], question["reply"], question["from"]
        except (msgspec.MsgspecError, KeyError):
            return  # not ours
        if who == self._me or not reply.startswith(self._channel):
            return
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.rpush(reply, _encode(self._records.find(name)))
            pipeline.expire(reply, _KEPT_S)
            await pipeline.execute()
