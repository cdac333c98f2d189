"""From a provider's error answer to the OpenAI error it means.

Shared by all providers. Rule: meaning comes from status, type and code; a message is only read where the vendor has
no code, and then only its beginning and only for the status concerned (so "429" in a user's text is no rate limit).
Upstream text is cut, HTML is never quoted, and anything that looks like a credential is blanked.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from sidecar.errors import ErrorKind, ProviderError, without_credentials
from sidecar.translate.provider import Head
from sidecar.translate.usage import NOT_JSON

MAX_MESSAGE = 1_000
MAX_RETRY_AFTER_S = 86_400.0

_CREDENTIAL = re.compile(
    r"(?i)(bearer\s+"
    r"|(?:api|access|secret|auth)[-_ ]?(?:key|token)(?: provided| id)?[\"']?\s*[:=]\s*[\"']?)[^\s\"',]{6,}"
    r"|\b(?:sk|pk|rk|gsk|xai|csk|nvapi|tgp|key|hf|fw|r8|pplx|AKIA|AIza|eyJ)[-_A-Za-z0-9*.]{10,}"
)


_TOO_LONG = re.compile(
    r"(?i)this (?:model|endpoint)'s maximum (?:context|prompt) length is"  # vLLM, NIM, DeepSeek, xAI, OpenRouter
    r"|the decoder prompt \(length |you passed \d+ input tokens"  # vLLM
    r"|requested token count exceeds the model's maximum|the input \(\d+ tokens\) is longer than"  # SGLang
    r"|(?:the request|request \(\d+ tokens\)) exceeds the available context size"  # llama.cpp
    r"|(?:the )?prompt is too long\b|input length and `max_tokens` exceed context limit"  # Fireworks; Claude
    r"|input validation error: `inputs` (?:tokens \+ `max_new_tokens` )?must (?:be <=|have less than)"  # TGI, Together
    r"|input is too long for requested model|input tokens exceeded: "  # Bedrock, Databricks
    r"|the input token count\b"  # Gemini
    r"|(?:<400> InternalError\.Algo\.InvalidParameter: )?range of input length should be"  # DashScope
    r"|invalid params, context window exceeds limit"  # MiniMax
    r"|prompt exceeds max length"  # Z.ai
    r"|(?:invalid request: )?your request exceeded model token limit"  # Moonshot
    r"|request body too large for \S{1,100} model\. max size: \d+ tokens"  # GitHub Models
    r"|the input length exceeds the context length"  # Ollama
    r"|(?:400 bad request: )?prompt too long; exceeded max context length"  # Ollama's cloud
    r"|trying to keep the first \d+ tokens when context"  # LM Studio
    r"|invalid input argument for model '[^']{1,200}': the number of input tokens"  # watsonx.ai
)
"""How those say it who have no code for it; only what a message begins with counts.
https://github.com/vllm-project/vllm/issues/20409 · https://github.com/cline/cline/issues/3120 (xAI) ·
https://github.com/Aider-AI/aider/issues/3721 (OpenRouter) · https://github.com/ggml-org/llama.cpp/pull/15780 ·
https://github.com/fw-ai/cookbook/issues/134 (Fireworks) · https://github.com/stanford-crfm/helm/issues/2080 (Together)
https://github.com/agentscope-ai/QwenPaw/issues/6255 (DashScope) · https://github.com/MiniMax-AI/MiniMax-M2/issues/119
https://github.com/cline/cline/issues/995 (GitHub Models) ·
https://github.com/openJiuwen-ai/jiuwenswarm/issues/12 (Ollama)"""
_UNSAFE = re.compile(
    r"Content Exists Risk\Z"  # DeepSeek
    r"|Content violates usage guidelines"  # xAI, with 403
    r"|(?:input|output) new_sensitive"  # MiniMax
    r"|系统检测到输入或生成内容可能包含不安全或敏感内容"  # Zhipu
)
"""https://github.com/deepseek-ai/DeepSeek-V2/issues/30 · https://github.com/UKGovernmentBEIS/inspect_ai/pull/2267"""
_NO_MONEY = re.compile(
    r"Insufficient balance or no resource package"  # Z.ai, with 429
    r"|you(?:'ve| \([^)]{1,100}\) have) reached your \w{1,20} usage limit"  # Ollama's cloud, with 429: hours to a week
    r"|Your (?:newly created )?teams? (?:\S{1,100} )?(?:has either used all available credits|doesn't have any credits)"
)
"""The last is xAI's, with 429 or 403. https://docs.z.ai/api-reference/api-code ·
https://github.com/continuedev/continue/issues/11444 (Ollama)"""
_NO_MODEL = re.compile(
    r"Model Not Exist\Z|\S{1,200} is not a valid model ID\b"  # DeepSeek; OpenRouter
    r"|\"[^\"]{1,200}\" does not support chat\Z|this server cannot run this remote model\Z"  # Ollama
)
"""With 400: another deployment may have it. https://github.com/langbot-app/LangBot/issues/1643 ·
https://github.com/ollama/ollama/blob/main/server/routes.go"""
_ASKED_TOO_MUCH = re.compile(
    r"(?:Failed to create new sequence: failed to process inputs: )?this model is missing data required for image input"
    r"|invalid JSON schema in format\Z|invalid format: (?s:.{1,2000}?); expected \"json\""
)
"""Ollama's, with 500: it is the request's fault, and nobody else's has to wait.
https://github.com/valentinfrlch/ha-llmvision/issues/691 · https://github.com/ollama/ollama/blob/main/llm/server.go"""
_NOT_VERIFIED = "Your organization must be verified to"
"""OpenAI's, with 400 and a code for the client. https://github.com/chatboxai/chatbox/issues/2263"""
_KEY_REFUSED = "Incorrect API key provided"
"""xAI's, with 400. https://github.com/i-am-bee/beeai-framework/issues/447"""


def kind_by_words(kind: ErrorKind, message: Any) -> ErrorKind:
    """A finer kind than that of the status, for vendors whose message alone tells it."""
    if kind not in ("bad_request", "too_large", "permission", "rate_limit", "server") or not isinstance(message, str):
        return kind
    if kind == "server":
        return "bad_request" if _ASKED_TOO_MUCH.match(message) is not None else kind
    if kind in ("permission", "rate_limit") and _NO_MONEY.match(message) is not None:
        return "quota"
    if kind == "rate_limit":
        return kind
    if _UNSAFE.match(message) is not None:
        return "content_policy"
    if kind == "permission":
        return kind
    if _TOO_LONG.match(message) is not None:
        return "context_window"
    if _NO_MODEL.match(message) is not None:
        return "not_found"
    if message.startswith(_NOT_VERIFIED):
        return "permission"
    return "authentication" if message.startswith(_KEY_REFUSED) else kind


class Shape(NamedTuple):
    """How the gateway answers and treats a kind of error."""

    status: int
    type: str
    code: str
    is_retryable: bool
    cools_down: bool


SHAPES: dict[ErrorKind, Shape] = {
    "bad_request": Shape(400, "invalid_request_error", "bad_request", False, False),
    "context_window": Shape(400, "invalid_request_error", "context_length_exceeded", False, False),
    "content_policy": Shape(400, "invalid_request_error", "content_policy_violation", False, False),
    "authentication": Shape(401, "authentication_error", "invalid_api_key", False, True),
    "quota": Shape(429, "insufficient_quota", "insufficient_quota", False, True),
    "permission": Shape(403, "permission_error", "permission_denied", False, False),
    "not_found": Shape(404, "invalid_request_error", "model_not_found", False, False),
    "too_large": Shape(413, "invalid_request_error", "request_too_large", False, False),
    "timeout": Shape(504, "api_error", "upstream_timeout", True, True),
    "rate_limit": Shape(429, "rate_limit_error", "rate_limit_exceeded", True, True),
    "overloaded": Shape(503, "service_unavailable", "overloaded", True, True),
    "server": Shape(502, "api_error", "upstream_error", True, True),
    "connection": Shape(502, "api_error", "upstream_error", True, True),
}

# 412: a chat request has no preconditions; Fireworks says it of an account that is suspended for its bills.
# 499: nginx's word for a client that left. This one did not, as it reads it: somebody between did.
_BY_STATUS: dict[int, ErrorKind] = {
    400: "bad_request",
    401: "authentication",
    402: "quota",
    403: "permission",
    404: "not_found",
    405: "bad_request",
    408: "timeout",
    409: "server",
    410: "not_found",
    412: "quota",
    413: "too_large",
    415: "bad_request",
    422: "bad_request",
    424: "server",
    425: "server",
    429: "rate_limit",
    498: "overloaded",
    499: "server",
    503: "overloaded",
    504: "timeout",
    524: "timeout",
    529: "overloaded",
}


def kind_of_status(status: int) -> ErrorKind:
    kind = _BY_STATUS.get(status)
    if kind is not None:
        return kind
    return "bad_request" if 400 <= status < 500 else "server"


_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f]")
"""Compressed, or in a framing nobody asked for."""


def error_fields(body: bytes) -> dict[str, Any]:
    """The error object of a body in any of the usual forms: `{"error": {…}}`, `{"error": "…"}`, `{"message": …}`,
    `{"detail": …}`, a list of one of these; `{}` for HTML, nothing or `null`."""
    try:
        parsed = msgspec.json.decode(body)
    except NOT_JSON:
        text = body[:MAX_MESSAGE].decode("utf-8", "replace").strip()
        is_text = text and not text.startswith("<") and _NO_TEXT.search(text) is None
        return {"message": text} if is_text else {}
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    if isinstance(parsed, str):
        return {"message": parsed}
    if not isinstance(parsed, dict):
        return {}
    error = parsed.get("error", parsed.get("errors"))
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, str):
        return {"message": error, "code": parsed.get("code"), "type": parsed.get("type")}
    if isinstance(error, dict):
        return error
    if "message" not in parsed and "detail" in parsed:
        return {**parsed, "message": parsed["detail"]}
    return parsed


def clean_message(value: Any) -> str:
    """Upstream text fit for a client: one string, bounded, without credentials or HTML."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    text = text.strip()
    if text[:200].lower().lstrip("\ufeff").startswith(("<!doctype", "<html", "<head", "<body")):
        return ""
    text = without_credentials(_CREDENTIAL.sub("***", text[: MAX_MESSAGE + 200]))
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "…"


def retry_after_s(head: Head, now: float) -> float | None:
    """Seconds from `retry-after-ms` or `retry-after` (seconds or HTTP date; RFC 9110 10.2.3); `None` if there is none
    or it makes no sense."""
    for name, scale in ((b"retry-after-ms", 0.001), (b"retry-after", 1.0)):
        raw = head.get(name)
        if raw is None:
            continue
        text = raw.decode("latin-1").strip()
        if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text):
            return min(float(text) * scale, MAX_RETRY_AFTER_S)
        if scale == 1.0:
            from email.utils import mktime_tz, parsedate_tz

            try:
                parsed = parsedate_tz(text)
                if parsed is not None:
                    return min(max(0.0, mktime_tz(parsed) - now), MAX_RETRY_AFTER_S)
            except (ValueError, OverflowError, TypeError, IndexError):
                return None
    return None


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.\-]{1,64}", value) else None


def make_error(
    provider_name: str,
    head: Head,
    *,
    kind: ErrorKind,
    now: float,
    fields: dict[str, Any],
    keeps_names: bool,
    may_be_billed: bool = False,
) -> ProviderError:
    """`keeps_names`: the provider speaks OpenAI's dialect, so its own type, code and status are kept where sensible."""
    shape = SHAPES[kind]
    status, type_, code = shape.status, shape.type, shape.code
    if keeps_names:
        type_ = _name(fields.get("type")) or type_
        code = _name(fields.get("code")) or (type_ if _name(fields.get("type")) else code)
        if 400 <= head.status < 600 and head.status != 529:
            status = head.status
    elif (kind == "server" and 500 <= head.status < 529) or (kind == "bad_request" and head.status in (409, 422)):
        status = head.status
    param = fields.get("param")
    said = clean_message(fields.get("message"))
    if kind == "authentication":
        # The text may quote the credential, and it is the gateway's, not the client's.
        said = "it does not accept the gateway's credential; the gateway's operator has to correct it"
    did = "reported an error in its answer" if may_be_billed else f"answered {head.status}"
    message = f"Provider {provider_name} {did}" + (f": {said}" if said else " without a reason.")
    return ProviderError(
        message,
        kind=kind,
        status=status,
        type=type_,
        code=code,
        param=param if isinstance(param, str) and len(param) <= 200 else None,
        retry_after_s=retry_after_s(head, now),
        is_retryable=shape.is_retryable,
        cools_down=shape.cools_down,
        may_be_billed=may_be_billed,
    )
