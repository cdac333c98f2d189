"""Anthropic's stream events as OpenAI chunks.

Rule: the finish chunk is written only at `message_stop`, so a stream that breaks earlier never looks whole; every
chunk carries the same id and time. Text costs one typed decode and one string encode per event.
https://platform.claude.com/docs/en/build-with-claude/streaming
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sidecar.translate.chunks import call_id
from sidecar.translate.framing import Event
from sidecar.translate.provider import Call, StreamTranslator, opening
from sidecar.translate.providers.anthropic_content import pack_blocks
from sidecar.translate.providers.anthropic_extras import cited
from sidecar.translate.providers.anthropic_request import json_tool_name, original_names, uses_json_tool
from sidecar.translate.providers.openai import wants_usage
from sidecar.translate.signatures import pack

if TYPE_CHECKING:
    from sidecar.translate.providers.anthropic import Anthropic


class _Delta(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = ""
    thinking: str | None = ""
    signature: str | None = ""
    partial_json: str | None = ""
    stop_reason: str | None = None
    citation: Any = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    index: int = -1
    delta: _Delta | None = None
    message: Any = None
    content_block: Any = None
    usage: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode
_encode = msgspec.json.encode


class _Block:
    """What is open: its kind, its tool index, and what of it has to be said when it ends."""

    __slots__ = ("citations", "has_arguments", "input", "kind", "signature", "text", "tool_index")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.tool_index = -1
        self.has_arguments = False
        self.input = b""
        self.text: list[str] = []
        self.citations: list[Any] = []
        self.signature = ""


class AnthropicStream(StreamTranslator):
    __slots__ = (
        "_before",
        "_blocks",
        "_call",
        "_cut",
        "_has_content",
        "_has_json_content",
        "_has_role",
        "_has_started",
        "_has_thinking",
        "_head",
        "_held_text",
        "_json_tool",
        "_names",
        "_provider",
        "_said",
        "_stop_reason",
        "_tool_count",
        "_wants_usage",
    )

    def __init__(self, provider: Anthropic, call: Call) -> None:
        super().__init__(provider.name)
        self._provider = provider
        self._call = call
        self._blocks: dict[int, _Block] = {}
        self._json_tool = json_tool_name(call.payload) if uses_json_tool(call) else None
        self._has_json_content = False
        self._before: list[Any] = []  # what stood before the next tool call
        self._said = self._cut = 0  # characters of content, and where its last block ended
        self._has_thinking = False
        self._held_text: list[str] = []
        self._names = original_names(call.payload)
        self._tool_count = 0
        self._stop_reason: str | None = None
        self._has_started = self._has_role = self._has_content = False
        self._head = b""
        self._wants_usage = wants_usage(call.payload)

    def _chunk(self, delta: bytes) -> bytes:
        chunk = b'%s,"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":null}]}\n\n'
        if self._has_role:
            return chunk % (self._head, delta)
        self._has_role = True
        return chunk % (self._head, opening(delta)) + chunk % (self._head, delta)

    def on_event(self, event: Event) -> bytes:
        name, data, _ = event
        if data is None:
            return b""
        parsed = _decode(data)
        kind = parsed.type or name.decode("latin-1")
        if kind == "content_block_delta":
            return self._on_delta(parsed)
        if kind == "ping":
            return b""
        if kind == "error":
            raise self._provider._stated_error(self._call, parsed.error if isinstance(parsed.error, dict) else {})
        if kind == "message_start":
            return self._on_start(parsed)
        if kind == "content_block_start":
            return self._on_block(parsed)
        if kind == "content_block_stop":
            return self._on_block_end(parsed)
        if kind == "message_delta":
            if parsed.delta is not None and parsed.delta.stop_reason is not None:
                self._stop_reason = parsed.delta.stop_reason
            self._add_usage(parsed.usage)
            return b""
        if kind == "message_stop":
            return self._on_stop()
        return b""  # event types may be added; clients are to ignore them

    def _add_usage(self, source: Any) -> None:
        from sidecar.translate.providers.anthropic import merge_usage

        self.usage = merge_usage(source, self.usage)

    def _on_start(self, event: _Event) -> bytes:
        message = event.message
        if self._has_started or not isinstance(message, dict):
            raise self.broken("sent message_start twice or empty")
        call = self._call
        given_id, model = message.get("id"), message.get("model")
        head = {
            "id": given_id if isinstance(given_id, str) and given_id else f"chatcmpl-{call.exchange_id}",
            "object": "chat.completion.chunk",
            "created": int(call.now),
            "model": model if isinstance(model, str) and model else call.model,
        }
        self._head = b"data: " + _encode(head)[:-1]
        self._has_started = True
        self._add_usage(message.get("usage"))
        return b""  # the role is said with what follows

    def _on_block(self, event: _Event) -> bytes:
        start = event.content_block
        if not self._has_started or not isinstance(start, dict) or event.index in self._blocks:
            raise self.broken("sent content before its start, or one block twice")
        kind = start.get("type")
        block = _Block(kind if isinstance(kind, str) else "")
        self._blocks[event.index] = block
        if kind == "text":
            text = start.get("text")
            if isinstance(text, str) and text:
                return self._text(text)
        elif kind == "thinking":
            block.signature = start.get("signature") or ""
            text = start.get("thinking")
            if isinstance(text, str) and text:
                return self._thought(block, text)
        elif kind == "redacted_thinking":
            found = [{"type": kind, "data": start.get("data") or ""}]
            self._before.append(found[0])
            self._has_thinking = True
            self.content_started = True
            return self._chunk(_encode({"thinking_blocks": found}))
        elif kind == "tool_use":
            given = start.get("input")
            block.input = _encode(given) if isinstance(given, dict) and given else b""
            if self._json_tool is not None and start.get("name") == self._json_tool:
                block.kind = "second_json" if self._has_json_content else "json"
                self._has_json_content = True
                return b""
            block.tool_index = self._tool_count
            self._tool_count += 1
            self.content_started = True
            sent = str(start.get("name") or "")
            tool_id = str(start.get("id") or call_id(self._call.exchange_id, block.tool_index))
            if self._has_thinking and self._before:
                tool_id, self._before = pack(tool_id, pack_blocks(self._before)), []
            call = {
                "index": block.tool_index,
                "id": tool_id,
                "type": "function",
                "function": {"name": self._names.get(sent, sent), "arguments": ""},
            }
            return self._chunk(_encode({"tool_calls": [call]}))
        return b""

    def _text(self, text: str | None) -> bytes:
        if self._json_tool is None:
            self._said += len(text or "")
            return self._content(text)
        # The answer is the tool's input, which text beside it would spoil; without that call the text is the answer.
        self._held_text.append(text or "")
        return b""

    def _content(self, text: str | None) -> bytes:
        if not text:
            return b""
        self.content_started = self._has_content = True
        return self._chunk(b'{"content":%s}' % _encode(text))

    def _thought(self, block: _Block, text: str | None) -> bytes:
        if not text:
            return b""
        block.text.append(text)
        self.content_started = True
        return self._chunk(b'{"reasoning_content":%s}' % _encode(text))

    def _on_delta(self, event: _Event) -> bytes:
        block = self._blocks.get(event.index)
        delta = event.delta
        if block is None or delta is None:
            raise self.broken("sent a delta for no block")
        kind, sort = block.kind, delta.type
        if kind == "text":
            if sort == "citations_delta":
                block.citations.append(delta.citation)
            return self._text(delta.text) if sort == "text_delta" else b""
        if sort == "input_json_delta" and delta.partial_json:
            if kind == "tool_use":
                block.has_arguments = True
                return self._chunk(
                    b'{"tool_calls":[{"index":%d,"function":{"arguments":%s}}]}'
                    % (block.tool_index, _encode(delta.partial_json))
                )
            if kind == "json":
                block.has_arguments = True
                return self._content(delta.partial_json)
            return b""
        if kind == "thinking":
            if sort == "thinking_delta":
                return self._thought(block, delta.thinking)
            if sort == "signature_delta":
                block.signature += delta.signature or ""
        return b""

    def _on_block_end(self, event: _Event) -> bytes:
        block = self._blocks.pop(event.index, None)
        if block is None:
            raise self.broken("ended a block it had not begun")
        if block.kind == "thinking":
            whole = {"type": "thinking", "thinking": "".join(block.text), "signature": block.signature}
            self._before.append(whole)
            self._has_thinking = True
            return self._chunk(_encode({"thinking_blocks": [whole]}))
        if block.kind == "text" and self._said > self._cut:
            start, self._cut = self._cut, self._said
            self._before.append(self._said)
            if block.citations and (notes := cited(block.citations, start, self._said)):
                return self._chunk(_encode({"annotations": notes}))
        if block.has_arguments:
            return b""
        if block.kind == "tool_use":
            return self._chunk(
                b'{"tool_calls":[{"index":%d,"function":{"arguments":%s}}]}'
                % (block.tool_index, _encode((block.input or b"{}").decode()))
            )
        if block.kind == "json":
            return self._content((block.input or b"{}").decode())
        return b""

    def _on_stop(self) -> bytes:
        from sidecar.translate.providers.anthropic import finish_reason, openai_usage

        if not self._has_started or self._stop_reason is None or self._blocks:
            raise self.broken("ended the stream without a whole message")
        self.is_complete = True
        held = b"" if self._has_json_content else self._content("".join(self._held_text))
        if not self._has_content and not self._tool_count:
            held += self._chunk(b'{"content":""}')
        reason = finish_reason(self._stop_reason, self._tool_count > 0).encode()
        out = b'%s%s,"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"%s"}]}\n\n' % (
            held,
            self._head,
            reason,
        )
        if self._wants_usage and self.usage.is_known:
            out += b'%s,"choices":[],"usage":%s}\n\n' % (self._head, _encode(openai_usage(self.usage)))
        return out + b"data: [DONE]\n\n"
