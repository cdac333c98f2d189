"""When a second attempt begins beside a slow one and who is asked: dialogues with the plan, and the share that bounds
it. No I/O."""

from __future__ import annotations

import random

from sidecar.routing.hedging import BURST, Hedges, Hedging
from sidecar.routing.plan import SLOW, WAIT, Failure, Full, Policy, Try, attempts
from sidecar.types import Deployment, Limits
from tests.routing.support import Clock, Script, deployment

A, B, C = deployment("a"), deployment("b"), deployment("c")
FALLBACK = deployment("f", group="other")


class Talk:
    """A dialogue with a plan in which two may be under way."""

    def __init__(
        self,
        *candidates: Deployment,
        world: Script | None = None,
        policy: Policy | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.world = world or Script()
        self.clock = clock or Clock()
        self.plan = attempts(
            candidates, policy=policy or Policy(), world=self.world, now=self.clock, draw=lambda: 1.0
        )  # fmt: skip
        self.first = self._word(next(self.plan))

    @staticmethod
    def _word(step: object) -> str:
        if step is WAIT:
            return "wait"
        assert type(step) is Try
        return f"+{step.wait_s:g} {step.deployment.deployment_id}" if step.wait_s else step.deployment.deployment_id

    def say(self, outcome: Failure | Full | object) -> str:
        try:
            return self._word(self.plan.send(outcome))  # type: ignore[arg-type]
        except StopIteration as end:
            return "stop" if end.value is None else f"full {end.value:g}"

    def slow(self) -> str:
        return self.say(SLOW)

    def failed(self, of: Deployment, kind: str = "server", *, again: bool = True) -> str:
        return self.say(Failure(kind, again, of=of))


def test_a_slow_attempt_gets_another_deployment_beside_it() -> None:
    talk = Talk(A, B, C)
    assert (talk.first, talk.slow()) == ("a", "b")


def test_there_are_never_three_at_once_and_never_a_fallback() -> None:
    talk = Talk(A, B, C, policy=Policy(retries=9))
    assert [talk.slow(), talk.failed(A), talk.failed(B)] == ["b", "wait", "c"]
    assert Talk(A, FALLBACK).slow() == "wait"
    wild = [Deployment("w", "x/*", "openai", model, "http://127.0.0.1:9") for model in ("one", "two")]
    assert Talk(*wild).slow() == "wait", "another model of the same wildcard is a fallback"


def test_one_that_pauses_or_is_full_is_not_asked_beside_another() -> None:
    assert Talk(A, B, world=Script(pausing=["b"])).slow() == "wait"
    assert Talk(A, B, C, world=Script(pausing=["b"])).slow() == "c"
    narrow = deployment("n", limits=Limits(rpm=1))
    assert Talk(A, narrow, world=Script(full={"n": 5.0})).slow() == "wait"


def test_the_second_attempt_is_of_the_same_budget_and_deadline() -> None:
    assert Talk(A, B, policy=Policy(retries=0)).slow() == "wait", "one attempt is all there is"
    assert Talk(A, B, policy=Policy(retries=1)).slow() == "b"
    spent = Talk(A, B, C, policy=Policy(retries=1))
    assert [spent.failed(A), spent.slow()] == ["b", "wait"], "the first failure used it"
    clock = Clock()
    late = Talk(A, B, policy=Policy(deadline_s=10.0), clock=clock)
    clock.at += 9.95
    assert late.slow() == "wait"
    both = Talk(A, B, C, policy=Policy(retries=1))
    assert [both.slow(), both.failed(B), both.failed(A)] == ["b", "wait", "stop"]


def test_whichever_fails_first_the_other_is_waited_for() -> None:
    for one, other in ((A, B), (B, A)):
        talk = Talk(A, B, C, policy=Policy(retries=3))
        assert [talk.slow(), talk.failed(one), talk.failed(other)] == ["b", "wait", "c"]
        assert talk.failed(C)[0] == "+", "all were tried: again after a wait"


def test_a_mistake_of_the_clients_ends_both_at_once() -> None:
    talk = Talk(A, B, C)
    assert [talk.slow(), talk.failed(A, "bad_request", again=False)] == ["b", "stop"]
    talk = Talk(A, B, C)
    assert [talk.slow(), talk.failed(B, "bad_request", again=False)] == ["b", "stop"]


def test_a_refused_credential_of_one_is_not_asked_again() -> None:
    talk = Talk(A, B, policy=Policy(retries=5))
    assert [talk.slow(), talk.failed(B, "authentication", again=False), talk.failed(A)] == ["b", "wait", "+1 a"]
    assert talk.failed(A) == "+2 a"


def test_a_second_that_is_full_costs_no_attempt() -> None:
    talk = Talk(A, B, C, policy=Policy(retries=1))
    assert [talk.slow(), talk.say(Full(3.0, of=B)), talk.failed(A), talk.failed(C)] == ["b", "wait", "c", "stop"]


def test_a_context_window_way_is_taken_once_both_said_so() -> None:
    from sidecar.routing.candidates import Candidates

    candidates = Candidates.of([[A, B]], {"context_window": [[FALLBACK]]})
    plan = attempts(candidates, policy=Policy(retries=3), world=Script(), now=Clock(), draw=lambda: 1.0)
    assert type(next(plan)) is Try
    assert plan.send(SLOW).deployment is B  # type: ignore[union-attr]
    too_long = Failure("context_window", is_retryable=False, of=A)
    assert plan.send(too_long) is WAIT
    too_long.of = B
    assert plan.send(too_long).deployment is FALLBACK  # type: ignore[union-attr]


def test_a_plan_with_two_at_once_always_ends_within_its_budget() -> None:
    draw = random.Random(7)
    for _ in range(3000):
        retries = draw.randrange(5)
        places = [A, B, C][: draw.randrange(1, 4)]
        plan = attempts(places, policy=Policy(retries=retries), world=Script(), now=Clock(), draw=draw.random)
        running = [next(plan).deployment]  # type: ignore[union-attr]
        begun, free = 1, 0
        for _ in range(60):
            roll = draw.random()
            if roll < 0.3:
                said: object = SLOW
            else:
                of = running.pop(draw.randrange(len(running)))
                if roll < 0.4:
                    said = Full(1.0, of=of)
                    free += 1
                else:
                    said = Failure("server", of=of)
            try:
                step = plan.send(said)  # type: ignore[arg-type]
            except StopIteration:
                break
            if step is not WAIT:
                assert type(step) is Try
                assert step.deployment not in running
                running.append(step.deployment)
                begun += 1
            assert 1 <= len(running) <= 2
            assert begun - free <= retries + 1
        else:
            raise AssertionError("the plan never ended")


def test_the_time_is_the_95th_percentile_once_enough_are_known() -> None:
    hedges = Hedges(Hedging(samples=40))
    for number in range(40):
        assert hedges.after_s("g", True) is None
        hedges.waited("g", True, 0.1 + number / 100)
    assert hedges.after_s("g", True) == 0.1 + 38 / 100
    assert hedges.after_s("g", False) is None, "unstreamed answers take another time"
    for _ in range(200):
        hedges.waited("g", True, 3.0)
    assert hedges.after_s("g", True) == 3.0, "only the newest count"


def test_a_fixed_time_needs_no_samples_and_a_group_may_say_never() -> None:
    hedges = Hedges(Hedging(after_s=2.0), {"quiet": None, "quick": Hedging(after_s=0.2)})
    assert [hedges.after_s(group, True) for group in ("g", "quiet", "quick")] == [2.0, None, 0.2]
    assert hedges.is_on
    assert not Hedges().is_on
    assert not Hedges(None, {"g": None}).is_on


def test_second_attempts_are_a_share_of_the_requests() -> None:
    hedges = Hedges(Hedging(after_s=1.0, share=0.05))
    begun = 0
    for _ in range(2000):
        hedges.after_s("g", True)
        begun += hedges.take("g")
    assert 100 <= begun <= 100 + BURST + 1
    assert hedges.counts() == {"g": (begun, 0)}


def test_one_that_found_nobody_to_ask_is_not_counted() -> None:
    hedges = Hedges(Hedging(after_s=1.0))
    hedges.after_s("g", True)
    assert hedges.take("g")
    hedges.give_back("g")
    assert hedges.counts() == {"g": (0, 0)}
    assert hedges.take("g")
