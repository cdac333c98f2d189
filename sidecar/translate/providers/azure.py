"""Azure OpenAI (Microsoft Foundry): OpenAI's bytes under a resource's own host.

Neighbour: `openai`, whose code does the rest. Here: the paths (by deployment with a dated `api_version`, else the v1
API), what its content filter says, and pictures given as bare strings. The deployment's `model` is Azure's name of it,
which need not say what it is; `base_model` in `params` does.
https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle
https://learn.microsoft.com/azure/ai-foundry/openai/reference
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from sidecar.errors import ProviderError
from sidecar.translate.provider import OPENAI_CHAT_FIELDS, Auth, Call, Head, Reply, StreamTranslator, UpstreamRequest
from sidecar.translate.providers.bedrock import segment_of
from sidecar.translate.providers.openai import OpenAIDialect, output_cap_name
from sidecar.translate.providers.responses_models import base_model, speaks_responses

_V1 = "/openai/v1/chat/completions"
_V1_RESPONSES = "/openai/v1/responses"
_DATED_RESPONSES = "/openai/responses"
"""https://learn.microsoft.com/azure/ai-foundry/openai/how-to/responses"""
_V1_VERSIONS = ("", "v1", "latest")
"""Of these none is sent; `preview` is, on the v1 path too."""


class Azure(OpenAIDialect):
    name = "azure"
    endpoints = ("chat", "responses")
    auth: Auth = "api-key"
    keyless = "azure"
    service = "https://cognitiveservices.azure.com/.default"
    """https://learn.microsoft.com/azure/ai-foundry/openai/how-to/managed-identity"""
    takes_options = ("api", "api_version")
    api_key_env = "AZURE_OPENAI_API_KEY"
    docs_url = "https://learn.microsoft.com/azure/ai-foundry/openai/reference"
    params: Mapping[str, str] = dict.fromkeys(OPENAI_CHAT_FIELDS, "passed") | {
        "model": "the name of the deployment at Azure; in the path with a dated api_version",
        "messages": "passed; an image_url that is a bare string is sent as an object",
        "stream_options": "passed, include_usage forced on streams",
        "max_tokens": "passed, or sent as max_completion_tokens (o-series, gpt-5 and later)",
    }
    takes_both_caps = True

    def changes(self, call: Call) -> tuple[dict[str, Any], set[str], list[str]]:
        changes, removed, dropped = super().changes(call)
        if "base_model" not in call.payload:
            changes.pop("base_model", None)
        if b'"image_url"' in call.raw:
            messages = changes.get("messages", call.payload.get("messages"))
            if (wrapped := _wrapped(messages)) is not messages:
                changes["messages"] = wrapped
        return changes, removed, dropped

    def cap_of(self, call: Call) -> str:
        return self.cap_name(base_model(call))

    def cap_name(self, model: str) -> str:
        return output_cap_name(model)

    def __init__(self) -> None:
        from sidecar.translate.providers.responses import Responses

        self._responses = Responses(self)

    def responses_at(self, options: Mapping[str, str]) -> tuple[str, str]:
        version = options.get("api_version", "")
        path = _V1_RESPONSES if version in (*_V1_VERSIONS, "preview") else _DATED_RESPONSES
        return path, "" if version in _V1_VERSIONS else f"api-version={quote(version, safe='')}"

    def request(self, call: Call) -> UpstreamRequest:
        version = call.options.get("api_version", "")
        if speaks_responses(call):
            request = self._responses.request(call)
            request.path, request.query = self.responses_at(call.options)
            return request
        request = super().request(call)
        if version in _V1_VERSIONS or version == "preview":
            request.path = _V1
        else:
            deployment = segment_of(str(call.edits.get("model", call.model)))
            request.path = f"/openai/deployments/{deployment}/chat/completions"
        if version not in _V1_VERSIONS:
            request.query = f"api-version={quote(version, safe='')}"
        return request

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        if speaks_responses(call):
            return self._responses.response(call, head, body)
        return super().response(call, head, body)

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        return self._responses.stream(call, head) if speaks_responses(call) else super().stream(call, head)

    def _error(self, call: Call, head: Head, fields: dict[str, Any], *, may_be_billed: bool) -> ProviderError:
        """A filtered prompt says so in `innererror` if not in `code`, and which filters it met.
        https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter"""
        inner = fields.get("innererror")
        if isinstance(inner, dict) and inner.get("code") == "ResponsibleAIPolicyViolation":
            met = _filters_met(inner.get("content_filter_result", inner.get("content_filter_results")))
            said = fields.get("message")
            if met and isinstance(said, str):
                said = f"{said[:800].rstrip()} (filtered for {', '.join(met)})"
            fields = {**fields, "code": "content_filter", "message": said}
        return super()._error(call, head, fields, may_be_billed=may_be_billed)


def _filters_met(results: Any) -> list[str]:
    if not isinstance(results, dict):
        return []
    return sorted(
        name
        for name, result in results.items()
        if isinstance(result, dict) and result.get("filtered") is True and name.isidentifier() and len(name) <= 64
    )


def _wrapped(messages: Any) -> Any:
    """Azure wants `{"image_url": {"url": …}}`; a string, which others take, is wrapped. What holds none is returned as
    it is. https://learn.microsoft.com/azure/ai-foundry/openai/how-to/gpt-with-vision"""
    if not isinstance(messages, list):
        return messages
    wrapped = [_wrapped_message(message) for message in messages]
    return messages if all(one is other for one, other in zip(wrapped, messages, strict=True)) else wrapped


def _wrapped_message(message: Any) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list) or not any(_is_bare(part) for part in content):
        return message
    parts = [{**part, "image_url": {"url": part["image_url"]}} if _is_bare(part) else part for part in content]
    return {**message, "content": parts}


def _is_bare(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image_url" and isinstance(part.get("image_url"), str)
