"""One connection to Redis or Valkey for scripts: the calls of one loop tick leave in one write, answers are matched in
order, no caller waits longer than the deadline, and a dead server is not asked again and again.

Neighbours: `redis` (what is asked). Rules: one connection, so calls are executed in the order they were made; a
cancelled caller disturbs nobody; nothing is ever sent twice, except scripts the server said it does not have.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError

from sidecar.limits.store.base import StoreDownError, StoreUnsafeError
from sidecar.tasks import end, stood_still

BREAK_S = 1.0
"""After a failure calls fail at once for this long; then one connection attempt is made while calls go on failing."""


class _Call:
    __slots__ = ("data", "future", "is_repeated", "sent_at")

    def __init__(self, data: bytes, future: asyncio.Future[Any], sent_at: float) -> None:
        self.data = data
        self.future = future
        self.sent_at = sent_at
        self.is_repeated = False


class RedisLink:
    """`scripts` maps names to Lua sources. `deadline_s` bounds every call, connecting included."""

    def __init__(self, url: str, scripts: Mapping[str, str], *, deadline_s: float) -> None:
        self._pool = ConnectionPool.from_url(
            url, retry=Retry(NoBackoff(), 0), protocol=2, socket_timeout=None, socket_connect_timeout=deadline_s
        )
        self._scripts = scripts
        self.shas = {name: hashlib.sha1(text.encode()).hexdigest() for name, text in scripts.items()}  # noqa: S324
        self.greeting = b""
        """A packed command that comes before all others on every connection."""
        self._deadline_s = deadline_s
        self._connection: Connection | None = None
        self._waiting: list[_Call] = []
        self._sent: deque[_Call] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opening: asyncio.Task[Any] | None = None
        self._is_flush_due = False
        self._watch: asyncio.TimerHandle | None = None
        self._closed_until = 0.0
        self._reason: Exception | None = None
        self._was_down = False

    def call(self, data: bytes) -> asyncio.Future[Any]:
        """Queue one packed command; the future gives its answer or StoreDownError. Raises StoreDownError at once while
        the server is known to be down. Who cancels the future stops waiting; the call is made all the same."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._was_down and (now < self._closed_until or self._opening is not None):
            raise self._down(is_asked=False)
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(_Call(data, future, now))
        if not self._is_flush_due:
            self._is_flush_due = True
            loop.call_soon(self._flush)
        if self._watch is None:
            self._watch = loop.call_later(self._deadline_s, self._check_deadline, now + self._deadline_s)
        return future

    def background(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _flush(self) -> None:
        self._is_flush_due = False
        connection = self._connection
        if connection is None:
            if self._opening is None and self._waiting:
                self._opening = asyncio.ensure_future(self._open())
            return
        calls, self._waiting = self._waiting, []
        if calls:
            self._sent.extend(calls)
            self.background(self._write(connection, b"".join([call.data for call in calls])))

    async def _write(self, connection: Connection, data: bytes) -> None:
        if connection is not self._connection:
            return  # failed meanwhile, and all were told: the client would connect again by itself
        try:
            await connection.send_packed_command([data], check_health=False)
        except (RedisError, OSError) as error:
            self._fail(connection, error)

    async def _open(self) -> None:
        connection: Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        due = asyncio.get_running_loop().time() + self._deadline_s
        try:
            async with asyncio.timeout(self._deadline_s):
                await connection.connect()  # type: ignore[no-untyped-call]
                await self._prepare(connection)
        except (RedisError, OSError, TimeoutError, StoreDownError) as error:
            await connection.disconnect(nowait=True)
            self._opening = None
            if self._waiting and stood_still(due, self._deadline_s):
                self._flush()  # not the server: once more, for those whose deadline was put off for the same reason
            else:
                self._fail(None, error)
            return
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._opening = None
        self._was_down = False
        self._connection = connection
        self.background(self._read(connection))
        self._flush()

    async def _prepare(self, connection: Connection) -> None:
        """Scripts loaded, and the server known not to throw counters away when its memory is full."""
        for text in self._scripts.values():
            await connection.send_command("SCRIPT", "LOAD", text)
        await connection.send_command("INFO", "memory")
        if self.greeting:
            await connection.send_packed_command([self.greeting], check_health=False)
        for _ in self._scripts:
            await self._answer(connection)
        info = await self._answer(connection)
        facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and facts.get("maxmemory", "0") != "0":
            raise StoreUnsafeError(
                f"its limit store may evict counters: set maxmemory-policy to noeviction, not {policy}"
            )
        if self.greeting:
            await self._answer(connection)

    async def _answer(self, connection: Connection) -> Any:
        answer = await connection.read_response(disable_decoding=True)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _read(self, connection: Connection) -> None:
        sent = self._sent
        try:
            while self._connection is connection:
                try:
                    answer = await connection.read_response(disable_decoding=True)
                except ReadOnlyError:
                    raise  # a replica now: connect anew
                except ResponseError as error:
                    answer = error
                if self._connection is not connection:
                    return
                call = sent.popleft()
                if isinstance(answer, NoScriptError) and not call.is_repeated:
                    self._again(connection, call)
                elif call.future.done():
                    continue
                elif isinstance(answer, Exception):
                    call.future.set_exception(StoreDownError(f"the limit store failed ({answer})"))
                else:
                    call.future.set_result(answer)
        except (RedisError, OSError, IndexError) as error:
            self._fail(connection, error)

    def _again(self, connection: Connection, call: _Call) -> None:
        """The server forgot its scripts, so nothing ran: load them and send this call once more."""
        call.is_repeated = True
        loads = [
            _Call(pack((b"SCRIPT", b"LOAD", text.encode())), asyncio.get_running_loop().create_future(), call.sent_at)
            for text in self._scripts.values()
        ]
        self._waiting = [*loads, call, *self._waiting]
        self._flush()

    def _check_deadline(self, due: float) -> None:
        self._watch = None
        oldest = self._sent[0] if self._sent else self._waiting[0] if self._waiting else None
        if oldest is None:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        left = oldest.sent_at + self._deadline_s - now
        if left <= 0.001 and stood_still(due, self._deadline_s):
            left = self._deadline_s
        if left > 0.001:
            self._watch = loop.call_later(left, self._check_deadline, now + left)
        else:
            self._fail(self._connection, TimeoutError())

    def _fail(self, connection: Connection | None, error: Exception) -> None:
        """Everybody who waits is told; the connection is dropped, for its answers can no longer be matched."""
        if connection is not self._connection:
            return
        self._connection = None
        if connection is not None:
            self.background(connection.disconnect(nowait=True))
        self._was_down = True
        self._closed_until = asyncio.get_running_loop().time() + BREAK_S
        self._reason = error
        calls = [*((call, True) for call in self._sent), *((call, False) for call in self._waiting)]
        self._sent.clear()
        self._waiting = []
        for call, is_asked in calls:
            if not call.future.done():
                call.future.set_exception(self._down(is_asked=is_asked))
                call.future.exception()  # whoever was cancelled will not look

    def _down(self, *, is_asked: bool) -> StoreDownError:
        if isinstance(self._reason, StoreUnsafeError):
            error: StoreDownError = StoreUnsafeError(str(self._reason))
        else:
            error = StoreDownError(f"the limit store failed ({self._reason!r})")
        error.is_asked = is_asked
        return error

    async def aclose(self) -> None:
        """Waits for what is under way, at most a deadline."""
        futures = [call.future for call in (*self._sent, *self._waiting)]
        if futures:
            await asyncio.wait(futures, timeout=self._deadline_s)
        if self._watch is not None:
            self._watch.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
        await end((self._opening, *self._tasks))
        await self._pool.disconnect()


def pack(args: Iterable[bytes]) -> bytes:
    """One command in the server's protocol."""
    parts = list(args)
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])
