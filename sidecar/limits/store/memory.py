"""Limits and budgets of one process, in memory. No call suspends, so each is one atomic step of the event loop.

Neighbours: `base` (the contract), `claims` (the values). A lone process's leases end with it, so nothing is reaped.
Memory: one integer per admission of the last minute, one entry per live exchange and per budget window.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from sidecar.limits.claims import Admitted, Claims, Cold, Denied, Gone, Reading, Settled, SilentHold, Stale
from sidecar.limits.windows import RATE_WINDOW_S, BudgetWindow

_SWEEP_EVERY = 4096
_SECOND = 1_000_000
_MINUTE = int(RATE_WINDOW_S) * _SECOND
_KEPT_S = 7 * 86400
"""A budget window is kept this long after its end, for exchanges that began in it."""
_NEVER = float("inf")


class _Tokens:
    """Tokens of the last minute in buckets of one second; a bucket counts until its last moment has left."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.total = 0

    def prune(self, now: int) -> None:
        oldest = now // _SECOND - 61
        buckets = self.buckets
        while buckets:
            second = next(iter(buckets))
            if second > oldest:
                return
            self.total -= buckets.pop(second)

    def is_ahead(self, now: int) -> bool:
        """The clock was set back: what is counted would stay until it is there again."""
        return next(iter(self.buckets), 0) > now // _SECOND + 61

    def begin_anew(self, now: int) -> None:
        second = now // _SECOND
        self.buckets = {s: amount for s, amount in self.buckets.items() if second - 61 < s <= second + 61}
        self.total = sum(self.buckets.values())

    def add(self, second: int, amount: int) -> None:
        self.buckets[second] = self.buckets.get(second, 0) + amount
        self.total += amount

    def wait(self, now: int, limit: int, tokens: int) -> float:
        """Microseconds until `tokens` fit; infinite if they never will."""
        total = self.total
        if tokens <= limit:
            for second in sorted(self.buckets):
                total -= self.buckets[second]
                if total + tokens <= limit:
                    return (second + 61) * _SECOND - now
        return _NEVER


class _Counter:
    """Spent and held nano-dollars of one budget window, and when the window ends."""

    __slots__ = ("end_at", "nano")

    def __init__(self, nano: int, end_at: float) -> None:
        self.nano = nano
        self.end_at = end_at


class _Live:
    __slots__ = ("admitted", "at", "claims", "hold_nano", "tokens")

    def __init__(self, claims: Claims, admitted: Admitted, tokens: int, at: int) -> None:
        self.claims = claims
        self.admitted = admitted
        self.hold_nano = admitted.hold_nano
        self.tokens = tokens
        self.at = at


class MemoryStore:
    is_shared = False
    epoch = ""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._requests: dict[str, deque[int]] = {}
        self._tokens: dict[str, _Tokens] = {}
        self._slots: dict[str, int] = {}
        self._counters: dict[str, _Counter] = {}
        self._live: dict[str, _Live] = {}
        self._seeded_at: float | None = None
        self._calls = 0

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
        now_s = self._clock() if now is None else now
        live = self._live.get(exchange_id)
        if live is not None:
            return live.admitted
        if not claims.valid_from <= now_s < claims.valid_until:
            return Stale(now_s)
        at = int(now_s * _SECOND + 0.5)
        self._calls += 1
        if self._calls % _SWEEP_EVERY == 0:
            self._sweep(at)
        # Judge everything first: a refused request consumes nothing on any scope.
        counters = self._counters
        hold = hold_nano
        is_short = False
        for window in claims.windows:
            counter = counters.get(window.key)
            if counter is None:
                if self._seeded_at is None or window.start_at < self._seeded_at:
                    return self._cold(claims)
                left = window.max_nano
            else:
                left = window.max_nano - counter.nano
            if left < hold:
                hold = max(left, 0)
        if hold_nano and claims.windows and (hold < min_hold_nano or hold <= 0):
            # What costs nothing passes, whatever was spent.
            is_short = True
        admitted = Admitted(at / _SECOND, hold)
        horizon = at - _MINUTE
        for claim in claims.requests:
            log = self._requests.get(claim.key)
            if log is None:
                log = self._requests[claim.key] = deque()
            while log and log[0] <= horizon:
                log.popleft()
            used = len(log)
            left = claim.limit - used - 1
            if left < 0 and log and log[0] > at + _MINUTE:
                # The clock was set back: these, and all behind them, would count until it is there again.
                log = self._requests[claim.key] = deque(t for t in log if horizon < t <= at + _MINUTE)
                used = len(log)
                left = claim.limit - used - 1
            if left < 0:
                is_short = True
            elif admitted.limit_requests is None or left < admitted.remaining_requests:
                admitted.limit_requests = claim.limit
                admitted.remaining_requests = left
                admitted.reset_requests_s = (log[0] - horizon) / _SECOND if used else RATE_WINDOW_S
        for claim in claims.tokens:
            used_tokens = self._tokens.get(claim.key)
            if used_tokens is None:
                used_tokens = self._tokens[claim.key] = _Tokens()
            used_tokens.prune(at)
            left = claim.limit - used_tokens.total - tokens
            if left < 0 and used_tokens.is_ahead(at):
                used_tokens.begin_anew(at)
                left = claim.limit - used_tokens.total - tokens
            if left < 0:
                is_short = True
            elif admitted.limit_tokens is None or left < admitted.remaining_tokens:
                admitted.limit_tokens = claim.limit
                admitted.remaining_tokens = left
                first = next(iter(used_tokens.buckets), at // _SECOND)
                admitted.reset_tokens_s = ((first + 61) * _SECOND - at) / _SECOND
        slots = self._slots
        for claim in claims.slots:
            if slots.get(claim.key, 0) >= claim.limit:
                is_short = True
        if is_short:
            if lost_at is None:
                return self._denied(claims, tokens, hold_nano, min_hold_nano, at)
            admitted = Admitted(at / _SECOND, hold_nano)
        # Everything fits: now, and only now, count.
        for claim in claims.requests:
            self._requests[claim.key].append(at)
        for claim in claims.tokens:
            self._tokens[claim.key].add(at // _SECOND, tokens)
        for claim in claims.slots:
            slots[claim.key] = slots.get(claim.key, 0) + 1
        hold = admitted.hold_nano
        for window in claims.windows:
            counter = counters.get(window.key)
            if counter is None:
                counters[window.key] = _Counter(hold, window.end_at)
            else:
                counter.nano += hold
        self._live[exchange_id] = _Live(claims, admitted, tokens, at)
        return admitted

    def take_rates(self, other: MemoryStore) -> None:
        """Go on with another's requests and tokens of the last minute. Nothing of its slots and money."""
        self._requests, self._tokens = other._requests, other._tokens
        self._sweep(int(self._clock() * _SECOND))

    def _cold(self, claims: Claims) -> Cold:
        return Cold(
            tuple(
                w
                for w in claims.windows
                if w.key not in self._counters and (self._seeded_at is None or w.start_at < self._seeded_at)
            )
        )

    def _denied(self, claims: Claims, tokens: int, hold_nano: int, min_hold_nano: int, at: int) -> Denied:
        """Why, by the window that takes longest to open again."""
        full: list[tuple[float, str, str, int]] = []
        if hold_nano:
            for window in claims.windows:
                counter = self._counters.get(window.key)
                if window.max_nano - (counter.nano if counter is not None else 0) < max(1, min_hold_nano):
                    wait = window.end_at * _SECOND - at if window.max_nano >= max(1, min_hold_nano) else _NEVER
                    full.append((wait, "budget", window.kind, window.max_nano))
        for claim in claims.requests:
            log = self._requests[claim.key]
            if len(log) >= claim.limit:
                wait = log[len(log) - claim.limit] + _MINUTE - at if claim.limit > 0 else _NEVER
                full.append((wait, "requests", claim.kind, claim.limit))
        for claim in claims.tokens:
            used = self._tokens[claim.key]
            if used.total + tokens > claim.limit:
                full.append((used.wait(at, claim.limit, tokens), "tokens", claim.kind, claim.limit))
        for claim in claims.slots:
            if self._slots.get(claim.key, 0) >= claim.limit:
                full.append((_SECOND if claim.limit > 0 else _NEVER, "concurrency", claim.kind, claim.limit))
        wait, what, kind, limit = max(full, key=lambda f: f[0])
        return Denied(what, kind, limit, None if wait == _NEVER else wait / _SECOND)

    async def extend(self, exchange_id: str, claims: Claims, extra_nano: int) -> bool | None:
        live = self._live.get(exchange_id)
        if live is None:
            return None
        found = [(w, self._counters.get(w.key)) for w in live.claims.windows]
        for window, counter in found:
            if counter is not None and counter.nano + extra_nano > window.max_nano:
                return False
        for _, counter in found:
            if counter is not None:
                counter.nano += extra_nano
        live.hold_nano += extra_nano
        return True

    async def settle(
        self, exchange_id: str, *, tokens: int | None, cost_nano: int | None, now: float | None = None
    ) -> Settled:
        live = self._live.pop(exchange_id, None)
        if live is None:
            return Settled.UNKNOWN
        claims = live.claims
        slots = self._slots
        for claim in claims.slots:
            left = slots[claim.key] - 1
            if left:
                slots[claim.key] = left
            else:
                del slots[claim.key]
        if tokens is not None and claims.tokens and tokens != live.tokens:
            difference = tokens - live.tokens
            reserved_in = live.at // _SECOND
            for claim in claims.tokens:
                used = self._tokens.get(claim.key)
                if difference > 0:
                    if used is None:
                        used = self._tokens[claim.key] = _Tokens()
                    used.add(int(self._clock() if now is None else now), difference)
                elif used is not None and reserved_in in used.buckets:
                    used.add(reserved_in, difference)
        if cost_nano is not None and cost_nano != live.hold_nano:
            self._add(claims, cost_nano - live.hold_nano)
        return Settled.DONE

    def _add(self, claims: Claims, nano: int) -> None:
        for window in claims.windows:
            counter = self._counters.get(window.key)
            if counter is not None:
                counter.nano += nano

    async def charge(self, exchange_id: str, claims: Claims, cost_nano: int, at: float | None = None) -> bool:
        self._add(claims, cost_nano)
        return True

    async def cancel(self, exchange_id: str) -> Settled:
        live = self._live.get(exchange_id)
        if live is None:
            return Settled.UNKNOWN
        for claim in live.claims.requests:
            log = self._requests.get(claim.key)
            if log is not None and live.at in log:
                log.remove(live.at)
        return await self.settle(exchange_id, tokens=0, cost_nano=0, now=0.0)

    async def begin(self, windows: Sequence[BudgetWindow], now: float | None = None) -> Reading | None:
        return None

    async def readings(self) -> list[str]:
        return []

    async def retire(self, exchange_ids: Sequence[str], *, is_kept: bool = False) -> None:
        return

    async def seed(
        self,
        values: Mapping[str, int],
        windows: Sequence[BudgetWindow] = (),
        now: float | None = None,
        reading: Reading | None = None,
    ) -> None:
        if self._seeded_at is None:
            self._seeded_at = self._clock() if now is None else now
        ends = {w.key: w.end_at for w in windows}
        for key, nano in values.items():
            self._counters.setdefault(key, _Counter(nano, ends.get(key, _NEVER)))

    async def spent(self, keys: Sequence[str]) -> dict[str, int]:
        return {key: self._counters[key].nano if key in self._counters else 0 for key in keys}

    async def counters(self) -> list[str]:
        return list(self._counters)

    async def renew(self, exchange_ids: Sequence[str], lease_s: float, now: float | None = None) -> list[str]:
        return []

    async def reap(self, now: float | None = None) -> list[SilentHold]:
        return []

    async def written(self, exchange_id: str, *, is_over: bool) -> None:
        return

    async def aclose(self) -> None:
        return

    def _sweep(self, at: int) -> None:
        """Forget scopes nobody used for a minute and windows long over."""
        horizon = at - _MINUTE
        for key in [k for k, log in self._requests.items() if not log or log[-1] <= horizon]:
            del self._requests[key]
        for used in self._tokens.values():
            used.prune(at)
        for key in [k for k, used in self._tokens.items() if not used.buckets]:
            del self._tokens[key]
        dead = at / _SECOND - _KEPT_S
        for key in [k for k, counter in self._counters.items() if counter.end_at < dead]:
            del self._counters[key]
