"""The plan as a dialogue: outcomes in, deployments out."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from sidecar.routing.candidates import Candidates, Try
from sidecar.routing.plan import SLOW, Failure, Full, Policy, attempts, opening
from sidecar.routing.router import Here, Router
from sidecar.routing.strategies import STRATEGIES
from sidecar.types import Deployment, Limits
from tests.routing.support import Clock, Script, deployment, dialogue

RETRY = Failure("server")
FATAL = Failure("bad_request", is_retryable=False)
BUSY = Failure("rate_limit", retry_after_s=3.0)
LONG = Failure("rate_limit", retry_after_s=60.0)
STALE = Failure("connection", is_free=True)
KEY = Failure("authentication", is_retryable=False)
GONE = Failure("not_found", is_retryable=False)
CONTEXT = Failure("context_window", is_retryable=False)
POLICY = Failure("content_policy", is_retryable=False)

A, B, C = deployment("a"), deployment("b"), deployment("c", order=2)
L = deployment("l", limits=Limits(rpm=1))
M = deployment("m", limits=Limits(rpm=1))
F, BIG, MILD = deployment("f", "fallback"), deployment("big", "big"), deployment("mild", "mild")
WAYS = Candidates.of([[A, B], [F]], {"context_window": [[BIG]], "content_policy": [[MILD]]})

DIALOGUES: list[tuple[str, Sequence[Deployment], list[Failure | Full], list[str]]] = [
    ("a lone deployment is retried, waits growing", [A], [RETRY] * 3, ["a", "+0.5", "a", "+1", "a", "stop"]),
    ("a fatal error ends the plan", [A, B], [FATAL], ["a", "stop"]),
    ("no wait while another is left, then the first again", [A, B], [RETRY, RETRY], ["a", "b", "+0.5", "a"]),
    ("a level is used up before the next", [C, A, B], [RETRY] * 3, ["a", "b", "c", "stop"]),
    ("fallbacks come after the group", [A, F], [RETRY, FATAL], ["a", "f", "stop"]),
    ("the attempt budget spans fallbacks", [A, B, C, F], [RETRY] * 3, ["a", "b", "c", "stop"]),
    ("a wait is as long as the provider asks", [A], [BUSY], ["a", "+3", "a"]),
    ("a wait that is too long is left to the client", [A], [LONG], ["a", "stop"]),
    ("but not while another is left", [A, B], [LONG], ["a", "b"]),
    ("the one that is ready first comes again", [A, B], [BUSY, RETRY], ["a", "b", "+1", "b"]),
    ("a stale connection is tried again at once", [A], [STALE], ["a", "a"]),
    ("a bad credential is tried elsewhere", [A, B], [KEY, KEY], ["a", "b", "stop"]),
    ("and never again at the same", [A], [KEY], ["a", "stop"]),
    ("nor is a model that is not there", [A, B], [GONE, RETRY], ["a", "b", "+1", "b"]),
    ("an unknown field is tried elsewhere", [A, B], [Failure("unsupported", is_retryable=False)], ["a", "b"]),
    ("too long: the bigger model, not the sibling", WAYS, [CONTEXT], ["a", "big"]),
    ("too long there as well: stop", WAYS, [CONTEXT, CONTEXT], ["a", "big", "stop"]),
    ("refused by policy: the other group", WAYS, [POLICY, FATAL], ["a", "mild", "stop"]),
    ("one way after the other, never back", WAYS, [CONTEXT, POLICY, RETRY], ["a", "big", "mild", "stop"]),
    ("full ones cost no attempt", [L, M, B], [Full(5), Full(4), RETRY, RETRY], ["l", "m", "b", "+0.5", "b", "+1", "b"]),
    ("all full: the soonest is told", [L, M], [Full(5), Full(4)], ["l", "m", "full 4"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "candidates", "outcomes", "expected"), DIALOGUES, ids=[d[0] for d in DIALOGUES])
def test_dialogue(
    name: str, candidates: Sequence[Deployment], outcomes: list[Failure | Full], expected: list[str]
) -> None:
    assert dialogue(candidates, outcomes) == expected


WORLDS: list[tuple[str, Sequence[Deployment], Script, list[Failure | Full], list[str]]] = [
    ("one that pauses is passed over", [A, B], Script(pausing=["a"]), [], ["b"]),
    ("also for a later level and a fallback", [A, F], Script(pausing=["a"]), [RETRY], ["f", "a"]),
    ("all pause: asked all the same", [A, B], Script(pausing=["a", "b"]), [RETRY], ["a", "b"]),
    ("a lone one that pauses is asked", [A], Script(pausing=["a"]), [], ["a"]),
    ("a trial comes first", [A, B], Script(pausing=["b"], due=["b"]), [RETRY], ["b", "a"]),
    ("but not of a level nobody needs", [A, C], Script(pausing=["c"], due=["c"]), [], ["a"]),
    ("one at its own limit is passed over", [L, M], Script(full={"l": 9}), [], ["m"]),
    ("all at their limits: nothing is tried", [L, M], Script(full={"l": 9, "m": 7}), [], ["full 7"]),
    ("a limit is no reason to try the failed one less", [A, L], Script(full={"l": 9}), [RETRY], ["a", "+0.5", "a"]),
]


@pytest.mark.parametrize(("name", "candidates", "world", "outcomes", "expected"), WORLDS, ids=[w[0] for w in WORLDS])
def test_dialogue_about_health_and_room(
    name: str, candidates: Sequence[Deployment], world: Script, outcomes: list[Failure | Full], expected: list[str]
) -> None:
    assert dialogue(candidates, outcomes, world=world) == expected


def test_the_last_of_several_attempts_is_no_trial() -> None:
    world = Script(pausing=["c"], due=["c"])
    assert dialogue([A, B, C], [RETRY], world=world, policy=Policy(retries=1)) == ["a", "b"]
    assert world.due == ["c"], "nobody took it"
    world = Script(pausing=["b"], due=["b"])
    assert dialogue([A, C, B], [RETRY], world=world, policy=Policy(retries=1)) == ["b", "a"]


def test_without_retries_the_only_attempt_is_the_trial_else_who_paused_would_never_come_back() -> None:
    world = Script(pausing=["b"], due=["b"])
    assert dialogue([A, B], [], world=world, policy=Policy(retries=0)) == ["b"]


def test_a_request_that_comes_too_late_takes_no_trial() -> None:
    world, clock = Script(pausing=["b"], due=["b"]), Clock()
    plan = attempts([A, B], policy=Policy(), world=world, now=clock, draw=lambda: 1.0, started_at=clock.at - 600)
    with pytest.raises(StopIteration):
        next(plan)
    assert world.due == ["b"], "it is the next one's"


def test_a_kind_may_be_retried_less_often_than_others() -> None:
    policy = Policy(retries=5, retry_on={"timeout": 0, "rate_limit": 1})
    assert dialogue([A, B], [Failure("timeout")], policy=policy) == ["a", "stop"]
    assert dialogue([A, B], [BUSY, BUSY], policy=policy) == ["a", "b", "stop"]
    assert dialogue([A, B], [RETRY, BUSY, RETRY], policy=policy) == ["a", "b", "+0.5", "a", "+2", "a"]


def test_one_deadline_spans_attempts_and_waits() -> None:
    policy = Policy(retries=9, deadline_s=10.0)
    assert dialogue([A, B], [RETRY] * 9, policy=policy, takes_s=4.0) == ["a", "b", "a", "stop"]
    assert dialogue([A], [BUSY] * 9, policy=policy, takes_s=1.0) == ["a", "+3", "a", "+3", "a", "stop"]


def test_waits_have_full_jitter_and_a_ceiling() -> None:
    policy = Policy(retries=9, backoff_s=0.5, max_wait_s=2.0)
    said = dialogue([A], [RETRY] * 6, policy=policy)
    assert [word for word in said if word.startswith("+")] == ["+0.5", "+1", "+2", "+2", "+2", "+2"]
    assert dialogue([A], [RETRY] * 2, policy=policy, draw=0.5) == ["a", "+0.25", "a", "+0.5", "a"]
    assert dialogue([A], [RETRY] * 2, policy=policy, draw=0.0) == ["a", "a", "a"]


def test_two_models_of_one_wildcard_deployment_are_two_places() -> None:
    one = Deployment("openai#0", "openai/*", "openai", "gpt-4o", "http://127.0.0.1:9")
    two = Deployment("openai#0", "openai/*", "openai", "gpt-4o-mini", "http://127.0.0.1:9")
    assert len(Candidates.of([[one], [two]])) == 2
    assert Candidates.of([[one], [two]]).levels == ((one,), (two,)), "the fallback is a level of its own"
    assert dialogue(Candidates.of([[one], [two]]), [RETRY, FATAL]) == ["openai#0", "openai#0", "stop"]


def test_no_attempt_begins_with_next_to_nothing_left_of_the_deadline() -> None:
    policy = Policy(retries=9, deadline_s=10.0)
    assert dialogue([A, B], [RETRY], policy=policy, takes_s=9.95) == ["a", "stop"]
    assert dialogue([A, B], [RETRY], policy=policy, takes_s=9.85) == ["a", "b"]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_plan_made_when_the_first_try_failed_is_the_one_made_before(strategy: str) -> None:
    opened = 0
    for seed in range(400):
        early, _ = steps(seed, strategy, is_late=False)
        late, is_open = steps(seed, strategy, is_late=True)
        assert late == early, seed
        opened += is_open
    assert 100 < opened < 400, "with and without one that is full"


def steps(seed: int, strategy: str, *, is_late: bool) -> tuple[list[object], bool]:
    """What a plan says to made-up outcomes of made-up deployments, with the numbers drawn; and if it had an opening."""
    chance, clock = Random(seed), Clock()
    groups = [
        [
            deployment(
                f"{group}{n}",
                group,
                weight=chance.choice([1.0, 1.0, 2.5]),
                order=chance.choice([1, 1, 2]),
                limits=Limits(rpm=chance.choice([None, None, 2, 5])),
            )
            for n in range(chance.randint(1, 4))
        ]
        for group in "gfb"
    ]
    candidates = Candidates.of(groups[:2], {"context_window": groups[2:]})
    router = Router(strategy=strategy)
    for one in candidates:
        for _ in range(chance.choice([0, 0, 0, 0, 1, 3])):
            router.board.started(one, clock.at - 1)
        if chance.random() < 0.3:
            router.health.failed(one, "x", clock.at - chance.choice([1, 9]), kind="rate_limit")
    said: list[object] = []

    def draw() -> float:
        said.append(drawn := chance.random())
        return drawn

    policy = Policy(retries=chance.choice([0, 1, 4]), deadline_s=chance.choice([0.0, 3.0, 600.0]))
    world = Here(router, draw, tokens=10)
    outcomes = [
        chance.choice([Failure(), Failure("context_window", is_retryable=False), Failure("quota"), Full(3.0), SLOW])
        for _ in range(6)
    ]
    begun, first = clock.at, None
    if is_late:
        first = opening(candidates, policy=policy, world=world, at=begun, started_at=begun)
    if first is not None:
        said.append(Try(first))
        clock.at += 0.5
    plan = attempts(candidates, policy=policy, world=world, now=clock, draw=draw, started_at=begun, first=first)
    try:
        step = next(plan)
        if first is None:
            said.append(step)
            clock.at += 0.5
        for outcome in outcomes:
            said.append(plan.send(outcome))
            clock.at += 0.5
    except StopIteration as end:
        said.append(("end", end.value))
    return said, first is not None
