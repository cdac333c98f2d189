"""Cooldowns of deployments: a pause with a reason and an end. Pure: the instant is an argument.

A lone deployment is never locked out: `available` gives all of them back when every one is cooling down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.types import Deployment


@dataclass(frozen=True, slots=True)
class Cooldown:
    until_at: float
    reason: str


class Health:
    """One per process. Bounded by the number of configured deployments."""

    def __init__(self, cooldown_s: float = 5.0) -> None:
        self._cooldown_s = cooldown_s
        self._cooling: dict[str, Cooldown] = {}

    def failed(self, deployment: Deployment, reason: str, now: float, retry_after_s: float | None = None) -> None:
        pause = self._cooldown_s if retry_after_s is None else min(max(retry_after_s, self._cooldown_s), 300.0)
        self._cooling[deployment.deployment_id] = Cooldown(now + pause, reason)

    def succeeded(self, deployment: Deployment) -> None:
        if self._cooling:
            self._cooling.pop(deployment.deployment_id, None)

    def cooling(self, now: float) -> dict[str, Cooldown]:
        return {name: c for name, c in self._cooling.items() if c.until_at > now}

    def available(self, deployments: Sequence[Deployment], now: float) -> Sequence[Deployment]:
        """Those not cooling down; all of them if that leaves none."""
        if not self._cooling:
            return deployments
        cooling = self.cooling(now)
        return [d for d in deployments if d.deployment_id not in cooling] or deployments
