"""When a second attempt begins beside one that does not begin its content: after the 95th percentile of the group's
waiting times, for a bounded share of its requests. Pure: bounded by the configured groups.

Neighbours: RouteMiddleware asks once per request of a group that hedges, `plan` says who is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

QUANTILE = 0.95
KEPT = 200
"""Waiting times a quantile is taken of, the newest."""
EVERY = 20
"""So many new ones, and the quantile is taken anew."""
BURST = 3.0
"""Second attempts that may begin close together before their share is asked for."""


@dataclass(frozen=True, slots=True)
class Hedging:
    """`after_s`: at once after so long, instead of the measured time. `share` of the requests may have a second
    attempt. Nothing is measured until `samples` requests were."""

    after_s: float | None = None
    share: float = 0.1
    samples: int = 50


class _Waits:
    """The newest waiting times, and a quantile of them."""

    __slots__ = ("_at", "_is_new", "_times", "count", "quantile_s")

    def __init__(self) -> None:
        self._times: list[float] = []
        self._at = 0
        self._is_new = 0
        self.count = 0
        self.quantile_s = 0.0

    def add(self, seconds: float, samples: int) -> None:
        if len(self._times) < KEPT:
            self._times.append(seconds)
        else:
            self._times[self._at] = seconds
            self._at = (self._at + 1) % KEPT
        self.count += 1
        self._is_new += 1
        if self._is_new >= EVERY or self.count == samples:
            self._is_new = 0
            times = sorted(self._times)
            self.quantile_s = times[min(int(QUANTILE * len(times)), len(times) - 1)]


class _Group:
    __slots__ = ("credit", "hedged", "streamed", "whole", "won")

    def __init__(self) -> None:
        self.credit = 1.0
        self.streamed = _Waits()
        self.whole = _Waits()
        self.hedged = 0
        self.won = 0


class Hedges:
    """One per process. `by_group` says it of single groups (`None`: not there), `default` of all others."""

    def __init__(self, default: Hedging | None = None, by_group: Mapping[str, Hedging | None] | None = None) -> None:
        self._default = default
        self._by_group = dict(by_group or {})
        self._groups: dict[str, _Group] = {}
        self.is_on = default is not None or any(self._by_group.values())

    def of(self, group: str) -> Hedging | None:
        return self._by_group.get(group, self._default)

    def after_s(self, group: str, is_stream: bool) -> float | None:
        """A request of a group that hedges begins: after how long a second attempt may. `None`: that is not known
        yet."""
        hedging = self.of(group)
        if hedging is None:
            return None
        known = self._group(group)
        known.credit = min(known.credit + hedging.share, BURST)
        if hedging.after_s is not None:
            return hedging.after_s
        waits = known.streamed if is_stream else known.whole
        return waits.quantile_s if waits.count >= hedging.samples else None

    def take(self, group: str) -> bool:
        """A second attempt would begin now: True if the share allows it, and it is counted."""
        known = self._group(group)
        if known.credit < 1.0:
            return False
        known.credit -= 1.0
        known.hedged += 1
        return True

    def give_back(self, group: str) -> None:
        """It did not begin after all: nobody else was there to be asked."""
        known = self._group(group)
        known.credit += 1.0
        known.hedged -= 1

    def waited(self, group: str, is_stream: bool, seconds: float) -> None:
        """A request's first attempt began its content after so long, or had not yet when a second one did."""
        hedging = self.of(group)
        if hedging is not None:
            known = self._group(group)
            (known.streamed if is_stream else known.whole).add(seconds, hedging.samples)

    def won(self, group: str) -> None:
        self._group(group).won += 1

    def counts(self) -> dict[str, tuple[int, int]]:
        """By group: second attempts so far, and how many of them answered."""
        return {name: (known.hedged, known.won) for name, known in self._groups.items()}

    def _group(self, group: str) -> _Group:
        known = self._groups.get(group)
        if known is None:
            known = self._groups[group] = _Group()
        return known
