"""IBM watsonx.ai by its own text chat API: OpenAI's dialect but for names, paths and the end of streams.

The key is exchanged for a token (`upstream.auth`). `project` of the deployment is its `project_id`, a `space_id` stands
in `params`; a model `deployment/ID` is one deployed to a space, which needs neither.
https://cloud.ibm.com/apidocs/watsonx-ai#text-chat · https://cloud.ibm.com/apidocs/watsonx-ai#text-chat-stream
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from sidecar.errors import BadRequestError, ErrorKind, ProviderError
from sidecar.translate.content import messages_of
from sidecar.translate.fields import Drop, dropper
from sidecar.translate.framing import Event
from sidecar.translate.nested import NestedFields
from sidecar.translate.provider import Auth, Call, Head, StreamTranslator, UpstreamRequest
from sidecar.translate.provider_errors import error_fields, kind_by_words, kind_of_status, make_error
from sidecar.translate.providers.openai import OpenAIStream, wants_usage
from sidecar.translate.providers.reshaped import ReshapedDialect, ReshapedStream, choices_of

VERSION = "2024-10-08"
"""Of the API, where the deployment has no `api_version`."""
DEPLOYED = "deployment/"

_KINDS: dict[str, ErrorKind] = {
    "authentication_token_expired": "authentication",
    "authentication_token_not_valid": "authentication",
    "authorization_rejected": "permission",
    "user_not_authorized": "permission",
    "no_associated_service_instance_error": "permission",
    "model_not_supported": "not_found",
    "model_no_support_for_function": "not_found",
    "model_not_found": "not_found",
    "deployment_not_found": "not_found",
    "rate_limit_reached_requests": "rate_limit",
    "consumption_limit_reached": "rate_limit",
    "token_quota_reached": "quota",
    "instance_quota_exceeded": "quota",
    "downstream_request_failed": "server",
    "model_overloaded": "overloaded",
}
"""By `errors[0].code`; others by status. https://cloud.ibm.com/apidocs/watsonx-ai#error-handling"""
_NO_FIELD = "watsonx.ai has no such field; remove it."
_USE_TOOLS = "Use tools and tool_choice."
_PASSED = (
    *("frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "n", "presence_penalty"),
    *("reasoning_effort", "response_format", "seed", "temperature", "tools", "top_logprobs", "top_p"),
    # Not OpenAI's, but IBM's own:
    *("time_limit", "include_reasoning", "chat_template_kwargs", "repetition_penalty", "length_penalty"),
    *("guided_choice", "guided_regex", "guided_grammar", "guided_json"),
)


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: str | None = None


class _Choices(msgspec.Struct, gc=False):
    choices: list[_Choice] = []


_decode_choices = msgspec.json.Decoder(_Choices).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ODD_CHUNK = re.compile(rb'"finish_reason"\s*:\s*"|"content"\s*:\s*""')
"""What a chunk holds that is not reshaped by its names alone."""


_NESTED = NestedFields("watsonx.ai")


def _raw(value: str | int) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


_CHUNK = _raw("chat.completion.chunk")


class Watsonx(ReshapedDialect):
    name = "watsonx"
    auth: Auth = "ibm"
    takes_options = ("project", "api_version")
    api_key_env = "WATSONX_API_KEY"
    docs_url = "https://cloud.ibm.com/apidocs/watsonx-ai#text-chat"
    passes_unknown = False
    is_same_dialect = False
    forces_usage = False
    takes_both_caps = True
    params: Mapping[str, str] = {
        **dict.fromkeys(_PASSED, "passed"),
        "model": "mapped to model_id, or to the path (deployment/ID)",
        "messages": "mapped: role developer is system; role function is refused",
        "stop": "mapped to a list",
        "stream": "mapped to the path",
        "stream_options": "mapped: include_usage is what happens anyway",
        "tool_choice": "mapped: words to tool_choice_option; allowed_tools are the only ones sent",
    }
    unsupported: Mapping[str, str] = {
        **dict.fromkeys(
            (
                *("audio", "metadata", "modalities", "moderation", "parallel_tool_calls", "prediction"),
                *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"),
                *("service_tier", "store", "user", "verbosity", "web_search_options"),
            ),
            _NO_FIELD,
        ),
        "function_call": _USE_TOOLS,
        "functions": _USE_TOOLS,
    }
    odd = re.compile(rb'"(?:model_id|choices)"')

    def changes(self, call: Call) -> tuple[dict[str, Any], set[str], list[str]]:
        changes, removed, dropped = super().changes(call)
        model = str(changes.pop("model", call.payload.get("model")))
        removed |= {"model", "stream", "stream_options"}
        if not model.startswith(DEPLOYED):
            changes["model_id"] = model
            if project := call.options.get("project"):
                changes.setdefault("project_id", project)
        given: Any = changes.get("messages", call.payload.get("messages"))
        messages = [
            {**message, "role": "system"} if role == "developer" else message for role, message, _ in messages_of(given)
        ]
        if any(one is not other for one, other in zip(messages, given, strict=True)):
            changes["messages"] = messages
        if isinstance(stop := call.payload.get("stop"), str):
            changes["stop"] = [stop]
        if call.payload.get("tool_choice") is not None:
            _choose(call.payload, changes, removed, dropper(self, call, dropped))
        return changes, removed - changes.keys(), dropped

    def request(self, call: Call) -> UpstreamRequest:
        sent = super().request(call)
        model = str(call.edits.get("model", call.model))
        method = "chat_stream" if call.is_stream else "chat"
        folder = f"/deployments/{quote(model.removeprefix(DEPLOYED), safe='')}" if model.startswith(DEPLOYED) else ""
        sent.path = f"/ml/v1{folder}/text/{method}"
        sent.query = f"version={quote(call.options.get('api_version') or VERSION, safe='')}"
        return sent

    def reshape(self, call: Call, answer: dict[str, Any], is_chunk: bool) -> None:
        model = answer.pop("model_id", None)
        answer.setdefault("id", f"chatcmpl-{call.exchange_id}")
        answer.setdefault("object", "chat.completion.chunk" if is_chunk else "chat.completion")
        answer.setdefault("created", int(call.now))
        answer.setdefault("model", model or call.model)
        for choice, message in choices_of(answer, is_chunk):
            if message.get("content") == "":
                if is_chunk and "role" not in message:
                    del message["content"]  # text of a turn that may hold tool calls alone
                elif message.get("tool_calls"):
                    message["content"] = None
            reason = choice.get("finish_reason")
            if reason == "error":
                raise self.stated(call, {"message": "the model broke off"})
            if reason in ("time_limit", "cancelled"):
                choice["finish_reason"] = "length" if reason == "time_limit" else "stop"
                choice["native_finish_reason"] = reason

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        return WatsonxStream(self, call, not wants_usage(call.payload))

    def error(self, call: Call, head: Head, body: bytes) -> ProviderError:
        return self.told(call, head, error_fields(body), may_be_billed=False)

    def stated(self, call: Call, fields: Any) -> ProviderError:
        """An error event of a stream; `status_code` stands beside the list of errors."""
        found = fields if isinstance(fields, dict) else {"message": fields}
        status = found.get("status_code")
        errors = found.get("errors")
        if isinstance(errors, list) and errors and isinstance(errors[0], dict):
            found = errors[0]
        head = Head(status if isinstance(status, int) and 400 <= status < 600 else 500)
        return self.told(call, head, found, may_be_billed=True)

    def told(self, call: Call, head: Head, fields: dict[str, Any], *, may_be_billed: bool) -> ProviderError:
        code = fields.get("code")
        kind = _KINDS.get(code) if isinstance(code, str) and head.status >= 400 else None
        return make_error(
            self.name,
            head,
            kind=kind_by_words(kind or kind_of_status(head.status), fields.get("message")),
            now=call.now,
            fields=fields,
            keeps_names=False,
            may_be_billed=may_be_billed,
        )


def _choose(payload: Mapping[str, Any], changes: dict[str, Any], removed: set[str], drop: Drop) -> None:
    value = payload["tool_choice"]
    kind = value.get("type") if isinstance(value, dict) else value
    if kind == "function":
        return
    _NESTED.choice(value, drop)
    if kind == "allowed_tools":
        inner = value.get("allowed_tools")
        inner = inner if isinstance(inner, dict) else value
        names = {_name(tool) for tool in inner.get("tools") or ()}
        changes["tools"] = [tool for tool in payload.get("tools") or () if _name(tool) in names]
        kind = inner.get("mode", "auto")
    kind = "required" if kind == "any" else kind
    if kind not in ("auto", "none", "required"):
        raise BadRequestError(
            "The gateway refused the request: 'tool_choice' must be none, auto, required or name a function.",
            code="invalid_request",
            param="tool_choice",
        )
    removed.add("tool_choice")
    changes["tool_choice_option"] = kind


def _name(tool: Any) -> Any:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


class WatsonxStream(ReshapedStream):
    """Ends without a word: it is whole when the body ends after every choice has its finish reason. So the last of
    these and what follows it are written then."""

    __slots__ = ("_created", "_finished", "_held", "_id", "_is_several", "_model", "_seen", "_watsonx")

    def __init__(self, provider: Watsonx, call: Call, is_usage_hidden: bool) -> None:
        super().__init__(provider, call, is_usage_hidden)
        self._watsonx = provider
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self._held = b""
        self._is_several = call.payload.get("n") not in (None, 1)
        self._id = _raw(f"chatcmpl-{call.exchange_id}")
        self._created = _raw(int(call.now))
        self._model = _raw(call.model)

    def on_event(self, event: Event) -> bytes:
        name, data, _ = event
        if name == b"error" and data is not None:
            raise self._watsonx.stated(self._call, msgspec.json.decode(data))
        if data is None or data == b"[DONE]":
            return b""  # its ids and pings mean nothing to OpenAI's clients
        is_odd = _ODD_CHUNK.search(data) is not None
        if is_odd or not self._seen or self._is_several:
            for choice in _decode_choices(data).choices:
                self._seen.add(choice.index)
                if choice.finish_reason:
                    self._finished.add(choice.index)
        if is_odd:
            out = super().on_event((b"", data, b"data: %s\n\n" % data))
        else:
            data = self._renamed(data)
            out = OpenAIStream.on_event(self, (b"", data, b"data: %s\n\n" % data))
        if not self.is_whole():
            return out
        self._held += out
        return b""

    def _renamed(self, data: bytes) -> bytes:
        """What `reshape` does to most chunks, without building what is in them."""
        fields = _decode_fields(data)
        if "choices" not in fields and "model_id" not in fields:
            return data
        model = fields.pop("model_id", None)
        fields.setdefault("id", self._id)
        fields.setdefault("object", _CHUNK)
        fields.setdefault("created", self._created)
        fields.setdefault("model", model or self._model)
        return msgspec.json.encode(fields)

    def is_whole(self) -> bool:
        return bool(self._seen) and self._seen == self._finished

    def on_end(self) -> bytes:
        return self._held + b"data: [DONE]\n\n"
