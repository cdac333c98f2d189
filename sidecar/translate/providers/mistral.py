"""Mistral (La Plateforme, Codestral): OpenAI's dialect with a closed schema, ids of nine characters, content in parts.

Neighbours: `mistral_request` (what its messages and tools may hold), `reshaped` (answers put right). Bytes pass where
nothing has to change. https://docs.mistral.ai/api/endpoint/chat
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.errors import ErrorKind, ProviderError
from sidecar.translate.content import bad
from sidecar.translate.fields import dropper
from sidecar.translate.provider import OPENAI_CHAT_FIELDS, Call, Head
from sidecar.translate.provider_errors import error_fields, make_error
from sidecar.translate.providers.mistral_request import NAMES, sent_choice, sent_id, sent_messages, sent_tools
from sidecar.translate.providers.reshaped import ReshapedDialect, choices_of, say
from sidecar.translate.tool_names import tool_names

_NO_FIELD = "Mistral's schema has no such field; remove it."
_USE_TOOLS = "Use tools and tool_choice."
_OWN = (
    *("safe_prompt", "prompt_mode", "random_seed", "guardrails", "min_tokens", "top_k", "repetition_penalty"),
    *("prompt_logprobs", "top_prompt_logprobs"),
)
_KINDS: dict[str, ErrorKind] = {
    "invalid_model": "not_found",
    "service_tier_capacity_exceeded": "rate_limit",
    "rate_limited": "rate_limit",
    "unauthorized": "authentication",
}
"""https://docs.mistral.ai/resources/error-glossary"""
_TOO_LONG = "prompt contains "
"""It has no code of its own: "Prompt contains N tokens …, too large for model with M maximum context length"."""


class Mistral(ReshapedDialect):
    name = "mistral"
    default_base_url = "https://api.mistral.ai/v1"
    api_key_env = "MISTRAL_API_KEY"
    docs_url = "https://docs.mistral.ai/api/endpoint/chat"
    passes_unknown = False
    forces_usage = False
    """It comes unasked, in the last chunk."""
    renames: Mapping[str, str] = {"seed": "random_seed"}
    unsupported: Mapping[str, str] = {
        "audio": _NO_FIELD,
        "function_call": _USE_TOOLS,
        "functions": _USE_TOOLS,
        "logit_bias": _NO_FIELD,
        "modalities": _NO_FIELD,
        "moderation": "Use guardrails.",
        "prompt_cache_options": _NO_FIELD,
        "prompt_cache_retention": _NO_FIELD,
        "safety_identifier": _NO_FIELD,
        "store": _NO_FIELD,
        "user": _NO_FIELD,
        "verbosity": _NO_FIELD,
        "web_search_options": "Use Mistral's own tools.",
    }
    params: Mapping[str, str] = {
        **dict.fromkeys(OPENAI_CHAT_FIELDS - unsupported.keys(), "passed"),
        **dict.fromkeys(_OWN, "passed"),
        "model": "mapped to the deployment's model",
        "messages": "mapped (ids, documents, sound, thinking, prefills); role function is refused",
        "max_completion_tokens": "sent as max_tokens",
        "prediction": "mapped: its parts as one text",
        "seed": "sent as random_seed",
        "stream_options": "mapped: include_usage is what happens anyway",
        "tools": "mapped: parameters are required",
        "tool_choice": "passed; allowed_tools are the only ones sent",
    }
    odd = re.compile(rb'"content"\s*:\s*\[|"tool_calls"\s*:\s*\[|"model_length"')

    def changes(self, call: Call) -> tuple[dict[str, Any], set[str], list[str]]:
        changes, removed, dropped = super().changes(call)
        payload = call.payload
        drop = dropper(self, call, dropped, hints=("cache_control",))
        names = tool_names(payload, NAMES)
        given: Any = changes.get("messages", payload.get("messages"))
        messages = sent_messages(given, names, drop)
        if len(messages) != len(given) or any(one is not other for one, other in zip(messages, given, strict=True)):
            changes["messages"] = messages
        tools = changes.get("tools", payload.get("tools"))
        if tools is not None:
            sent = sent_tools(tools, names, drop)
            choice, sent = sent_choice(payload.get("tool_choice"), sent, names, drop)
            if sent is not tools:
                changes["tools"] = sent
            if choice is not payload.get("tool_choice"):
                changes["tool_choice"] = choice
        prediction = payload.get("prediction")
        if isinstance(prediction, dict) and isinstance(prediction.get("content"), list):
            texts = [part.get("text") if isinstance(part, dict) else None for part in prediction["content"]]
            said = [text for text in texts if isinstance(text, str)]
            if len(said) != len(texts):
                raise bad("'prediction.content' must be text or a list of texts.", "prediction.content")
            changes["prediction"] = {"type": "content", "content": "".join(said)}
        return changes, removed - changes.keys(), sorted(dropped)

    def reshape(self, call: Call, answer: dict[str, Any], is_chunk: bool) -> None:
        names = tool_names(call.payload, NAMES)
        for choice, message in choices_of(answer, is_chunk):
            if choice.get("finish_reason") == "model_length":
                choice["finish_reason"] = "length"
            for index, tool in enumerate(message.get("tool_calls") or ()):
                tool.setdefault("type", "function")
                tool.setdefault("index", index)
                function = tool["function"]
                if tool.get("id") in (None, "null", ""):
                    if is_chunk and not function.get("name"):
                        tool.pop("id", None)  # more of a call that has one: clients add up what is repeated
                    else:
                        tool["id"] = sent_id(f"{call.exchange_id}.{tool['index']}")
                if isinstance(name := function.get("name"), str):
                    function["name"] = names.original(name)
                if isinstance(function.get("arguments"), dict):
                    function["arguments"] = msgspec.json.encode(function["arguments"]).decode()
            if isinstance(message.get("content"), list):
                _say(message, message["content"], is_chunk)
            elif message.get("tool_calls") and not message.get("content"):
                message["content"] = None

    def _error(self, call: Call, head: Head, fields: dict[str, Any], *, may_be_billed: bool) -> ProviderError:
        stated, message = fields.get("type"), fields.get("message")
        kind = _KINDS.get(stated) if isinstance(stated, str) else None
        if head.status == 400 and isinstance(message, str) and message.lower().startswith(_TOO_LONG):
            kind = "context_window"
        if kind is None or head.status >= 500:
            return super()._error(call, head, fields, may_be_billed=may_be_billed)
        return make_error(
            self.name, head, kind=kind, now=call.now, fields=fields, keeps_names=False, may_be_billed=may_be_billed
        )

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        fields = error_fields(body)
        inner = fields.get("message")
        if isinstance(inner, dict) and "detail" in inner:  # what its schema found wrong
            fields = {**fields, "message": inner["detail"]}
        return self._error(call, head, fields, may_be_billed=False)


def _say(message: dict[str, Any], parts: list[Any], is_chunk: bool) -> None:
    """Text and thinking; references stand in neither. https://docs.mistral.ai/capabilities/reasoning"""
    texts = [part["text"] for part in parts if part.get("type") == "text"]
    thoughts = [
        inner["text"]
        for part in parts
        if part.get("type") == "thinking"
        for inner in part["thinking"]
        if inner.get("type") == "text"
    ]
    say(message, texts, thoughts, is_chunk)
