"""OpenAI's Responses API behind chat completions: for models that answer nowhere else, and for who wants it.

Neighbours: `responses_request` (the way in), `responses_answer` and `responses_stream` (the way out), `responses_state`
(reasoning that comes back), `responses_models` (who needs it). `openai` and `azure` hand such deployments over to it;
under its own name, `openai-responses`, it serves any other server with this endpoint.
https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.errors import ProviderError, UpstreamBrokenError
from sidecar.translate.provider import (
    OPENAI_CHAT_FIELDS,
    Auth,
    Call,
    Head,
    Reply,
    StreamTranslator,
    UpstreamRequest,
    sayable,
)
from sidecar.translate.provider_errors import error_fields
from sidecar.translate.providers.openai import OpenAIDialect
from sidecar.translate.providers.responses_answer import chat_usage, finish_reason, head_of, message_of
from sidecar.translate.providers.responses_request import SAME, build
from sidecar.translate.tool_names import OPENAI, tool_names
from sidecar.translate.usage import NOT_JSON, usage_from_openai

_STATUS_OF: Mapping[str, int] = {
    "server_error": 500,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "vector_store_timeout": 504,
    **dict.fromkeys(
        (
            *("context_length_exceeded", "invalid_prompt", "bio_policy", "misalignment_policy_violation"),
            *("content_filter", "data_residency_mismatch", "invalid_encrypted_content", "invalid_image_mode"),
            *("invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url", "image_too_large"),
            *("image_too_small", "image_parse_error", "image_content_policy_violation", "image_file_too_large"),
            *("unsupported_image_media_type", "empty_image_file", "failed_to_download_image", "image_file_not_found"),
        ),
        400,
    ),
}
"""Of a failed response. https://platform.openai.com/docs/api-reference/responses/object#responses/object-error"""

_USE_TOOLS = "Use tools and tool_choice."
_NO_AUDIO = "The Responses API neither hears nor speaks; use a chat model with audio."


class Responses(OpenAIDialect):
    """`owner` is the provider whose deployments these are: its name stands in errors, its words are understood."""

    name = "openai-responses"
    endpoints = ("chat", "responses")
    auth: Auth = "bearer"
    api_key_env = None
    docs_url = "https://platform.openai.com/docs/api-reference/responses/create"
    is_same_dialect = False
    passes_unknown = False
    path = "/responses"
    params: Mapping[str, str] = {
        **dict.fromkeys(SAME, "passed"),
        "model": "mapped to the deployment's model",
        "messages": "mapped to input items; parts that are none of text, pictures and files are refused",
        "logprobs": "mapped to include",
        "max_completion_tokens": "sent as max_output_tokens",
        "max_tokens": "sent as max_output_tokens",
        "parallel_tool_calls": "passed with tools",
        "reasoning_effort": "sent as reasoning.effort",
        "response_format": "mapped to text.format",
        "store": "passed; false if not given",
        "stream": "passed",
        "stream_options": "include_usage is done by the gateway; include_obfuscation is passed",
        "tool_choice": "mapped",
        "tools": "mapped (functions, custom tools; those that run at OpenAI pass)",
        "top_logprobs": "passed",
        "verbosity": "sent as text.verbosity",
        "web_search_options": "mapped to the web_search tool",
        # Not chat's, but what has no other name there:
        "reasoning": "passed; reasoning_effort goes before its effort",
    }
    unsupported: Mapping[str, str] = {
        "audio": _NO_AUDIO,
        "frequency_penalty": "Remove it or send 0.",
        "function_call": _USE_TOOLS,
        "functions": _USE_TOOLS,
        "logit_bias": "Remove it.",
        "modalities": _NO_AUDIO,
        "n": "Send 1, and ask several times for several answers.",
        "prediction": "Remove it.",
        "presence_penalty": "Remove it or send 0.",
        "seed": "Remove it.",
        "stop": "Remove it.",
    }
    assert params.keys() | unsupported.keys() >= OPENAI_CHAT_FIELDS

    def __init__(self, owner: OpenAIDialect | None = None) -> None:
        self._owner = owner
        if owner is not None:
            self.name = owner.name

    def request(self, call: Call) -> UpstreamRequest:
        with sayable:
            body, dropped = build(self, call)
            encoded = msgspec.json.encode(body)
        headers = [(b"content-type", b"application/json")]
        return UpstreamRequest(self.path, encoded, headers, dropped=tuple(dict.fromkeys(dropped)))

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        try:
            response = msgspec.json.decode(body)
            if response.get("error"):
                raise self.failure(call, response["error"])
            if response.get("status") not in ("completed", "incomplete"):
                raise ValueError(response.get("status"))
            message, tokens = message_of(call, response["output"], tool_names(call.payload, OPENAI), self.name)
        except (*NOT_JSON, TypeError, AttributeError, KeyError, ValueError) as error:
            raise UpstreamBrokenError(
                f"Provider {self.name} answered {head.status} with a body that is not a whole response."
            ) from error
        usage = usage_from_openai(response.get("usage"))
        choice = {
            "index": 0,
            "message": message,
            "logprobs": {"content": tokens, "refusal": None} if tokens else None,
            "finish_reason": finish_reason(response, "tool_calls" in message),
        }
        result = {**head_of(call, response, "chat.completion"), "choices": [choice]}
        if usage.is_known:
            result["usage"] = chat_usage(usage)
        return Reply(body=msgspec.json.encode(result), usage=usage)

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        from sidecar.translate.providers.responses_stream import ResponsesStream

        return ResponsesStream(self, call)

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        return self._error(call, head, error_fields(body), may_be_billed=False)

    def failure(self, call: Call, error: Any) -> ProviderError:
        """The error of a failed response, or of an error event: its code says the status it would have had."""
        fields = error if isinstance(error, dict) else {"message": error}
        code = fields.get("code")
        if fields.get("type") == "error":
            fields = {name: value for name, value in fields.items() if name != "type"}  # the event's
        if isinstance(code, str) and code in _STATUS_OF:
            return self._error(call, Head(_STATUS_OF[code]), fields, may_be_billed=True)
        return self._stated_error(call, Head(200), fields)

    def _error(self, call: Call, head: Head, fields: dict[str, Any], *, may_be_billed: bool) -> ProviderError:
        says = super()._error if self._owner is None else self._owner._error
        return says(call, head, fields, may_be_billed=may_be_billed)
