"""Claims, identities and a scoreboard for the tests of limits."""

from __future__ import annotations

import itertools
from typing import Any

from sidecar.limits.claims import Admitted, Claims, Cold, Denied, Gone, RateClaim, Stale
from sidecar.limits.store.base import LimitStore
from sidecar.limits.windows import BudgetWindow
from sidecar.types import Budget, Identity, Limits

NOW = 2_000_000_000.0
"""An instant far enough ahead that no counter of a test is old for the server."""

_numbers = itertools.count(1)


def new_id() -> str:
    return f"x{next(_numbers)}"


def window(kind: str = "key", max_nano: int = 1000, start: float = NOW, end: float = NOW + 86400) -> BudgetWindow:
    return BudgetWindow(f"{kind}:{kind}-id:1d:{int(start)}", kind, f"{kind}-id", start, end, max_nano)


def claims(
    *, rpm: dict[str, int] | None = None, tpm: dict[str, int] | None = None, slots: dict[str, int] | None = None,
    windows: tuple[BudgetWindow, ...] = (), **more: Any,
) -> Claims:  # fmt: skip
    def rates(limits: dict[str, int] | None) -> tuple[RateClaim, ...]:
        return tuple(RateClaim(f"{kind}:{kind}-id", kind, limit) for kind, limit in (limits or {}).items())

    return Claims(rates(rpm), rates(tpm), rates(slots), windows, **more)


async def take(
    store: LimitStore, wanted: Claims, now: float = NOW, *, exchange: str | None = None, tokens: int = 0,
    hold: int = 0, least: int | None = None, lease_s: float = 10.0, **more: Any,
) -> Admitted | Denied | Cold | Stale | Gone:  # fmt: skip
    return await store.acquire(
        exchange or new_id(), wanted, tokens=tokens, hold_nano=hold, min_hold_nano=hold if least is None else least,
        lease_s=lease_s, now=now, **more,
    )  # fmt: skip


def caller(
    name: str = "k1", *, rpm: int | None = None, tpm: int | None = None, concurrency: int | None = None,
    budgets: tuple[Budget, ...] = (),
) -> Identity:  # fmt: skip
    return Identity(name, limits=Limits(rpm, tpm, concurrency), budgets=budgets)
