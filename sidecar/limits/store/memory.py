"""Limits and budgets of one process, in memory. No call suspends, so each is one atomic step of the event loop.

Neighbours: `base` (the contract), `claims` (the values). A lone process's leases end with it, so nothing is reaped.
Memory: one float per admission of the last minute, one entry per live exchange and per budget window.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from sidecar.limits.claims import Admitted, Claims, Cold, Denied, SilentHold
from sidecar.limits.windows import RATE_WINDOW_S, BudgetWindow

_SWEEP_EVERY = 4096


class _Tokens:
    """Tokens of the last minute in buckets of one second; a bucket counts until its last moment has left."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.total = 0

    def prune(self, now: float) -> None:
        oldest = now - RATE_WINDOW_S - 1
        buckets = self.buckets
        while buckets:
            second = next(iter(buckets))
            if second > oldest:
                return
            self.total -= buckets.pop(second)

    def add(self, now: float, amount: int) -> None:
        second = int(now)
        self.buckets[second] = self.buckets.get(second, 0) + amount
        self.total += amount

    def wait(self, now: float, limit: int, tokens: int) -> float | None:
        """Seconds until `tokens` fit; None if they never will."""
        if tokens > limit:
            return None
        total = self.total
        for second, amount in self.buckets.items():
            total -= amount
            if total + tokens <= limit:
                return second + 1 + RATE_WINDOW_S - now
        return 0.0


class _Live:
    __slots__ = ("admitted", "claims", "hold_nano", "second", "tokens")

    def __init__(self, claims: Claims, admitted: Admitted, tokens: int, second: int) -> None:
        self.claims = claims
        self.admitted = admitted
        self.hold_nano = admitted.hold_nano
        self.tokens = tokens
        self.second = second


class MemoryStore:
    is_shared = False

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._requests: dict[str, deque[float]] = {}
        self._tokens: dict[str, _Tokens] = {}
        self._slots: dict[str, int] = {}
        self._counters: dict[str, tuple[int, float]] = {}
        """counter key -> (spent and held nano-dollars, end of the window)"""
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
        now: float | None = None,
    ) -> Admitted | Denied | Cold:
        at = self._clock() if now is None else now
        live = self._live.get(exchange_id)
        if live is not None:
            return live.admitted
        self._calls += 1
        if self._calls % _SWEEP_EVERY == 0:
            self._sweep(at)
        # Judge everything first: a refused request consumes nothing on any scope.
        counters = self._counters
        wanted = hold_nano
        cold: list[BudgetWindow] = []
        for window in claims.windows:
            counter = counters.get(window.key)
            if counter is None:
                if self._seeded_at is None or window.start_at < self._seeded_at:
                    cold.append(window)
                continue
            if wanted and window.max_nano - counter[0] < hold_nano:
                hold_nano = window.max_nano - counter[0]
        if cold:
            return Cold(tuple(cold))
        if wanted:
            # What costs nothing passes, whatever was spent.
            for window in claims.windows:
                hold_nano = min(hold_nano, window.max_nano)
            if hold_nano < min_hold_nano or hold_nano <= 0:
                return self._denied_budget(claims, max(1, min_hold_nano), at)
        admitted = Admitted(at, hold_nano)
        horizon = at - RATE_WINDOW_S
        for claim in claims.requests:
            log = self._requests.get(claim.key)
            if log is None:
                log = self._requests[claim.key] = deque()
            while log and log[0] <= horizon:
                log.popleft()
            used = len(log)
            if used >= claim.limit:
                wait = log[used - claim.limit] + RATE_WINDOW_S - at if claim.limit else None
                return Denied("requests", claim.kind, claim.limit, wait)
            left = claim.limit - used - 1
            if admitted.limit_requests is None or left < admitted.remaining_requests:
                admitted.limit_requests = claim.limit
                admitted.remaining_requests = left
                admitted.reset_requests_s = (log[0] + RATE_WINDOW_S - at) if used else RATE_WINDOW_S
        for claim in claims.tokens:
            used_tokens = self._tokens.get(claim.key)
            if used_tokens is None:
                used_tokens = self._tokens[claim.key] = _Tokens()
            used_tokens.prune(at)
            left = claim.limit - used_tokens.total - tokens
            if left < 0:
                return Denied("tokens", claim.kind, claim.limit, used_tokens.wait(at, claim.limit, tokens))
            if admitted.limit_tokens is None or left < admitted.remaining_tokens:
                admitted.limit_tokens = claim.limit
                admitted.remaining_tokens = left
                first = next(iter(used_tokens.buckets), int(at))
                admitted.reset_tokens_s = first + 1 + RATE_WINDOW_S - at
        slots = self._slots
        for claim in claims.slots:
            if slots.get(claim.key, 0) >= claim.limit:
                return Denied("concurrency", claim.kind, claim.limit, 1.0 if claim.limit else None)
        for claim in claims.requests:
            self._requests[claim.key].append(at)
        for claim in claims.tokens:
            self._tokens[claim.key].add(at, tokens)
        for claim in claims.slots:
            slots[claim.key] = slots.get(claim.key, 0) + 1
        for window in claims.windows:
            counter = counters.get(window.key)
            counters[window.key] = ((counter[0] if counter is not None else 0) + hold_nano, window.end_at)
        self._live[exchange_id] = _Live(claims, admitted, tokens, int(at))
        return admitted

    def _denied_budget(self, claims: Claims, needed: int, at: float) -> Denied:
        for window in claims.windows:
            spent = self._counters.get(window.key, (0, 0.0))[0]
            if window.max_nano - spent < needed:
                wait = window.end_at - at
                return Denied("budget", window.kind, window.max_nano, wait if wait != float("inf") else None)
        raise AssertionError("no window refuses this hold")

    async def extend(self, exchange_id: str, claims: Claims, extra_nano: int) -> bool | None:
        live = self._live.get(exchange_id)
        if live is None:
            return None
        for window in live.claims.windows:
            if self._counters[window.key][0] + extra_nano > window.max_nano:
                return False
        for window in live.claims.windows:
            self._add(window.key, extra_nano)
        live.hold_nano += extra_nano
        return True

    def _add(self, key: str, nano: int) -> None:
        counter = self._counters.get(key)
        if counter is not None:
            self._counters[key] = (counter[0] + nano, counter[1])

    async def settle(
        self, exchange_id: str, *, tokens: int | None, cost_nano: int | None, now: float | None = None
    ) -> None:
        live = self._live.pop(exchange_id, None)
        if live is None:
            return
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
            for claim in claims.tokens:
                used = self._tokens.get(claim.key)
                if used is None:
                    continue
                if difference > 0:
                    used.add(self._clock() if now is None else now, difference)
                elif live.second in used.buckets:
                    used.buckets[live.second] += difference
                    used.total += difference
        if cost_nano is not None and cost_nano != live.hold_nano:
            for window in claims.windows:
                self._add(window.key, cost_nano - live.hold_nano)

    async def cancel(self, exchange_id: str) -> None:
        live = self._live.get(exchange_id)
        if live is None:
            return
        for claim in live.claims.requests:
            log = self._requests.get(claim.key)
            if log is not None and live.admitted.at in log:
                log.remove(live.admitted.at)
        await self.settle(exchange_id, tokens=0, cost_nano=0)

    async def seed(self, values: Mapping[str, int], windows: Sequence[object] = ()) -> None:
        if self._seeded_at is None:
            self._seeded_at = self._clock()
        ends = {w.key: w.end_at for w in windows if isinstance(w, BudgetWindow)}
        for key, nano in values.items():
            self._counters.setdefault(key, (nano, ends.get(key, float("inf"))))

    async def spent(self, keys: Sequence[str]) -> dict[str, int]:
        return {key: self._counters.get(key, (0, 0.0))[0] for key in keys}

    async def renew(self, exchange_ids: Sequence[str], lease_s: float, now: float | None = None) -> None:
        return

    async def reap(self, now: float | None = None) -> list[SilentHold]:
        return []

    async def aclose(self) -> None:
        return

    def _sweep(self, now: float) -> None:
        """Forget scopes nobody used for a minute and windows long over (a live exchange's window is kept a day)."""
        horizon = now - RATE_WINDOW_S
        for key in [k for k, log in self._requests.items() if not log or log[-1] <= horizon]:
            del self._requests[key]
        for used in self._tokens.values():
            used.prune(now)
        for key in [k for k, used in self._tokens.items() if not used.buckets]:
            del self._tokens[key]
        for key in [k for k, (_, end_at) in self._counters.items() if end_at + 86400 < now]:
            del self._counters[key]
