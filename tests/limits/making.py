"""Claims, identities and a scoreboard for the tests of limits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from sidecar.limits.claims import Admitted, Claims, Cold, Denied, Gone, RateClaim, Stale
from sidecar.limits.store.base import LimitStore
from sidecar.limits.store.redis import RedisStore
from sidecar.limits.windows import BudgetWindow
from sidecar.types import Budget, Identity, Limits, Principal

NOW = 2_000_000_000.0
"""An instant far enough ahead that no counter of a test is old for the server."""

_numbers = itertools.count(1)


def new_id() -> str:
    return f"x{next(_numbers)}"


def patience(store: LimitStore, deadline_s: float) -> None:
    """How long it waits from now on: little only while the server is known not to answer, so that a slow machine is
    never taken for a dead one."""
    assert isinstance(store, RedisStore)
    link = store._link
    link._deadline_s = deadline_s
    if link._watch is not None:  # of a call that was answered; the next one's is new
        link._watch.cancel()
        link._watch = None


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


ABOVE = ("organization", "team", "member", "user", "end_user", "tag")
KINDS = ("key", *ABOVE, "key_model", *(f"{kind}_model" for kind in ABOVE))
"""Every scope of the tree; those with `_model` limit the model `gpt`."""


def principal_id(kind: str, name: str = "1") -> str:
    return f"id-of-{kind}-{name}"


def tree_caller(
    limits: Mapping[str, Limits], budgets: Mapping[str, tuple[Budget, ...]] | None = None, **names: str
) -> Identity:
    """A key with everybody above it. `limits` and `budgets` by kind; `names` tells two of a kind apart."""
    found = budgets or {}

    def by_model(kind: str) -> dict[str, Limits]:
        return {"gpt": limits[f"{kind}_model"]} if f"{kind}_model" in limits else {}

    return Identity(
        principal_id("key", names.get("key", "1")),
        limits=limits.get("key", Limits()),
        model_limits=by_model("key"),
        budgets=found.get("key", ()),
        principals=tuple(
            Principal(
                kind,
                principal_id(kind, names.get(kind, "1")),
                limits=limits.get(kind, Limits()),
                model_limits=by_model(kind),
                budgets=found.get(kind, ()),
            )
            for kind in ABOVE
        ),
    )
