"""The ordered attempts of one request, as a generator: it yields a deployment, is sent how that went. Pure.

    plan = attempts(candidates, retries=2, draw=random.random, available=...)
    deployment = next(plan)
    deployment = plan.send(Failure(is_retryable=True, is_free=False))   # StopIteration: give up

Levels (`order`) are used up before the next level, the asked-for group before its fallbacks; within a level by weight.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from sidecar.types import Deployment


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt failed. `is_free`: nothing was sent, so a retry cannot bill twice."""

    is_retryable: bool
    is_free: bool = False


Available = Callable[[Sequence[Deployment]], Sequence[Deployment]]


def weighted(deployments: Sequence[Deployment], draw: float) -> Deployment:
    """One of them, by weight; `draw` is in [0, 1)."""
    if len(deployments) == 1:
        return deployments[0]
    total = sum(d.weight for d in deployments)
    point = draw * total
    for deployment in deployments:
        point -= deployment.weight
        if point < 0:
            return deployment
    return deployments[-1]


def attempts(
    candidates: Sequence[Deployment], *, retries: int, draw: Callable[[], float], available: Available
) -> Generator[Deployment, Failure, None]:
    """At most `1 + retries` dispatches over the whole request, fallbacks included. Untried deployments come first;
    when all were tried, the best level is tried again."""
    if len(candidates) == 1:
        for _ in range(retries + 1):
            failure = yield candidates[0]
            if not failure.is_retryable:
                return
        return
    left = retries + 1
    tried: set[str] = set()
    while left:
        fresh = [d for d in candidates if d.deployment_id not in tried]
        if not fresh:
            tried.clear()
            fresh = list(candidates)
        healthy = available(fresh)
        first = healthy[0]
        # The asked-for group stands first in `candidates`; its best level wins.
        level = min(d.order for d in healthy if d.group == first.group)
        chosen = weighted([d for d in healthy if d.group == first.group and d.order == level], draw())
        tried.add(chosen.deployment_id)
        failure = yield chosen
        left -= 1
        if not failure.is_retryable:
            return
