"""The deployments' own limits, counted where the callers' limits are: in one step per attempt, over all processes when
there is a Redis.

Neighbours: RouteMiddleware asks before it dispatches; `limits.admission` keeps the leases and what a store is owed.
"""

from __future__ import annotations

from sidecar.errors import RateLimitedError
from sidecar.limits.admission import Admission, Grant
from sidecar.limits.claims import Claims, RateClaim
from sidecar.types import Deployment, Identity

_AGAIN_S = 1.0
"""Where the store cannot tell when there is room (concurrency)."""
_NOBODY = Identity(key_hash="")


class DeploymentPlaces:
    """One per process. Remembers the claims of configured deployments only."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._claims: dict[str, tuple[Deployment, Claims]] = {}

    async def take(self, name: str, deployment: Deployment, tokens: int) -> Grant | float:
        """The grant, or the seconds until there is room. Raises UnavailableError."""
        try:
            return await self._admission.acquire(
                name, _NOBODY, deployment.model, tokens=tokens, hold_nano=0, claims=self._of(deployment)
            )
        except RateLimitedError as error:
            return max(error.retry_after_s or _AGAIN_S, 0.001)

    async def leave(self, taken: Grant, tokens: int | None) -> None:
        await self._admission.settle(taken, tokens=tokens, cost_nano=0)

    def _of(self, deployment: Deployment) -> Claims:
        known = self._claims.get(deployment.deployment_id)
        if known is not None and known[0].limits == deployment.limits:
            return known[1]
        limits = deployment.limits
        key = f"deployment:{deployment.deployment_id}"

        def claim(limit: int | None) -> tuple[RateClaim, ...]:
            return () if limit is None else (RateClaim(key, "deployment", limit),)

        claims = Claims(claim(limits.rpm), claim(limits.tpm), claim(limits.concurrency), ())
        self._claims[deployment.deployment_id] = (deployment, claims)
        return claims
