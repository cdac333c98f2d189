"""Where budget windows start and end, and what counts as a duration."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.limits.windows import MAX_BUDGET_NANO, bounds, parse_duration, window_of
from sidecar.types import Budget

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("45m", 2700), ("12h", 43200), ("30d", 2592000), ("2w", 1209600)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "d", "0d", "-1d", "1.5h", "30", "2mo", "1y", " 1d", "1D", "1d\n", "٣d", "9" * 30 + "d"]
)
def test_what_is_no_duration_is_refused_with_the_fix(text: str) -> None:
    with pytest.raises(ValueError, match="use a number and s, m, h, d or w"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("duration", "zone", "now", "start", "end"),
    [
        ("1h", UTC, "2026-03-01T10:59:59.999+00:00", "2026-03-01T10:00+00:00", "2026-03-01T11:00+00:00"),
        ("1d", UTC, "2026-03-01T00:00:00+00:00", "2026-03-01T00:00+00:00", "2026-03-02T00:00+00:00"),
        ("1w", UTC, "2026-03-01T12:00+00:00", "2026-02-23T00:00+00:00", "2026-03-02T00:00+00:00"),
        ("1mo", UTC, "2028-02-29T23:59+00:00", "2028-02-01T00:00+00:00", "2028-03-01T00:00+00:00"),
        ("1mo", UTC, "2026-12-31T23:59+00:00", "2026-12-01T00:00+00:00", "2027-01-01T00:00+00:00"),
        ("1d", BERLIN, "2026-03-29T12:00+02:00", "2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00"),
        ("1d", BERLIN, "2026-10-25T12:00+01:00", "2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00"),
        ("1d", BERLIN, "2026-06-01T22:30+00:00", "2026-06-02T00:00+02:00", "2026-06-03T00:00+02:00"),
        ("1h", BERLIN, "2026-10-25T02:30+01:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"),
        ("1h", ZoneInfo("Asia/Kolkata"), "2026-01-01T10:15+05:30", "2026-01-01T10:00+05:30", "2026-01-01T11:00+05:30"),
    ],
)  # fmt: skip
def test_calendar_windows(duration: str, zone: ZoneInfo, now: str, start: str, end: str) -> None:
    assert bounds(Budget(1, duration), at(now), zone) == (at(start), at(end))


def test_other_durations_repeat_from_their_anchor() -> None:
    budget = Budget(1, "30d", anchor_at=1000.0)
    month = 30 * 86400.0
    assert bounds(budget, 1000.0, UTC) == (1000.0, 1000.0 + month)
    assert bounds(budget, 1000.0 + month - 0.001, UTC) == (1000.0, 1000.0 + month)
    assert bounds(budget, 1000.0 + month, UTC) == (1000.0 + month, 1000.0 + 2 * month)


def test_no_duration_is_one_window_for_ever() -> None:
    assert bounds(Budget(1), 5e9, UTC) == (0.0, float("inf"))


@given(st.sampled_from(["1h", "1d", "1w", "1mo", "30d", "90m", None]), st.floats(1.6e9, 2.2e9), st.floats(0, 2e9))
def test_an_instant_is_in_exactly_one_window(duration: str | None, now: float, anchor: float) -> None:
    for zone in (UTC, BERLIN, ZoneInfo("America/St_Johns")):
        budget = Budget(1, duration, anchor_at=anchor)
        start, end = bounds(budget, now, zone)
        assert start <= now < end
        if end != float("inf"):
            assert bounds(budget, end, zone)[0] == end
            assert bounds(budget, start, zone) == (start, end)


def test_counters_are_named_by_scope_duration_and_start_and_capped_where_lua_is_exact() -> None:
    found = window_of(Budget(2**60, "1d"), "key", "abc", at("2026-03-01T12:00+00:00"), UTC)
    assert found.key == f"key:abc:1d:{int(at('2026-03-01T00:00+00:00'))}"
    assert found.max_nano == MAX_BUDGET_NANO < 2**53
