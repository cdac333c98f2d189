"""When the calendar's jobs are due: across the changes of summer time, and never twice."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from sidecar.jobs.schedule import every, monthly, weekly

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: ZoneInfo | None = None) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone or UTC).timestamp()


@pytest.mark.parametrize(
    ("now", "due"),
    [
        ("2027-01-15T12:00", "2027-01-18T08:00"),
        ("2027-01-18T07:59", "2027-01-18T08:00"),
        ("2027-01-18T08:00", "2027-01-25T08:00"),
        ("2027-01-17T23:59", "2027-01-18T08:00"),
        ("2027-03-26T12:00", "2027-03-29T08:00"),  # summer time begins on the 28th
        ("2027-10-30T12:00", "2027-11-01T08:00"),  # and ends on the 31st
    ],
)
def test_a_week_is_due_on_monday_morning(now: str, due: str) -> None:
    for zone in (None, BERLIN):
        assert weekly(zone or UTC)(at(now, zone)) == at(due, zone)


@pytest.mark.parametrize(
    ("now", "due"),
    [
        ("2027-01-15T12:00", "2027-02-01T08:00"),
        ("2027-01-31T23:00", "2027-02-01T08:00"),
        ("2027-02-01T07:59", "2027-02-01T08:00"),
        ("2027-02-01T08:00", "2027-03-01T08:00"),
        ("2027-12-31T12:00", "2028-01-01T08:00"),
    ],
)
def test_a_month_is_due_on_its_first_morning(now: str, due: str) -> None:
    for zone in (None, BERLIN):
        assert monthly(zone or UTC)(at(now, zone)) == at(due, zone)


def test_the_next_instant_is_always_later() -> None:
    for schedule in (weekly(BERLIN), monthly(BERLIN), every(300)):
        now = at("2027-01-01T00:00")
        for _ in range(200):
            following = schedule(now)
            assert following > now
            now = following
