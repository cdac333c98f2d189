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
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from sidecar.routing.candidates import Candidates
from sidecar.routing.health import Health
from sidecar.routing.plan import Failure, Full, Policy, Try, attempts
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
        strain = max(1.0, self.calls[place.name] / place.capacity)
        if place.slow_from <= self.now < place.slow_until:
            strain *= place.slower
        first_s = strain * place.first_s * self.random.lognormvariate(0.0, 0.35)
        return "ok", first_s, first_s + strain * place.rest_s * self.random.lognormvariate(0.0, 0.35)

    def request(self) -> None:
        here = Here(self.router, self.random.random)
        plan = attempts(
            self.candidates, policy=self.policy, world=here, now=self.clock, draw=self.random.random,
            started_at=self.now,
        )  # fmt: skip
        self.step(plan, None, self.now, False)

    def step(
        self, plan: Generator[Try, Failure | Full, float | None], said: Failure | None, began: float, tried: bool
    ) -> None:
        try:
            step = next(plan) if said is None else plan.send(said)
        except StopIteration:
            if tried:
                self.result.failed += 1
            else:
                self.result.refused += 1
            return
        if step.wait_s:
            self.at(self.now + step.wait_s, lambda: self.attempt(plan, step.deployment, began))
        else:
            self.attempt(plan, step.deployment, began)

    def attempt(self, plan: Generator[Try, Failure | Full, float | None], deployment: Deployment, began: float) -> None:
        name = deployment.deployment_id
        kind, first_s, whole_s = self.outcome(self.places[name])
        self.result.attempts[name] += 1
        self.calls[name] += 1
        live = self.router.board.started(deployment, self.now)
        started = self.now

        def ended() -> None:
            self.calls[name] -= 1
            failed = kind != "ok"
            self.router.board.ended(
                live,
                self.now,
                took_s=self.now - started,
                began_s=None if failed else first_s,
                output=0 if failed else 100,
                failed=failed,
            )
            if failed:
                self.router.health.failed(deployment, kind, self.now, kind=kind)
                self.step(plan, Failure(kind), began, True)
            else:
                self.router.health.succeeded(deployment)
                self.result.served[name] += 1
                self.result.served_at.setdefault(name, []).append(started)
                self.result.first_s.append(started + first_s - began)

        if kind == "ok":
            self.at(self.now + first_s, lambda: live.waited(self.now, first_s))
        self.at(self.now + whole_s, ended)

    def run(self, requests: int, per_second: float) -> Result:
        when = 0.0
        for _ in range(requests):
            when += self.random.expovariate(per_second)
            self.at(when, self.request)
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            what()
        return self.result


def simulate(
    places: Sequence[Place],
    strategy: str,
    *,
    requests: int = 10_000,
    per_second: float = 20.0,
    policy: Policy | None = None,
    cooldown_s: float = 5.0,
    seed: int = 1,
) -> Result:
    router = Router(strategy=strategy, health=Health(cooldown_s))
    return _World(places, router, policy or Policy(), seed).run(requests, per_second)


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
