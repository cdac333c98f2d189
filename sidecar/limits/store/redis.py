"""Limits and budgets shared by replicas, in Redis or Valkey. Every call is one Lua script: atomic, and idempotent by
exchange.

Neighbours: `lua/` (the scripts), `redis_link` (the wire), `base` (the contract). All keys share the hash tag
`{sidecar}`: one shard. The server must run `maxmemory-policy noeviction`, else a budget could vanish; one that would
evict is refused.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from sidecar.limits.claims import Admitted, Claims, Cold, Denied, Gone, Reading, Settled, SilentHold, Stale
from sidecar.limits.store.base import StoreDownError
from sidecar.limits.store.redis_link import RedisLink, pack
from sidecar.limits.windows import BudgetWindow

PREFIX = "{sidecar}:"
_SCRIPTS = ("acquire", "settle", "charge", "extend", "renew", "reap", "begin", "seed", "retire", "written", "meet")
_KEPT_S = 7 * 86400
"""A budget counter is kept this long after its window, for exchanges that began in it."""
_DYNAMIC_ARGS = 8
_PAGE = 500
_AGAIN_S = 30
"""A silent hold of whose row nobody told is handed out again after so long."""


class RedisStore:
    """`deadline_s` bounds every call. `prefix` separates gateways that share a database."""

    is_shared = True

    def __init__(self, url: str, *, deadline_s: float = 0.5, prefix: str = "") -> None:
        folder = resources.files("sidecar.limits").joinpath("lua")
        scripts = {name: folder.joinpath(f"{name}.lua").read_text() for name in _SCRIPTS}
        self._link = RedisLink(url, scripts, deadline_s=deadline_s)
        self._prefix = f"{PREFIX}{prefix}"
        self._record = self._key("x:").encode()
        self.epoch = ""
        keys = [self._key(name).encode() for name in ("run", "readings", "epoch", "gen", "leases")]
        sha = self._link.shas["meet"].encode()
        self._link.greeting = pack((b"EVALSHA", sha, b"%d" % len(keys), *keys, self._prefix.encode()))

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _run(self, script: str, keys: Sequence[str | bytes], args: Sequence[str | bytes]) -> asyncio.Future[Any]:
        sha = self._link.shas[script].encode()
        parts = (b"EVALSHA", sha, b"%d" % len(keys), *map(_bytes, keys), *map(_bytes, args))
        return self._link.call(pack(parts))

    # the contract -------------------------------------------------------------------------------------------------

    async def acquire(
        self,
        exchange_id: str,
        claims: Claims,
        *,
        tokens: int,
        hold_nano: int,
        min_hold_nano: int,
        lease_s: float,
        owner: str = "",
        lost_at: float | None = None,
        now: float | None = None,
    ) -> Admitted | Denied | Cold | Stale | Gone:
        wire = claims.cache.get(self)
        if wire is None:
            wire = claims.cache[self] = self._wire(claims)
        head, tail = wire
        exchange = exchange_id.encode()
        dynamic = (
            self._record + exchange,
            exchange,
            _micros(now),
            b"%d" % (lease_s * 1e6),
            b"%d" % tokens,
            b"%d" % hold_nano,
            b"%d" % min_hold_nano,
            owner.encode(),
            _micros(lost_at),
        )
        data = head + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in dynamic]) + tail
        try:
            answer = await self._link.call(data)
        except asyncio.CancelledError:
            # Nobody will settle this: whether it is admitted or not, it is taken back, before anything asked later.
            try:
                self._settle(exchange_id, 0, 0, b"", b"1").add_done_callback(_looked_at)
            except StoreDownError:
                pass  # Admission owes it still; else the lease runs out
            raise
        return _answer(answer, claims)

    def _wire(self, claims: Claims) -> tuple[bytes, bytes]:
        """The command before and after what differs per exchange, packed once per claims."""
        req = [self._key("r:" + c.key) for c in claims.requests]
        tok = [self._key("t:" + c.key) for c in claims.tokens]
        slot = [self._key("c:" + c.key) for c in claims.slots]
        bud = [self._key("b:" + w.key) for w in claims.windows]
        keys = [self._key("gen"), self._key("leases"), self._key("guard"), *req, *tok, *slot, *bud]
        valid_from = "" if claims.valid_from == float("-inf") else str(round(claims.valid_from * 1e6))
        valid_until = "" if claims.valid_until == float("inf") else str(round(claims.valid_until * 1e6))
        args = [str(len(group)) for group in (req, tok, slot, bud)]
        args += [valid_from, valid_until, json.dumps({"req": req, "tok": tok, "slot": slot, "bud": bud})]
        args += [str(c.limit) for group in (claims.requests, claims.tokens, claims.slots) for c in group]
        for window in claims.windows:
            end = -1 if window.end_at == float("inf") else int(window.end_at)
            args += [str(window.max_nano), str(int(window.start_at)), str(end), _forget_at(window)]
        before = (b"EVALSHA", self._link.shas["acquire"].encode(), b"%d" % (len(keys) + 1), *map(_bytes, keys))
        count = len(before) + 1 + _DYNAMIC_ARGS + len(args)
        return (
            b"*%d\r\n" % count + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in before]),
            b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in map(_bytes, args)]),
        )

    async def extend(self, exchange_id: str, claims: Claims, extra_nano: int) -> bool | None:
        keys: list[str | bytes] = [self._record + exchange_id.encode()]
        keys += [self._key("b:" + w.key) for w in claims.windows]
        args = [str(extra_nano), *(str(w.max_nano) for w in claims.windows)]
        result = await self._run("extend", keys, args)
        return None if result < 0 else bool(result)

    async def settle(
        self, exchange_id: str, *, tokens: int | None, cost_nano: int | None, now: float | None = None
    ) -> Settled:
        return Settled(await self._settle(exchange_id, tokens, cost_nano, _micros(now), b""))

    async def cancel(self, exchange_id: str) -> Settled:
        return Settled(await self._settle(exchange_id, 0, 0, b"", b"1"))

    def _settle(
        self, exchange_id: str, tokens: int | None, cost: int | None, now: bytes, cancel: bytes
    ) -> asyncio.Future[Any]:
        exchange = exchange_id.encode()
        keys = (self._record + exchange, self._key("leases"), self._key("silent"))
        args = (
            exchange,
            b"" if tokens is None else b"%d" % tokens,
            b"" if cost is None else b"%d" % cost,
            now,
            cancel,
        )
        return self._run("settle", keys, args)

    def _counters(self, keys: Iterable[str]) -> list[str]:
        """Each counter's name and that of its reading."""
        return [self._key(letter + key) for key in keys for letter in ("b:", "s:")]

    async def charge(self, exchange_id: str, claims: Claims, cost_nano: int, at: float | None = None) -> bool:
        keys = [self._key("d:" + exchange_id), self._key("gen"), *self._counters(w.key for w in claims.windows)]
        args: list[str | bytes] = [str(cost_nano), _micros(at)]
        for window in claims.windows:
            args += [str(int(window.start_at)), _forget_at(window)]
        return bool(await self._run("charge", keys, args) != 2)

    async def begin(self, windows: Sequence[BudgetWindow], now: float | None = None) -> Reading | None:
        keys = [self._key("epoch"), self._key("readings"), *self._counters(w.key for w in windows)]
        args: list[str | bytes] = [_micros(now), *(_forget_at(w) for w in windows)]
        epoch, number, *instants = await self._run("begin", keys, args)
        self.epoch = epoch.decode()
        since = {w.key: int(at) / 1e6 for w, at in zip(windows, instants, strict=True) if at}
        return Reading(number, since)

    async def seed(
        self,
        values: Mapping[str, int],
        windows: Sequence[BudgetWindow] = (),
        now: float | None = None,
        reading: Reading | None = None,
    ) -> None:
        forget = {w.key: _forget_at(w) for w in windows}
        found = [key for key in values if reading is None or key in reading.since]
        args: list[str | bytes] = [_micros(now), b"" if reading is None else b"%d" % reading.number]
        for key in found:
            since = _micros(reading.since[key]) if reading is not None else b""
            args += [str(values[key]), forget.get(key, ""), since]
        await self._run("seed", [self._key("gen"), *self._counters(found)], args)

    async def readings(self) -> list[str]:
        return await self._names("s:")

    async def retire(self, exchange_ids: Sequence[str], *, is_kept: bool = False) -> None:
        for start in range(0, len(exchange_ids), _PAGE):
            args: list[str | bytes] = [self._record, "1" if is_kept else "", *exchange_ids[start : start + _PAGE]]
            await self._run("retire", [self._key("leases")], args)

    async def spent(self, keys: Sequence[str]) -> dict[str, int]:
        if not keys:
            return {}
        found = await self._link.call(pack([b"MGET", *(_bytes(self._key("b:" + k)) for k in keys)]))
        return {key: int(value or 0) for key, value in zip(keys, found, strict=True)}

    async def counters(self) -> list[str]:
        return await self._names("b:")

    async def _names(self, letter: str) -> list[str]:
        head = self._key(letter).encode()
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", head) + b"*"
        cursor, found = b"0", set()
        while True:
            cursor, page = await self._link.call(pack([b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"1000"]))
            found.update(page)
            if cursor == b"0":
                return sorted(name[len(head) :].decode() for name in found)

    async def renew(self, exchange_ids: Sequence[str], lease_s: float, now: float | None = None) -> list[str]:
        keys = [self._key("leases"), self._key("guard"), self._key("epoch")]
        unknown: list[str] = []
        for start in range(0, max(1, len(exchange_ids)), _PAGE):
            args: list[str | bytes] = [_micros(now), b"%d" % (lease_s * 1e6), self._record]
            args += exchange_ids[start : start + _PAGE]
            epoch, *names = await self._run("renew", keys, args)
            self.epoch = epoch.decode()
            unknown += [name.decode() for name in names]
        return unknown

    async def reap(self, now: float | None = None) -> list[SilentHold]:
        sets = [self._key(name) for name in ("leases", "guard", "silent")]
        rows = await self._run("reap", sets, [_micros(now), self._record, b"%d" % (_AGAIN_S * 1_000_000)])
        skip = len(self._key("b:"))
        return [
            SilentHold(
                exchange.decode(),
                int(hold or 0),
                int(at) / 1e6,
                owner.decode(),
                tuple(key[skip:] for key in json.loads(keys)["bud"]),
                is_over=not hold,
            )
            for exchange, hold, at, owner, keys in rows
        ]

    async def written(self, exchange_id: str, *, is_over: bool) -> None:
        keys: list[str | bytes] = [self._key("silent"), self._record + exchange_id.encode()]
        await self._run("written", keys, [exchange_id, "1" if is_over else ""])

    async def aclose(self) -> None:
        await self._link.aclose()


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _looked_at(future: asyncio.Future[Any]) -> None:
    """Its failure is nobody's news."""
    if not future.cancelled():
        future.exception()


def _micros(now: float | None) -> bytes:
    return b"" if now is None else b"%d" % int(now * 1e6 + 0.5)


def _forget_at(window: BudgetWindow) -> str:
    return "" if window.end_at == float("inf") else str(int(window.end_at) + _KEPT_S)


def _answer(answer: bytes, claims: Claims) -> Admitted | Denied | Cold | Stale | Gone:
    word, *rest = answer.split()
    if word == b"ok":
        at, hold, req_limit, req_left, req_reset, tok_limit, tok_left, tok_reset = map(int, rest)
        return Admitted(
            at / 1e6,
            hold,
            None if req_limit < 0 else req_limit,
            req_left,
            req_reset / 1e6,
            None if tok_limit < 0 else tok_limit,
            tok_left,
            tok_reset / 1e6,
        )
    if word == b"denied":
        what, index, wait = rest[0].decode(), int(rest[1]), int(rest[2])
        wait_s = wait / 1e6 if wait >= 0 else None
        if what == "budget":
            window = claims.windows[index]
            return Denied(what, window.kind, window.max_nano, wait_s)
        group = {"requests": claims.requests, "tokens": claims.tokens, "concurrency": claims.slots}[what]
        return Denied(what, group[index].kind, group[index].limit, wait_s)
    if word == b"cold":
        return Cold(tuple(claims.windows[int(index)] for index in rest))
    if word == b"stale":
        return Stale(int(rest[0]) / 1e6)
    if word == b"gone":
        return Gone()
    raise StoreDownError(f"the limit store answered {answer[:40]!r}")
