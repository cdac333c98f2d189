"""Who pauses, why, until when; trials; what other processes say."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.routing.health import AFTER, Cooldown, Health
from tests.routing.support import deployment

A, B = deployment("a"), deployment("b")


def fail(health: Health, times: int = AFTER, now: float = 100.0) -> None:
    for _ in range(times):
        health.failed(A, "upstream_broken", now)


def test_failures_in_a_row_make_a_pause_with_reason_and_end() -> None:
    health = Health(cooldown_s=5)
    fail(health, AFTER - 1)
    assert health.healthy([A, B], 100.0) == [A, B], "one failure is no outage"
    fail(health, 1)
    assert health.healthy([A, B], 104.9) == [B]
    assert health.cooling(101.0)["a"].reason == "upstream_broken"
    assert health.cooling(101.0)["a"].until_at == 105.0
    assert health.healthy([A], 101.0) == []


def test_a_success_between_begins_the_row_anew() -> None:
    health = Health()
    for _ in range(8):
        health.failed(A, "upstream_broken", 100.0)
        health.succeeded(A)
        health.succeeded(A)
    assert health.healthy([A], 100.0) == [A]


def test_half_of_the_last_calls_failing_is_an_outlier() -> None:
    health = Health()
    for _ in range(10):
        health.failed(A, "upstream_broken", 100.0)
        if not health.healthy([A], 100.0):
            break
        health.succeeded(A)
    assert health.cooling(100.0)["a"].reason == "upstream_broken"


def test_a_provider_that_says_so_itself_pauses_at_once_as_long_as_it_says() -> None:
    for kind in ("rate_limit", "quota", "authentication"):
        health = Health(cooldown_s=5)
        health.failed(A, kind, 100.0, kind=kind)
        assert health.cooling(100.0)["a"].until_at == 105.0
    health.failed(A, "rate_limit_exceeded", 100.0, 42.0, kind="rate_limit")
    assert health.cooling(100.0)["a"].until_at == 142.0
    health.failed(A, "rate_limit_exceeded", 100.0, 86_400.0, kind="rate_limit")
    assert health.cooling(100.0)["a"].until_at == 400.0, "but not for a day"


def test_after_the_pause_one_call_is_the_trial_and_all_others_wait_for_it() -> None:
    health = Health(cooldown_s=5)
    fail(health)
    assert health.probe([A, B], 104.9) is None
    assert health.probe([A, B], 105.0) is A
    assert health.probe([A, B], 105.1) is None
    assert health.healthy([A, B], 105.1) == [B]
    health.succeeded(A)
    assert health.healthy([A, B], 105.2) == [A, B]
    fail(health, 1, 106.0)
    assert health.healthy([A, B], 106.0) == [A, B], "what failed before the trial no longer counts"


def test_a_failed_trial_is_a_new_pause_as_long_as_the_first() -> None:
    health = Health(cooldown_s=5)
    fail(health)
    for number in range(1, 5):
        at = 100.0 + 5 * number
        assert health.probe([A], at) is A
        fail(health, 1, at)
        assert health.cooling(at)["a"].until_at == at + 5


def test_a_trial_that_says_nothing_or_never_ends_makes_room_for_the_next() -> None:
    health = Health(cooldown_s=5)
    fail(health)
    assert health.probe([A], 105.0) is A
    health.unknown(A, 99.0)
    assert health.probe([A], 105.05) is None, "one from before the pause was no trial"
    health.unknown(A, 105.0)
    assert health.probe([A], 105.1) is A
    health.unknown(A)
    assert health.probe([A], 105.2) is A
    assert health.probe([A], 110.1) is None
    assert health.probe([A], 110.2) is A
    health.unknown(A, 105.2)
    assert health.probe([A], 115.1) is None, "an older trial holds nobody off"
    assert health.probe([A], 115.2) is A


@pytest.mark.parametrize("kind", ["server", "timeout"])
@pytest.mark.parametrize("fails_after", [0.0, 1.0, 4.5, 5.0, 7.0, 20.0, 60.0, 1000.0])
def test_trials_begin_one_cooldown_apart_whatever_becomes_of_them(fails_after: float, kind: str) -> None:
    health = Health(cooldown_s=5)
    fail(health)
    began: list[float] = []
    for now in (100 + number / 2 for number in range(400)):
        for at in began:
            if at + fails_after == now:
                health.failed(A, "no", now, kind=kind, started_at=at)
        if health.probe([A, B], now) is not None:
            began.append(now)
            if not fails_after:
                health.failed(A, "no", now, kind=kind, started_at=now)
        assert health.healthy([A, B], now) == [B]
    assert began == [105.0 + 5 * number for number in range(39)]


def test_so_do_those_of_a_pause_its_provider_asked_for_and_of_one_for_hours() -> None:
    health = Health(cooldown_s=5)
    health.failed(A, "rate_limit_exceeded", 100.0, 42.0, kind="rate_limit")
    assert [health.probe([A], at) for at in (141.9, 142.0, 146.9, 147.0, 151.9, 152.0)] == [None, A] * 3
    health = Health(cooldown_s=7200)
    fail(health)
    assert [health.probe([A], at) for at in (399.0, 400.0, 699.0, 700.0)] == [None, A] * 2


def silent(trials: int) -> Health:
    """Paused at 100; trials began at 105, 110 and so on, and none of them came back."""
    health = Health(cooldown_s=5)
    fail(health)
    for number in range(trials):
        assert health.probe([A], 105.0 + 5 * number) is A
    return health


def test_an_older_trial_that_fails_prolongs_nothing() -> None:
    health = silent(3)
    health.failed(A, "upstream_timeout", 116.0, kind="timeout", started_at=105.0)
    assert health.probe([A], 119.9) is None, "nor does it make room"
    assert health.probe([A], 120.0) is A
    health.began(A, 115.0)
    assert health.healthy([A], 121.0) == [A], "any of them may pass"


def test_trials_that_fail_after_another_passed_undo_nothing() -> None:
    health = silent(4)
    health.began(A, 110.0)
    for at in (105.0, 110.0, 115.0) * AFTER:
        health.failed(A, "upstream_timeout", at + 20, kind="timeout", started_at=at)
    assert health.healthy([A], 140.0) == [A]
    health = silent(4)
    health.learn("a", None)
    for at in (105.0, 110.0, 115.0) * AFTER:
        health.failed(A, "upstream_timeout", at + 20, kind="timeout", started_at=at)
    assert health.healthy([A], 140.0) == [A], "in another process neither"


def test_the_newest_trial_that_fails_leaves_the_older_ones_nothing_to_say() -> None:
    health = silent(2)
    health.failed(A, "upstream_broken", 111.0, started_at=110.0)
    health.began(A, 105.0)
    assert health.healthy([A], 112.0) == []
    assert health.probe([A], 114.9) is None
    assert health.probe([A], 115.0) is A


def test_a_failure_in_a_pause_the_provider_asked_for_does_not_shorten_it() -> None:
    health = Health(cooldown_s=5)
    health.failed(A, "rate_limit_exceeded", 100.0, 42.0, kind="rate_limit")
    health.failed(A, "upstream_broken", 110.0, started_at=109.0)
    assert health.cooling(110.0)["a"].until_at == 142.0


def test_of_two_processes_the_later_trial_finds_out() -> None:
    health = silent(2)
    health.learn("a", Cooldown(114.0, "a trial of 109 failed there", 111.0))
    health.began(A, 110.0)
    assert health.healthy([A], 112.0) == [A]
    health = silent(2)
    health.learn("a", Cooldown(117.0, "one of 112 did", 113.0))
    health.began(A, 110.0)
    assert health.probe([A], 116.9) is None
    assert health.probe([A], 117.0) is A


def test_what_one_process_finds_out_another_learns_and_does_not_tell_on() -> None:
    told: list[tuple[str, Any]] = []
    one = Health(cooldown_s=5, on_change=lambda name, pause: told.append((name, pause)))
    other = Health(cooldown_s=5, on_change=lambda name, pause: told.append(("echo", pause)))
    fail(one)
    (name, pause) = told.pop()
    other.learn(name, pause)
    assert other.healthy([A], 104.0) == []
    assert other.probe([A], 105.0) is A
    one.succeeded(A)
    assert told == [("a", None)]
    other.learn("a", None)
    assert other.healthy([A], 104.0) == [A]


def test_an_older_word_of_another_process_shortens_no_pause() -> None:
    health = Health(cooldown_s=5)
    fail(health)
    health.learn("a", Cooldown(103.0, "older"))
    assert health.cooling(104.0)["a"].until_at == 105.0


def test_memory_is_of_failing_and_configured_deployments_only() -> None:
    health = Health()
    fail(health, 1)
    for _ in range(30):
        health.succeeded(A)
    assert not health._records
    fail(health)
    health.keep(["b"])
    assert not health._records
    assert not health._cooling


def test_an_answer_to_what_was_sent_before_the_pause_ends_no_pause() -> None:
    health = Health(cooldown_s=5)
    fail(health)
    health.succeeded(A, 99.0)
    assert health.healthy([A], 100.0) == []
    other = Health(cooldown_s=5)
    other.learn("a", Cooldown(105.0, "told", 101.0))
    other.succeeded(A, 100.5)
    assert other.healthy([A], 102.0) == []
    other.succeeded(A, 102.0)
    assert other.healthy([A], 102.0) == [A]


def test_what_hung_since_before_the_pause_does_not_undo_a_trial() -> None:
    health = Health(cooldown_s=5)
    fail(health)
    assert health.probe([A], 105.0) is A
    health.failed(A, "upstream_timeout", 105.2, kind="timeout", started_at=45.2)
    assert health.cooling(105.3)["a"].until_at == 105.0, "no new pause"
    assert health.probe([A], 105.3) is None, "the trial is still under way"
    health.began(A, 105.0)
    assert health.healthy([A], 105.6) == [A]
    for number in range(2 * AFTER):
        health.failed(A, "upstream_timeout", 106.0 + number, kind="timeout", started_at=46.0 + number)
    assert health.healthy([A], 120.0) == [A], "nor begin another pause"
    for _ in range(AFTER):
        health.failed(A, "upstream_timeout", 121.0, kind="timeout", started_at=106.0)
    assert health.healthy([A], 121.0) == []


def test_nor_if_the_trial_was_another_process() -> None:
    health = Health(cooldown_s=5)
    health.learn("a", Cooldown(105.0, "told", 100.0))
    health.learn("a", None)
    for _ in range(AFTER):
        health.failed(A, "upstream_timeout", 106.0, kind="timeout", started_at=46.0)
    assert health.healthy([A], 106.0) == [A]


def test_what_a_provider_says_of_itself_counts_whenever_it_was_asked() -> None:
    health = Health(cooldown_s=5)
    fail(health)
    health.failed(A, "rate_limit_exceeded", 101.0, 30.0, kind="rate_limit", started_at=99.0)
    assert health.cooling(101.0)["a"].until_at == 131.0


def test_a_clock_that_is_set_back_locks_nobody_out() -> None:
    health = Health(cooldown_s=5)
    fail(health, now=90_000.0)
    assert health.probe([A, B], 100.0) is A
    health.began(A, 100.0)
    assert health.healthy([A], 100.5) == [A]
    fail(health, now=90_000.0)
    assert health.probe([A], 90_005.0) is A
    assert health.probe([A], 200.0) is A, "a trial of then holds nobody off"
    assert health.probe([A], 204.9) is None
    assert health.probe([A], 205.0) is A
    health.began(A, 90_006.0)
    for _ in range(AFTER):
        health.failed(A, "upstream_broken", 300.0, started_at=299.0)
    assert health.healthy([A], 300.0) == [], "nor does one that passed"


@pytest.mark.parametrize("now", [10.0, 101.0])
def test_a_clock_set_back_amid_a_trial_makes_no_pause_longer_than_the_first(now: float) -> None:
    health = silent(1)
    health.failed(A, "upstream_broken", now, started_at=105.0)
    assert health.cooling(now)["a"].until_at == now + 5
