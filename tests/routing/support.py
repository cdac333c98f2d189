"""Parts for the tests of routing: deployments by name, a world that is a script, dialogues with a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

from sidecar.routing.candidates import Candidates, Try
from sidecar.routing.plan import Failure, Full, Policy, attempts, opening
from sidecar.types import Deployment


def deployment(name: str, group: str = "g", **options: object) -> Deployment:
    return Deployment(name, group, "openai", name, "http://127.0.0.1:9", **options)  # type: ignore[arg-type]


class Script:
    """Deployments by name: who pauses, who is due for a trial, who is full; the first of a level is chosen."""

    def __init__(
        self, *, pausing: Sequence[str] = (), due: Sequence[str] = (), full: Mapping[str, float] | None = None
    ) -> None:
        self.pausing = set(pausing)
        self.due = list(due)
        self.full = dict(full or {})

    def healthy(self, deployments: Sequence[Deployment], now: float) -> Sequence[Deployment]:
        return [d for d in deployments if d.deployment_id not in self.pausing]

    def probe(self, deployments: Sequence[Deployment], now: float) -> Deployment | None:
        for one in deployments:
            if one.deployment_id in self.due:
                self.due.remove(one.deployment_id)
                return one
        return None

    def has_room(self, deployments: Sequence[Deployment], now: float) -> bool:
        return not any(self.room_in_s(d, now) for d in deployments if not d.limits.is_empty)

    def room_in_s(self, deployment: Deployment, now: float) -> float:
        return self.full.get(deployment.deployment_id, 0.0)

    def choose(self, deployments: Sequence[Deployment], now: float) -> Deployment:
        return deployments[0]


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def dialogue(
    candidates: Sequence[Deployment],
    outcomes: Sequence[Failure | Full],
    *,
    world: Script | None = None,
    policy: Policy | None = None,
    draw: float = 1.0,
    takes_s: float = 0.0,
) -> list[str]:
    """Names of the deployments tried, `+N` before one that is waited for, at the end `stop` or how long all are full.
    Waits pass on the clock; each attempt takes `takes_s`. A plan that is made after its first try says the same."""
    policy, world = policy or Policy(), world or Script()
    other = deepcopy(world)
    said = _said(candidates, outcomes, world, policy, draw, takes_s, is_late=False)
    assert _said(candidates, outcomes, other, policy, draw, takes_s, is_late=True) == said
    return said


def _said(
    candidates: Sequence[Deployment],
    outcomes: Sequence[Failure | Full],
    world: Script,
    policy: Policy,
    draw: float,
    takes_s: float,
    *,
    is_late: bool,
) -> list[str]:
    clock = Clock()
    begun, first, said = clock.at, None, list[str]()
    if is_late:
        if not isinstance(candidates, Candidates):
            candidates = Candidates.of(
                [[d for d in candidates if d.group == g] for g in {d.group: 0 for d in candidates}]
            )
        first = opening(candidates, policy=policy, world=world, at=begun, started_at=begun)
        if first is not None:
            said.append(first.deployment_id)
            clock.at += takes_s
    plan = attempts(candidates, policy=policy, world=world, now=clock, draw=lambda: draw, started_at=begun, first=first)
    if first is not None:
        assert next(plan) == Try(first)
    for outcome in outcomes if first is not None else (None, *outcomes):
        try:
            step = next(plan) if outcome is None else plan.send(outcome)
        except StopIteration as end:
            return [*said, "stop" if end.value is None else f"full {end.value:g}"]
        if step.wait_s:
            said.append(f"+{step.wait_s:g}")
        said.append(step.deployment.deployment_id)
        clock.at += step.wait_s + takes_s
    return said
