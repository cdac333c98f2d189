"""The contract of a limit store. All instants are Unix seconds; `now=None` means the store's own clock.

One atomic step before the answer (`acquire`: all claims or none), one idempotent step after (`settle` or `cancel`).
Stores count instants in whole microseconds, money in nano-dollars below 2^53 (`windows.MAX_BUDGET_NANO`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sidecar.limits.claims import Admitted, Claims, Cold, Denied, Gone, Reading, Settled, SilentHold, Stale
from sidecar.limits.windows import BudgetWindow


class StoreDownError(Exception):
    """The store did not answer in time or at all; whether it did what it was asked is not known, unless it was not
    asked (`is_asked`). The text is for operators: it may name hosts."""

    is_asked = True


class StoreUnsafeError(StoreDownError):
    """The store answers but must not be used; the text says why and may be told to anybody."""


class LimitStore(Protocol):
    is_shared: bool
    """True if several processes count together (then leases are kept and must be renewed)."""
    epoch: str
    """Another one each time the store was found without memory, as `renew` and `begin` saw it; "": none yet."""

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
        """Idempotent by `exchange_id`: asked again, it gives the first admission. `owner` is kept for whoever charges
        a silent hold. `lost_at`: counts without judging, for an exchange that was admitted then and runs, in a store
        that lost it."""

    async def extend(self, exchange_id: str, claims: Claims, extra_nano: int) -> bool | None:
        """False if a budget has not that much left, None if the exchange is unknown; nothing is held then."""

    async def settle(
        self, exchange_id: str, *, tokens: int | None, cost_nano: int | None, now: float | None = None
    ) -> Settled:
        """Reservation to reality, once. `None` keeps what was reserved."""

    async def charge(self, exchange_id: str, claims: Claims, cost_nano: int, at: float | None = None) -> bool:
        """Add a cost whose hold the store lost or never had, once per exchange; not to counters that will be seeded
        from the ledger, where the cost stands already. `at`: of its row; False if a counter has it from the ledger,
        which has to be read again."""

    async def cancel(self, exchange_id: str) -> Settled:
        """As if it had never been admitted – also if the acquisition arrives after this."""

    async def begin(self, windows: Sequence[BudgetWindow], now: float | None = None) -> Reading | None:
        """Before the ledger is read for these counters. `None`: nobody counts but this process."""

    async def seed(
        self,
        values: Mapping[str, int],
        windows: Sequence[BudgetWindow] = (),
        now: float | None = None,
        reading: Reading | None = None,
    ) -> None:
        """Set counters that do not exist yet; mark the store as seeded. With a `reading`, what the ledger said earlier
        is replaced."""

    async def readings(self) -> list[str]:
        """The counters for which the ledger was read, or is being read, by key."""

    async def retire(self, exchange_ids: Sequence[str], *, is_kept: bool = False) -> None:
        """Settled as `WAS_LOST`, and read from the ledger since. `is_kept`: there is no ledger; the counters stay."""

    async def spent(self, keys: Sequence[str]) -> dict[str, int]:
        """Counters as they stand, holds included; missing ones are 0."""

    async def counters(self) -> list[str]:
        """Every budget counter there is, by key."""

    async def renew(self, exchange_ids: Sequence[str], lease_s: float, now: float | None = None) -> list[str]:
        """Live owners keep their slots and holds. Returns those the store does not know. Called even with none: it is
        the sign that somebody watches (see `reap`)."""

    async def reap(self, now: float | None = None) -> list[SilentHold]:
        """Charge the holds of silent owners, free their slots. Each that has money in it is given to one caller, and to
        another one later unless `written` is told of it; again if its owner settles after all (`is_over`). After the
        store was out of reach for a lease nobody is taken for silent until a lease has passed."""

    async def written(self, exchange_id: str, *, is_over: bool) -> None:
        """The row of a silent hold is durable, or taken back."""

    async def aclose(self) -> None: ...
