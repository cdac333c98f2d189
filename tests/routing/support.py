"""Parts for the tests of routing: deployments by name, a world that is a script, dialogues with a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidecar.routing.plan import Failure, Full, Policy, attempts
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
    Waits pass on the clock; each attempt takes `takes_s`."""
    clock = Clock()
    plan = attempts(candidates, policy=policy or Policy(), world=world or Script(), now=clock, draw=lambda: draw)
    said: list[str] = []
    step = None
    for outcome in (None, *outcomes):
        try:
            step = next(plan) if outcome is None else plan.send(outcome)
        except StopIteration as end:
            return [*said, "stop" if end.value is None else f"full {end.value:g}"]
        if step.wait_s:
            said.append(f"+{step.wait_s:g}")
        said.append(step.deployment.deployment_id)
        clock.at += step.wait_s + takes_s
    return said
