"""Admission: all windows and holds of a request in one atomic step, settled once.

Neighbours: `scopes` (who shares), `windows` (which period), `store/` (where it is counted), `answers` (what a client is
told). `sidecar.admit` uses it for the middlewares. Store gone: bounded wait, then `closed` (503) or `open` (a local
store bounds this process). Never 401. What could not be told to the store is owed, and told by `tick`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from typing import Literal
from zoneinfo import ZoneInfo

from sidecar.errors import BudgetExceededError, UnavailableError
from sidecar.limits.answers import rate_headers, refusal
from sidecar.limits.claims import Admitted, Claims, Cold, Denied, Gone, RateClaim, Settled, SilentHold, Stale
from sidecar.limits.scopes import SCOPES, Scope, ScopeFunction, global_scope, limits_model
from sidecar.limits.store.base import LimitStore, StoreDownError, StoreUnsafeError
from sidecar.limits.store.memory import MemoryStore
from sidecar.limits.windows import MAX_BUDGET_NANO, BudgetWindow, window_named, window_of
from sidecar.types import Budget, Headers, Identity, Limits

Seed = Callable[[Sequence[BudgetWindow]], Awaitable[Mapping[str, int]]]
_WINDOWS_AT_ONCE = 100
PAY_S = 2.0
"""At the end a store that does not answer is waited for so long, if it is owed something."""
MAX_OWED = 10_000
"""Settlements kept for a store that is down; past that, exchanges are left to their leases (charged at the hold)."""


@dataclass(slots=True, eq=False)
class Grant:
    """What one exchange was admitted with. `at` is the store's instant: spend rows carry it, so that the rows of a
    window sum to its counter. `headers` are the `x-ratelimit-…` of the tightest window."""

    exchange_id: str
    at: float
    tokens: int
    hold_nano: int
    windows: tuple[BudgetWindow, ...]
    headers: Headers
    claims: Claims
    store: LimitStore
    owner: str = ""


@dataclass(slots=True, eq=False)
class _Debt:
    """What a store is still to be told: `settle`, `cancel`, or `charge` for an exchange admitted elsewhere."""

    what: Literal["settle", "cancel", "charge"]
    tokens: int | None = None
    cost_nano: int | None = None
    claims: Claims | None = None
    at: float | None = None


class Admission:
    """`seed` sums the ledger for counters the store does not know (none: they begin at zero). `lease_s` is how long the
    slots and holds of a process that stopped calling `tick` are kept. `names_of` gives every name by which limits may
    mean a model, so that an alias is no way around them."""

    def __init__(
        self,
        store: LimitStore,
        *,
        scopes: Sequence[ScopeFunction] = SCOPES,
        global_limits: Limits = Limits(),  # noqa: B008 - frozen
        global_budgets: Sequence[Budget] = (),
        timezone: tzinfo | str = UTC,
        on_store_failure: Literal["closed", "open"] = "closed",
        clock: Callable[[], float] = time.time,
        seed: Seed | None = None,
        lease_s: float = 10.0,
        names_of: Callable[[str], Sequence[str]] = lambda model: (model,),
    ) -> None:
        if any(budget.max_nano > MAX_BUDGET_NANO for budget in global_budgets):
            raise ValueError("a budget may be $9,000,000 at most")
        self.store = store
        self._scopes = tuple(scopes)
        if not global_limits.is_empty or global_budgets:
            self._scopes = (global_scope(global_limits, tuple(global_budgets)), *self._scopes)
        self._global_caps = (global_limits, tuple(global_budgets))
        self._by_model = any(getattr(f, "by_model", False) for f in self._scopes)
        self._zone: tzinfo = ZoneInfo(timezone) if isinstance(timezone, str) else timezone
        self._on_store_failure = on_store_failure
        self._clock = clock
        self._seed = seed
        self._lease_s = lease_s
        self._names_of = names_of
        self._local: MemoryStore | None = None
        self._past: MemoryStore | None = None  # the local store of the outage before
        self._live: dict[str, Grant] = {}
        self._owed: dict[str, _Debt] = {}
        self._merged: dict[tuple[BudgetWindow, ...], tuple[str, _Debt]] = {}
        self._lost: set[str] = set()  # settled; they ran while the store lost its memory
        self._epoch = ""
        self._began_at = clock()
        self.reseed_due = asyncio.Event()
        """Set when the ledger may know something that the counters do not: call `reseed`."""
        self.excess_tokens = 0
        """Tokens used beyond their reservations so far: how far estimates let token windows be overrun (a metric)."""

    def bound_while_down(self) -> str | None:
        """For the log: what `on_store_failure="open"` may cost while a shared store does not answer."""
        if self._on_store_failure != "open" or not self.store.is_shared:
            return None
        limits, budgets = self._global_caps
        named = (
            (limits.rpm, "requests a minute"),
            (limits.tpm, "tokens a minute"),
            (limits.concurrency, "requests at once"),
        )
        caps = [f"{count} {what}" for count, what in named if count is not None]
        caps += [f"${budget.max_nano / 1e9:,.2f} per {budget.duration or 'life'}" for budget in budgets]
        ours = f" Of the global ones at most {', '.join(caps)} per process." if caps else ""
        return (
            "store.on_failure is open: while the limit store does not answer, each process counts alone. Then each may "
            "admit every rate limit once more, and spend once more what the ledger says is left of every budget, with "
            f"what requests in flight hold elsewhere.{ours}"
        )

    def claims_of(
        self, identity: Identity, model: str, *, limits: bool = True, budgets: bool = True, now: float | None = None
    ) -> Claims:
        """Every claim of this caller now; cached on the identity until the earliest budget window ends."""
        at = self._clock() if now is None else now
        # Under this Admission, so two never mix; by model only if a scope depends on it.
        names = [name for name in self._names_of(model) if limits_model(identity, name)]
        if self._by_model and model not in names:
            names.append(model)
        key = (self, limits, budgets, *names)
        found: Claims | None = identity.cache.get(key)
        if found is None or not found.valid_from <= at < found.valid_until:
            every = (
                scope for function in self._scopes for name in names or ("",) for scope in function(identity, name)
            )
            found = identity.cache[key] = self._build(tuple(dict.fromkeys(every)), at, limits, budgets)
        return found

    def _build(self, scopes: Sequence[Scope], now: float, limits: bool, budgets: bool) -> Claims:
        requests: list[RateClaim] = []
        tokens: list[RateClaim] = []
        slots: list[RateClaim] = []
        windows: dict[str, BudgetWindow] = {}
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
                for budget in scope.budgets:
                    window = window_of(budget, scope.kind, scope.scope_id, now, self._zone)
                    known = windows.get(window.key)
                    if known is None or window.max_nano < known.max_nano:
                        windows[window.key] = window  # one counter is held on once, under its lower cap
        found = tuple(windows.values())
        extras = [b.extra_until_at for s in scopes for b in s.budgets if b.extra_nano and now < b.extra_until_at]
        return Claims(
            tuple(requests),
            tuple(tokens),
            tuple(slots),
            found,
            min((*(w.end_at for w in found), *extras), default=float("inf")),
            max((w.start_at for w in found), default=float("-inf")),
        )

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
        claims: Claims | None = None,
    ) -> Grant:
        """Raises RateLimitedError (with the exact wait), BudgetExceededError, UnavailableError; nothing is held then.
        The hold granted lies between `min_hold_nano` and `hold_nano`: what the remaining money affords. `claims`: these
        (rates only) instead of the caller's own."""
        if claims is None:
            claims = self.claims_of(identity, model, limits=limits, budgets=budgets)
        if claims.is_empty:
            return Grant(exchange_id, self._clock(), tokens, hold_nano, (), [], claims, self.store)
        ask = (exchange_id, identity, model, limits, budgets, tokens, hold_nano)
        minimum = hold_nano if min_hold_nano is None else min_hold_nano
        store = self.store
        try:
            claims, result = await self._ask(store, claims, minimum, *ask)
            if self._local is not None:  # it was of the outage that is over; grants of then keep it
                self._past, self._local = self._local, None
        except StoreDownError as error:
            if error.is_asked:
                self._owe(exchange_id, _Debt("cancel"))  # it may have been admitted all the same
            if self._on_store_failure == "closed":
                raise _unavailable("The gateway refused the request", error) from error
            if self._local is None:
                self._local = MemoryStore(self._clock)
                if self._past is not None:
                    self._local.take_rates(self._past)  # a store that comes and goes makes no new minute each time
            store = self._local
            claims, result = await self._ask(store, claims, minimum, *ask)
        except asyncio.CancelledError:
            # Nobody will settle this. The store takes it back at once; if it cannot, the next tick does.
            self._owe(exchange_id, _Debt("cancel"))
            raise
        if type(result) is Denied:
            raise refusal(result)
        assert type(result) is Admitted
        grant = Grant(
            exchange_id,
            result.at,
            tokens,
            result.hold_nano,
            claims.windows,
            rate_headers(result),
            claims,
            store,
            identity.key_hash,
        )
        self._live[exchange_id] = grant
        return grant

    async def _ask(
        self,
        store: LimitStore,
        claims: Claims,
        minimum: int,
        exchange_id: str,
        identity: Identity,
        model: str,
        limits: bool,
        budgets: bool,
        tokens: int,
        hold_nano: int,
    ) -> tuple[Claims, Admitted | Denied]:
        for _ in range(4):
            result = await store.acquire(
                exchange_id,
                claims,
                tokens=tokens,
                hold_nano=hold_nano,
                min_hold_nano=minimum,
                lease_s=self._lease_s,
                owner=identity.key_hash,
            )
            kind = type(result)
            if kind is Admitted or kind is Denied:
                return claims, result  # type: ignore[return-value]
            if isinstance(result, Cold):
                await self._warm(store, result.windows)
            elif isinstance(result, Stale):
                claims = self.claims_of(identity, model, limits=limits, budgets=budgets, now=result.at)
            elif isinstance(result, Gone):
                break
        raise StoreDownError("the limit store contradicts itself")

    async def _warm(self, store: LimitStore, windows: Sequence[BudgetWindow], *, is_again: bool = False) -> None:
        """Counters from the ledger: of the time before they were counted by themselves. `is_again`: they are known,
        and what the ledger does not say stays."""
        seed = self._seed
        if seed is None:
            await store.seed({w.key: 0 for w in windows}, windows)
            return
        reading = await store.begin(windows)
        if reading is not None:
            since = reading.since
            windows = [replace(w, end_at=min(w.end_at, since[w.key])) for w in windows if w.key in since]
        values = await _sums(seed, windows)
        found = {w.key: values.get(w.key, 0) for w in windows if not is_again or w.key in values}
        await store.seed(found, windows, reading=reading)
        self._look_at_epoch(store)

    def _look_at_epoch(self, store: LimitStore) -> None:
        if store.epoch and store.epoch != self._epoch:
            # Older than this process: it had nothing to say when the store lost its memory.
            if self._epoch or int(store.epoch) / 1e6 > self._began_at - 60:
                self.reseed_due.set()
            self._epoch = store.epoch

    async def reseed(self) -> None:
        """Reads the ledger again for every counter that was seeded from it, after our journal was shipped: so a row
        that was on its way when the store lost its memory counts too, and exactly once. What is admitted since counts
        by itself and is not touched. Raises `UnavailableError`: then call it again."""
        store = self.store
        if self._seed is None or not store.is_shared:
            return
        self.reseed_due.clear()
        lost = list(self._lost)
        try:
            await self._renew(store)
            # Shipped first: a counter that is seeded after this list was made finds our rows in the ledger.
            await self._seed(())
            windows = [window_named(key, self._zone) for key in await store.readings()]
            for start in range(0, len(windows), _WINDOWS_AT_ONCE):
                await self._warm(store, windows[start : start + _WINDOWS_AT_ONCE], is_again=True)
            await store.retire(lost)
        except BaseException as error:
            self.reseed_due.set()
            if isinstance(error, StoreDownError | OSError | TimeoutError):
                raise _unavailable("The counters were not read again", None) from error
            raise
        self._lost.difference_update(lost)

    async def seed_identity(self, identity: Identity) -> None:
        """Seed this caller's counters from the ledger now (after its budget was made or changed)."""
        identity.cache.clear()
        claims = self.claims_of(identity, "", limits=False)
        if claims.windows:
            try:
                await self._warm(self.store, claims.windows)
            except StoreDownError:
                return  # its first request will find them cold

    async def catch_up(self, identity: Identity) -> None:
        """A budget that was taken away and is given back has its counter of before, which never heard of what was spent
        meanwhile: it counts up to what the ledger says. Raises `UnavailableError`."""
        windows = self.claims_of(identity, "", limits=False).windows
        if self._seed is None:
            return
        spent = await _sums(self._seed, windows)  # first: what is spent from here on is in the counters alone
        with contextlib.suppress(StoreDownError):  # as `seed_identity`
            counted = await self.store.spent([window.key for window in windows])
            for window in windows:
                nano = counted[window.key]
                if (missing := spent.get(window.key, 0) - nano) > 0:
                    await self.store.charge(f"{window.key}.{nano}", Claims((), (), (), (window,)), missing)

    async def extend_hold(self, grant: Grant, extra_nano: int) -> None:
        """Raises BudgetExceededError; then nothing more is held and no further attempt may be made."""
        if grant.windows and extra_nano > 0:
            try:
                extended = await grant.store.extend(grant.exchange_id, grant.claims, extra_nano)
            except StoreDownError as error:
                raise _unavailable("The gateway made no further attempt", error) from error
            if extended is None:
                raise _unavailable("The gateway made no further attempt", None)
            if not extended:
                raise BudgetExceededError(
                    "The gateway made no further attempt: the budget does not cover another one after an attempt the "
                    "provider may bill."
                )
        grant.hold_nano += extra_nano

    async def settle(self, grant: Grant, *, tokens: int | None, cost_nano: int | None) -> None:
        """Idempotent by exchange. `tokens=None` keeps the reservation, `cost_nano=None` charges the hold. Never fails:
        what the store cannot be told now is told later."""
        exchange_id = grant.exchange_id
        if self._live.pop(exchange_id, None) is None:
            return
        store = grant.store
        if tokens is not None and tokens > grant.tokens:
            self.excess_tokens += tokens - grant.tokens
        if not store.is_shared:
            await store.settle(exchange_id, tokens=tokens, cost_nano=cost_nano)
            if store is not self.store and grant.windows:
                # Admitted while the shared store was down: its counters are to learn of it.
                charge = grant.hold_nano if cost_nano is None else cost_nano
                self._owe_charge(f"{exchange_id}:open", _Debt("charge", None, charge, grant.claims, grant.at))
            return
        # Owed first, so that neither a time-out nor a cancellation loses it.
        debt = self._owed[exchange_id] = _Debt("settle", tokens, cost_nano, grant.claims)
        try:
            found = await store.settle(exchange_id, tokens=tokens, cost_nano=cost_nano)
        except StoreDownError:
            if len(self._owed) > MAX_OWED:
                del self._owed[exchange_id]
            return
        self._note(exchange_id, found)
        if found is Settled.UNKNOWN and grant.windows and self._seed is None:
            # Our first word of it, and the store knows nothing: it lost its memory, and the hold with it.
            debt = self._owed[exchange_id] = _Debt(
                "charge", None, grant.hold_nano if cost_nano is None else cost_nano, grant.claims
            )
            await self._pay(exchange_id)
        elif self._owed.get(exchange_id) is debt:
            del self._owed[exchange_id]

    async def cancel(self, grant: Grant) -> None:
        """Roll everything back as if never admitted. Never fails."""
        if self._live.pop(grant.exchange_id, None) is None:
            return
        if not grant.store.is_shared:
            await grant.store.cancel(grant.exchange_id)
            return
        self._owe(grant.exchange_id, _Debt("cancel", claims=grant.claims))
        await self._pay(grant.exchange_id)

    async def settle_dead(self, costs: Mapping[str, int]) -> list[str] | None:
        """Exchanges whose process died, at what their rows cost. Returns those whose holds had been charged as a silent
        owner's; `None` if the store does not answer (then ask again)."""
        if not self.store.is_shared:
            return []
        try:
            found = await asyncio.gather(
                *(self.store.settle(name, tokens=None, cost_nano=cost) for name, cost in costs.items())
            )
        except StoreDownError:
            return None
        for name, settled in zip(costs, found, strict=True):
            self._note(name, settled)
        return [name for name, settled in zip(costs, found, strict=True) if settled is Settled.WAS_SILENT]

    def _note(self, exchange_id: str, found: Settled) -> None:
        if found is Settled.DONE or found is Settled.WAS_SILENT:  # of the latter `tick` tells somebody
            return
        if found is Settled.WAS_LOST:
            self._lost.add(exchange_id)
        # Not known: settled before, or lost; then the ledger has it, or our journal.
        self.reseed_due.set()

    def _owe(self, exchange_id: str, debt: _Debt) -> None:
        if self.store.is_shared and len(self._owed) < MAX_OWED:
            self._owed[exchange_id] = debt

    def _owe_charge(self, name: str, debt: _Debt) -> None:
        """Nothing holds this one: of more than there is room for, those of the same counters become one."""
        if len(self._owed) < MAX_OWED:
            self._owe(name, debt)
        elif debt.claims is not None:
            windows = debt.claims.windows
            name, before = self._merged.get(windows, (name, None))
            if before is not None:
                debt.cost_nano = (debt.cost_nano or 0) + (before.cost_nano or 0)
            self._merged[windows] = name, debt

    async def _pay(self, exchange_id: str) -> bool:
        """Tell the store one thing it is owed; False if it does not answer (it stays owed)."""
        debt = self._owed.get(exchange_id)
        if debt is None:
            return True
        try:
            if debt.what == "cancel":
                found = await self.store.cancel(exchange_id)
                if found is not Settled.UNKNOWN:  # it cost nothing, so nobody misses it
                    self._note(exchange_id, found)
            elif debt.what == "settle":
                found = await self.store.settle(exchange_id, tokens=debt.tokens, cost_nano=debt.cost_nano)
                self._note(exchange_id, found)
            elif debt.claims is not None and not await self.store.charge(
                exchange_id, debt.claims, debt.cost_nano or 0, debt.at
            ):
                self.reseed_due.set()
        except StoreDownError:
            return False
        if self._owed.get(exchange_id) is debt:
            del self._owed[exchange_id]
        return True

    async def _pay_all(self) -> bool:
        owed = list(self._owed)
        for start in range(0, len(owed), 500):
            if not all(await asyncio.gather(*map(self._pay, owed[start : start + 500]))):
                return False
        while self._merged:
            name, debt = self._merged.pop(next(iter(self._merged)))
            self._owed[name] = debt
            if not await self._pay(name):
                return False
        return True

    async def spent(self, identity: Identity) -> dict[str, int]:
        """Counter by key, holds included, of this caller's windows now. Raises UnavailableError."""
        claims = self.claims_of(identity, "", limits=False)
        try:
            return await self.store.spent([w.key for w in claims.windows])
        except StoreDownError as error:
            raise _unavailable("The gateway cannot tell what was spent", error) from error

    async def tick(self) -> list[SilentHold]:
        """Call every third of a lease: pays what is owed, renews our leases (and counts anew what the store lost),
        charges the holds of silent owners. Returns those that want a row, or their row taken back: tell `written`."""
        store = self.store
        if not store.is_shared:
            return []
        silent: list[SilentHold] = []
        try:
            if not await self._pay_all():
                return []
            await self._renew(store)
            while page := await store.reap():
                silent += page
                if len(page) < 100:
                    break
        except StoreDownError:
            pass
        return silent

    async def written(self, hold: SilentHold) -> None:
        """What `tick` returned is done and durable. Never fails; at worst it is told again, to anybody."""
        with contextlib.suppress(StoreDownError):
            await self.store.written(hold.exchange_id, is_over=hold.is_over)

    async def _renew(self, store: LimitStore) -> None:
        def ours() -> list[str]:
            live = [exchange_id for exchange_id, grant in self._live.items() if grant.store is store]
            return [*live, *self._lost]

        now = asyncio.get_running_loop().time
        unknown, renewed_at = await store.renew(ours(), self._lease_s), now()
        for exchange_id in unknown:
            if now() - renewed_at > self._lease_s / 3:  # the ledger is asked for each: those before are not to wait
                await store.renew(ours(), self._lease_s)
                renewed_at = now()
            self._lost.discard(exchange_id)
            await self._restore(exchange_id)
        self._look_at_epoch(store)
        if self._lost and self._seed is None:
            lost, self._lost = self._lost, set()
            await store.retire(list(lost), is_kept=True)

    async def _restore(self, exchange_id: str) -> None:
        """The store lost its memory while this exchange runs: its slots and hold count again."""
        for _ in range(2):
            grant = self._live.get(exchange_id)
            if grant is None:
                return  # settled meanwhile; calls reach the store in order, so it stays so
            claims = grant.claims
            result = await self.store.acquire(
                exchange_id,
                Claims(claims.requests, claims.tokens, claims.slots, claims.windows),
                tokens=grant.tokens,
                hold_nano=grant.hold_nano,
                min_hold_nano=0,
                lease_s=self._lease_s,
                owner=grant.owner,
                lost_at=grant.at,
            )
            if not isinstance(result, Cold):
                return
            try:
                await self._warm(self.store, result.windows)
            except UnavailableError:
                return  # at the next tick

    async def aclose(self) -> None:
        """Pays what is owed and lets the store go. A store that is away for a moment is asked again: what it is not
        told now, nobody tells it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAY_S):
                while not await self._pay_all():  # noqa: ASYNC110 - the store tells nobody when it is back
                    await asyncio.sleep(0.1)
        await self.store.aclose()


async def _sums(seed: Seed, windows: Sequence[BudgetWindow]) -> Mapping[str, int]:
    """Raises `UnavailableError`."""
    try:
        return await seed(windows)
    except (OSError, TimeoutError, UnavailableError) as error:
        raise UnavailableError(
            "The gateway refused the request: it cannot read what was spent so far. Try again shortly.",
            code="ledger_unavailable",
            retry_after_s=1.0,
        ) from error


def _unavailable(what: str, error: StoreDownError | None) -> UnavailableError:
    """503. What went wrong with the store is for operators (the cause), unless it was made to be told."""
    why = str(error) if isinstance(error, StoreUnsafeError) else "its limit store does not answer"
    return UnavailableError(f"{what}: {why}. Try again shortly.", code="limit_store_unavailable", retry_after_s=1.0)
