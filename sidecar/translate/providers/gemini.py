"""Gemini by its own API (AI Studio): OpenAI chat requests in, OpenAI chat answers out, streamed or not.

Neighbours: `gemini_request` and `gemini_content` (the way in), `gemini_answer` and `gemini_stream` (the way back),
`gemini_models` (what a model can do), `vertex` (the same bodies on Google Cloud). Here: the field table, whole answers
and errors.
https://ai.google.dev/api/generate-content · https://google.aip.dev/193 (errors)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from sidecar.errors import ErrorKind, ProviderError, UpstreamBrokenError
from sidecar.translate.provider import Call, Head, Provider, Reply, StreamTranslator, UpstreamRequest, sayable
from sidecar.translate.provider_errors import error_fields, kind_of_status, make_error
from sidecar.translate.providers.gemini_answer import (
    Candidate,
    Chunk,
    Turn,
    block_reason,
    decode_chunk,
    logprobs,
    openai_usage,
    usage_of,
)
from sidecar.translate.providers.gemini_content import urls_to_fetch
from sidecar.translate.providers.gemini_request import build
from sidecar.translate.providers.gemini_stream import GeminiStream
from sidecar.translate.tool_names import GEMINI as NAMES
from sidecar.translate.tool_names import tool_names
from sidecar.translate.usage import NOT_JSON

_KINDS: dict[str, ErrorKind] = {
    "INVALID_ARGUMENT": "bad_request",
    "FAILED_PRECONDITION": "bad_request",
    "OUT_OF_RANGE": "bad_request",
    "UNAUTHENTICATED": "authentication",
    "PERMISSION_DENIED": "permission",
    "NOT_FOUND": "not_found",
    "RESOURCE_EXHAUSTED": "rate_limit",
    "ABORTED": "server",
    "INTERNAL": "server",
    "UNKNOWN": "server",
    "DATA_LOSS": "server",
    "UNAVAILABLE": "overloaded",
    "DEADLINE_EXCEEDED": "timeout",
    "CANCELLED": "server",
}
"""https://cloud.google.com/apis/design/errors#handling_errors"""
_REASONS: dict[str, ErrorKind] = {
    **dict.fromkeys(
        ("API_KEY_INVALID", "ACCESS_TOKEN_EXPIRED", "ACCESS_TOKEN_TYPE_UNSUPPORTED", "CREDENTIALS_MISSING"),
        "authentication",
    ),
    **dict.fromkeys(("BILLING_DISABLED", "CONSUMER_SUSPENDED"), "quota"),
    **dict.fromkeys(("SERVICE_DISABLED", "API_KEY_SERVICE_BLOCKED", "IAM_PERMISSION_DENIED"), "permission"),
    "RATE_LIMIT_EXCEEDED": "rate_limit",
}
"""`ErrorInfo.reason`. https://cloud.google.com/service-infrastructure/docs/service-management/reference/rpc/google.api#errorreason"""
_STATUS_OF = {
    "bad_request": 400,
    "authentication": 401,
    "permission": 403,
    "not_found": 404,
    "rate_limit": 429,
    "server": 500,
    "overloaded": 503,
    "timeout": 504,
}
_TOO_LONG = ("the input token count", "unable to submit request because the input token count")
"""It has no code of its own. https://ai.google.dev/gemini-api/docs/troubleshooting"""
_NOT_HERE = re.compile(
    r"User location is not supported|Publisher Model \S{1,300} is not servable in region"
    r"|Project \S{1,100} is not allowed to use Publisher Model"
)
"""The place or the account is wrong, so another deployment may serve; said with FAILED_PRECONDITION and 400.
https://ai.google.dev/gemini-api/docs/available-regions · https://github.com/yym68686/uni-api/issues/41"""
_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")
_USE_TOOLS = "Use tools and tool_choice."

PARAMS: Mapping[str, str] = {
    "model": "mapped to the deployment's model, in the path",
    "messages": "mapped; role function is refused",
    "audio": "voice is mapped to speechConfig; formats but pcm16 are refused",
    "frequency_penalty": "mapped",
    "logprobs": "mapped to responseLogprobs",
    "max_completion_tokens": "mapped to maxOutputTokens",
    "max_tokens": "mapped to maxOutputTokens",
    "modalities": "mapped to responseModalities",
    "n": "mapped to candidateCount",
    "presence_penalty": "mapped",
    "reasoning_effort": "mapped to thinkingLevel (from 3 on) or thinkingBudget (2.5); refused before",
    "response_format": "mapped to responseMimeType and responseJsonSchema; beside tools from 3 on",
    "seed": "mapped",
    "service_tier": "auto, default, flex and priority are mapped, others refused",
    "stop": "mapped to stopSequences (at most 5)",
    "stream": "mapped to the method",
    "stream_options": "include_usage is done by the gateway",
    "temperature": "mapped",
    "tool_choice": "mapped to functionCallingConfig",
    "tools": "mapped (functions; Google's own tools pass; custom ones are refused)",
    "top_logprobs": "mapped to logprobs",
    "top_p": "mapped",
    "web_search_options": "mapped to Google Search, settings within are refused; beside functions from 3 on",
    # Not OpenAI's, but what clients of Gemini and Claude send:
    "thinking": "mapped to thinkingConfig",
    "top_k": "mapped",
    "safety_settings": "mapped to safetySettings",
    "cached_content": "mapped to cachedContent",
    "media_resolution": "mapped to mediaResolution",
    "image_config": "mapped to imageConfig",
}
UNSUPPORTED: Mapping[str, str] = {
    "function_call": _USE_TOOLS,
    "functions": _USE_TOOLS,
    "logit_bias": "Remove it.",
    "parallel_tool_calls": "Gemini may always call several functions at once; remove it, or send true.",
    "moderation": "Remove it; safety_settings say what Gemini filters.",
    "prediction": "Remove it.",
    "prompt_cache_key": "Remove it; Gemini caches repeated beginnings by itself.",
    "prompt_cache_options": "Remove it; Gemini caches repeated beginnings by itself.",
    "prompt_cache_retention": "Remove it; Gemini caches repeated beginnings by itself.",
    "verbosity": "Remove it or send medium; ask for the length in the prompt.",
}


class Gemini(Provider):
    name = "gemini"
    auth = "x-goog-api-key"
    default_base_url: str | None = "https://generativelanguage.googleapis.com"
    api_key_env: str | None = "GEMINI_API_KEY"
    docs_url = "https://ai.google.dev/api/generate-content"
    params: Mapping[str, str] = {**PARAMS, "store": "passed"}
    unsupported: Mapping[str, str] = {
        **UNSUPPORTED,
        "metadata": "Remove it; only Vertex AI takes labels.",
        "safety_identifier": "Remove it; only Vertex AI takes labels.",
        "user": "Remove it; only Vertex AI takes labels.",
    }
    is_vertex = False

    def path_of(self, call: Call, model: str) -> str:
        """Up to the method's name."""
        model = model.removeprefix("models/")
        folder = "" if model.startswith("tunedModels/") else "models/"
        return f"/v1beta/{folder}{quote(model, safe='/@:-._~')}"

    def needs(self, call: Call) -> tuple[str, ...]:
        return urls_to_fetch(call.payload)

    def request(self, call: Call) -> UpstreamRequest:
        model = str(call.edits.get("model", call.model))
        with sayable:
            plan = build(self, call, model, is_vertex=self.is_vertex)
            body = msgspec.json.encode(plan.body)
        return UpstreamRequest(
            path=f"{self.path_of(call, model)}:{'streamGenerateContent' if call.is_stream else 'generateContent'}",
            query="alt=sse" if call.is_stream else "",
            headers=[(b"content-type", b"application/json"), *plan.headers],
            body=body,
            dropped=tuple(dict.fromkeys(plan.dropped)),
        )

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        try:
            return self._reply(call, decode_chunk(body))
        except (*NOT_JSON, TypeError, AttributeError, ValueError) as error:
            raise UpstreamBrokenError(
                f"Provider {self.name} answered {head.status} with a body that is not an answer."
            ) from error

    def _reply(self, call: Call, answer: Chunk) -> Reply:
        if answer.error is not None:
            raise self.stated_error(call, answer.error)
        usage = usage_of(answer.usageMetadata)
        if not answer.candidates:
            reason = block_reason(answer)
            if reason is not None:
                raise self.blocked(call, reason)
            raise UpstreamBrokenError(f"Provider {self.name} answered without candidates.")
        result: dict[str, Any] = {
            "id": answer.responseId or f"chatcmpl-{call.exchange_id}",
            "object": "chat.completion",
            "created": int(call.now),
            "model": answer.modelVersion or call.model,
            "choices": [self._choice(call, candidate) for candidate in answer.candidates],
        }
        if usage.is_known:
            result["usage"] = openai_usage(usage)
        return Reply(body=msgspec.json.encode(result), usage=usage)

    def _choice(self, call: Call, candidate: Candidate) -> dict[str, Any]:
        turn = Turn(self.name, call, tool_names(call.payload, NAMES), candidate.index or 0)
        found: dict[str, list[Any]] = {"content": [], "reasoning": [], "tool": [], "image": [], "audio": [], "": []}
        parts = candidate.content.parts if candidate.content is not None else None
        for part in parts or ():
            kind, value = turn.take(part)
            found[kind].append(value)
        turn.note(candidate)
        content: str | None = "".join(found["content"])
        if not content and (found["tool"] or found["audio"]):
            content = None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if any(found["reasoning"]):
            message["reasoning_content"] = "".join(found["reasoning"])
        if found["tool"]:
            message["tool_calls"] = found["tool"]
        if found["image"]:
            message["images"] = found["image"]
        if found["audio"]:
            message["audio"] = {
                "id": f"audio_{call.exchange_id}",
                "data": "".join(found["audio"]),
                "expires_at": int(call.now),
                "transcript": "",
            }
        if notes := turn.annotations():
            message["annotations"] = notes
        return {
            "index": turn.index,
            "message": message,
            "logprobs": logprobs(candidate.logprobsResult),
            **turn.finished(),
        }

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        return GeminiStream(self, call)

    def blocked(self, call: Call, reason: str) -> ProviderError:
        """The prompt was refused. https://ai.google.dev/api/generate-content#BlockReason"""
        fields = {"message": f"the prompt was blocked ({reason[:64]})"}
        return make_error(
            self.name,
            Head(400),
            kind="content_policy",
            now=call.now,
            fields=fields,
            keeps_names=False,
            may_be_billed=True,
        )

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        return self._error(call, head, error_fields(body), may_be_billed=False)

    def stated_error(self, call: Call, error: Any) -> ProviderError:
        """An error inside a stream or a 200 answer; its code or status says what it would have been."""
        fields = error if isinstance(error, dict) else {"message": error}
        code, status = fields.get("code"), fields.get("status")
        if type(code) is not int or not 400 <= code < 600:
            code = _STATUS_OF[_KINDS.get(status, "server")] if isinstance(status, str) else 500
        return self._error(call, Head(code), fields, may_be_billed=True)

    def _error(self, call: Call, head: Head, fields: dict[str, Any], *, may_be_billed: bool) -> ProviderError:
        kind = kind_of_status(head.status)
        status = fields.get("status")
        if isinstance(status, str) and head.status >= 400:
            kind = _KINDS.get(status, kind)
        headers = list(head.headers)
        for detail in _details(fields):
            reason = detail.get("reason")
            if isinstance(reason, str) and head.status < 500:
                kind = _REASONS.get(reason, kind)
            delay = detail.get("retryDelay")
            match = _DELAY.fullmatch(delay) if isinstance(delay, str) else None
            if match is not None and head.get(b"retry-after") is None:
                headers.append((b"retry-after", match.group(1).encode()))
        message = fields.get("message")
        if kind == "bad_request" and isinstance(message, str) and message.lower().startswith(_TOO_LONG):
            kind = "context_window"
        elif kind == "bad_request" and isinstance(message, str) and _NOT_HERE.match(message) is not None:
            kind = "permission"
        return make_error(
            self.name,
            Head(head.status, headers),
            kind=kind,
            now=call.now,
            fields=fields,
            keeps_names=False,
            may_be_billed=may_be_billed,
        )


def _details(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    details = fields.get("details")
    return [detail for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []
