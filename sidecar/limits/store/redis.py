"""Limits and budgets shared by replicas, in Redis or Valkey. Every call is one Lua script, so atomic and idempotent by
exchange; the calls of one loop tick share a pipeline.

Neighbours: `lua/` (the scripts), `base` (the contract). All keys share the hash tag `{sidecar}`: one shard. The server
must run `maxmemory-policy noeviction`, else a budget could vanish.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine, Mapping, Sequence
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from sidecar.limits.claims import Admitted, Claims, Cold, Denied, SilentHold
from sidecar.limits.store.base import StoreDownError
from sidecar.limits.windows import BudgetWindow

PREFIX = "{sidecar}:"
BREAK_S = 1.0
"""After a failure, calls fail at once for this long; then one tries again."""


def _script(name: str) -> str:
    return resources.files("sidecar.limits").joinpath("lua", f"{name}.lua").read_text()


class _Call:
    __slots__ = ("args", "future", "keys", "script")

    def __init__(self, script: str, keys: Sequence[str], args: Sequence[str], future: asyncio.Future[Any]) -> None:
        self.script = script
        self.keys = keys
        self.args = args
        self.future = future


class RedisStore:
    is_shared = True

    def __init__(self, url: str, *, deadline_s: float = 0.5, prefix: str = "") -> None:
        self._client = Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=deadline_s,
            socket_connect_timeout=deadline_s,
            decode_responses=True,
            max_connections=64,
        )
        self._deadline_s = deadline_s
        self._prefix = prefix
        self._waiting: list[_Call] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._shas: dict[str, str] = {}
        self._broken_until = 0.0
        self._is_checked = False

    # one pipeline per loop tick -----------------------------------------------------------------------------------

    def _call(self, script: str, keys: Sequence[str], args: Sequence[str]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if loop.time() < self._broken_until:
            raise StoreDownError("the limit store did not answer a moment ago")
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(_Call(script, keys, args, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        calls, self._waiting = self._waiting, []
        self._background(self._send(calls))

    def _background(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, calls: list[_Call]) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                if not self._is_checked:
                    await self._check()
                results = await self._execute(calls)
        except (RedisError, OSError, TimeoutError) as error:
            self._broken_until = asyncio.get_running_loop().time() + BREAK_S
            for call in calls:
                if not call.future.done():
                    call.future.set_exception(StoreDownError(f"the limit store failed ({type(error).__name__})"))
            return
        for call, result in zip(calls, results, strict=True):
            if call.future.done():
                continue
            if isinstance(result, Exception):
                call.future.set_exception(StoreDownError(f"the limit store failed ({result})"))
            else:
                call.future.set_result(result)

    async def _check(self) -> None:
        for name in ("acquire", "settle", "extend", "reap", "renew", "seed"):
            self._shas[name] = await self._client.script_load(_script(name))
        self._is_checked = True

    async def _execute(self, calls: list[_Call]) -> list[Any]:
        results = await self._pipeline(calls)
        lost = [i for i, r in enumerate(results) if isinstance(r, NoScriptError)]
        if lost:
            # The server was restarted or flushed its scripts: nothing of these ran.
            await self._check()
            again = await self._pipeline([calls[i] for i in lost])
            for i, result in zip(lost, again, strict=True):
                results[i] = result
        return results

    async def _pipeline(self, calls: list[_Call]) -> list[Any]:
        if len(calls) == 1:
            call = calls[0]
            try:
                return [
                    await self._client.evalsha(self._shas[call.script], len(call.keys), *call.keys, *call.args)
                ]
            except NoScriptError as error:
                return [error]
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            pipeline.evalsha(self._shas[call.script], len(call.keys), *call.keys, *call.args)
        return await pipeline.execute(raise_on_error=False)

    # the contract -------------------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return f"{PREFIX}{self._prefix}{name}"

    @property
    def _generation(self) -> str:
        return self._key("gen")

    @property
    def _leases(self) -> str:
        return self._key("leases")

    @property
    def _live(self) -> str:
        return self._key("x:")

    async def acquire(
        self,
        exchange_id: str,
        claims: Claims,
        *,
        tokens: int,
        hold_nano: int,
        min_hold_nano: int,
        lease_s: float,
        now: float | None = None,
    ) -> Admitted | Denied | Cold:
        keys = [self._generation, self._live + exchange_id, self._leases]
        keys += [self._key("r:" + c.key) for c in claims.requests]
        keys += [self._key("t:" + c.key) for c in claims.tokens]
        keys += [self._key("c:" + c.key) for c in claims.slots]
        keys += [self._key("b:" + w.key) for w in claims.windows]
        args = [
            exchange_id,
            _micros(now),
            str(int(lease_s * 1e6)),
            str(tokens),
            str(hold_nano),
            str(min_hold_nano),
            str(len(claims.requests)),
            str(len(claims.tokens)),
            str(len(claims.slots)),
            str(len(claims.windows)),
        ]
        args += [str(c.limit) for group in (claims.requests, claims.tokens, claims.slots) for c in group]
        for window in claims.windows:
            args += [str(window.max_nano), str(int(window.start_at)), _end(window)]
        future = self._call("acquire", keys, args)
        try:
            result = await asyncio.shield(future)
        except (asyncio.CancelledError, StoreDownError):
            # Nobody will settle this: whether it was admitted or not, take it back.
            future.add_done_callback(functools.partial(self._take_back, exchange_id))
            raise
        return _answer(result, claims)

    def _take_back(self, exchange_id: str, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._background(self._quietly_cancel(exchange_id))

    async def _quietly_cancel(self, exchange_id: str) -> None:
        try:
            await self.cancel(exchange_id)
        except StoreDownError:
            return  # the lease runs out and charges the hold

    async def extend(self, exchange_id: str, claims: Claims, extra_nano: int) -> bool | None:
        result = await asyncio.shield(self._call("extend", [self._live + exchange_id], [str(extra_nano)]))
        return None if result < 0 else bool(result)

    async def settle(
        self, exchange_id: str, *, tokens: int | None, cost_nano: int | None, now: float | None = None
    ) -> None:
        args = [
            exchange_id,
            "" if tokens is None else str(tokens),
            "" if cost_nano is None else str(cost_nano),
            _micros(now),
            "",
        ]
        await asyncio.shield(self._call("settle", [self._live + exchange_id, self._leases], args))

    async def cancel(self, exchange_id: str) -> None:
        args = [exchange_id, "0", "0", "", "1"]
        await asyncio.shield(self._call("settle", [self._live + exchange_id, self._leases], args))

    async def seed(self, values: Mapping[str, int], windows: Sequence[object] = (), now: float | None = None) -> None:
        ends = {w.key: _end(w) for w in windows if isinstance(w, BudgetWindow)}
        args = ["" if now is None else str(int(now))]
        for key, nano in values.items():
            args += [str(nano), ends.get(key, "-1")]
        keys = [self._generation, *(self._key("b:" + key) for key in values)]
        await asyncio.shield(self._call("seed", keys, args))

    async def spent(self, keys: Sequence[str]) -> dict[str, int]:
        if not keys:
            return {}
        try:
            async with asyncio.timeout(self._deadline_s):
                found = await self._client.mget([self._key("b:" + key) for key in keys])
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreDownError(f"the limit store failed ({type(error).__name__})") from error
        return {key: int(value or 0) for key, value in zip(keys, found, strict=True)}

    async def renew(self, exchange_ids: Sequence[str], lease_s: float, now: float | None = None) -> None:
        for start in range(0, len(exchange_ids), 500):
            ids = exchange_ids[start : start + 500]
            args = [_micros(now), str(int(lease_s * 1e6)), self._live, *ids]
            await asyncio.shield(self._call("renew", [self._leases], args))

    async def reap(self, now: float | None = None) -> list[SilentHold]:
        rows = await asyncio.shield(self._call("reap", [self._leases], [_micros(now), self._live]))
        return [SilentHold(row[0], int(row[1]), int(row[2]) / 1e6) for row in rows]

    async def aclose(self) -> None:
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=2 * self._deadline_s)
        await self._client.aclose()


def _micros(now: float | None) -> str:
    return "" if now is None else str(round(now * 1e6))


def _end(window: BudgetWindow) -> str:
    return "-1" if window.end_at == float("inf") else str(int(window.end_at))


def _answer(result: list[Any], claims: Claims) -> Admitted | Denied | Cold:
    if result[0] == "ok":
        return Admitted(
            at=int(result[1]) / 1e6,
            hold_nano=int(result[2]),
            limit_requests=result[3] if result[3] >= 0 else None,
            remaining_requests=result[4],
            reset_requests_s=int(result[5]) / 1e6,
            limit_tokens=result[6] if result[6] >= 0 else None,
            remaining_tokens=result[7],
            reset_tokens_s=int(result[8]) / 1e6,
        )
    if result[0] == "cold":
        return Cold(tuple(claims.windows[i] for i in result[1:]))
    what, index, wait = result[1], result[2], int(result[3])
    wait_s = wait / 1e6 if wait >= 0 else None
    if what == "budget":
        window = claims.windows[index]
        return Denied(what, window.kind, window.max_nano, wait_s)
    group = {"requests": claims.requests, "tokens": claims.tokens, "concurrency": claims.slots}[what]
    return Denied(what, group[index].kind, group[index].limit, wait_s)
