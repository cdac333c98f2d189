"""The ordered attempts of one request, as a generator: it yields a try, is sent how that went. Pure.

    plan = attempts(candidates, policy=Policy(retries=2), world=router, now=clock, draw=random.random)
    step = next(plan)                                  # Try(deployment, wait_s)
    step = plan.send(Failure("server"))                # StopIteration: give up
    step = plan.send(Full(wait_s=3.0))                 # its own limits are full: another, at no cost
    step = plan.send(SLOW)                             # who else, at the same time? Try(…), or WAIT: nobody
    step = plan.send(Failure("server", of=deployment)) # of two at once, which; WAIT: the other is still out

What comes before the first step may be asked for alone, by `opening`: most requests need no more of a plan.

Levels are used up in order: the asked-for group by `order`, then its fallbacks. Within a level the world chooses. A
deployment that was tried comes again only when no other is left, after a wait. One budget of attempts and one deadline
span everything. Returns the seconds after which one that was full has room, if all that is left are full.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sidecar.routing.candidates import Candidates, Levels, Try, levels_of
from sidecar.types import Deployment

ELSEWHERE = frozenset({"authentication", "quota", "permission", "not_found", "unsupported"})
"""Kinds of errors another deployment may not have, but the same will have again."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`retries`: further attempts over the whole request. `retry_on`: at most so many of them after errors of a kind.
    Waits grow from `backoff_s`, with full jitter; one longer than `max_wait_s` is left to the client."""

    retries: int = 2
    deadline_s: float = 600.0
    retry_on: Mapping[str, int] = field(default_factory=dict)
    backoff_s: float = 0.5
    max_wait_s: float = 10.0


@dataclass(slots=True)
class Failure:
    """How an attempt failed. `kind` as in `errors.ErrorKind`. `is_free`: a kept connection was stale, nothing was sent
    and nobody is to blame, so no wait."""

    kind: str = "server"
    is_retryable: bool = True
    is_free: bool = False
    retry_after_s: float | None = None
    of: Deployment | None = None


@dataclass(slots=True)
class Full:
    """The deployment's own limits have no room for `wait_s` seconds."""

    wait_s: float
    of: Deployment | None = None


class Slow:
    """The attempt under way has not begun its content."""


class Wait:
    """Nothing new: go on waiting for what is under way."""


SLOW = Slow()
WAIT = Wait()
Said = Failure | Full | Slow
Plan = Generator[Try | Wait, Said, float | None]


class World(Protocol):
    """What the plan asks about deployments; the router in a gateway, a script in a test."""

    def healthy(self, deployments: Sequence[Deployment], now: float) -> Sequence[Deployment]: ...
    def probe(self, deployments: Sequence[Deployment], now: float) -> Deployment | None: ...
    def has_room(self, deployments: Sequence[Deployment], now: float) -> bool: ...
    def room_in_s(self, deployment: Deployment, now: float) -> float: ...
    def choose(self, deployments: Sequence[Deployment], now: float) -> Deployment: ...


LEAST_S = 0.1
"""With less than this left of the deadline no further attempt begins."""
Key = tuple[str, str]


def _key(deployment: Deployment) -> Key:
    # Two models of one wildcard deployment are two places.
    return deployment.deployment_id, deployment.model


class _State:
    """What the plan remembers between two tries."""

    __slots__ = ("counts", "dead", "full", "ready_at", "tried")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.tried: set[Key] = set()
        self.dead: set[Key] = set()
        self.ready_at: dict[Key, float] = {}
        self.full: dict[Key, float] = {}


def opening(candidates: Candidates, *, policy: Policy, world: World, at: float, started_at: float) -> Deployment | None:
    """Whom the first step of a plan would ask, at once: the plan may be made later, with this as its `first`, and is
    the same. `None`: make the plan now."""
    if at >= started_at + 0.9 * policy.deadline_s:
        return None
    levels = candidates.levels
    if candidates.has_limits:
        for level in levels:
            if not world.has_room(level, at):
                return None
    return _first(levels, world, at, may_probe=True)


def attempts(
    candidates: Sequence[Deployment],
    *,
    policy: Policy,
    world: World,
    now: Callable[[], float],
    draw: Callable[[], float],
    started_at: float | None = None,
    first: Deployment | None = None,
) -> Plan:
    """`first`: what `opening` said."""
    at = now()
    # The last instant at which another attempt is worth beginning.
    last_at = (at if started_at is None else started_at) + policy.deadline_s - min(LEAST_S, policy.deadline_s / 10)
    if type(candidates) is Candidates:
        levels, has_limits, other_ways = candidates.levels, candidates.has_limits, dict(candidates.ways)
    else:
        levels, has_limits, other_ways = levels_of(candidates), True, {}
    left = policy.retries + 1
    state = _State()
    counts = state.counts
    while True:
        if first is not None:
            chosen, first, wait_s = first, None, 0.0
        else:
            if has_limits:
                _ask_room(levels, state, world, at)
            # A trial that fails must not be the client's last chance, unless none ever has another.
            may_probe = at < last_at and (left > 1 or not policy.retries)
            found, ready_at = _next(levels, state, world, at, may_probe=may_probe)
            if found is None:
                return _earliest(state, at)
            chosen, wait_s = found, max(ready_at - at, 0.0)
            if wait_s > policy.max_wait_s or at + wait_s >= last_at:
                return None
        outcome = yield Try(chosen, wait_s)
        if type(outcome) is Slow:
            chosen, outcome, left = yield from _beside(
                chosen,
                (levels, state, world, has_limits),
                now,
                left,
                last_at,
                other_ways.keys(),
                lambda failure, left: _pause(failure, policy, draw, policy.retries - left),
            )
        at = now()
        key = _key(chosen)
        if type(outcome) is Full:
            state.full[key] = at + outcome.wait_s
            continue
        assert type(outcome) is Failure
        state.tried.add(key)
        kind = outcome.kind
        counts[kind] = counts.get(kind, 0) + 1
        left -= 1
        if left <= 0 or at >= last_at or counts[kind] > policy.retry_on.get(kind, policy.retries):
            return None
        if kind in other_ways:
            # Once each, so two ways cannot send a request to and fro.
            levels = other_ways.pop(kind)
            continue
        if kind in ELSEWHERE:
            state.dead.add(key)
        elif not outcome.is_retryable:
            return None
        state.ready_at[key] = at + _pause(outcome, policy, draw, policy.retries - left)


def _beside(
    first: Deployment,
    known: tuple[Levels, _State, World, bool],
    now: Callable[[], float],
    left: int,
    last_at: float,
    ways: Collection[str],
    pause: Callable[[Failure, int], float],
) -> Generator[Try | Wait, Said, tuple[Deployment, Failure | Full, int]]:
    """Two at once, from the moment the first is slow until one outcome is left to go on from: the last one's, or one
    that ends both. Gives that and the attempts left."""
    levels, state, world, has_limits = known
    running = [first]
    outcome: Said = SLOW
    while True:
        at = now()
        step: Try | Wait = WAIT
        if type(outcome) is Slow:
            if len(running) < min(left, 2) and at < last_at:
                if has_limits:
                    _ask_room(levels, state, world, at)
                other = _another(running, levels, state, world, at)
                if other is not None:
                    running.append(other)
                    step = Try(other)
        else:
            assert type(outcome) is Failure or type(outcome) is Full
            one = outcome.of if outcome.of is not None else running[-1]
            running.remove(one)
            if not running or _ends_all(outcome, ways):
                return one, outcome, left
            key = _key(one)
            if type(outcome) is Full:
                state.full[key] = at + outcome.wait_s
            else:
                assert type(outcome) is Failure
                state.tried.add(key)
                state.counts[outcome.kind] = state.counts.get(outcome.kind, 0) + 1
                left -= 1
                if outcome.kind in ELSEWHERE:
                    state.dead.add(key)
                state.ready_at[key] = at + pause(outcome, left)
        outcome = yield step


def _ends_all(outcome: Failure | Full, ways: Collection[str]) -> bool:
    """The client's own mistake: whoever else is asked will say the same."""
    return (
        type(outcome) is Failure
        and not outcome.is_retryable
        and outcome.kind not in ELSEWHERE
        and outcome.kind not in ways
    )


def _another(
    running: Sequence[Deployment], levels: Levels, state: _State, world: World, at: float
) -> Deployment | None:
    """A healthy one of the same group that was not asked yet: never a fallback, which is another model."""
    first, group = running[0], running[0].group
    asked = {*state.tried, *state.full, *map(_key, running)}
    for level in levels:
        fresh = [
            d
            for d in level
            if d.group == group and (d.model == first.model or not group.endswith("*")) and _key(d) not in asked
        ]
        if fresh and (healthy := world.healthy(fresh, at)):
            return healthy[0] if len(healthy) == 1 else world.choose(healthy, at)
    return None


def _pause(outcome: Failure, policy: Policy, draw: Callable[[], float], exponent: int) -> float:
    """Before the same deployment is asked again: what its provider says, else full jitter."""
    if outcome.is_free:
        return 0.0
    if outcome.retry_after_s is not None:
        return outcome.retry_after_s
    return draw() * min(policy.backoff_s * 2.0**exponent, policy.max_wait_s)


def _next(
    levels: Levels, state: _State, world: World, at: float, *, may_probe: bool
) -> tuple[Deployment | None, float]:
    """The deployment of the next try and when it may begin."""
    tried, full = state.tried, state.full
    fresh: Iterable[Sequence[Deployment]] = levels
    if tried or full:
        fresh = ([d for d in level if _key(d) not in tried and _key(d) not in full] for level in levels)
    chosen = _first(fresh, world, at, may_probe)
    if chosen is not None:
        return chosen, at
    again = [
        d for level in levels for d in level if _key(d) in tried and _key(d) not in state.dead and _key(d) not in full
    ]
    if not again:
        return None, at
    ready_at = state.ready_at
    soonest = min(again, key=lambda d: ready_at.get(_key(d), at))
    return soonest, ready_at.get(_key(soonest), at)


def _first(levels: Iterable[Sequence[Deployment]], world: World, at: float, may_probe: bool) -> Deployment | None:
    """Of those that were not tried yet."""
    spare: Sequence[Deployment] = ()
    for level in levels:
        if not level:
            continue
        if may_probe and (probed := world.probe(level, at)) is not None:
            return probed
        healthy = world.healthy(level, at)
        if healthy:
            return healthy[0] if len(healthy) == 1 else world.choose(healthy, at)
        spare = spare or level
    # All that were not tried yet pause. Nobody is locked out for that.
    return world.choose(spare, at) if spare else None


def _ask_room(levels: Levels, state: _State, world: World, at: float) -> None:
    for level in levels:
        for deployment in level:
            if not deployment.limits.is_empty:
                key = _key(deployment)
                if key not in state.full and (wait_s := world.room_in_s(deployment, at)) > 0:
                    state.full[key] = at + wait_s


def _earliest(state: _State, at: float) -> float | None:
    return max(min(state.full.values()) - at, 0.0) if state.full else None
