"""The deployments' own limits, and the caller's limits of a fallback's model, counted where the callers' limits are: in
one step per attempt, over all processes when there is a Redis.

Neighbours: RouteMiddleware asks before it dispatches; `limits.admission` keeps the leases and what a store is owed.
"""

from __future__ import annotations

from sidecar.errors import RateLimitedError
from sidecar.limits.admission import Admission, Grant
from sidecar.limits.claims import Claims, RateClaim
from sidecar.types import Deployment, Identity, Limits

_AGAIN_S = 1.0
"""Where the store cannot tell when there is room (concurrency)."""
_NOBODY = Identity(key_hash="")


class DeploymentPlaces:
    """One per process. Remembers the claims of configured deployments only."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._claims: dict[str, tuple[Limits, Claims]] = {}

    def claims(self, deployment: Deployment, caller: Identity, asked: str | None) -> Claims | None:
        """What an attempt has to claim, if anything. `asked`: the model asked for, if this is a fallback."""
        own = self._of(deployment)
        if asked is None:
            return own
        known = self._admission.claims_of(caller, asked, budgets=False)
        more = self._admission.claims_of(caller, deployment.called or deployment.group, budgets=False)
        if known is more:
            return own
        requests, tokens, slots = (
            tuple(claim for claim in mine if claim not in there)
            for mine, there in (
                (more.requests, known.requests), (more.tokens, known.tokens), (more.slots, known.slots)
            )
        )  # fmt: skip
        if not (requests or tokens or slots):
            return own
        if own is None:
            return Claims(requests, tokens, slots, ())
        return Claims((*own.requests, *requests), (*own.tokens, *tokens), (*own.slots, *slots), ())

    async def take(self, name: str, claims: Claims, tokens: int) -> Grant | float:
        """The grant, or the seconds until there is room. Raises UnavailableError."""
        try:
            return await self._admission.acquire(name, _NOBODY, "", tokens=tokens, hold_nano=0, claims=claims)
        except RateLimitedError as error:
            return max(error.retry_after_s or _AGAIN_S, 0.001)

    async def leave(self, taken: Grant, tokens: int | None) -> None:
        await self._admission.settle(taken, tokens=tokens, cost_nano=0)

    def _of(self, deployment: Deployment) -> Claims | None:
        limits = deployment.limits
        if limits.is_empty:
            return None
        known = self._claims.get(deployment.deployment_id)
        if known is not None and known[0] == limits:
            return known[1]
        key = f"deployment:{deployment.deployment_id}"

        def claim(limit: int | None) -> tuple[RateClaim, ...]:
            return () if limit is None else (RateClaim(key, "deployment", limit),)

        claims = Claims(claim(limits.rpm), claim(limits.tpm), claim(limits.concurrency), ())
        self._claims[deployment.deployment_id] = (limits, claims)
        return claims
