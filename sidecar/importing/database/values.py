"""Values of the other gateway's columns in our units: money as nano-dollars, instants as Unix seconds, periods as ours.

Pure. Money there is a double; its shortest decimal form is what it means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Any

from sidecar.importing.table_settings import CALENDAR
from sidecar.limits.windows import MAX_BUDGET_NANO, bounds, parse_duration
from sidecar.types import ALL_MODELS, NO_MODELS, Budget, model_matches, usd_to_nano

MAX_COUNT = 10**12
_UNALIGNED = {"1h": "60m", "1d": "24h", "1w": "7d", "1mo": "30d"}
_MONTHS = re.compile(r"([1-9][0-9]{0,2})mo")
_PERIOD = re.compile(r"[1-9][0-9]{0,7}[smhdw]")


def nano(value: Any) -> int | None:
    """USD → nano-dollars; `None` for nothing and for what is no number (NaN and infinity count as no budget there)."""
    if value is None or isinstance(value, bool):
        return None
    try:
        usd = Decimal(repr(value) if isinstance(value, float) else str(value).strip())
    except InvalidOperation:
        return None
    if not usd.is_finite() or abs(usd) > 10**9:
        return None
    return usd_to_nano(usd)


def cap(value: Any) -> int | None:
    """A budget: `nano` within what a budget may be here."""
    found = nano(value)
    return None if found is None else max(0, min(found, MAX_BUDGET_NANO))


def count(value: Any) -> int | None:
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return None
    return int(max(0, min(value, MAX_COUNT)))


def instant(value: Any) -> float | None:
    """A timestamp column (UTC without saying so) or ISO text."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()


def plain(value: Any) -> Any:
    """JSON columns come as text."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    found = plain(value)
    return found if isinstance(found, dict) else {}


def texts(value: Any) -> tuple[str, ...]:
    found = plain(value)
    return tuple(str(item) for item in found if item is not None) if isinstance(found, (list, tuple)) else ()


@dataclass(frozen=True, slots=True)
class Period:
    """Our duration and anchor; `how` says what differs from the word there (empty: nothing)."""

    duration: str | None
    anchor_at: float = 0.0
    how: str = ""


def period(text: str | None, reset_at: float | None, zone: tzinfo) -> Period:
    """What a `budget_duration` with its next reset means: a calendar window where the reset is the calendar's, else one
    that repeats from that reset."""
    if text is None or not text.strip():
        return Period(None)
    word = text.strip().lower()
    months = _MONTHS.fullmatch(word)
    calendar = CALENDAR.get(word)
    if calendar is not None:
        if reset_at is None or bounds(Budget(1, calendar), reset_at, zone)[0] == reset_at:
            how = f"{calendar}, the calendar window it means there" if calendar != word else ""
            return Period(calendar, 0.0, how)
        word = _UNALIGNED[calendar]
        how = f"{word} that repeat from the next reset, which is not the calendar's"
    elif months is not None:
        word = f"{30 * int(months[1])}d"
        how = f"{word} that repeat from the next reset"
    elif _PERIOD.fullmatch(word):
        how = "" if reset_at is not None else "repeats from 1970, for there is no reset to go by"
    else:
        return Period("1d", 0.0, "1d: it is no duration, and there that meant daily")
    length = parse_duration(word)
    return Period(word, float(int(reset_at or 0.0) % length), how)


def narrowed(models: Sequence[str], above: Sequence[str]) -> tuple[str, ...]:
    """What both lists admit, as one list."""
    if not above or set(above) & ALL_MODELS:
        return tuple(models)
    if not models or set(models) & ALL_MODELS:
        return tuple(above)
    found = [name for name in models if model_matches(tuple(above), name)]
    found += [name for name in above if name not in found and model_matches(tuple(models), name)]
    return tuple(found) or (NO_MODELS,)
