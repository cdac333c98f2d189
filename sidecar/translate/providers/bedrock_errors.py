"""Errors of AWS's model endpoints as the OpenAI errors they mean; used by bedrock, bedrock-invoke and sagemaker.

The exception's name is the code: in the header `x-amzn-errortype`, in `__type`, or in an event stream's header. A
message's beginning is read for validation errors only, which have no finer code.
https://docs.aws.amazon.com/bedrock/latest/userguide/troubleshooting-api-error-codes.html
"""

from __future__ import annotations

import re
from typing import Any

from sidecar.errors import ErrorKind, ProviderError
from sidecar.translate.provider import Call, Head
from sidecar.translate.provider_errors import error_fields, kind_by_words, kind_of_status, make_error

_KINDS: dict[str, ErrorKind] = {
    "ValidationException": "bad_request",
    "ValidationError": "bad_request",
    "SerializationException": "bad_request",
    "ModelInputException": "bad_request",
    "AccessDeniedException": "permission",
    "UnauthorizedException": "authentication",
    "UnrecognizedClientException": "authentication",
    "InvalidSignatureException": "authentication",
    "SignatureDoesNotMatch": "authentication",
    "IncompleteSignature": "authentication",
    "IncompleteSignatureException": "authentication",
    "InvalidClientTokenId": "authentication",
    "ExpiredToken": "authentication",
    "ExpiredTokenException": "authentication",
    "MissingAuthenticationToken": "authentication",
    "MissingAuthenticationTokenException": "authentication",
    "ResourceNotFoundException": "not_found",
    "ThrottlingException": "rate_limit",
    "TooManyRequestsException": "rate_limit",
    "ServiceQuotaExceededException": "quota",
    "ModelTimeoutException": "timeout",
    "ModelNotReadyException": "overloaded",
    "ServiceUnavailableException": "overloaded",
    "ServiceUnavailable": "overloaded",
    "InternalServerException": "server",
    "InternalFailure": "server",
    "InternalDependencyException": "server",
    "InternalStreamFailure": "server",
    "ModelErrorException": "server",
    "ModelStreamErrorException": "server",
    "ModelError": "server",
    "ModelStreamError": "server",
    "ModelInvocationTimeExceeded": "timeout",
}
_STATUS_OF: dict[ErrorKind, int] = {
    "bad_request": 400,
    "context_window": 400,
    "content_policy": 400,
    "authentication": 403,
    "permission": 403,
    "not_found": 404,
    "rate_limit": 429,
    "quota": 429,
    "timeout": 408,
    "overloaded": 503,
    "server": 500,
}
_MODELS_OWN = ("ModelErrorException", "ModelStreamErrorException", "ModelError", "ModelStreamError")
"""The model's container answered with an error, whose status is told beside."""

_PREFIX = "the model returned the following errors: "
_BEGINNINGS: tuple[tuple[str, ErrorKind], ...] = (
    ("input is too long", "context_window"),
    ("prompt is too long", "context_window"),
    ("input length and `max_tokens` exceed context limit", "context_window"),
    ("too many total text bytes", "context_window"),
    ("this model's maximum context length is", "context_window"),
    ("the maximum tokens you requested exceeds the model limit", "bad_request"),
    ("output blocked by content filtering policy", "content_policy"),
    ("the content blocks you provided were blocked", "content_policy"),
    ("the provided model identifier is invalid", "not_found"),
    ("invocation of model id ", "not_found"),  # … with on-demand throughput isn't supported
)
_KEY_REFUSED = ("authentication failed", "bearer token", "invalid api key", "api key")
_IDENTITY = re.compile(r"(?i)user: arn:|.{0,200}\barn:aws[a-z-]*:(?:iam|sts):")


def error_name(value: Any) -> str:
    """`ThrottlingException` of `com.amazon.coral#throttlingException:http://…` and the like."""
    if not isinstance(value, str):
        return ""
    name = value.partition(":")[0].rpartition("#")[2].strip()
    return name[:1].upper() + name[1:64]


def aws_error(provider_name: str, call: Call, head: Head, body: bytes) -> ProviderError:
    """Of an answer that is none."""
    fields = error_fields(body)
    header = head.get(b"x-amzn-errortype")
    name = error_name(header.decode("latin-1") if header is not None else fields.get("__type", fields.get("code")))
    return _error(provider_name, call, head, name, fields, may_be_billed=False)


def stream_error(provider_name: str, call: Call, name: bytes, payload: bytes) -> ProviderError:
    """Of an exception event, which has the status it would have had before the stream."""
    return _error(
        provider_name, call, Head(0), error_name(name.decode("latin-1")), error_fields(payload), may_be_billed=True
    )


def _error(
    provider_name: str, call: Call, head: Head, name: str, fields: dict[str, Any], *, may_be_billed: bool
) -> ProviderError:
    stated = _KINDS.get(name)
    kind = stated if stated is not None else kind_of_status(head.status) if head.status >= 400 else "server"
    message = fields.get("message", fields.get("Message"))
    if name in _MODELS_OWN:
        kind, message = _of_the_model(kind, fields, message)
    if isinstance(message, str):
        text = message[:400].lower().removeprefix(_PREFIX)
        if kind == "bad_request":
            kind = next((found for start, found in _BEGINNINGS if text.startswith(start)), kind)
            kind = kind_by_words(kind, text)
        elif kind == "permission" and text.startswith(_KEY_REFUSED):
            kind = "authentication"
        if kind == "permission" and _IDENTITY.match(message):  # names the gateway's own role and account
            message = "the gateway's AWS identity may not use this model; the gateway's operator has to permit it"
    status = head.status if head.status >= 400 else _STATUS_OF[kind]
    if kind == "quota" and status < 429:
        status = 429
    return make_error(
        provider_name,
        Head(status, head.headers),
        kind=kind,
        now=call.now,
        fields={"message": message},
        keeps_names=False,
        may_be_billed=may_be_billed,
    )


def _of_the_model(kind: ErrorKind, fields: dict[str, Any], message: Any) -> tuple[ErrorKind, Any]:
    """A container that refused the request (SageMaker's own, or a Bedrock model) says so by its status and words."""
    code = error_name(fields.get("ErrorCode"))
    if code in _KINDS:
        return _KINDS[code], message
    status = fields.get("originalStatusCode", fields.get("OriginalStatusCode"))
    if type(status) is not int or not 400 <= status < 600:
        return kind, message
    original = fields.get("originalMessage", fields.get("OriginalMessage"))
    if isinstance(original, str) and original:
        inner = error_fields(original.encode("utf-8", "replace")).get("message")
        message = inner if isinstance(inner, str) and inner else message
    found = kind_of_status(status)
    # A container knows neither our credential nor our account.
    return ("server" if found in ("authentication", "permission", "quota") else found), message
