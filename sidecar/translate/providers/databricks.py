"""Databricks model serving: OpenAI's dialect at `/serving-endpoints`, for its own models and those of others behind it.

Here: content in parts (reasoning beside text), reasoning that goes back with the tool calls it led to, errors by
`error_code`. The `base_url` is `https://WORKSPACE/serving-endpoints`; without a key a service principal asks.
https://docs.databricks.com/aws/en/machine-learning/foundation-model-apis/api-reference
https://docs.databricks.com/aws/en/machine-learning/model-serving/query-reason-models
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sidecar.errors import ErrorKind, ProviderError
from sidecar.translate.provider import OPENAI_CHAT_FIELDS, Call, Head, Keyless, StreamTranslator
from sidecar.translate.provider_errors import kind_by_words, make_error
from sidecar.translate.providers.openai import wants_usage
from sidecar.translate.providers.reshaped import ReshapedDialect, ReshapedStream, choices_of, say
from sidecar.translate.signatures import may_be_packed, pack, unpack

_KINDS: dict[str, ErrorKind] = {
    "BAD_REQUEST": "bad_request",
    "INVALID_PARAMETER_VALUE": "bad_request",
    "MALFORMED_REQUEST": "bad_request",
    "UNAUTHENTICATED": "authentication",
    "PERMISSION_DENIED": "permission",
    "RESOURCE_DOES_NOT_EXIST": "not_found",
    "ENDPOINT_NOT_FOUND": "not_found",
    "NOT_FOUND": "not_found",
    "REQUEST_LIMIT_EXCEEDED": "rate_limit",
    "RESOURCE_EXHAUSTED": "rate_limit",
    "QUOTA_EXCEEDED": "quota",
    "DEADLINE_EXCEEDED": "timeout",
    "TEMPORARILY_UNAVAILABLE": "overloaded",
    "WORKSPACE_TEMPORARILY_UNAVAILABLE": "overloaded",
    "INTERNAL_ERROR": "server",
}
"""https://docs.databricks.com/api/workspace/introduction (Error codes)"""
KIND = "databricks"


class Databricks(ReshapedDialect):
    name = "databricks"
    keyless: Keyless = "databricks"
    default_base_url: str | None = None
    api_key_env = "DATABRICKS_TOKEN"
    docs_url = "https://docs.databricks.com/aws/en/machine-learning/foundation-model-apis/api-reference"
    takes_both_caps = True
    params: Mapping[str, str] = dict.fromkeys(OPENAI_CHAT_FIELDS, "passed") | {
        "model": "mapped to the deployment's model (the endpoint's name)",
        "stream_options": "passed, include_usage forced on streams",
    }
    odd = re.compile(rb'"content"\s*:\s*\[')

    def changes(self, call: Call) -> tuple[dict[str, Any], set[str], list[str]]:
        changes, removed, dropped = super().changes(call)
        if may_be_packed(call.raw):
            given = call.payload.get("messages")
            sent = changes.get("messages", given)
            if isinstance(given, list) and isinstance(sent, list):
                changes["messages"] = [_resumed(one, other) for one, other in zip(given, sent, strict=True)]
        return changes, removed - changes.keys(), dropped

    def reshape(self, call: Call, answer: dict[str, Any], is_chunk: bool) -> None:
        for _, message in choices_of(answer, is_chunk):
            content = message.get("content")
            if isinstance(content, list):
                thoughts = reasoning_of(content)
                say(message, _texts(content), [text for text, _ in thoughts], is_chunk)
                for tool in () if is_chunk else message.get("tool_calls") or ():
                    tool["id"] = packed_id(tool["id"], thoughts)
                    break

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        is_hidden = bool(call.edits.get("include_usage", True)) and not wants_usage(call.payload)
        return DatabricksStream(self, call, is_hidden)

    def _error(self, call: Call, head: Head, fields: dict[str, Any], *, may_be_billed: bool) -> ProviderError:
        code = fields.get("error_code")
        kind = _KINDS.get(code) if isinstance(code, str) else None
        kind = kind_by_words(kind, fields.get("message")) if kind is not None else None
        if kind is None or head.status < 400:
            return super()._error(call, head, fields, may_be_billed=may_be_billed)
        return make_error(
            self.name, head, kind=kind, now=call.now, fields=fields, keeps_names=False, may_be_billed=may_be_billed
        )


class DatabricksStream(ReshapedStream):
    """Keeps the reasoning of the turn until the first tool call, whose id takes it along."""

    __slots__ = ("_has_call", "_thoughts")

    def __init__(self, provider: Databricks, call: Call, is_usage_hidden: bool) -> None:
        super().__init__(provider, call, is_usage_hidden)
        self._thoughts: list[tuple[str, str]] = []
        self._has_call = False

    def on_chunk(self, chunk: dict[str, Any]) -> None:
        for _, delta in choices_of(chunk, True):
            if isinstance(delta.get("content"), list):
                self._thoughts += reasoning_of(delta["content"])
            for tool in delta.get("tool_calls") or ():
                if not self._has_call and tool.get("id"):
                    self._has_call = True
                    tool["id"] = packed_id(tool["id"], self._thoughts)

    def needs_shape(self, data: bytes) -> bool:
        is_first_call = bool(self._thoughts) and not self._has_call and b'"tool_calls"' in data
        return is_first_call or super().needs_shape(data)


def _texts(content: list[Any]) -> list[str]:
    return [part["text"] for part in content if part.get("type") == "text"]


def reasoning_of(content: list[Any]) -> list[tuple[str, str]]:
    """(text, signature) of what a content in parts says of reasoning."""
    return [
        (inner.get("text") or "", inner.get("signature") or "")
        for part in content
        if part.get("type") == "reasoning"
        for inner in part.get("summary") or ()
        if inner.get("type") == "summary_text"
    ]


def packed_id(tool_id: str, thoughts: list[tuple[str, str]]) -> str:
    """Only signed reasoning has to come back."""
    signature = next((signature for _, signature in reversed(thoughts) if signature), "")
    if not signature:
        return tool_id
    return pack(tool_id, {"kind": KIND, "text": "".join(text for text, _ in thoughts), "sig": signature})


def _resumed(given: Any, sent: Any) -> Any:
    """The turn with the reasoning its calls carried, as Databricks said it."""
    calls = given.get("tool_calls") if isinstance(given, dict) else None
    for call in calls if isinstance(calls, list) else ():
        tool_id = call.get("id") if isinstance(call, dict) else None
        _, state = unpack(tool_id) if isinstance(tool_id, str) else ("", None)
        if state is None or state.get("kind") != KIND:
            continue
        summary = {"type": "summary_text", "text": state.get("text", ""), "signature": state.get("sig", "")}
        parts: list[Any] = [{"type": "reasoning", "summary": [summary]}]
        content = sent.get("content")
        if isinstance(content, str) and content:
            parts.append({"type": "text", "text": content})
        elif isinstance(content, list):
            parts += content
        return {**sent, "content": parts}
    return sent
