"""What a client is told: refusals in words (kind of scope, window, limit, wait – never an id), and rate-limit headers.

Neighbours: `claims` (the store's answers), `admission` (which raises and sends these). Pure.
"""

from __future__ import annotations

from sidecar.errors import BudgetExceededError, RateLimitedError
from sidecar.limits.claims import Admitted, Denied
from sidecar.types import Headers, format_usd

_WHAT = {"requests": "requests per minute", "tokens": "tokens per minute", "concurrency": "requests at a time"}


def refusal(denied: Denied) -> RateLimitedError | BudgetExceededError:
    """The error for a refused acquisition; `retry_after_s` is exact, `None` if waiting cannot help."""
    error = _refusal(denied)
    error.about = denied
    return error


def _refusal(denied: Denied) -> RateLimitedError | BudgetExceededError:
    kind = denied.kind.replace("_", " ")
    if denied.what == "budget":
        return BudgetExceededError(
            f"The gateway refused the request: the {kind} budget of ${format_usd(denied.limit)} does not cover "
            "what it may cost. Lower max_tokens, wait for the next window, or have the budget raised.",
            retry_after_s=denied.retry_after_s,
        )
    error = RateLimitedError(
        f"The gateway refused the request: the {kind} limit is {denied.limit} {_WHAT[denied.what]}."
        + (" Wait as 'retry-after' says." if denied.retry_after_s is not None else " This request can never fit it."),
        code=f"{denied.what}_limit_exceeded",
        retry_after_s=denied.retry_after_s,
    )
    error.limit = (denied.what, denied.kind, denied.limit)
    return error


def rate_headers(admitted: Admitted) -> Headers:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}` of the tightest windows; reset as `1.234s`."""
    headers: Headers = []
    if admitted.limit_requests is not None:
        headers = [
            (b"x-ratelimit-limit-requests", b"%d" % admitted.limit_requests),
            (b"x-ratelimit-remaining-requests", b"%d" % admitted.remaining_requests),
            (b"x-ratelimit-reset-requests", b"%.3fs" % admitted.reset_requests_s),
        ]
    if admitted.limit_tokens is not None:
        headers += [
            (b"x-ratelimit-limit-tokens", b"%d" % admitted.limit_tokens),
            (b"x-ratelimit-remaining-tokens", b"%d" % admitted.remaining_tokens),
            (b"x-ratelimit-reset-tokens", b"%.3fs" % admitted.reset_tokens_s),
        ]
    return headers
