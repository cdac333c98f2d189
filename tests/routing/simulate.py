"""A simulation of routing in virtual time: the real plan, router, board and health over deployments with scripted
latency, capacity and faults. Deterministic for a seed; ten thousand requests take about a second.

`bench/routing.py` prints what it finds for docs/routing.md; tests assert on the same figures.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sidecar.routing.candidates import Candidates
from sidecar.routing.health import Health
from sidecar.routing.hedging import Hedges, Hedging
from sidecar.routing.plan import SLOW, Failure, Policy, Said, Try, attempts
from sidecar.routing.router import Here, Router
from sidecar.types import Deployment, Limits


@dataclass(frozen=True)
class Place:
    """A scripted deployment. `first_s` is the median time until content when idle; from `capacity` calls at a time on
    it grows in proportion, and so does the rest of the answer. Between `down_from` and `down_until` every call fails
    after `fail_s`; `fail_share` of the calls fail at any time; between `slow_from` and `slow_until` it takes `slower`
    times as long. More than `rpm` calls a minute are answered 429."""

    name: str
    first_s: float = 0.5
    rest_s: float = 2.0
    capacity: int = 1000
    weight: float = 1.0
    down_from: float = math.inf
    down_until: float = math.inf
    fail_s: float = 0.05
    fail_share: float = 0.0
    hangs_from: float = math.inf
    hangs_until: float = math.inf
    """What is sent between the two is never answered; after `hang_s` the gateway gives it up."""
    hang_s: float = 20.0
    stall_share: float = 0.0
    """Of its calls take ten times as long until content begins."""
    slow_from: float = math.inf
    slow_until: float = math.inf
    slower: float = 1.0
    rpm: int | None = None
    own_rpm: int | None = None
    """The deployment's limit as configured at the gateway."""
    order: int = 1

    def deployment(self) -> Deployment:
        return Deployment(
            self.name, "g", "openai", "m", "http://127.0.0.1:9",
            weight=self.weight, order=self.order, limits=Limits(rpm=self.own_rpm),
        )  # fmt: skip


@dataclass
class Result:
    """`share` is of the answers, `wasted` attempts that gave none, `first_s` the client's waiting times."""

    served: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)
    failed: int = 0
    refused: int = 0
    served_at: dict[str, list[float]] = field(default_factory=dict)
    hedged: int = 0
    won: int = 0

    @property
    def requests(self) -> int:
        return sum(self.served.values()) + self.failed + self.refused

    @property
    def wasted(self) -> int:
        return sum(self.attempts.values()) - sum(self.served.values())

    def share(self, name: str) -> float:
        return self.served[name] / max(1, sum(self.served.values()))

    def quantile(self, part: float) -> float:
        times = sorted(self.first_s)
        return times[min(len(times) - 1, int(part * len(times)))] if times else math.nan


class _World:
    def __init__(self, places: Sequence[Place], router: Router, policy: Policy, seed: int) -> None:
        self.places = {place.name: place for place in places}
        self.router = router
        self.policy = policy
        self.random = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.candidates = Candidates.of([[place.deployment() for place in places]])
        self.calls: Counter[str] = Counter()
        self.minute: dict[str, list[float]] = {place.name: [] for place in places}
        self.result = Result()

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), what))

    def clock(self) -> float:
        return self.now

    def outcome(self, place: Place) -> tuple[str, float, float]:
        """("ok", time until content, time until the end), or (kind of error, time until it, same)."""
        if place.rpm is not None:
            minute = self.minute[place.name]
            minute[:] = [at for at in minute if at > self.now - 60]
            if len(minute) >= place.rpm:
                return "rate_limit", 0.03, 0.03
            minute.append(self.now)
        if place.down_from <= self.now < place.down_until or self.random.random() < place.fail_share:
            return "server", place.fail_s, place.fail_s
        if place.hangs_from <= self.now < place.hangs_until:
            return "timeout", place.hang_s, place.hang_s
        strain = max(1.0, self.calls[place.name] / place.capacity)
        if place.slow_from <= self.now < place.slow_until:
            strain *= place.slower
        first_s = strain * place.first_s * self.random.lognormvariate(0.0, 0.35)
        if place.stall_share and self.random.random() < place.stall_share:
            first_s *= 10
        return "ok", first_s, first_s + strain * place.rest_s * self.random.lognormvariate(0.0, 0.35)

    def request(self) -> None:
        _Request(self).step(None)

    def run(self, requests: int, per_second: float) -> Result:
        when = 0.0
        for _ in range(requests):
            when += self.random.expovariate(per_second)
            self.at(when, self.request)
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            what()
        return self.result


class _Call:
    """One attempt under way. `is_over`: it ended, or another answered first."""

    def __init__(self, world: _World, deployment: Deployment) -> None:
        self.world = world
        self.deployment = deployment
        self.name = deployment.deployment_id
        self.started = world.now
        self.is_over = False
        self.kind, self.first_s, self.whole_s = world.outcome(world.places[self.name])
        world.result.attempts[self.name] += 1
        world.calls[self.name] += 1
        self.live = world.router.board.started(deployment, world.now)

    def ended(self, failed: bool | None) -> None:
        self.is_over = True
        world = self.world
        world.calls[self.name] -= 1
        world.router.board.ended(
            self.live,
            world.now,
            took_s=world.now - self.started,
            began_s=self.first_s if failed is False else None,
            output=100 if failed is False else 0,
            failed=failed,
        )

    def lost(self) -> None:
        """Another answered first."""
        self.live.outrun(self.world.now, self.world.now - self.started)
        self.ended(None)


class _Request:
    def __init__(self, world: _World) -> None:
        self.world = world
        self.began = world.now
        self.calls: list[_Call] = []
        self.answering: _Call | None = None
        here = Here(world.router, world.random.random)
        self.plan = attempts(
            world.candidates, policy=world.policy, world=here, now=world.clock, draw=world.random.random,
            started_at=world.now,
        )  # fmt: skip
        self.after_s = world.router.hedges.after_s("g", True)

    def step(self, said: Said | None) -> None:
        world = self.world
        try:
            step = next(self.plan) if said is None else self.plan.send(said)
        except StopIteration:
            for call in self.calls:
                if not call.is_over:
                    call.ended(None)
            if self.calls:
                world.result.failed += 1
            else:
                world.result.refused += 1
            return
        if type(step) is not Try:
            if said is SLOW:
                world.router.hedges.give_back("g")
        elif step.wait_s:
            deployment = step.deployment
            world.at(world.now + step.wait_s, lambda: self.attempt(deployment))
        else:
            self.attempt(step.deployment)

    def attempt(self, deployment: Deployment) -> None:
        world = self.world
        call = _Call(world, deployment)
        if not self.calls and self.after_s is not None:
            world.at(world.now + self.after_s, self.slow)
        self.calls.append(call)
        if call.kind == "ok":
            world.at(world.now + call.first_s, lambda: self.content(call))
        world.at(world.now + call.whole_s, lambda: self.end(call))

    def slow(self) -> None:
        first, hedges = self.calls[0], self.world.router.hedges
        if self.answering is None and not first.is_over and len(self.calls) == 1 and hedges.take("g"):
            self.step(SLOW)

    def content(self, call: _Call) -> None:
        if call.is_over:
            return
        world, first = self.world, self.calls[0]
        self.answering = call
        call.live.waited(world.now, call.first_s)
        world.router.hedges.waited("g", True, world.now - first.started)
        if len(self.calls) > 1 and not first.is_over and call is not first:
            world.router.hedges.won("g")
        for other in self.calls:
            if other is not call and not other.is_over:
                other.lost()

    def end(self, call: _Call) -> None:
        if call.is_over:
            return
        world, result = self.world, self.world.result
        failed = call.kind != "ok"
        call.ended(failed)
        if failed:
            # What fails does so at once, but for what hangs.
            sent_at = call.started if call.kind == "timeout" else world.now
            world.router.health.failed(call.deployment, call.kind, world.now, kind=call.kind, started_at=sent_at)
            self.step(Failure(call.kind, of=call.deployment))
        else:
            world.router.health.succeeded(call.deployment)
            result.served[call.name] += 1
            result.served_at.setdefault(call.name, []).append(call.started)
            result.first_s.append(call.started + call.first_s - self.began)


def simulate(
    places: Sequence[Place],
    strategy: str,
    *,
    requests: int = 10_000,
    per_second: float = 20.0,
    policy: Policy | None = None,
    cooldown_s: float = 5.0,
    hedging: Hedging | None = None,
    seed: int = 1,
) -> Result:
    router = Router(strategy=strategy, health=Health(cooldown_s), hedges=Hedges(hedging))
    result = _World(places, router, policy or Policy(), seed).run(requests, per_second)
    result.hedged, result.won = router.hedges.counts().get("g", (0, 0))
    return result


SCENARIOS: dict[str, tuple[Place, ...]] = {
    "equal": tuple(Place(f"d{n}", capacity=40) for n in range(4)),
    "one slow": (*(Place(f"d{n}", capacity=40) for n in range(3)), Place("slow", first_s=3.0, capacity=40)),
    "unequal capacity": (Place("big", capacity=60), Place("mid", capacity=20), Place("small", capacity=5)),
    "one slows down": (
        *(Place(f"d{n}", capacity=40) for n in range(3)),
        Place("tiring", capacity=40, slow_from=100, slow_until=300, slower=10),
    ),
    "one down 100 s": (
        *(Place(f"d{n}", capacity=40) for n in range(3)),
        Place("down", capacity=40, down_from=100, down_until=200),
    ),
    "one fails 20 %": (*(Place(f"d{n}", capacity=40) for n in range(3)), Place("shaky", capacity=40, fail_share=0.2)),
    "one at 150 rpm": (*(Place(f"d{n}", capacity=40) for n in range(3)), Place("meagre", capacity=40, rpm=150)),
}
"""Ten thousand requests at 20 a second each: about 500 s."""

STALLING: dict[str, tuple[Place, ...]] = {
    "equal": SCENARIOS["equal"],
    "2 % stall": tuple(Place(f"d{n}", capacity=40, stall_share=0.02) for n in range(4)),
    "10 % stall": tuple(Place(f"d{n}", capacity=40, stall_share=0.1) for n in range(4)),
    "one slow": SCENARIOS["one slow"],
    "one slows down": SCENARIOS["one slows down"],
    "all at capacity": tuple(Place(f"d{n}", capacity=12, stall_share=0.02) for n in range(4)),
}
"""For hedging: calls that stall at random, as no strategy can foresee; and places that have nothing to spare."""
