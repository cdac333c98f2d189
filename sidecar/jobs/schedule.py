"""When a job is due: functions from an instant to the next due one after it. Pure; instants are Unix seconds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo

Schedule = Callable[[float], float]
MORNING_H = 8


def every(seconds: float) -> Schedule:
    return lambda now: now + seconds


def weekly(zone: tzinfo) -> Schedule:
    """Mondays at eight."""

    def following(now: float) -> float:
        here = datetime.fromtimestamp(now, zone)
        return _next(here, lambda day: day + timedelta(days=-day.weekday() % 7 or 7), is_today=here.weekday() == 0)

    return following


def monthly(zone: tzinfo) -> Schedule:
    """The first of the month at eight."""

    def following(now: float) -> float:
        here = datetime.fromtimestamp(now, zone)
        return _next(here, lambda day: (day.replace(day=1) + timedelta(days=32)).replace(day=1), is_today=here.day == 1)

    return following


def _next(here: datetime, to_day: Callable[[datetime], datetime], *, is_today: bool) -> float:
    morning = here.replace(hour=MORNING_H, minute=0, second=0, microsecond=0, fold=0)
    return (morning if is_today and here < morning else to_day(morning)).timestamp()
