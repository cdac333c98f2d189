"""What every limit store does, on memory, Redis and Valkey, at instants the tests name."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.limits.claims import Admitted, Cold, Denied, Settled, Stale
from sidecar.limits.store.base import LimitStore
from tests.limits.making import NOW, claims, new_id, take, window

pytestmark = pytest.mark.anyio


# requests ---------------------------------------------------------------------------------------------------------


async def test_a_refusal_waits_exactly_until_the_oldest_entry_leaves(store: LimitStore) -> None:
    wanted = claims(rpm={"key": 3})
    for after in (0.0, 10.0, 20.5):
        assert isinstance(await take(store, wanted, NOW + after), Admitted)
    refused = await take(store, wanted, NOW + 30.25)
    assert refused == Denied("requests", "key", 3, 29.75)
    assert isinstance(await take(store, wanted, NOW + 30.25 + 29.75 - 1e-6), Denied)
    assert isinstance(await take(store, wanted, NOW + 30.25 + 29.75), Admitted)
    assert await take(store, wanted, NOW + 60.0) == Denied("requests", "key", 3, 10.0)


async def test_headers_tell_the_tightest_window(store: LimitStore) -> None:
    wanted = claims(rpm={"global": 100, "key": 5}, tpm={"global": 50, "key": 1000})
    await take(store, wanted, NOW, tokens=10)
    admitted = await take(store, wanted, NOW + 15, tokens=10)
    assert isinstance(admitted, Admitted)
    assert (admitted.limit_requests, admitted.remaining_requests, admitted.reset_requests_s) == (5, 3, 45.0)
    assert (admitted.limit_tokens, admitted.remaining_tokens, admitted.reset_tokens_s) == (50, 30, 46.0)


@pytest.mark.parametrize(
    "wanted",
    [
        claims(rpm={"key": 0}),
        claims(tpm={"key": 5}),
        claims(slots={"key": 0}),
        claims(windows=(window(max_nano=5),)),
    ],
)
async def test_what_can_never_fit_names_no_wait(store: LimitStore, wanted: object) -> None:
    await store.seed({}, now=NOW)
    refused = await take(store, wanted, NOW, tokens=6, hold=6)  # type: ignore[arg-type]
    assert isinstance(refused, Denied)
    assert refused.retry_after_s is None


async def test_of_several_full_windows_the_longest_wait_is_told(store: LimitStore) -> None:
    await take(store, claims(rpm={"global": 2}), NOW)
    await take(store, claims(rpm={"key": 1}), NOW + 30)
    await take(store, claims(rpm={"global": 2}), NOW + 30)
    both = claims(rpm={"global": 2, "key": 1})
    assert await take(store, both, NOW + 40) == Denied("requests", "key", 1, 50.0)
    assert isinstance(await take(store, both, NOW + 90), Admitted)


async def test_200_at_once_admit_exactly_the_limit(store: LimitStore) -> None:
    await store.seed({}, now=NOW)
    wanted = claims(rpm={"global": 1000, "key": 60}, slots={"key": 500}, windows=(window(max_nano=10_000),))
    results = await asyncio.gather(*(take(store, wanted, hold=10) for _ in range(200)))
    assert sum(isinstance(r, Admitted) for r in results) == 60
    assert (await store.spent([wanted.windows[0].key])).popitem()[1] == 600


async def test_a_refusal_consumes_nothing_on_any_scope(store: LimitStore) -> None:
    await store.seed({}, now=NOW)
    outer, inner = window("global", 1000), window("key", 100)
    full = claims(
        rpm={"global": 2, "key": 2}, tpm={"global": 20, "key": 20}, slots={"global": 2, "key": 2},
        windows=(outer, inner),
    )  # fmt: skip
    causes = [
        claims(rpm={"global": 2, "key": 2, "team": 0}, tpm={"global": 20}, slots={"key": 2}, windows=(outer, inner)),
        claims(rpm={"global": 2}, tpm={"global": 20, "key": 9}, slots={"key": 2}, windows=(outer, inner)),
        claims(rpm={"global": 2}, tpm={"global": 20}, slots={"global": 2, "key": 0}, windows=(outer, inner)),
        claims(rpm={"global": 2}, tpm={"global": 20}, slots={"key": 2}, windows=(outer, window("team", 9))),
    ]
    for cause in causes:
        assert isinstance(await take(store, cause, tokens=10, hold=10), Denied)
    assert await store.spent([outer.key, inner.key]) == {outer.key: 0, inner.key: 0}
    for _ in range(2):
        assert isinstance(await take(store, full, tokens=10, hold=10), Admitted)
    assert isinstance(await take(store, full, tokens=10, hold=10), Denied)


# tokens -----------------------------------------------------------------------------------------------------------


async def test_tokens_are_adjusted_to_what_was_used(store: LimitStore) -> None:
    wanted = claims(tpm={"key": 100})
    await take(store, wanted, NOW, exchange="less", tokens=80)
    assert isinstance(await take(store, wanted, NOW + 1, tokens=30), Denied)
    await store.settle("less", tokens=10, cost_nano=None, now=NOW + 2)
    await take(store, wanted, NOW + 3, exchange="more", tokens=30)
    await store.settle("more", tokens=90, cost_nano=None, now=NOW + 5)
    # 10 in second 0, 30 in second 3, 60 in second 5: each counts until its second is a minute old.
    assert await take(store, wanted, NOW + 6, tokens=1) == Denied("tokens", "key", 100, 55.0)
    assert await take(store, wanted, NOW + 6, tokens=41) == Denied("tokens", "key", 100, 60.0)
    assert isinstance(await take(store, wanted, NOW + 61, tokens=10), Admitted)


async def test_no_known_usage_keeps_the_reservation(store: LimitStore) -> None:
    wanted = claims(tpm={"key": 100})
    await take(store, wanted, exchange="a", tokens=80)
    await store.settle("a", tokens=None, cost_nano=None, now=NOW)
    assert isinstance(await take(store, wanted, tokens=21), Denied)


# concurrency ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["rpm", "tpm"])
async def test_a_clock_that_is_set_back_does_not_keep_a_limit_full(store: LimitStore, what: str) -> None:
    wanted = claims(rpm={"key": 2}) if what == "rpm" else claims(tpm={"key": 10})
    await store.seed({}, now=NOW)
    later = NOW + 3600
    for number in range(2):
        assert isinstance(await take(store, wanted, later + number, tokens=5), Admitted)
    assert isinstance(await take(store, wanted, later + 2, tokens=5), Denied)
    assert isinstance(await take(store, wanted, NOW, tokens=5), Admitted)
    assert isinstance(await take(store, wanted, NOW + 30, tokens=5), Admitted)
    denied = await take(store, wanted, NOW + 40, tokens=5)
    assert isinstance(denied, Denied)
    assert denied.retry_after_s is not None
    assert 20 <= denied.retry_after_s <= 21
    assert isinstance(await take(store, wanted, NOW + 61, tokens=5), Admitted)


async def test_a_slot_is_free_again_after_settling(store: LimitStore) -> None:
    wanted = claims(slots={"key": 1})
    await take(store, wanted, exchange="a")
    assert await take(store, wanted) == Denied("concurrency", "key", 1, 1.0)
    await store.settle("a", tokens=None, cost_nano=None, now=NOW)
    assert isinstance(await take(store, wanted), Admitted)


# budgets ----------------------------------------------------------------------------------------------------------


async def test_a_budget_is_a_ceiling_over_all_scopes(store: LimitStore) -> None:
    await store.seed({}, now=NOW)
    outer, inner = window("global", 150), window("key", 100, end=NOW + 3600)
    wanted = claims(windows=(outer, inner))
    await take(store, wanted, exchange="a", hold=60)
    assert await take(store, wanted, NOW + 100, hold=60) == Denied("budget", "key", 100, 3500.0)
    await store.settle("a", tokens=None, cost_nano=7)
    assert await store.spent([outer.key, inner.key]) == {outer.key: 7, inner.key: 7}
    assert isinstance(await take(store, wanted, hold=93), Admitted)
    assert isinstance(await take(store, wanted, hold=1), Denied)
    assert isinstance(await take(store, wanted, hold=0), Admitted), "what costs nothing passes"


@pytest.mark.parametrize(("least", "granted"), [(1, 40), (40, 40), (41, None), (100, None)])
async def test_a_hold_is_what_the_remaining_money_affords(store: LimitStore, least: int, granted: int | None) -> None:
    await store.seed({}, now=NOW)
    outer, inner = window("global", 1000), window("key", 100)
    wanted = claims(windows=(outer, inner))
    await take(store, wanted, hold=60)
    result = await take(store, wanted, hold=100, least=least)
    assert (result.hold_nano if isinstance(result, Admitted) else None) == granted
    assert (await store.spent([outer.key]))[outer.key] == 60 + (granted or 0)


async def test_money_is_exact_up_to_the_largest_budget(store: LimitStore) -> None:
    await store.seed({}, now=NOW)
    most = 9_000_000 * 10**9
    wanted = claims(windows=(window(max_nano=most),))
    await take(store, wanted, exchange="a", hold=most - 1)
    assert isinstance(await take(store, wanted, hold=2), Denied)
    assert isinstance(await take(store, wanted, exchange="b", hold=1), Admitted)
    assert isinstance(await take(store, wanted, hold=1), Denied)
    await store.settle("a", tokens=None, cost_nano=most - 3)
    assert (await store.spent([wanted.windows[0].key])).popitem()[1] == most - 2


async def test_extending_holds_on_every_budget_or_on_none(store: LimitStore) -> None:
    await store.seed({}, now=NOW)
    outer, inner = window("global", 100), window("key", 1000)
    wanted = claims(windows=(outer, inner))
    await take(store, wanted, exchange="a", hold=60)
    assert await store.extend("a", wanted, 41) is False
    assert await store.spent([outer.key, inner.key]) == {outer.key: 60, inner.key: 60}
    assert await store.extend("a", wanted, 40) is True
    assert await store.spent([outer.key, inner.key]) == {outer.key: 100, inner.key: 100}
    assert await store.extend("nobody", wanted, 1) is None
    await store.settle("a", tokens=None, cost_nano=90)
    assert await store.spent([outer.key, inner.key]) == {outer.key: 90, inner.key: 90}


async def test_the_window_that_was_held_owns_the_settle(store: LimitStore) -> None:
    await store.seed({}, now=NOW)
    today, tomorrow = window(end=NOW + 100), window(start=NOW + 100, end=NOW + 200)
    await take(store, claims(windows=(today,)), NOW + 99, exchange="a", hold=60)
    await take(store, claims(windows=(tomorrow,)), NOW + 101, exchange="b", hold=5)
    await store.settle("a", tokens=None, cost_nano=50, now=NOW + 102)
    assert await store.spent([today.key, tomorrow.key]) == {today.key: 50, tomorrow.key: 5}


# idempotence ------------------------------------------------------------------------------------------------------


async def test_asked_twice_it_admits_once_and_settles_once(store: LimitStore) -> None:
    await store.seed({}, now=NOW)
    wanted = claims(rpm={"key": 2}, tpm={"key": 100}, slots={"key": 2}, windows=(window(),))
    first = await take(store, wanted, exchange="a", tokens=40, hold=60)
    again = await take(store, wanted, NOW + 1, exchange="a", tokens=40, hold=60)
    assert isinstance(first, Admitted)
    assert isinstance(again, Admitted)
    assert (first.at, first.hold_nano) == (again.at, again.hold_nano)
    assert await store.settle("a", tokens=50, cost_nano=20, now=NOW) is Settled.DONE
    assert await store.settle("a", tokens=90, cost_nano=90, now=NOW) is Settled.UNKNOWN
    assert (await store.spent([wanted.windows[0].key])).popitem()[1] == 20
    last = await take(store, wanted, exchange="b", tokens=50)
    assert isinstance(last, Admitted)
    assert (last.remaining_requests, last.remaining_tokens) == (0, 0)


async def test_a_cancelled_exchange_was_never_there(store: LimitStore) -> None:
    await store.seed({}, now=NOW)
    wanted = claims(rpm={"key": 1}, tpm={"key": 10}, slots={"key": 1}, windows=(window(max_nano=10),))
    for _ in range(3):
        exchange = new_id()
        assert isinstance(await take(store, wanted, exchange=exchange, tokens=10, hold=10), Admitted)
        await store.cancel(exchange)
        await store.cancel(exchange)
    assert (await store.spent([wanted.windows[0].key])).popitem()[1] == 0


# seeding ----------------------------------------------------------------------------------------------------------


async def test_an_unknown_counter_is_cold_until_seeded_and_seeded_once(store: LimitStore) -> None:
    old, new = window("global", start=NOW - 86400, end=NOW + 10), window("key", start=NOW - 10)
    wanted = claims(windows=(old, new), rpm={"key": 1})
    assert await take(store, wanted, hold=10) == Cold((old, new))
    await store.seed({old.key: 500}, [old], now=NOW)
    assert await take(store, wanted, hold=10) == Cold((new,)), "it began before the store did"
    await asyncio.gather(store.seed({new.key: 70}, [new], now=NOW), store.seed({new.key: 71}, [new], now=NOW))
    await store.seed({old.key: 1, new.key: 1}, [old, new], now=NOW)
    assert isinstance(await take(store, wanted, hold=10), Admitted)
    assert await store.spent([old.key, new.key]) == {old.key: 510, new.key: 80}


async def test_a_rollover_is_never_cold(store: LimitStore) -> None:
    await store.seed({}, now=NOW - 0.5)
    fresh = window(start=NOW)
    assert isinstance(await take(store, claims(windows=(fresh,)), hold=10), Admitted)


@pytest.mark.parametrize("at", [NOW - 0.001, NOW + 100.0])
async def test_claims_of_another_window_are_stale(store: LimitStore, at: float) -> None:
    await store.seed({}, now=NOW)
    today = window(end=NOW + 100)
    wanted = claims(windows=(today,), valid_from=NOW, valid_until=NOW + 100)
    assert await take(store, wanted, at, hold=1) == Stale(at)
    assert await store.spent([today.key]) == {today.key: 0}


async def test_a_forced_acquisition_counts_without_judging(store: LimitStore) -> None:
    await store.seed({}, now=NOW)
    wanted = claims(rpm={"key": 1}, slots={"key": 1}, windows=(window(max_nano=10),))
    await take(store, wanted, hold=10)
    forced = await take(store, wanted, exchange="b", hold=10, lost_at=NOW)
    assert isinstance(forced, Admitted)
    assert forced.hold_nano == 10
    assert (await store.spent([wanted.windows[0].key])).popitem()[1] == 20
    await store.settle("b", tokens=None, cost_nano=3)
    assert (await store.spent([wanted.windows[0].key])).popitem()[1] == 13
