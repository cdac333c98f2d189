"""What one request asks of a store, and what the store answers: plain values both stores share. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.limits.windows import BudgetWindow


@dataclass(frozen=True, slots=True)
class RateClaim:
    """One counter of one scope; `key` is unique per scope."""

    key: str
    kind: str
    limit: int


@dataclass(frozen=True, slots=True)
class Claims:
    """All claims of one caller; valid until the earliest budget window ends."""

    requests: tuple[RateClaim, ...]
    tokens: tuple[RateClaim, ...]
    slots: tuple[RateClaim, ...]
    windows: tuple[BudgetWindow, ...]
    valid_until: float

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
    """Nothing was consumed. `what` is requests, tokens, concurrency or budget."""

    what: str
    kind: str
    limit: int
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Cold:
    """These budget counters are not known to the store: seed them, then ask again."""

    windows: tuple[BudgetWindow, ...]


@dataclass(frozen=True, slots=True)
class SilentHold:
    """A hold whose owner fell silent; it is charged. The caller writes the `unknown` row."""

    exchange_id: str
    hold_nano: int
    at: float
