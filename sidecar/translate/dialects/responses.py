"""OpenAI's Responses API as a client speaks it. It is passed on as it is, so only to providers that have it.

Neighbours: `responses_native` (the way to such a provider and back), `providers/responses.py` (the other direction: a
chat client in front of a model that answers here alone).
https://platform.openai.com/docs/api-reference/responses/create
https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from sidecar.errors import BadRequestError, SidecarError
from sidecar.translate.dialects.base import Dialect, Sniffer
from sidecar.translate.estimate import BASE_TOKENS, LIKELY, TOOL_TOKENS, picture_rates
from sidecar.translate.media_bounds import FILE_TOKENS, Rates, file_tokens, is_inline, sound_tokens
from sidecar.translate.provider import Provider
from sidecar.translate.usage import NOT_JSON, AnswerReader, usage_from_openai
from sidecar.types import Deployment, Usage

CAP_FIELD = "max_output_tokens"
END_KINDS = ("response.completed", "response.incomplete", "response.failed")
_END_LINES = tuple(
    f"{before}{kind}".encode()
    for before in ("event: ", "event:", 'data: {"type":"', 'data: {"type": "', 'data:{"type":"')
    for kind in END_KINDS
)
_END = re.compile(rb"(?:\A|[\r\n])(" + b"|".join(map(re.escape, _END_LINES)) + rb")")
CONTEXT_TOKENS = 1_050_000
"""No model of the vendor's reads more, so nothing it keeps brings more along.
https://platform.openai.com/docs/models/gpt-4.1"""
THOUGHT_TOKENS = 128_000
"""No model of the vendor's writes more at once, so no item of reasoning that it keeps is longer.
https://platform.openai.com/docs/models/gpt-5"""
_TEMPLATE_TOKENS = FILE_TOKENS
"""Of a prompt kept at the provider, whose size is not known here."""


def _parts(payload: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What is within input items: of messages, and of what tools gave."""
    items = payload.get("input")
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        for name in ("content", "output"):
            found = item.get(name)
            for part in found if isinstance(found, list) else (found,):
                if isinstance(part, dict):
                    yield part


def is_reference(item: Any) -> bool:
    """An item kept at the provider. One with nothing but an id is a reference too, whether or not it says so."""
    if not isinstance(item, dict):
        return False
    kind = item.get("type")
    return kind == "item_reference" or (kind is None and "id" in item and item.get("content") is None)


def _has_references(payload: Mapping[str, Any]) -> bool:
    items = payload.get("input")
    return isinstance(items, list) and any(map(is_reference, items))


def _kept_thoughts(payload: Mapping[str, Any]) -> int:
    """Items of reasoning that come without it: the provider puts in what it kept under their ids."""
    items = payload.get("input")
    return sum(
        isinstance(item, dict) and item.get("type") == "reasoning" and not item.get("encrypted_content")
        for item in (items if isinstance(items, list) else ())
    )


def _media_tokens(payload: Mapping[str, Any], rates: Rates) -> tuple[int, int]:
    """(tokens of pictures, files and sound, bytes of their data inside the body)."""
    tokens = inline = 0
    for part in _parts(payload):
        kind = part.get("type")
        data: Any = None
        if kind in ("input_image", "computer_screenshot"):
            url = part.get("image_url")
            data = url if isinstance(url, str) and is_inline(url) else None
            at = rates.at(part.get("detail"))
            tokens += at.picture if data is None else file_tokens(data, at)
        elif kind == "input_file":
            data, name = part.get("file_data"), part.get("filename")
            found = file_tokens(data, rates, name=name if isinstance(name, str) else "") if isinstance(data, str) else 0
            is_named = data is None or part.get("file_id") or part.get("file_url")
            tokens += max(found, FILE_TOKENS) if is_named else found
        elif kind == "input_audio":
            sound = part.get("input_audio")
            data = sound.get("data") if isinstance(sound, dict) else None
            tokens += sound_tokens(data, rates) if isinstance(data, str) else 100
        inline += len(data) if isinstance(data, str) else 0
    return tokens, inline


class Responses(Dialect):
    name = "responses"
    title = "the Responses API"
    paths = ("/v1/responses", "/responses")
    cap_field = CAP_FIELD
    event_mark = b'.delta"'

    def check(self, payload: Mapping[str, Any]) -> None:
        if payload.get("background"):
            raise BadRequestError(
                "The gateway refused the request: it serves no background responses, because it would not see what "
                "they cost. Leave 'background' out; with 'stream': true nothing has to wait.",
                code="background_not_supported",
                param="background",
            )
        for name in ("previous_response_id", "instructions"):
            if payload.get(name) is not None and type(payload[name]) is not str:
                raise BadRequestError(f"The gateway refused the request: '{name}' must be a string.", param=name)
        if payload.get("input") is not None and type(payload["input"]) not in (str, list):
            raise BadRequestError(
                "The gateway refused the request: 'input' must be a string or a list of items.", param="input"
            )

    def input_tokens(self, payload: Mapping[str, Any], raw_len: int, served_by: Sequence[Deployment] = ()) -> int:
        """Without what a previous response brings along: see `response_ids`."""
        extra = BASE_TOKENS
        if payload.get("tools") or payload.get("text"):
            extra += TOOL_TOKENS
        if payload.get("prompt") is not None:
            extra += _TEMPLATE_TOKENS
        if payload.get("conversation") is not None or _has_references(payload):
            extra += CONTEXT_TOKENS
        elif thoughts := _kept_thoughts(payload):
            extra += min(CONTEXT_TOKENS, thoughts * THOUGHT_TOKENS)
        tokens, inline = _media_tokens(payload, picture_rates(payload.get("model"), served_by))
        return max(0, raw_len - inline) + extra + tokens

    def likely_tokens(self, payload: Mapping[str, Any], raw_len: int) -> int:
        tokens, inline = _media_tokens(payload, LIKELY)
        return max(0, raw_len - inline) // 3 + BASE_TOKENS + tokens

    def output_tokens(self, payload: Mapping[str, Any]) -> int | None:
        cap = payload.get(CAP_FIELD)
        return cap if type(cap) is int and cap > 0 else None

    def beginning(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        tools, given = payload.get("tools"), payload.get("input")
        items = given if isinstance(given, list) else [{"role": "user", "content": given}]
        return {
            "prompt_cache_key": payload.get("prompt_cache_key"),
            "tools": [{"function": tool} for tool in tools] if isinstance(tools, list) else None,
            "messages": [{"role": "system", "content": payload.get("instructions")}, *items],
        }

    def speaker(self, provider: Provider) -> Provider:
        from sidecar.translate.dialects.responses_native import native

        return native(provider)

    def sniffer(self, *, is_stream: bool) -> Sniffer:
        return ResponsesSniffer(is_stream=is_stream)

    def end_at(self, body: bytes) -> int:
        found = _END.search(body)
        if found is not None:
            return found.start(1)
        line = max(body.rfind(b"\n"), body.rfind(b"\r")) + 1
        rest = body[line:]
        return line if rest and any(mark.startswith(rest) for mark in _END_LINES) else -1

    def error_event(self, error: SidecarError, after: object = None) -> bytes:
        """The fields flat, as OpenAI documents the event, and under `error`, as its servers send it: on that the stock
        SDK raises. https://platform.openai.com/docs/api-reference/responses-streaming/error
        https://github.com/openai/openai-dotnet/issues/881"""
        number = getattr(after, "number", 0)
        event = {
            "type": "error",
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "sequence_number": number,
            **error.body(),
        }
        return b"event: error\ndata: " + _encoded(event) + b"\n\n"

    def event_of(self, body: bytes) -> bytes:
        try:
            whole = msgspec.json.decode(body)
        except NOT_JSON:
            return super().event_of(body)
        if isinstance(whole, dict) and isinstance(whole.get("error"), dict):
            fields = {name: whole["error"].get(name) for name in ("code", "message", "param")}
            return (
                b"event: error\ndata: " + _encoded({"type": "error", "sequence_number": 0, **fields, **whole}) + b"\n\n"
            )
        return super().event_of(body)


def _encoded(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


class _View(msgspec.Struct, gc=False):
    type: str = ""
    usage: Any = None
    response: Any = None


_decode = msgspec.json.Decoder(_View).decode


class ResponsesSniffer(AnswerReader):
    """Usage stands at the top of an answer, or in the response its last event carries."""

    __slots__ = ()

    def _event(self, name: bytes, content: bytes) -> None:
        if b'"usage"' not in content:
            return
        view = _decode(content)
        if (view.type or name.decode("latin-1")) in END_KINDS and isinstance(view.response, dict):
            self._usage = usage_from_openai(view.response.get("usage"))

    def _whole(self, body: bytes) -> Usage:
        return usage_from_openai(_decode(body).usage)


RESPONSES = Responses()
