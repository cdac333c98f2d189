"""Ten thousand requests in virtual time: what the strategies, pauses and retries come to together."""

from __future__ import annotations

import functools

import pytest

from sidecar.routing.hedging import BURST, Hedging
from sidecar.routing.plan import Policy
from sidecar.routing.strategies import STRATEGIES
from tests.routing.simulate import SCENARIOS, STALLING, Place, Result, simulate

REQUESTS = 10_000
"""At 20 a second: 500 s; everything that begins in a scenario ends within it."""
SMALL = 3000


@functools.cache
def quick(name: str, strategy: str) -> Result:
    """The same for every test that asks: a run takes a second."""
    return simulate((SCENARIOS | STALLING)[name], strategy, requests=REQUESTS)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_no_client_sees_that_one_of_several_is_down_shaky_slow_or_limited(scenario: str, strategy: str) -> None:
    result = quick(scenario, strategy)
    assert result.requests == REQUESTS
    assert (result.failed, result.refused) == (0, 0)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_one_that_is_down_gets_hardly_more_calls_than_trials(strategy: str) -> None:
    result = quick("one down 100 s", strategy)
    # 100 s are 20 pauses of 5 s; a few calls are out already when it goes down.
    assert 3 <= result.wasted <= 20 + 40


def test_what_healed_is_served_again_within_one_pause() -> None:
    result = quick("one down 100 s", "weighted")
    again = min(at for at in result.served_at["down"] if at >= 200)
    assert again <= 200 + 5 + 1, "a trial begins with the first request after the pause"


@pytest.mark.parametrize("hang_s", [3.0, 20.0, 60.0])
@pytest.mark.parametrize("healed_at", [200.0, 202.5, 204.9])
def test_one_that_hangs_costs_a_call_each_pause_and_is_served_again_within_one(hang_s: float, healed_at: float) -> None:
    hanging = Place("hanging", hangs_from=100, hangs_until=healed_at, hang_s=hang_s)
    result = simulate([Place("well"), hanging], "weighted", requests=6000, policy=Policy(deadline_s=200))
    assert (result.requests, result.failed) == (6000, 0)
    again = min(at for at in result.served_at["hanging"] if at >= healed_at)
    assert again <= healed_at + 5 + 1, "a trial begins with the first request after the pause"
    # Until the first three time out, half of all calls go there.
    assert result.wasted <= 0.7 * 20 * (hang_s + 1) + (healed_at - 100 - hang_s) / 5 + 1


def test_the_mean_wait_is_honest_about_retries() -> None:
    lone = simulate([Place("d", fail_share=0.5)], "weighted", requests=SMALL, per_second=1.0, policy=Policy(retries=9))
    assert lone.failed < 20
    assert lone.quantile(0.99) > 1.0, "waits between attempts count"


def test_all_down_is_failure_for_everybody_without_a_storm() -> None:
    places = [Place(f"d{n}", down_from=0) for n in range(3)]
    result = simulate(places, "adaptive", requests=SMALL, policy=Policy(retries=2))
    assert result.failed == SMALL
    assert sum(result.attempts.values()) <= 3 * SMALL, "the budget of attempts holds"


@pytest.mark.parametrize(("strategy", "most"), [("adaptive", 0.05), ("latency", 0.02), ("weighted", 0.27)])
def test_a_slow_deployment_gets_few_calls_where_the_strategy_sees_it(strategy: str, most: float) -> None:
    assert quick("one slow", strategy).share("slow") <= most


def test_adaptive_is_near_the_best_everywhere() -> None:
    for name in SCENARIOS:
        found = {strategy: quick(name, strategy) for strategy in STRATEGIES}
        best = min(result.quantile(0.99) for result in found.values())
        assert found["adaptive"].quantile(0.99) <= 2.5 * best, name
        assert found["adaptive"].wasted <= found["weighted"].wasted, name


def test_capacity_shares_follow_capacity_under_adaptive() -> None:
    result = quick("unequal capacity", "adaptive")
    assert result.share("big") > result.share("mid") > result.share("small")


def test_limits_of_deployments_move_the_load_instead_of_refusing_it() -> None:
    places = [Place("small", own_rpm=60, rpm=60), Place("big")]
    result = simulate(places, "weighted", requests=SMALL)
    assert (result.failed, result.refused, result.wasted) == (0, 0, 0), "it never saw one call too many"
    assert result.served["small"] > 0.7 * 60 * SMALL / 20 / 60, "and nearly all it takes"


def test_where_all_are_at_their_limits_the_rest_is_refused_untried() -> None:
    places = [Place("a", own_rpm=60, rpm=60), Place("b", own_rpm=30, rpm=30)]
    result = simulate(places, "usage", requests=SMALL)
    assert result.wasted == 0
    assert result.refused == SMALL - sum(result.served.values())
    assert result.refused > SMALL / 2


def test_a_second_level_is_used_only_while_the_first_cannot_serve() -> None:
    places = [Place("first", down_from=50, down_until=100), Place("second", order=2)]
    result = simulate(places, "adaptive", requests=SMALL)
    # Until the pause is over and the trial is back.
    assert all(50 <= at <= 110 for at in result.served_at["second"])
    assert result.failed == 0


@pytest.mark.parametrize("strategy", ["weighted", "adaptive"])
@pytest.mark.parametrize("scenario", sorted(STALLING))
def test_hedging_never_costs_more_than_its_share_and_does_not_lengthen_the_tail(scenario: str, strategy: str) -> None:
    alone = quick(scenario, strategy)
    hedged = simulate(STALLING[scenario], strategy, hedging=Hedging(share=0.1), requests=REQUESTS)
    assert (hedged.requests, hedged.failed, hedged.refused) == (REQUESTS, 0, 0)
    assert hedged.wasted == hedged.hedged <= 0.1 * REQUESTS + BURST
    assert hedged.quantile(0.99) <= 1.02 * alone.quantile(0.99)


def test_hedging_cuts_a_tail_of_single_calls_that_stall() -> None:
    alone = quick("2 % stall", "adaptive")
    hedged = simulate(STALLING["2 % stall"], "adaptive", hedging=Hedging(), requests=REQUESTS)
    assert hedged.quantile(0.99) < 0.4 * alone.quantile(0.99)
    assert hedged.hedged < 0.06 * REQUESTS
    assert hedged.won > 0.3 * hedged.hedged


def test_the_share_of_second_attempts_is_kept_when_everything_is_slow() -> None:
    places = [Place(f"d{n}", slow_from=100, slow_until=400, slower=10) for n in range(4)]
    hedged = simulate(places, "adaptive", hedging=Hedging(share=0.03), requests=REQUESTS)
    assert hedged.hedged <= 0.03 * REQUESTS + BURST


def test_hedging_gets_through_faults_as_well() -> None:
    for scenario in ("one down 100 s", "one fails 20 %"):
        hedged = simulate(SCENARIOS[scenario], "adaptive", hedging=Hedging(), requests=REQUESTS)
        assert (hedged.requests, hedged.failed) == (REQUESTS, 0)


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = (simulate(SCENARIOS["one fails 20 %"], "adaptive", requests=500, seed=3) for _ in range(2))
    assert one == other
