"""Errors as providers send them, as data: what each family of vendors says for one meaning, and what the client is to
read. And errors of whatever stands in front of a provider (gateways, CDNs), the same for all.

OpenAI: https://platform.openai.com/docs/guides/error-codes
Anthropic: https://docs.claude.com/en/api/errors
Google: https://ai.google.dev/gemini-api/docs/troubleshooting, https://google.aip.dev/193
AWS: https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Said:
    status: int
    body: bytes
    headers: Headers = ()
    is_html: bool = False
    code: str | None = None
    """The vendor's own code in OpenAI's form: it is kept."""


@dataclass(frozen=True)
class Case:
    """`statuses`: what the client may read; a vendor that speaks OpenAI's dialect keeps its own. `code` is ours.
    `words`: of the vendor's reason, to be found in the message. `wait`: the `retry-after` the client reads."""

    name: str
    statuses: frozenset[int]
    code: str
    said: Mapping[str, Said]
    words: str = ""
    wait: str | None = None
    headers: Headers = field(default=())


def openai(status: int, text: str, kind: str, code: str | None = None, param: str | None = None) -> Said:
    error = {"message": text, "type": kind, "param": param, "code": code}
    return Said(status, json.dumps({"error": error}).encode(), code=code or kind)


def anthropic(status: int, text: str, kind: str) -> Said:
    error = {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}
    return Said(status, json.dumps(error).encode())


def google(status: int, text: str, kind: str, reason: str | None = None, delay: str | None = None) -> Said:
    details: list[dict[str, Any]] = []
    if reason is not None:
        info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}
        details.append(info)
    if delay is not None:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    error = {"code": status, "message": text, "status": kind, **({"details": details} if details else {})}
    return Said(status, json.dumps({"error": error}).encode())


def aws(status: int, text: str, kind: str) -> Said:
    return Said(status, json.dumps({"message": text}).encode(), (("x-amzn-errortype", f"{kind}:http://internal/"),))


def vendor(
    name: str,
    statuses: set[int],
    code: str,
    words: str = "",
    wait: str | None = None,
    headers: Headers = (),
    **said: Said,
) -> Case:
    """What each family says."""
    return Case(name, frozenset(statuses), code, said, words, wait, headers)


def front(
    name: str,
    status: int,
    statuses: set[int],
    code: str,
    body: bytes = b"",
    *,
    words: str = "",
    wait: str | None = None,
    headers: Headers = (),
    is_html: bool = False,
) -> Case:
    """The same from whoever stands in front of any provider."""
    said = Said(status, body, is_html=is_html)
    return Case(name, frozenset(statuses), code, dict.fromkeys(FAMILIES, said), words, wait, headers)


FAMILIES = ("openai", "anthropic", "google", "aws")
BAD = "temperature: Input should be less than or equal to 1"
LONG = "the request is not valid " * 400
TRAP = "429 Too Many Requests: insufficient_quota, invalid api key, context_length_exceeded"
AFTER = (("retry-after", "20"),)

CASES: tuple[Case, ...] = (
    vendor(
        "a malformed field", {400}, "bad_request", "less than or equal",
        openai=openai(400, BAD, "invalid_request_error", None, "temperature"),
        anthropic=anthropic(400, BAD, "invalid_request_error"),
        google=google(400, BAD, "INVALID_ARGUMENT"),
        aws=aws(400, BAD, "ValidationException"),
    ),
    vendor(
        "a text that names other errors", {400}, "bad_request", "429 Too Many",
        openai=openai(400, TRAP, "invalid_request_error"),
        anthropic=anthropic(400, TRAP, "invalid_request_error"),
        google=google(400, TRAP, "INVALID_ARGUMENT"),
        aws=aws(400, TRAP, "ValidationException"),
    ),
    vendor(
        "an endless text", {400}, "bad_request", "is not valid",
        openai=openai(400, LONG, "invalid_request_error"),
        anthropic=anthropic(400, LONG, "invalid_request_error"),
        google=google(400, LONG, "INVALID_ARGUMENT"),
        aws=aws(400, LONG, "ValidationException"),
    ),
    vendor(
        "a text in another language", {400}, "bad_request", "不正なリクエスト 🚫",
        openai=openai(400, "不正なリクエスト 🚫", "invalid_request_error"),
        anthropic=anthropic(400, "不正なリクエスト 🚫", "invalid_request_error"),
        google=google(400, "不正なリクエスト 🚫", "FAILED_PRECONDITION"),
        aws=aws(400, "不正なリクエスト 🚫", "ValidationException"),
    ),
    vendor(
        "too long for the model", {400}, "context_length_exceeded",
        openai=openai(400, "This model's maximum context length is 128000 tokens.", "invalid_request_error",
                      "context_length_exceeded", "messages"),
        anthropic=anthropic(400, "prompt is too long: 250000 tokens > 200000 maximum", "invalid_request_error"),
        google=google(400, "The input token count (300000) exceeds the maximum number of tokens allowed (128000).",
                      "INVALID_ARGUMENT"),
        aws=aws(400, "Input is too long for requested model.", "ValidationException"),
    ),
    vendor(
        "refused by content policy", {400}, "content_policy_violation",
        openai=openai(400, "Your request was rejected by the safety system.", "invalid_request_error",
                      "content_policy_violation"),
        anthropic=anthropic(400, "Output blocked by content filtering policy", "invalid_request_error"),
        aws=aws(400, "Output blocked by content filtering policy", "ValidationException"),
    ),
    vendor(
        "the credential is wrong", {401}, "invalid_api_key", "gateway's operator",
        openai=openai(401, "Incorrect API key provided: sk-abc***def.", "invalid_request_error", "invalid_api_key"),
        anthropic=anthropic(401, "invalid x-api-key", "authentication_error"),
        google=google(401, "Request had invalid authentication credentials.", "UNAUTHENTICATED"),
        aws=aws(403, "The security token included in the request is invalid.", "UnrecognizedClientException"),
    ),
    vendor(
        "the credential is wrong, said otherwise", {401}, "invalid_api_key", "gateway's operator",
        openai=openai(401, "Unauthorized", "authentication_error"),
        anthropic=anthropic(401, "OAuth token has expired.", "authentication_error"),
        google=google(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT", "API_KEY_INVALID"),
        aws=aws(403, "The security token included in the request is expired", "ExpiredTokenException"),
    ),
    vendor(
        "not permitted", {403}, "permission_denied", "not permitted here",
        openai=openai(403, "not permitted here", "permission_error"),
        anthropic=anthropic(403, "not permitted here", "permission_error"),
        google=google(403, "not permitted here", "PERMISSION_DENIED"),
        aws=aws(403, "not permitted here", "AccessDeniedException"),
    ),
    vendor(
        "no such model", {404}, "model_not_found", "m-9",
        openai=openai(404, "The model `m-9` does not exist", "invalid_request_error", "model_not_found"),
        anthropic=anthropic(404, "model: m-9", "not_found_error"),
        google=google(404, "models/m-9 is not found for API version v1beta", "NOT_FOUND"),
        aws=aws(404, "Could not resolve the foundation model m-9", "ResourceNotFoundException"),
    ),
    vendor(
        "no money left", {429}, "insufficient_quota",
        openai=openai(429, "You exceeded your current quota.", "insufficient_quota", "insufficient_quota"),
        anthropic=anthropic(402, "Your credit balance is too low.", "billing_error"),
        google=google(403, "Billing is disabled.", "PERMISSION_DENIED", "BILLING_DISABLED"),
        aws=aws(400, "You exceeded the service quota.", "ServiceQuotaExceededException"),
    ),
    vendor(
        "too many requests", {429}, "rate_limit_exceeded", wait="20", headers=AFTER,
        openai=openai(429, "Rate limit reached for requests", "requests", "rate_limit_exceeded"),
        anthropic=anthropic(429, "Number of requests has exceeded your limit", "rate_limit_error"),
        google=google(429, "Resource has been exhausted (e.g. check quota).", "RESOURCE_EXHAUSTED"),
        aws=aws(429, "Too many requests, please wait before trying again.", "ThrottlingException"),
    ),
    vendor(
        "too many tokens, milliseconds to wait", {429}, "rate_limit_exceeded", wait="2",
        headers=(("retry-after-ms", "1500"),),
        openai=openai(429, "Rate limit reached for tokens", "tokens", "rate_limit_exceeded"),
        anthropic=anthropic(429, "Number of input tokens has exceeded your limit", "rate_limit_error"),
        google=google(429, "Quota exceeded for tokens", "RESOURCE_EXHAUSTED"),
        aws=aws(429, "Too many tokens, please wait before trying again.", "ThrottlingException"),
    ),
    vendor(
        "too many requests, no word of when", {429}, "rate_limit_exceeded",
        openai=openai(429, "Slow down", "requests", "rate_limit_exceeded"),
        anthropic=anthropic(429, "Slow down", "rate_limit_error"),
        google=google(429, "Slow down", "RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED"),
        aws=aws(429, "Slow down", "TooManyRequestsException"),
    ),
    vendor(
        "too many bytes", {413}, "request_too_large",
        openai=openai(413, "Request entity too large", "invalid_request_error"),
        anthropic=anthropic(413, "Request exceeds the maximum allowed number of bytes.", "request_too_large"),
        google=Said(413, b""),
        aws=Said(413, b'{"message":"Request Entity Too Large"}'),
    ),
    vendor(
        "its own time-out", {504}, "upstream_timeout",
        openai=openai(504, "The model took too long", "timeout"),
        anthropic=anthropic(504, "The request timed out", "timeout_error"),
        google=google(504, "Deadline expired before operation could complete.", "DEADLINE_EXCEEDED"),
        aws=aws(408, "The model timed out", "ModelTimeoutException"),
    ),
    vendor(
        "an error of its own", {500, 502}, "upstream_error", "went wrong",
        openai=openai(500, "Something went wrong", "server_error"),
        anthropic=anthropic(500, "Something went wrong", "api_error"),
        google=google(500, "Something went wrong", "INTERNAL"),
        aws=aws(500, "Something went wrong", "InternalServerException"),
    ),
    vendor(
        "overloaded", {503}, "overloaded",
        openai=openai(503, "The engine is currently overloaded", "overloaded_error"),
        anthropic=anthropic(529, "Overloaded", "overloaded_error"),
        google=google(503, "The model is overloaded. Please try again later.", "UNAVAILABLE"),
        aws=aws(503, "Too many connections", "ServiceUnavailableException"),
    ),
    vendor(
        "overloaded, and until when", {503}, "overloaded", wait="20", headers=AFTER,
        openai=openai(503, "Busy", "service_unavailable"),
        anthropic=anthropic(529, "Busy", "overloaded_error"),
        google=google(503, "Busy", "UNAVAILABLE"),
        aws=aws(503, "Busy", "ServiceUnavailableException"),
    ),
    front("400 without a word", 400, {400}, "bad_request"),
    front("400 in plain text", 400, {400}, "bad_request", b"Bad Request: header too long", words="header too long"),
    front("401 without a word", 401, {401}, "invalid_api_key"),
    front("402 without a word", 402, {402, 429}, "insufficient_quota"),
    front("403 of a firewall", 403, {403}, "permission_denied", is_html=True),
    front("404 of a wrong path", 404, {404}, "model_not_found", is_html=True),
    front("405", 405, {400, 405}, "bad_request"),
    front("408 without a word", 408, {408, 504}, "upstream_timeout"),
    front("409 without a word", 409, {409, 502}, "upstream_error"),
    front("413 of a reverse proxy", 413, {413}, "request_too_large", is_html=True),
    front("415", 415, {400, 415}, "bad_request"),
    front("422 with a list of details", 422, {422}, "bad_request",
          b'{"detail":[{"loc":["body","x"],"msg":"field required"}]}', words="field required"),
    front("425", 425, {425, 502}, "upstream_error"),
    front("429 without a word", 429, {429}, "rate_limit_exceeded"),
    front("429 of a reverse proxy, and until when", 429, {429}, "rate_limit_exceeded", is_html=True, wait="20",
          headers=AFTER),
    front("429 with a date long past", 429, {429}, "rate_limit_exceeded", wait="1",
          headers=(("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"),)),
    front("500 without a word", 500, {500, 502}, "upstream_error"),
    front("500 with null", 500, {500, 502}, "upstream_error", b"null"),
    front("500 with an empty list", 500, {500, 502}, "upstream_error", b"[]"),
    front("500 with half an object", 500, {500, 502}, "upstream_error", b'{"error":{"mess'),
    front("502 of a reverse proxy", 502, {502}, "upstream_error", is_html=True),
    front("503 of a reverse proxy, and until when", 503, {503}, "overloaded", is_html=True, wait="20", headers=AFTER),
    front("504 of a reverse proxy", 504, {504}, "upstream_timeout", is_html=True),
    front("520 of a CDN", 520, {520, 502}, "upstream_error", is_html=True),
    front("524 of a CDN", 524, {524, 504}, "upstream_timeout", is_html=True),
    front("529 without a word", 529, {503}, "overloaded"),
)  # fmt: skip
