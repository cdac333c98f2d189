"""The contract of a limit store. All instants are Unix seconds; `now=None` means the store's own clock.

One atomic step before the answer (`acquire`: all claims or none), one idempotent step after (`settle` or `cancel`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sidecar.limits.claims import Admitted, Claims, Cold, Denied, SilentHold


class StoreDownError(Exception):
    """The store did not answer in time or at all."""


class LimitStore(Protocol):
    is_shared: bool
    """True if several processes count together."""

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
        """Idempotent by `exchange_id`: asked again, it gives the first admission."""

    async def extend(self, exchange_id: str, claims: Claims, extra_nano: int) -> bool | None:
        """False if a budget has not that much left, None if the exchange is unknown; nothing is held then."""

    async def settle(
        self, exchange_id: str, *, tokens: int | None, cost_nano: int | None, now: float | None = None
    ) -> None:
        """Reservation to reality, once. `None` keeps what was reserved."""

    async def cancel(self, exchange_id: str) -> None:
        """As if it had never been admitted."""

    async def seed(self, values: Mapping[str, int], windows: Sequence[object] = ()) -> None:
        """Set counters that do not exist yet; mark the store as seeded."""

    async def spent(self, keys: Sequence[str]) -> dict[str, int]:
        """Counters as they stand, holds included; missing ones are 0."""

    async def renew(self, exchange_ids: Sequence[str], lease_s: float, now: float | None = None) -> None:
        """Live owners keep their slots and holds."""

    async def reap(self, now: float | None = None) -> list[SilentHold]:
        """Charge the holds of silent owners, free their slots; each is given to one caller only."""

    async def aclose(self) -> None: ...
