"""The Responses API's typed events as OpenAI chunks.

Rule: the finish chunk is written only at `response.completed` or `response.incomplete`, so a stream that breaks earlier
never looks whole. Text costs one typed decode and one string encode per event. What an item says only when it is done
(servers that stream no deltas) is said then.
https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sidecar.translate.framing import Event
from sidecar.translate.provider import Call, StreamTranslator, opening
from sidecar.translate.provider_errors import error_fields
from sidecar.translate.providers.openai import wants_usage
from sidecar.translate.providers.responses_answer import (
    BETWEEN_SUMMARIES,
    annotation_of,
    chat_usage,
    finish_reason,
    head_of,
    logprobs_of,
    tool_call,
)
from sidecar.translate.providers.responses_state import Turn
from sidecar.translate.tool_names import OPENAI, tool_names
from sidecar.translate.usage import usage_from_openai

if TYPE_CHECKING:
    from sidecar.translate.providers.responses import Responses


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: str = ""
    output_index: int = -1
    content_index: int = 0
    logprobs: Any = None
    item: Any = None
    annotation: Any = None
    text: str | None = None
    refusal: str | None = None
    response: Any = None


_decode = msgspec.json.Decoder(_Event).decode
_encode = msgspec.json.encode


class _Tool:
    __slots__ = ("has_input", "index", "is_custom")

    def __init__(self, index: int, is_custom: bool) -> None:
        self.index = index
        self.is_custom = is_custom
        self.has_input = False


class ResponsesStream(StreamTranslator):
    __slots__ = (
        "_call",
        "_has_content",
        "_has_role",
        "_head",
        "_names",
        "_part_starts",
        "_provider",
        "_said_parts",
        "_thoughts",
        "_tools",
        "_turn",
        "_wants_usage",
    )

    def __init__(self, provider: Responses, call: Call) -> None:
        super().__init__(provider.name)
        self._provider = provider
        self._call = call
        self._names = tool_names(call.payload, OPENAI)
        self._turn = Turn(provider.name)
        self._tools: dict[int, _Tool] = {}
        self._said_parts: set[tuple[int, int]] = set()  # (output, content) indexes of what was said in deltas
        self._part_starts: dict[tuple[int, int], int] = {}
        self._thoughts = 0  # parts of reasoning said
        self._head = b""
        self._has_role = self._has_content = False
        self._wants_usage = wants_usage(call.payload)

    def _chunk(self, delta: bytes, logprobs: bytes = b"null") -> bytes:
        if not self._head:
            raise self.broken("sent content before response.created")
        chunk = b'%s,"choices":[{"index":0,"delta":%s,"logprobs":%s,"finish_reason":null}]}\n\n'
        if self._has_role:
            return chunk % (self._head, delta, logprobs)
        self._has_role = True
        return chunk % (self._head, opening(delta), b"null") + chunk % (self._head, delta, logprobs)

    def on_event(self, event: Event) -> bytes:
        name, data, _ = event
        if data is None or data == b"[DONE]":
            return b""
        parsed = _decode(data)
        kind = parsed.type or name.decode("latin-1")
        if kind == "response.output_text.delta":
            return self._text(parsed, parsed.delta)
        if kind == "response.function_call_arguments.delta" or kind == "response.custom_tool_call_input.delta":
            return self._input(parsed.output_index, parsed.delta)
        if kind == "response.reasoning_summary_text.delta" or kind == "response.reasoning_text.delta":
            return self._thought(parsed.delta)
        if kind == "response.refusal.delta":
            return self._refusal(parsed, parsed.delta)
        if kind == "response.output_item.added":
            return self._on_item(parsed)
        if kind == "response.output_item.done":
            return self._on_item_end(parsed)
        if kind == "response.content_part.added":
            self._part_starts[parsed.output_index, parsed.content_index] = self._turn.said
            return b""
        if kind == "response.content_part.done":
            self._part_starts.pop((parsed.output_index, parsed.content_index), None)
            self._said_parts.discard((parsed.output_index, parsed.content_index))
            return b""
        if kind == "response.output_text.done" and parsed.text:
            return self._once(parsed, parsed.text, self._text)
        if kind == "response.refusal.done" and parsed.refusal:
            return self._once(parsed, parsed.refusal, self._refusal)
        if kind == "response.reasoning_summary_part.added":
            return self._next_summary()
        if kind == "response.output_text.annotation.added":
            return self._annotation(parsed)
        if kind == "response.created" or kind == "response.in_progress" or kind == "response.queued":
            return self._on_start(parsed)
        if kind == "response.completed" or kind == "response.incomplete":
            return self._on_stop(parsed)
        if kind == "response.failed" or kind == "error" or (not kind and "message" in error_fields(data)):
            raise self._failure(parsed, data)
        return b""  # of tools that run at OpenAI, and kinds yet to come

    def _on_start(self, event: _Event) -> bytes:
        if not isinstance(event.response, dict):
            raise self.broken(f"sent {event.type} without a response")
        if not self._head:
            head = head_of(self._call, event.response, "chat.completion.chunk")
            self._head = b"data: " + _encode(head)[:-1]
        return b""  # the role is said with what follows

    def _text(self, event: _Event, text: str) -> bytes:
        if not text:
            return b""
        place = (event.output_index, event.content_index)
        if place not in self._said_parts:
            self._said_parts.add(place)
            self._part_starts.setdefault(place, self._turn.said)
        self._turn.said += len(text)
        self.content_started = self._has_content = True
        logprobs = b"null"
        if event.logprobs and (tokens := logprobs_of(event.logprobs)):
            logprobs = _encode({"content": tokens, "refusal": None})
        return self._chunk(b'{"content":%s}' % _encode(text), logprobs)

    def _refusal(self, event: _Event, text: str) -> bytes:
        if not text:
            return b""
        self._said_parts.add((event.output_index, event.content_index))
        self.content_started = self._has_content = True
        return self._chunk(b'{"refusal":%s}' % _encode(text))

    def _once(self, event: _Event, text: str, say: Any) -> bytes:
        """A part that came without deltas."""
        if (event.output_index, event.content_index) in self._said_parts:
            return b""
        said: bytes = say(event, text)
        return said

    def _thought(self, text: str) -> bytes:
        if not text:
            return b""
        self._thoughts = self._thoughts or 1
        self.content_started = True
        return self._chunk(b'{"reasoning_content":%s}' % _encode(text))

    def _next_summary(self) -> bytes:
        self._thoughts += 1
        return self._thought(BETWEEN_SUMMARIES) if self._thoughts > 1 else b""

    def _annotation(self, event: _Event) -> bytes:
        start = self._part_starts.get((event.output_index, event.content_index), 0)
        found = annotation_of(event.annotation, start)
        if found is None:
            return b""
        self.content_started = True
        return self._chunk(_encode({"annotations": [found]}))

    def _on_item(self, event: _Event) -> bytes:
        item = event.item
        if not isinstance(item, dict) or item.get("type") not in ("function_call", "custom_tool_call"):
            return b""
        if event.output_index in self._tools:
            raise self.broken("began one tool call twice")
        tool = _Tool(len(self._tools), item["type"] == "custom_tool_call")
        self._tools[event.output_index] = tool
        self.content_started = True
        made = tool_call(item, self._turn, self._names, f"call_{self._call.exchange_id}_{tool.index}")
        kind, key = ("custom", "input") if tool.is_custom else ("function", "arguments")
        tool.has_input = bool(made[kind][key])
        return self._chunk(_encode({"tool_calls": [{"index": tool.index, **made}]}))

    def _input(self, index: int, delta: str) -> bytes:
        tool = self._tools.get(index)
        if tool is None:
            raise self.broken("sent a tool call's input before the call")
        if not delta:
            return b""
        tool.has_input = True
        form = (
            b'{"tool_calls":[{"index":%d,"custom":{"input":%s}}]}'
            if tool.is_custom
            else b'{"tool_calls":[{"index":%d,"function":{"arguments":%s}}]}'
        )
        return self._chunk(form % (tool.index, _encode(delta)))

    def _on_item_end(self, event: _Event) -> bytes:
        item = event.item
        if not isinstance(item, dict):
            raise self.broken("ended an item without it")
        kind = item.get("type")
        if kind == "reasoning":
            self._turn.reasoned(item)
        elif kind == "message":
            self._turn.ended_message(item.get("phase"))
        elif kind in ("function_call", "custom_tool_call"):
            begun = b"" if event.output_index in self._tools else self._on_item(event)
            tool = self._tools[event.output_index]
            if tool.has_input:
                return begun
            given = item.get("input" if tool.is_custom else "arguments")
            return begun + self._input(event.output_index, str(given or ("" if tool.is_custom else "{}")))
        return b""

    def _failure(self, event: _Event, data: bytes) -> Exception:
        """https://platform.openai.com/docs/api-reference/responses-streaming/error"""
        if isinstance(event.response, dict):
            found = usage_from_openai(event.response.get("usage"))
            if found.is_known:
                self.usage = found
            return self._provider.failure(self._call, event.response.get("error"))
        return self._provider.failure(self._call, error_fields(data))

    def _on_stop(self, event: _Event) -> bytes:
        response = event.response
        if not isinstance(response, dict) or not isinstance(response.get("output"), list):
            raise self.broken("ended the stream without a response")
        self._on_start(event)
        found = usage_from_openai(response.get("usage"))
        if found.is_known:
            self.usage = found
        self.is_complete = True
        empty = b"" if self._has_content or self._tools else self._chunk(b'{"content":""}')
        reason = finish_reason(response, bool(self._tools)).encode()
        out = b'%s%s,"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"%s"}]}\n\n' % (
            empty,
            self._head,
            reason,
        )
        if self._wants_usage and self.usage.is_known:
            out += b'%s,"choices":[],"usage":%s}\n\n' % (self._head, _encode(chat_usage(self.usage)))
        return out + b"data: [DONE]\n\n"
