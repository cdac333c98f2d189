"""Budget periods and rate windows as pure arithmetic: where a window starts and ends, how its counter is called.

A counter's key holds the window's start, so nothing is ever reset. `1h 1d 1w 1mo` are calendar windows in a timezone;
other durations (`30d`, `12h`, `90m`) repeat from their anchor; no duration means one window for ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from sidecar.types import Budget

RATE_WINDOW_S = 60.0
MAX_BUDGET_NANO = 9_000_000 * 10**9
"""Lua numbers are exact up to 2^53, so a budget may be $9,000,000 at most; configuration refuses more, and what comes
from elsewhere counts as this much."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"([1-9][0-9]{0,8})(s|mo|m|h|d|w)")
_CALENDAR = frozenset({"1h", "1d", "1w", "1mo"})


def parse_duration(text: str) -> int:
    """Seconds of `30s`, `45m`, `12h`, `30d`, `2w`. Raises ValueError that says what is allowed; months other than the
    calendar window `1mo` have no fixed length."""
    match = _DURATION.fullmatch(text)
    if match is None or (match[2] == "mo" and text != "1mo"):
        raise ValueError(f"'{text[:32]}' is not a duration: use a number and s, m, h, d or w (such as 30d), or 1mo")
    if match[2] == "mo":
        return 30 * 86400
    return int(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True, slots=True)
class BudgetWindow:
    """One counter: who shares it, from when to when (Unix seconds; `end_at` is infinite for a lifetime budget)."""

    key: str
    kind: str
    scope_id: str
    start_at: float
    end_at: float
    max_nano: int


def bounds(budget: Budget, now: float, zone: tzinfo) -> tuple[float, float]:
    """Start (inclusive) and end (exclusive) of the window `now` is in."""
    duration = budget.duration
    if duration is None:
        return 0.0, float("inf")
    if duration not in _CALENDAR:
        length = parse_duration(duration)
        anchor = int(budget.anchor_at)  # whole seconds, so that one window's end is the next one's start exactly
        start = float(anchor + (now - anchor) // length * length)
        return start, start + length
    here = datetime.fromtimestamp(now, zone)
    if duration == "1h":
        # Whole hours of absolute time: an hour repeated by daylight saving is two windows.
        offset = (here.utcoffset() or timedelta(0)).total_seconds() % 3600
        start = (now + offset) // 3600 * 3600 - offset
        return start, start + 3600
    midnight = here.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if duration == "1d":
        begin, end = midnight, midnight + timedelta(days=1)
    elif duration == "1w":
        begin = midnight - timedelta(days=here.weekday())
        end = begin + timedelta(days=7)
    else:
        begin = midnight.replace(day=1)
        end = (begin + timedelta(days=32)).replace(day=1)
    return begin.timestamp(), end.timestamp()


def window_of(budget: Budget, kind: str, scope_id: str, now: float, zone: tzinfo) -> BudgetWindow:
    start, end = bounds(budget, now, zone)
    key = f"{kind}:{scope_id}:{budget.duration or 'life'}:{int(start)}"
    cap = budget.max_nano
    if budget.extra_nano and now < budget.extra_until_at:
        cap += budget.extra_nano
    return BudgetWindow(key, kind, scope_id, start, end, max(0, min(cap, MAX_BUDGET_NANO)))


def window_named(key: str, zone: tzinfo) -> BudgetWindow:
    """The window of a counter, by its key alone; it has no maximum."""
    head, duration, start = key.rsplit(":", 2)
    kind, _, scope_id = head.partition(":")
    budget = Budget(0, None if duration == "life" else duration, anchor_at=float(start))
    begin, end = bounds(budget, float(start), zone)
    return BudgetWindow(key, kind, "" if kind == "global" else scope_id, begin, end, 0)
