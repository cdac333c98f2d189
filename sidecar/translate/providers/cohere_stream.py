"""Cohere's v2 stream as OpenAI chunks.

Rule: `message-end` carries finish reason and usage and is the end; the finish chunk is written only then.
https://docs.cohere.com/docs/streaming · https://docs.cohere.com/reference/chat-stream
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sidecar.translate.chunks import Chunks, call_id
from sidecar.translate.framing import Event
from sidecar.translate.provider import Call, StreamTranslator
from sidecar.translate.providers.cohere_answer import citations, ending, logprobs, usage_of
from sidecar.translate.providers.openai import wants_usage
from sidecar.translate.tool_names import COHERE as NAMES
from sidecar.translate.tool_names import tool_names

if TYPE_CHECKING:
    from sidecar.translate.providers.cohere import Cohere

_encode = msgspec.json.encode


class _Text(msgspec.Struct, gc=False):
    text: str | None = None
    thinking: str | None = None


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct, gc=False):
    content: _Text | list[Any] | None = None
    tool_plan: str | None = None
    tool_calls: _ToolCall | list[Any] | None = None
    citations: Any = None


class _Delta(msgspec.Struct, gc=False):
    message: _Message | None = None
    finish_reason: str | None = None
    usage: Any = None
    error: Any = None


class _Event(msgspec.Struct, gc=False):
    type: str | None = None
    id: str | None = None
    delta: _Delta | None = None
    logprobs: Any = None
    message: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class CohereStream(StreamTranslator):
    __slots__ = (
        "_arguments",
        "_call",
        "_chunks",
        "_citations",
        "_in_tool",
        "_names",
        "_provider",
        "_tools",
        "_wants_usage",
    )

    def __init__(self, provider: Cohere, call: Call) -> None:
        super().__init__(provider.name)
        self._provider = provider
        self._call = call
        self._names = tool_names(call.payload, NAMES)
        self._chunks: Chunks | None = None
        self._citations: list[Any] = []
        self._tools = 0
        self._in_tool = False
        self._arguments = False
        self._wants_usage = wants_usage(call.payload)

    def on_event(self, event: Event) -> bytes:
        data = event[1]
        if data is None or data == b"[DONE]":
            return b""
        found = _decode(data)
        if found.type is None:
            if found.message is not None:
                raise self._provider.stated_error(self._call, found.message)
            return b""
        if self._chunks is None:
            self._chunks = Chunks(self._call, found.id)
        if found.type == "message-end":
            return self._ended(found.delta or _Delta())
        if found.type == "tool-call-end":
            return self._close()
        message = found.delta.message if found.delta is not None else None
        return self._said(found.type, message, found.logprobs) if message is not None else b""

    def _said(self, kind: str, message: _Message, probs: Any) -> bytes:
        chunks = self._chunks
        assert chunks is not None
        if kind in ("content-delta", "content-start"):
            content = message.content
            if not isinstance(content, _Text):
                return b""
            if content.thinking:
                self.content_started = True
                return chunks.reasoning(content.thinking)
            if content.text:
                self.content_started = True
                return chunks.text(content.text, b"null" if probs is None else _encode(logprobs([probs])))
            return b""
        if kind == "tool-plan-delta" and message.tool_plan:
            self.content_started = True
            return chunks.text(message.tool_plan)
        if kind == "tool-call-start" and isinstance(message.tool_calls, _ToolCall):
            return self._tool(message.tool_calls, chunks)
        if kind == "tool-call-delta" and isinstance(message.tool_calls, _ToolCall):
            function = message.tool_calls.function
            if function is None or not function.arguments:
                return b""
            if not self._in_tool:
                raise self.broken("sent arguments of no tool call")
            self._arguments = True
            return chunks.arguments(self._tools - 1, function.arguments)
        if kind == "citation-start":
            given = message.citations
            self._citations += given if isinstance(given, list) else [given]
        return b""

    def _tool(self, given: _ToolCall, chunks: Chunks) -> bytes:
        function = given.function or _Function()
        out = self._close()
        index, self._tools = self._tools, self._tools + 1
        self._in_tool = self.content_started = True
        self._arguments = bool(function.arguments)
        tool = {
            "id": given.id or call_id(self._call.exchange_id, index),
            "type": "function",
            "function": {
                "name": self._names.original(function.name or ""),
                "arguments": function.arguments or "",
            },
        }
        return out + chunks.tool(index, tool)

    def _close(self) -> bytes:
        """A call without arguments has an empty object."""
        is_bare, self._in_tool = self._in_tool and not self._arguments, False
        assert self._chunks is not None
        return self._chunks.arguments(self._tools - 1, "{}") if is_bare else b""

    def _ended(self, delta: _Delta) -> bytes:
        self.usage = usage_of(delta.usage)
        if delta.error is not None or delta.finish_reason in ("ERROR", "TIMEOUT"):
            raise self._provider.stated_error(self._call, delta.error, delta.finish_reason)
        if delta.finish_reason is None:
            raise self.broken("ended the stream without a finish reason")
        chunks = self._chunks
        assert chunks is not None
        self.is_complete = True
        notes = citations(self._citations)
        out = self._close()
        if notes:
            out += chunks.delta(_encode({"annotations": notes}))
        return out + chunks.end(ending(delta.finish_reason, self._tools > 0), self.usage if self._wants_usage else None)
