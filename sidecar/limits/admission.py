"""Admission: all windows and holds of a request in one atomic step, settled once.

Neighbours: `scopes` (who shares), `windows` (which period), `store/` (where it is counted). `sidecar.admit` uses it for
the middlewares. Store gone: bounded wait, then `closed` (503) or `open` (a local store bounds this process). Never 401.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Literal

from sidecar.errors import BudgetExceededError, RateLimitedError, UnavailableError
from sidecar.limits.claims import Admitted, Claims, Cold, Denied, RateClaim, SilentHold
from sidecar.limits.scopes import SCOPES, Scope, ScopeFunction, global_scope
from sidecar.limits.store.base import LimitStore, StoreDownError
from sidecar.limits.store.memory import MemoryStore
from sidecar.limits.windows import BudgetWindow, window_of
from sidecar.types import Budget, Headers, Identity, Limits, format_usd

Seed = Callable[[Sequence[BudgetWindow]], Awaitable[Mapping[str, int]]]
MAX_PENDING = 10_000
"""Settlements kept for a store that is down; past that the oldest are left to the lease (charged at the hold)."""


@dataclass(slots=True, eq=False)
class Grant:
    """What one exchange was admitted with. `at` is the store's instant: spend rows carry it, so that the rows of a
    window sum to its counter."""

    exchange_id: str
    at: float
    tokens: int
    hold_nano: int
    windows: tuple[BudgetWindow, ...]
    headers: Headers
    claims: Claims
    store: LimitStore


class Admission:
    """`seed` sums the ledger for counters the store does not know (none: they begin at zero)."""

    def __init__(
        self,
        store: LimitStore,
        *,
        scopes: Sequence[ScopeFunction] = SCOPES,
        global_limits: Limits = Limits(),  # noqa: B008 - frozen
        global_budgets: tuple[Budget, ...] = (),
        timezone: tzinfo = UTC,
        on_store_failure: Literal["closed", "open"] = "closed",
        clock: Callable[[], float] = time.time,
        seed: Seed | None = None,
        lease_s: float = 10.0,
    ) -> None:
        self.store = store
        self._scopes = tuple(scopes)
        if not global_limits.is_empty or global_budgets:
            self._scopes = (global_scope(global_limits, global_budgets), *self._scopes)
        self._zone = timezone
        self._on_store_failure = on_store_failure
        self._clock = clock
        self._seed = seed
        self._lease_s = lease_s
        self._local: MemoryStore | None = None
        self._live: set[str] = set()
        self._pending: dict[str, tuple[int | None, int | None]] = {}
        self._token = object()
        """Claims are cached in `identity.cache` under this, so two Admissions never mix."""

    def claims_of(self, identity: Identity, model: str, *, limits: bool = True, budgets: bool = True) -> Claims:
        """Every claim of this caller now; cached until the earliest budget window ends."""
        now = self._clock()
        key = (self._token, limits, budgets)
        found: Claims | None = identity.cache.get(key)
        if found is None or now >= found.valid_until:
            scopes = [s for f in self._scopes if (s := f(identity, model)) is not None]
            found = identity.cache[key] = self._build(scopes, now, limits, budgets)
        return found

    def _build(self, scopes: Sequence[Scope], now: float, limits: bool, budgets: bool) -> Claims:
        requests: list[RateClaim] = []
        tokens: list[RateClaim] = []
        slots: list[RateClaim] = []
        windows: list[BudgetWindow] = []
        for scope in scopes:
            name = f"{scope.kind}:{scope.scope_id}"
            if limits:
                if scope.limits.rpm is not None:
                    requests.append(RateClaim(name, scope.kind, scope.limits.rpm))
                if scope.limits.tpm is not None:
                    tokens.append(RateClaim(name, scope.kind, scope.limits.tpm))
                if scope.limits.concurrency is not None:
                    slots.append(RateClaim(name, scope.kind, scope.limits.concurrency))
            if budgets:
                windows += [window_of(b, scope.kind, scope.scope_id, now, self._zone) for b in scope.budgets]
        valid_until = min((w.end_at for w in windows), default=float("inf"))
        return Claims(tuple(requests), tuple(tokens), tuple(slots), tuple(windows), valid_until)

    async def acquire(
        self,
        exchange_id: str,
        identity: Identity,
        model: str,
        *,
        tokens: int,
        hold_nano: int,
        min_hold_nano: int | None = None,
        limits: bool = True,
        budgets: bool = True,
    ) -> Grant:
        """Raises RateLimitedError (with the exact wait), BudgetExceededError, UnavailableError; nothing is held then.
        The hold granted lies between `min_hold_nano` and `hold_nano`: what the remaining money affords."""
        claims = self.claims_of(identity, model, limits=limits, budgets=budgets)
        if claims.is_empty:
            return Grant(exchange_id, self._clock(), tokens, hold_nano, (), [], claims, self.store)
        minimum = hold_nano if min_hold_nano is None else min_hold_nano
        store = self.store
        try:
            result = await self._ask(store, exchange_id, claims, tokens, hold_nano, minimum)
        except StoreDownError as error:
            # It may have been admitted all the same: taken back once the store answers.
            if len(self._pending) < MAX_PENDING:
                self._pending[exchange_id] = (0, 0)
            if self._on_store_failure == "closed":
                raise UnavailableError(
                    "The gateway refused the request: its limit store does not answer. Try again shortly.",
                    code="limit_store_unavailable",
                    retry_after_s=1.0,
                ) from error
            if self._local is None:
                self._local = MemoryStore(self._clock)
            store = self._local
            result = await self._ask(store, exchange_id, claims, tokens, hold_nano, minimum)
        if isinstance(result, Denied):
            raise _refusal(result)
        self._live.add(exchange_id)
        return Grant(exchange_id, result.at, tokens, result.hold_nano, claims.windows, _headers(result), claims, store)

    async def _ask(
        self, store: LimitStore, exchange_id: str, claims: Claims, tokens: int, hold: int, minimum: int
    ) -> Admitted | Denied:
        for _ in range(3):
            result = await store.acquire(
                exchange_id, claims, tokens=tokens, hold_nano=hold, min_hold_nano=minimum, lease_s=self._lease_s
            )
            if not isinstance(result, Cold):
                return result
            await self._warm(store, result.windows)
        raise StoreDownError("the store forgot its seed again and again")

    async def _warm(self, store: LimitStore, windows: Sequence[BudgetWindow]) -> None:
        values: Mapping[str, int] = {}
        if self._seed is not None:
            try:
                values = await self._seed(windows)
            except (OSError, TimeoutError, UnavailableError) as error:
                raise UnavailableError(
                    "The gateway refused the request: it cannot read what was spent so far. Try again shortly.",
                    code="ledger_unavailable",
                    retry_after_s=1.0,
                ) from error
        await store.seed({w.key: values.get(w.key, 0) for w in windows}, windows)

    async def seed_identity(self, identity: Identity) -> None:
        """Seed this caller's counters from the ledger now (after its budget was made or changed)."""
        identity.cache.clear()
        claims = self.claims_of(identity, "", limits=False)
        if claims.windows:
            await self._warm(self.store, claims.windows)

    async def extend_hold(self, grant: Grant, extra_nano: int) -> None:
        """Raises BudgetExceededError; then nothing more is held and no further attempt may be made."""
        if not grant.windows:
            grant.hold_nano += extra_nano
            return
        try:
            extended = await grant.store.extend(grant.exchange_id, grant.claims, extra_nano)
        except StoreDownError as error:
            raise UnavailableError("The gateway's limit store does not answer.") from error
        if not extended:
            raise BudgetExceededError(
                "The gateway made no further attempt: the budget does not cover another one after an attempt the "
                "provider may bill."
            )
        grant.hold_nano += extra_nano

    async def settle(self, grant: Grant, *, tokens: int | None, cost_nano: int | None) -> None:
        """Idempotent by exchange. `tokens=None` keeps the reservation, `cost_nano=None` charges the hold."""
        if grant.exchange_id not in self._live:
            return
        self._live.discard(grant.exchange_id)
        try:
            await grant.store.settle(grant.exchange_id, tokens=tokens, cost_nano=cost_nano)
        except StoreDownError:
            if len(self._pending) < MAX_PENDING:
                self._pending[grant.exchange_id] = (tokens, cost_nano)

    async def cancel(self, grant: Grant) -> None:
        """Roll everything back as if never admitted."""
        if grant.exchange_id not in self._live:
            return
        self._live.discard(grant.exchange_id)
        try:
            await grant.store.cancel(grant.exchange_id)
        except StoreDownError:
            self._pending[grant.exchange_id] = (0, 0)

    async def spent(self, identity: Identity) -> dict[str, int]:
        """Counter by key, holds included, of this caller's windows now."""
        claims = self.claims_of(identity, "", limits=False)
        return await self.store.spent([w.key for w in claims.windows])

    async def tick(self) -> list[SilentHold]:
        """Call every third of a lease: renews our own leases, sends what could not be settled, charges the holds of
        silent owners (returned, for their `unknown` rows)."""
        try:
            if self._live and self.store.is_shared:
                await self.store.renew(list(self._live), self._lease_s)
            for exchange_id, (tokens, cost_nano) in list(self._pending.items()):
                await self.store.settle(exchange_id, tokens=tokens, cost_nano=cost_nano)
                self._pending.pop(exchange_id, None)
            return await self.store.reap()
        except StoreDownError:
            return []

    async def aclose(self) -> None:
        await self.store.aclose()


_WHAT = {"requests": "requests per minute", "tokens": "tokens per minute", "concurrency": "requests at a time"}


def _refusal(denied: Denied) -> RateLimitedError | BudgetExceededError:
    if denied.what == "budget":
        return BudgetExceededError(
            f"The gateway refused the request: the {denied.kind} budget of ${format_usd(denied.limit)} does not cover "
            "what it may cost. Lower max_tokens, wait for the next window, or have the budget raised.",
            retry_after_s=denied.retry_after_s,
        )
    return RateLimitedError(
        f"The gateway refused the request: the {denied.kind} limit is {denied.limit} {_WHAT[denied.what]}."
        + (" Wait as 'retry-after' says." if denied.retry_after_s is not None else " This request can never fit it."),
        code=f"{denied.what}_limit_exceeded",
        retry_after_s=denied.retry_after_s,
    )


def _headers(admitted: Admitted) -> Headers:
    headers: Headers = []
    if admitted.limit_requests is not None:
        headers = [
            (b"x-ratelimit-limit-requests", b"%d" % admitted.limit_requests),
            (b"x-ratelimit-remaining-requests", b"%d" % admitted.remaining_requests),
            (b"x-ratelimit-reset-requests", b"%.3fs" % admitted.reset_requests_s),
        ]
    if admitted.limit_tokens is not None:
        headers += [
            (b"x-ratelimit-limit-tokens", b"%d" % admitted.limit_tokens),
            (b"x-ratelimit-remaining-tokens", b"%d" % admitted.remaining_tokens),
            (b"x-ratelimit-reset-tokens", b"%.3fs" % admitted.reset_tokens_s),
        ]
    return headers
