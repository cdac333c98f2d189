"""Hugging Face: the router to Inference Providers, dedicated Inference Endpoints, and TGI, the server most of them run.

All speak OpenAI's dialect; here is what else they say: errors with an `error_type` or an `estimated_time`, and tool
calls as older TGI gives them. A dedicated endpoint is a deployment's `base_url` (with `/v1`).
https://huggingface.co/docs/inference-providers/tasks/chat-completion
https://huggingface.co/docs/text-generation-inference/reference/api_reference
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.errors import ErrorKind, ProviderError
from sidecar.translate.chunks import call_id
from sidecar.translate.provider import OPENAI_CHAT_FIELDS, Auth, Call, Head
from sidecar.translate.provider_errors import error_fields, make_error
from sidecar.translate.providers.reshaped import ReshapedDialect, choices_of
from sidecar.translate.schema_rules import words
from sidecar.translate.usage import NOT_JSON

_KINDS: dict[str, ErrorKind] = {
    "validation": "bad_request",
    "template_error": "bad_request",
    "tool_error": "bad_request",
    "overloaded": "overloaded",
    "generation": "server",
    "incomplete_generation": "server",
}
"""https://github.com/huggingface/text-generation-inference/blob/main/router/src/infer/mod.rs"""
_TOO_LONG = re.compile(
    r"Input validation error: `inputs` (?:tokens \+ `max_new_tokens` )?must (?:be <=|have less than)"
)
"""TGI's own words; it has no code for it."""
_FINISH = {"eos_token": "stop", "stop_sequence": "stop", "model_length": "length"}
_IGNORES = "TGI ignores it; remove it."
TGI_FIELDS = words(
    """frequency_penalty logprobs max_completion_tokens max_tokens messages model presence_penalty response_format seed
    stop stream stream_options temperature tool_choice tools top_logprobs top_p"""
)
"""What its schema knows and uses; it lets anything else lie."""


class HuggingFace(ReshapedDialect):
    name = "huggingface"
    default_base_url: str | None = "https://router.huggingface.co/v1"
    api_key_env: str | None = "HF_TOKEN"
    docs_url = "https://huggingface.co/docs/inference-providers/tasks/chat-completion"
    params: Mapping[str, str] = dict.fromkeys(OPENAI_CHAT_FIELDS, "passed") | {
        "model": "mapped to the deployment's model (ORG/MODEL:PROVIDER)",
        "stream_options": "passed, include_usage forced on streams",
        "max_completion_tokens": "sent as max_tokens",
    }
    odd = re.compile(rb'"tool_calls"\s*:\s*[\[{]|"(?:eos_token|stop_sequence|model_length)"')

    def reshape(self, call: Call, answer: dict[str, Any], is_chunk: bool) -> None:
        for choice, message in choices_of(answer, is_chunk):
            calls = message.get("tool_calls")
            if isinstance(calls, dict):  # before TGI 3
                calls = message["tool_calls"] = [calls]
            for index, tool in enumerate(calls or ()):
                _settle(call, tool, index, is_chunk)
            reason = choice.get("finish_reason")
            if isinstance(reason, str):
                choice["finish_reason"] = _FINISH.get(reason, reason)
            if calls and not is_chunk:
                message["content"] = message.get("content") or None
                if choice.get("finish_reason") == "stop":
                    choice["finish_reason"] = "tool_calls"

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        try:
            parsed = msgspec.json.decode(body)
        except NOT_JSON:
            parsed = None
        fields = error_fields(body)
        if isinstance(parsed, dict):
            wait = parsed.get("estimated_time")
            if isinstance(wait, (int, float)) and 0 <= wait < 1e6 and head.get(b"retry-after") is None:
                head = Head(head.status, [*head.headers, (b"retry-after", b"%d" % (int(wait) + 1))])  # it is loading
            kind = _KINDS.get(str(parsed.get("error_type")))
            if kind is not None and head.status >= 400:
                message = fields.get("message")
                if kind == "bad_request" and isinstance(message, str) and _TOO_LONG.match(message):
                    kind = "context_window"
                return make_error(self.name, head, kind=kind, now=call.now, fields=fields, keeps_names=False)
        return self._error(call, head, fields, may_be_billed=False)


class TGI(HuggingFace):
    """Text Generation Inference of your own."""

    name = "tgi"
    auth: Auth = "bearer"
    default_base_url: str | None = "http://127.0.0.1:3000/v1"
    api_key_env: str | None = None
    docs_url = "https://huggingface.co/docs/text-generation-inference/reference/api_reference"
    unsupported: Mapping[str, str] = dict.fromkeys(sorted(OPENAI_CHAT_FIELDS - TGI_FIELDS), _IGNORES)
    params: Mapping[str, str] = {name: note for name, note in HuggingFace.params.items() if name in TGI_FIELDS}


def _settle(call: Call, tool: dict[str, Any], index: int, is_chunk: bool) -> None:
    """An id of its own, a type, an index within a stream, and arguments as text."""
    function = tool["function"]
    if tool.get("id") in (None, "", "0", 0) and (function.get("name") or not is_chunk):
        number = tool.get("index")
        tool["id"] = call_id(call.exchange_id, number if isinstance(number, int) else index)
    tool.setdefault("type", "function")
    if is_chunk:
        tool.setdefault("index", index)
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        function["arguments"] = msgspec.json.encode(arguments).decode()
