"""A Responses client in front of a provider that has the Responses API: all passes but for what has to differ.

On the way in: the model's name, the output cap, the deployment's own defaults, and the previous response's id, which is
the gateway's on the client's side (`ids` of the call) and the provider's on the other. On the way out: the ids again.
What would reach what another caller keeps at the provider's account is refused by name, unless the deployment's
`allowed_params` say otherwise.
https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from sidecar.errors import BadRequestError, NotFoundError, ProviderError, UpstreamBrokenError
from sidecar.translate.dialects.responses import CAP_FIELD, is_reference
from sidecar.translate.framing import Event
from sidecar.translate.provider import Call, Head, Provider, Reply, StreamTranslator, UpstreamRequest, refuse_smuggling
from sidecar.translate.provider_errors import error_fields
from sidecar.translate.providers.openai import OpenAIDialect
from sidecar.translate.providers.responses import Responses
from sidecar.translate.usage import NOT_JSON, usage_from_openai
from sidecar.types import UNKNOWN_USAGE, Usage

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode = msgspec.json.decode
_encode = msgspec.json.encode

_DEFAULTS = frozenset(
    (
        *("include", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "parallel_tool_calls"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning", "safety_identifier"),
        *("service_tier", "store", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p"),
        "truncation",
    )
)
"""What a deployment's `params` may set in a request that does not."""
_CAPS = ("max_output_tokens", "max_completion_tokens", "max_tokens")
_QUIET = frozenset(
    (
        *("response.created", "response.in_progress", "response.queued"),
        *("response.content_part.added", "response.reasoning_summary_part.added"),
    )
)
"""Events before the content, besides the beginnings of messages and thoughts."""


@lru_cache
def native(provider: Provider) -> Native:
    """Of a provider with `responses` among its `endpoints`."""
    assert isinstance(provider, OpenAIDialect)
    return Native(provider)


class Native(Responses):
    name = "openai-responses"
    is_same_dialect = True
    passes_unknown = True

    def __init__(self, owner: OpenAIDialect) -> None:
        super().__init__(None if isinstance(owner, Responses) else owner)
        self._of = owner

    def responses_at(self, options: Mapping[str, str]) -> tuple[str, str]:
        return self._of.responses_at(options)

    def request(self, call: Call) -> UpstreamRequest:
        payload = call.payload
        refuse_smuggling(payload)
        for name, what in _reaches_out(payload):
            if name not in call.allowed_params:
                raise BadRequestError(
                    f"The gateway refused the request: '{what}' names something kept at the provider, and the gateway "
                    "does not know whose it is. Use 'previous_response_id', or send the items themselves. An operator "
                    f"whose clients may share such things lists '{name}' in the deployment's allowed_params.",
                    code="owner_unknown",
                    param=what,
                )
        changes: dict[str, Any] = {}
        for name, value in call.params.items():
            if name in _DEFAULTS and payload.get(name) is None:
                changes[name] = value
            elif name == "reasoning_effort" and payload.get("reasoning") is None and "reasoning" not in call.params:
                changes["reasoning"] = {"effort": value}
        if payload.get(CAP_FIELD) is None and (cap := _own_cap(call.params)) is not None:
            changes[CAP_FIELD] = cap
        if "output_cap" in call.edits:
            changes[CAP_FIELD] = call.edits["output_cap"]
        model = call.edits.get("model", call.model)
        if model and payload.get("model") != model:
            changes["model"] = model
        if payload.get("previous_response_id") is not None:
            if call.ids is None or call.ids.previous is None:
                raise not_found(payload["previous_response_id"])
            changes["previous_response_id"] = call.ids.previous[1]
        try:
            # Written anew: the provider reads what was judged here, whatever is in the client's bytes twice.
            body = _encode({**payload, **changes})
        except (*NOT_JSON, TypeError, OverflowError) as error:
            raise BadRequestError(
                "The gateway refused the request: its body is nested too deeply, not valid UTF-8, or holds a number "
                "that is too large."
            ) from error
        path, query = self.responses_at(call.options)
        return UpstreamRequest(path, body, [(b"content-type", b"application/json")], query)

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        try:
            fields = _decode_fields(body)
            error = _decode(fields["error"]) if "error" in fields else None
            status = _decode(fields["status"])
            if error:
                raise self.failure(call, error)
            if status not in ("completed", "incomplete") or not bytes(fields["output"]).startswith(b"["):
                raise ValueError(status)
            usage = usage_from_openai(_decode(fields["usage"])) if "usage" in fields else UNKNOWN_USAGE
            changed = outward(call, fields, usage)
        except (*NOT_JSON, TypeError, AttributeError, KeyError, ValueError) as error:
            raise UpstreamBrokenError(
                f"Provider {self.name} answered {head.status} with a body that is not a whole response."
            ) from error
        return Reply(body=_encode(changed) if changed is not None else body, usage=usage)

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        return NativeStream(self, call)

    def _error(self, call: Call, head: Head, fields: dict[str, Any], *, may_be_billed: bool) -> ProviderError:
        error = super()._error(call, head, fields, may_be_billed=may_be_billed)
        if call.ids is not None and call.ids.previous is not None:
            ours, theirs = call.ids.previous
            error.message = error.message.replace(theirs, ours)
        return error


def _reaches_out(payload: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what an operator may allow, where it is)."""
    for name in ("conversation", "prompt"):
        if payload.get(name) is not None:
            yield name, name
    items = payload.get("input")
    for number, item in enumerate(items) if isinstance(items, list) else ():
        if is_reference(item):
            yield "item_reference", f"input[{number}]"
    tools = payload.get("tools")
    for number, tool in enumerate(tools) if isinstance(tools, list) else ():
        if isinstance(tool, dict):
            place = tool.get("environment")
            if isinstance(tool.get("container"), str) or (isinstance(place, dict) and place.get("container_id")):
                yield "container", f"tools[{number}]"
    options = payload.get("prompt_cache_options")
    if isinstance(options, dict) and options.get("comparison_response_id") is not None:
        yield "comparison_response_id", "prompt_cache_options.comparison_response_id"


def _own_cap(params: Mapping[str, Any]) -> Any:
    return next((params[name] for name in _CAPS if params.get(name) is not None), None)


def not_found(response_id: object) -> NotFoundError:
    """In OpenAI's words."""
    return NotFoundError(
        f"Previous response with id '{str(response_id)[:256]}' not found.",
        code="previous_response_not_found",
        param="previous_response_id",
    )


def outward(call: Call, fields: dict[str, msgspec.Raw], usage: Usage = UNKNOWN_USAGE) -> dict[str, Any] | None:
    """A response with the ids its client knows; `None`: it has them already."""
    if call.ids is None:
        return None
    changed: dict[str, Any] = {}
    found = _decode(fields["id"]) if "id" in fields else None
    if isinstance(found, str):
        changed["id"] = call.ids.outward(found, usage.total if usage.is_known else None)
    if call.ids.previous is not None and _decode(fields.get("previous_response_id", b"null")) == call.ids.previous[1]:
        changed["previous_response_id"] = call.ids.previous[0]
    return {**fields, **changed}


class _View(msgspec.Struct, gc=False):
    type: str = ""
    sequence_number: Any = None
    item: Any = None
    response: msgspec.Raw = msgspec.Raw(b"null")


_decode_view = msgspec.json.Decoder(_View).decode


class NativeStream(StreamTranslator):
    """Events pass byte for byte, but for those that carry the response and so its id. The last one is given by `end`:
    it goes out when the row is written. `number` is the last event's."""

    __slots__ = ("_call", "_last", "_provider", "number")

    def __init__(self, provider: Native, call: Call) -> None:
        super().__init__(provider.name)
        self._provider = provider
        self._call = call
        self._last = b""
        self.number = 0

    def on_event(self, event: Event) -> bytes:
        name, data, raw = event
        if data is None:
            return raw
        if data.strip() == b"[DONE]":
            return b""  # says nothing here: a response ends with itself
        view = _decode_view(data)
        kind = view.type or name.decode("latin-1")
        if type(view.sequence_number) is int:
            self.number = view.sequence_number + 1
        if kind == "response.failed" or kind == "error" or not kind:
            self._fail(view, data)
        if bytes(view.response) == b"null":
            if not self.content_started and kind.startswith("response."):
                self.content_started = kind not in _QUIET and not _is_beginning(kind, view.item)
            if kind in ("response.completed", "response.incomplete"):
                raise self.broken("ended the stream without a response")
            return raw
        fields = _decode_fields(view.response)
        if kind not in ("response.completed", "response.incomplete"):
            return self._with_ids(event, fields)
        if not bytes(fields["output"]).startswith(b"["):
            raise self.broken("ended the stream without a response")
        found = usage_from_openai(_decode(fields["usage"])) if "usage" in fields else UNKNOWN_USAGE
        if found.is_known:
            self.usage = found
        self._last = self._with_ids(event, fields)
        self.content_started = self.is_complete = True
        return b""

    def on_end(self) -> bytes:
        return self._last

    def _with_ids(self, event: Event, fields: dict[str, msgspec.Raw]) -> bytes:
        name, data, raw = event
        changed = outward(self._call, fields)
        if changed is None or data is None:
            return raw if raw.endswith((b"\n\n", b"\r\r", b"\r\n\r\n")) else raw.rstrip(b"\r\n") + b"\n\n"
        head = b"event: " + name + b"\n" if name else b""
        return head + b"data: " + _encode({**_decode_fields(data), "response": changed}) + b"\n\n"

    def _fail(self, view: _View, data: bytes) -> None:
        """https://platform.openai.com/docs/api-reference/responses-streaming/error"""
        response = _decode(view.response)
        if isinstance(response, dict):
            found = usage_from_openai(response.get("usage"))
            if found.is_known:
                self.usage = found
            raise self._provider.failure(self._call, response.get("error"))
        fields = error_fields(data)
        if view.type or "message" in fields:
            raise self._provider.failure(self._call, fields)
        raise self.broken("sent an event of no kind")


def _is_beginning(kind: str, item: Any) -> bool:
    return (
        kind == "response.output_item.added" and isinstance(item, dict) and item.get("type") in ("message", "reasoning")
    )
