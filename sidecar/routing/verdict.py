"""What the client is told when every attempt failed: each attempt's reason, not just the last one's. Pure.

Neighbour: RouteMiddleware, at the end of a plan.
"""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.errors import ProviderError, UpstreamError
from sidecar.types import Deployment

_REASON_CHARS = 200


def final_error(failures: Sequence[tuple[Deployment, UpstreamError]]) -> UpstreamError:
    """What the client is told when all attempts failed: of one deployment its own last error, and so for a mistake of
    the client's; of several, if they agree on a refusal, that; else 503 with each attempt's reason."""
    last = failures[-1][1]
    if len(failures) == 1:
        return last
    waits = [error.retry_after_s for _, error in failures if error.retry_after_s is not None]
    is_one_place = len({d.deployment_id for d, _ in failures}) == 1
    said = {(error.status, error.code) for _, error in failures}
    reasons = "; ".join(
        f"{number}. {deployment.deployment_id}: {error.message[:_REASON_CHARS]}"
        for number, (deployment, error) in enumerate(failures, 1)
    )
    if is_one_place and len(said) == 1:
        last.message = f"{last.message} ({len(failures)} attempts)"
        last.args = (last.message,)
        return last
    if is_one_place or (len(said) == 1 and last.status < 500):
        if waits and not is_one_place:
            last.retry_after_s = min(waits)  # one of them is enough
        last.message = f"{last.message} ({len(failures)} attempts: {reasons})"
        last.args = (last.message,)
        return last
    if not (last.is_retryable or last.cools_down):
        return last
    if all(error.status == 429 for _, error in failures):
        status, type_, code = 429, "rate_limit_error", "rate_limit_exceeded"
    else:
        status, type_, code = 503, "service_unavailable", "upstreams_failed"
    return ProviderError(
        f"All {len(failures)} attempts failed. {reasons}",
        kind="rate_limit" if status == 429 else "overloaded",
        status=status,
        type=type_,
        code=code,
        retry_after_s=min(waits) if waits else None,
    )
