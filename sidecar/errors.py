"""Every error a client can see, each knowing its status, OpenAI type, code and body.

    SidecarError
    ├── RefusedError            the gateway refused; nothing was sent upstream
    │   ├── BadRequestError         400  invalid_request_error
    │   ├── BodyTooLargeError       413  invalid_request_error
    │   ├── AuthenticationError     401  authentication_error
    │   ├── PermissionDeniedError   403  permission_error
    │   ├── NotFoundError           404  invalid_request_error
    │   ├── MethodNotAllowedError   405  invalid_request_error
    │   ├── ConflictError           409  invalid_request_error
    │   ├── UnprocessableError      422  invalid_request_error
    │   ├── RateLimitedError        429  rate_limit_error       (retry_after_s)
    │   ├── BudgetExceededError     429  budget_exceeded
    │   ├── UnpricedModelError      403  permission_error
    │   └── UnavailableError        503  service_unavailable    (store, journal, no deployment)
    ├── UpstreamError           the provider, or the way to it, failed
    │   ├── ProviderError           the provider answered with an error (kind, status as it said)
    │   ├── UpstreamConnectError    502  nothing was sent: retry is free
    │   ├── UpstreamCredentialError 503  no token or signature for the provider now; nothing was sent
    │   ├── UpstreamStaleError      502  reused connection closed before the request was written: retry is free
    │   ├── UpstreamBrokenError     502  closed or malformed after sending: may be billed
    │   ├── UpstreamTimeoutError    504  connect | first_byte | gap | total
    │   └── HoldUsedUpError         429  we ended it: the answer used up the money held for it
    └── StackOrderError         a programming error in how the middlewares were stacked

`is_from_gateway` says who refused and the message says it in words.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

ErrorKind = Literal[
    "bad_request",
    "authentication",
    "permission",
    "not_found",
    "rate_limit",
    "quota",
    "context_window",
    "content_policy",
    "too_large",
    "timeout",
    "overloaded",
    "server",
    "connection",
]


_CREDENTIAL = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:sk|rk|pk|gsk|csk|xai|nvapi|pplx|whsec|glpat|xox[abeprs])-"
    r"|(?:sk|rk|pk|gsk|hf|fw|r8|tgp|gh[oprsu]|github_pat)_|AIza|eyJ|ya29\.|A[KS]IA|dapi)[-_A-Za-z0-9./+=]{16,}"
    r"|[Bb]earer\s+[^\s\"',]{16,}"
)
"""The well-known beginnings of API keys and tokens, with as much behind them as no name of a model or field has."""
SHORTEST_CREDENTIAL = 18


def without_credentials(text: str) -> str:
    """What a caller wrote, fit for answers and logs: a key pasted into the wrong field is blanked."""
    return _CREDENTIAL.sub("***", text) if len(text) >= SHORTEST_CREDENTIAL else text


class SidecarError(Exception):
    """Base. `message` is for the client: who refused, why, what to do. Never holds a secret."""

    status: int = 500
    type: str = "api_error"
    code: str = "internal_error"
    is_from_gateway: bool = True
    about: object = None
    """What was looked at when it was raised, for whoever explains it later; never sent."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers
        if code is not None:
            self.code = code

    def body(self) -> dict[str, Any]:
        """OpenAI's error form."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body_bytes(self) -> bytes:
        return json.dumps(self.body(), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


LONGEST_MESSAGE = 4_000
LONGEST_PARAM = 200


def _cut(text: str, limit: int) -> str:
    text = without_credentials(text)
    return text if len(text) <= limit else text[:limit] + "…"


class RefusedError(SidecarError):
    """The gateway refused; no byte went upstream. Messages may quote what the caller wrote: credentials are blanked,
    and a name of a megabyte is neither answered nor remembered whole."""

    def __init__(self, message: str, *, param: str | None = None, **more: Any) -> None:
        param = _cut(param, LONGEST_PARAM) if param is not None else None
        super().__init__(_cut(message, LONGEST_MESSAGE), param=param, **more)


class BadRequestError(RefusedError):
    status, type, code = 400, "invalid_request_error", "bad_request"


class BodyTooLargeError(RefusedError):
    status, type, code = 413, "invalid_request_error", "body_too_large"


class AuthenticationError(RefusedError):
    status, type, code = 401, "authentication_error", "invalid_api_key"


class PermissionDeniedError(RefusedError):
    status, type, code = 403, "permission_error", "permission_denied"


class NotFoundError(RefusedError):
    status, type, code = 404, "invalid_request_error", "not_found"


class MethodNotAllowedError(RefusedError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class ConflictError(RefusedError):
    status, type, code = 409, "invalid_request_error", "conflict"


class UnprocessableError(RefusedError):
    status, type, code = 422, "invalid_request_error", "unprocessable"


class RateLimitedError(RefusedError):
    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"
    limit: tuple[str, str, int] | None = None
    """Which one: what it counts (requests, tokens, concurrency), the kind of its scope, how many."""


class BudgetExceededError(RefusedError):
    status, type, code = 429, "budget_exceeded", "budget_exceeded"


class UnpricedModelError(RefusedError):
    status, type, code = 403, "permission_error", "model_unpriced"


class UnavailableError(RefusedError):
    status, type, code = 503, "service_unavailable", "unavailable"


class UpstreamError(SidecarError):
    """The provider, or the way to it, failed. `may_be_billed`: the provider may charge for the attempt."""

    status, type, code = 502, "api_error", "upstream_error"
    is_from_gateway = False
    kind: ErrorKind = "connection"
    may_be_billed: bool = True
    is_retryable: bool = True
    cools_down: bool = True


class ProviderError(UpstreamError):
    """The provider answered with an error. Status, type and code are the OpenAI equivalents."""

    def __init__(
        self,
        message: str,
        *,
        kind: ErrorKind,
        status: int,
        type: str,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
        is_retryable: bool = False,
        cools_down: bool = False,
        may_be_billed: bool = False,
    ) -> None:
        super().__init__(message, code=code, param=param, retry_after_s=retry_after_s)
        self.kind = kind
        self.status = status
        self.type = type
        self.is_retryable = is_retryable
        self.cools_down = cools_down
        self.may_be_billed = may_be_billed


class UpstreamConnectError(UpstreamError):
    """No connection: nothing was sent."""

    code = "upstream_unreachable"
    may_be_billed = False


class UpstreamCredentialError(UpstreamError):
    """The source of the provider's credential (a cloud's token service, a role) failed: nothing was sent."""

    status, code = 503, "upstream_credential_unavailable"
    is_from_gateway = True
    may_be_billed = False


class UpstreamStaleError(UpstreamError):
    """A kept-alive connection was closed by the other side before the request was completely written."""

    code = "upstream_stale"
    may_be_billed = False


class UpstreamBrokenError(UpstreamError):
    """Closed, reset or malformed after the request was sent."""

    code = "upstream_broken"


class UpstreamTimeoutError(UpstreamError):
    """`phase` is connect, first_byte, gap or total. `is_sent`: false where the total ran out while connecting."""

    status, code = 504, "upstream_timeout"
    kind: ErrorKind = "timeout"

    def __init__(
        self, message: str, *, phase: Literal["connect", "first_byte", "gap", "total"], is_sent: bool = True
    ) -> None:
        super().__init__(message, code=f"upstream_timeout_{phase}")
        self.phase = phase
        self.may_be_billed = is_sent and phase != "connect"


class HoldUsedUpError(UpstreamError):
    """The provider sends more than the output it was asked for; the gateway ends the answer where its hold ends."""

    status, type, code = 429, "budget_exceeded", "budget_exceeded"
    is_from_gateway = True
    is_retryable = False
    cools_down = False


class StackOrderError(Exception):
    """The middlewares are stacked in an order that cannot work; the message says how to fix it."""
