"""What one request asks of a store, and what the store answers: plain values both stores share. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.limits.windows import BudgetWindow


@dataclass(frozen=True, slots=True)
class RateClaim:
    """One counter of one scope; `key` is unique per scope."""

    key: str
    kind: str
    limit: int


@dataclass(frozen=True, slots=True)
class Claims:
    """All claims of one caller. They hold from `valid_from` until `valid_until` (the latest start and the earliest end
    of the budget windows); a store whose clock says otherwise answers `Stale`."""

    requests: tuple[RateClaim, ...]
    tokens: tuple[RateClaim, ...]
    slots: tuple[RateClaim, ...]
    windows: tuple[BudgetWindow, ...]
    valid_until: float = float("inf")
    valid_from: float = float("-inf")
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What a store derives from the claims (its wire form), kept as long as they are."""

    @property
    def is_empty(self) -> bool:
        return not (self.requests or self.tokens or self.slots or self.windows)


@dataclass(slots=True)
class Admitted:
    """`remaining_*` are of the tightest window (`None`: no such limit); `reset_s` until its oldest entry leaves."""

    at: float
    hold_nano: int
    limit_requests: int | None = None
    remaining_requests: int = 0
    reset_requests_s: float = 0.0
    limit_tokens: int | None = None
    remaining_tokens: int = 0
    reset_tokens_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Denied:
    """Nothing was consumed. `what` is requests, tokens, concurrency or budget; of several full windows the one that
    takes longest, so waiting `retry_after_s` is enough (`None`: it can never fit)."""

    what: str
    kind: str
    limit: int
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Cold:
    """These budget counters are not known to the store: seed them, then ask again."""

    windows: tuple[BudgetWindow, ...]


@dataclass(frozen=True, slots=True)
class Stale:
    """By the store's clock (`at`) the claims name budget windows that are over or not begun: build them anew."""

    at: float


@dataclass(frozen=True, slots=True)
class Gone:
    """The exchange was cancelled before its acquisition arrived: nothing was consumed."""


class Settled(enum.IntEnum):
    """What a settlement or a cancellation found: an exchange the store does not know (settled already, or lost with the
    store's memory), one it knows, one whose hold had been charged because its owner was silent, or one that ran while
    the store lost its memory: it counts until `LimitStore.retire`."""

    UNKNOWN = 0
    DONE = 1
    WAS_SILENT = 2
    WAS_LOST = 3


@dataclass(frozen=True, slots=True)
class Reading:
    """One look into the ledger, by its number: of two that cross the later begun one counts. `since`: from when on
    (Unix seconds) a counter counts by itself; what was admitted before is the ledger's to say. A counter that is not
    there counted by itself from its window's beginning."""

    number: int
    since: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SilentHold:
    """A hold whose owner fell silent; it stays charged on `windows` (counter keys). The caller writes the `unknown`
    row, for `key_hash`, at `at`. `is_over`: its owner settled after all, so the caller takes that row back. Whoever has
    done so tells the store, else it is given to somebody again."""

    exchange_id: str
    hold_nano: int
    at: float
    key_hash: str = ""
    windows: tuple[str, ...] = ()
    is_over: bool = False
