"""Money, periods and lists of models of the other gateway in our words; opening rows as arithmetic."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.identity.row import member_id
from sidecar.importing.database.opening import Want, exchange_id, placed, records, wants
from sidecar.importing.database.rows import Spent
from sidecar.importing.database.values import cap, count, instant, nano, narrowed, period
from sidecar.limits.windows import bounds
from sidecar.types import Budget, model_matches

NOW = datetime(2026, 5, 13, 15, 20, 7, tzinfo=UTC).timestamp()
BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: Any = UTC) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


@pytest.mark.parametrize(
    ("usd", "expected"),
    [
        (0.1, 100_000_000), (0.1 + 0.2, 300_000_000), (1e-9, 1), (4.9e-10, 0), (2.5e-9, 2), (3.5e-9, 4),
        (-1.5, -(15 * 10**8)), (None, None), (float("nan"), None), (float("inf"), None), ("12.5", 12_500_000_000),
        ("much", None), (True, None),
        (1e300, None), (0, 0),
    ],
)  # fmt: skip
def test_money_is_what_its_shortest_decimal_says(usd: Any, expected: int | None) -> None:
    assert nano(usd) == expected


def test_a_budget_is_between_nothing_and_the_most_there_is() -> None:
    assert [cap(usd) for usd in (-1.0, 1e8, float("nan"))] == [0, 9_000_000 * 10**9, None]
    assert [count(n) for n in (-3, 10**15, None, 7)] == [0, 10**12, None, 7]


def test_an_instant_without_a_zone_is_utc() -> None:
    assert instant(datetime(2026, 5, 13, 15, 20, 7)) == NOW
    assert instant("2026-05-13T15:20:07") == instant("2026-05-13T17:20:07+02:00") == NOW
    assert [instant(x) for x in (None, "soon", 5)] == [None, None, None]


@pytest.mark.parametrize(
    ("word", "reset", "zone", "duration"),
    [
        ("30d", "2026-06-01", UTC, "1mo"), ("1mo", "2026-06-01", UTC, "1mo"), ("monthly", None, UTC, "1mo"),
        ("7d", "2026-05-18", UTC, "1w"), ("1w", "2026-05-18", UTC, "1w"), ("24h", "2026-05-14", UTC, "1d"),
        ("daily", "2026-05-14", UTC, "1d"), ("1h", "2026-05-13T16:00", UTC, "1h"), ("30d", "2026-06-01", BERLIN, "1mo"),
        ("30d", "2026-05-20T08:15", UTC, "30d"), ("7d", "2026-05-16", UTC, "7d"),
        ("1d", "2026-05-14T06:00", UTC, "24h"),
        ("1h", "2026-05-13T15:40", UTC, "60m"), ("36h", "2026-05-14T12:00", UTC, "36h"),
        ("14d", "2026-05-20", UTC, "14d"), ("2mo", "2026-07-01", UTC, "60d"), ("45m", "2026-05-13T15:45", UTC, "45m"),
    ],
)  # fmt: skip
def test_the_running_window_ends_at_the_reset(word: str, reset: str | None, zone: Any, duration: str) -> None:
    reset_at = at(reset, zone) if reset is not None else None
    found = period(word, reset_at, zone)
    assert found.duration == duration
    if reset_at is not None:
        end = bounds(Budget(1, found.duration, found.anchor_at), reset_at - 1, zone)[1]
        assert end == reset_at


def test_what_is_no_duration_is_daily_as_it_was() -> None:
    for word in ("1y", "junk", "0d", "-1d"):
        assert period(word, at("2026-05-14"), UTC).duration == "1d"
        assert period(word, at("2026-05-14"), UTC).how
    assert period(None, None, UTC).duration is period(" ", None, UTC).duration is None


NAMES = st.sampled_from(["gpt", "gpt-4", "claude", "gpt*", "gpt-*", "c*", "*", "all-team-models", "no-default-models"])
LISTS = st.lists(NAMES, max_size=3, unique=True)


@given(own=LISTS, above=LISTS, model=st.sampled_from(["gpt", "gpt-4", "gpt-5", "claude", "other"]))
def test_a_narrowed_list_never_admits_what_one_of_both_refuses(own: list[str], above: list[str], model: str) -> None:
    both = narrowed(own, above)
    admitted = model_matches(tuple(own), model) and model_matches(tuple(above), model)
    assert not model_matches(both, model) or admitted


def test_a_narrowed_list_admits_what_both_name() -> None:
    assert narrowed(["gpt", "claude"], ["gpt*"]) == ("gpt",)
    assert narrowed(["gpt*"], ["gpt", "o3"]) == ("gpt",)
    assert narrowed([], ["gpt"]) == narrowed(["all-team-models"], ["gpt"]) == ("gpt",)
    assert narrowed(["gpt"], []) == ("gpt",)
    assert narrowed(["gpt"], ["claude"]) == ("no-default-models",)


@st.composite
def nested(draw: st.DrawFn) -> list[Want]:
    """Windows that hold NOW, each within the next longer one, with any totals."""
    starts = sorted(draw(st.lists(st.integers(1, 10**6), max_size=3, unique=True)))
    found = [Want(NOW - 10 * n, NOW + 10 * n, draw(st.integers(0, 10**12))) for n in starts]
    return [*found, Want(0.0, float("inf"), draw(st.integers(0, 10**13)))]


@given(wanted=nested(), later=st.lists(st.integers(-(10**12), 10**12), min_size=4, max_size=4))
def test_each_window_holds_what_it_has_to_and_a_second_import_adds_the_difference(
    wanted: list[Want], later: list[int]
) -> None:
    there = placed(wanted, [], NOW)
    for want in wanted:
        assert sum(n for when, n in there if want.start_at <= when < want.end_at) == want.nano
    assert placed(wanted, there, NOW + 1) == []
    changed = [Want(w.start_at, w.end_at, w.nano + n) for w, n in zip(wanted, later, strict=False)]
    there += placed(changed, there, NOW + 2)
    for want in changed:
        assert sum(n for when, n in there if want.start_at <= when < want.end_at) == want.nano


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("team", "t"), ("user", "u"), ("organization", "o"), ("end_user", "e"), ("tag", "x"),
        ("member", member_id("t", "u")),
    ],
)  # fmt: skip
def test_an_opening_row_adds_to_its_own_scope_alone(kind: str, name: str) -> None:
    rows = records(Spent(kind, name, 5), [(NOW, 5)], 1)

    def sums(**who: Any) -> int:
        return sum(r.cost_nano for r in rows if all(getattr(r, key) == value for key, value in who.items()))

    assert sums() == 0, "the whole"
    scopes: dict[str, dict[str, Any]] = {
        "team": {"team_id": "t"}, "user": {"user_id": "u"}, "organization": {"organization_id": "o"},
        "end_user": {"end_user_id": "e"}, "tag": {"tags": ("x",)}, "member": {"team_id": "t", "user_id": "u"},
    }  # fmt: skip
    assert {scope: sums(**who) for scope, who in scopes.items()} == {scope: 5 * (scope == kind) for scope in scopes}
    assert {(r.exchange_id, r.attempt, r.revision) for r in rows} == {
        (exchange_id(kind, name), n, 1) for n in range(1, len(rows) + 1)
    }


def test_money_of_a_window_that_has_ended_stays_in_it() -> None:
    budget = Budget(10, "7d", at("2026-05-12"))
    (want,) = wants(Spent("key", "k", 9, reset_at=at("2026-05-12")), [budget], has_own=True, now=NOW, zone=UTC)
    assert (want.start_at, want.end_at) == (at("2026-05-05"), at("2026-05-12"))
    ((when, cost),) = placed([want], [], NOW)
    assert (cost, want.start_at <= when < want.end_at) == (9, True)


def test_what_was_spent_before_the_running_window_counts_for_ever_only() -> None:
    spent = Spent("key", "k", 2, reset_at=at("2026-06-01"), total=100)
    budget = Budget(10, "1mo")
    there = placed(wants(spent, [budget], has_own=True, now=NOW, zone=UTC), [], NOW)
    assert sum(n for _, n in there) == 100
    assert sum(n for when, n in there if when >= at("2026-05-01")) == 2
    assert Decimal(sum(n for _, n in placed(wants(spent, [], has_own=False, now=NOW, zone=UTC), [], NOW))) == 2
