"""Converse's stream events as OpenAI chunks.

Rule: the finish chunk is written only at `metadata`, the last event, which has the usage; so a stream that breaks
earlier never looks whole. Text costs one typed decode and one string encode per event.
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStreamOutput.html
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from typing import TYPE_CHECKING, Any

import msgspec

from sidecar.translate.aws_events import AWSEventSplitter
from sidecar.translate.chunks import call_id
from sidecar.translate.framing import Event
from sidecar.translate.provider import Call, StreamTranslator, opening
from sidecar.translate.providers.anthropic_content import pack_blocks
from sidecar.translate.providers.anthropic_request import json_tool_name
from sidecar.translate.providers.bedrock_content import redacted_data
from sidecar.translate.providers.bedrock_errors import stream_error
from sidecar.translate.providers.bedrock_models import shown_model
from sidecar.translate.providers.bedrock_request import names_for, uses_json_tool
from sidecar.translate.providers.openai import wants_usage
from sidecar.translate.signatures import pack

if TYPE_CHECKING:
    from sidecar.translate.providers.bedrock import Bedrock


class _ToolDelta(msgspec.Struct, gc=False):
    input: str = ""


class _ReasoningDelta(msgspec.Struct, gc=False):
    text: str | None = None
    signature: str | None = None
    redactedContent: str | None = None


class _Delta(msgspec.Struct, gc=False):
    text: str | None = None
    toolUse: _ToolDelta | None = None
    reasoningContent: _ReasoningDelta | None = None
    citation: Any = None


class _DeltaEvent(msgspec.Struct, gc=False):
    delta: _Delta
    contentBlockIndex: int


class _ToolStart(msgspec.Struct, gc=False):
    toolUseId: str = ""
    name: str = ""
    type: str | None = None


class _Start(msgspec.Struct, gc=False):
    toolUse: _ToolStart | None = None


class _StartEvent(msgspec.Struct, gc=False):
    start: _Start
    contentBlockIndex: int


class _StopEvent(msgspec.Struct, gc=False):
    contentBlockIndex: int


class _MessageStart(msgspec.Struct, gc=False):
    role: str


class _MessageStop(msgspec.Struct, gc=False):
    stopReason: str


class _Metadata(msgspec.Struct, gc=False):
    usage: Any = None
    serviceTier: Any = None


_decode_delta = msgspec.json.Decoder(_DeltaEvent).decode
_decode_start = msgspec.json.Decoder(_StartEvent).decode
_decode_stop = msgspec.json.Decoder(_StopEvent).decode
_decode_message_start = msgspec.json.Decoder(_MessageStart).decode
_decode_message_stop = msgspec.json.Decoder(_MessageStop).decode
_decode_metadata = msgspec.json.Decoder(_Metadata).decode
_encode = msgspec.json.encode


class _Block:
    """What is open: its kind, its tool index, and what of it has to be said when it ends."""

    __slots__ = ("has_arguments", "kind", "redacted", "signature", "text", "tool_index")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.tool_index = -1
        self.has_arguments = False
        self.text: list[str] = []
        self.signature: list[str] = []
        self.redacted: list[str] = []


def _joined(blobs: list[str]) -> str:
    """One blob that came in pieces, each base64 by itself."""
    if len(blobs) == 1:
        return blobs[0]
    return b2a_base64(b"".join(a2b_base64(blob) for blob in blobs), newline=False).decode()


class BedrockStream(StreamTranslator):
    __slots__ = (
        "_before", "_blocks", "_call", "_cut", "_has_content", "_has_json_content", "_has_role", "_has_thinking",
        "_head", "_held_text", "_json_tool", "_names", "_said", "_stop_reason", "_tool_count", "_wants_usage",
    )  # fmt: skip

    def __init__(self, provider: Bedrock, call: Call) -> None:
        super().__init__(provider.name, AWSEventSplitter())
        self._call = call
        self._blocks: dict[int, _Block] = {}
        self._json_tool = json_tool_name(call.payload) if uses_json_tool(call) else None
        self._has_json_content = False
        self._before: list[Any] = []  # what stood before the next tool call
        self._said = self._cut = 0  # characters of content, and where its last block ended
        self._has_thinking = False
        self._held_text: list[str] = []
        self._names = names_for(call)
        self._tool_count = 0
        self._has_role = self._has_content = False
        self._stop_reason: str | None = None
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
        if name == b"contentBlockDelta":
            return self._on_delta(_decode_delta(data))
        if name.startswith(b"exception:"):
            raise stream_error(self.provider_name, self._call, name[10:], data)
        if name == b"messageStart":
            return self._on_start(_decode_message_start(data))
        if name == b"contentBlockStart":
            return self._on_block(_decode_start(data))
        if name == b"contentBlockStop":
            return self._on_block_end(_decode_stop(data).contentBlockIndex)
        if name == b"messageStop":
            if self._stop_reason is not None or self._blocks or not self._head:
                raise self.broken("ended the message twice or within a block")
            self._stop_reason = _decode_message_stop(data).stopReason
            return b""
        if name == b"metadata":
            return self._on_metadata(_decode_metadata(data))
        return b""  # event types may be added

    def _on_start(self, event: _MessageStart) -> bytes:
        if self._head or event.role != "assistant":
            raise self.broken("began a message twice or for another role")
        call = self._call
        head = {
            "id": f"chatcmpl-{call.exchange_id}",
            "object": "chat.completion.chunk",
            "created": int(call.now),
            "model": shown_model(call),
        }
        self._head = b"data: " + _encode(head)[:-1]
        return b""  # the role is said with what follows

    def _open(self, index: int, kind: str) -> _Block:
        block = self._blocks.get(index)
        if block is None:
            if not self._head or self._stop_reason is not None:
                raise self.broken("sent content outside of the message")
            block = self._blocks[index] = _Block(kind)
        return block

    def _on_block(self, event: _StartEvent) -> bytes:
        if event.contentBlockIndex in self._blocks:
            raise self.broken("began a block twice")
        tool = event.start.toolUse
        block = self._open(event.contentBlockIndex, "other" if tool is None else "tool")
        if tool is None:
            return b""
        if tool.type == "server_tool_use":  # the provider's own, done already
            block.kind = "other"
            return b""
        if self._json_tool is not None and tool.name == self._json_tool:
            block.kind = "second_json" if self._has_json_content else "json"
            self._has_json_content = True
            return b""
        block.tool_index = self._tool_count
        self._tool_count += 1
        self.content_started = True
        tool_id = tool.toolUseId or call_id(self._call.exchange_id, block.tool_index)
        if self._has_thinking and self._before:
            tool_id, self._before = pack(tool_id, pack_blocks(self._before)), []
        call = {
            "index": block.tool_index,
            "id": tool_id,
            "type": "function",
            "function": {"name": self._names.original(tool.name), "arguments": ""},
        }
        return self._chunk(_encode({"tool_calls": [call]}))

    def _text(self, text: str) -> bytes:
        if self._json_tool is None:
            self._said += len(text)
            return self._content(text)
        # The answer is the tool's input, which text beside it would spoil; without that call the text is the answer.
        self._held_text.append(text)
        return b""

    def _content(self, text: str) -> bytes:
        if not text:
            return b""
        self.content_started = self._has_content = True
        return self._chunk(b'{"content":%s}' % _encode(text))

    def _on_delta(self, event: _DeltaEvent) -> bytes:
        delta = event.delta
        if delta.text is not None:
            block = self._open(event.contentBlockIndex, "text")
            return self._text(delta.text) if block.kind == "text" else b""
        if delta.toolUse is not None:
            found = self._blocks.get(event.contentBlockIndex)
            if found is None:
                raise self.broken("sent arguments for no tool call")
            return self._arguments(found, delta.toolUse.input)
        if delta.reasoningContent is not None:
            return self._thought(self._open(event.contentBlockIndex, "thinking"), delta.reasoningContent)
        if delta.citation is not None:
            from sidecar.translate.providers.bedrock import annotation

            self._open(event.contentBlockIndex, "text")
            found_citation = annotation(delta.citation, self._said, self._said)
            if found_citation is not None:
                return self._chunk(_encode({"annotations": [found_citation]}))
        return b""

    def _arguments(self, block: _Block, text: str) -> bytes:
        if not text:
            return b""
        if block.kind == "tool":
            block.has_arguments = True
            return self._chunk(
                b'{"tool_calls":[{"index":%d,"function":{"arguments":%s}}]}' % (block.tool_index, _encode(text))
            )
        if block.kind == "json":
            block.has_arguments = True
            return self._content(text)
        return b""

    def _thought(self, block: _Block, delta: _ReasoningDelta) -> bytes:
        if block.kind != "thinking":
            return b""
        if delta.signature:
            block.signature.append(delta.signature)
        if delta.redactedContent:
            block.redacted.append(delta.redactedContent)
            self.content_started = True
        if not delta.text:
            return b""
        block.text.append(delta.text)
        self.content_started = True
        return self._chunk(b'{"reasoning_content":%s}' % _encode(delta.text))

    def _on_block_end(self, index: int) -> bytes:
        block = self._blocks.pop(index, None)
        if block is None:  # an empty one: nothing of it was sent
            return b""
        if block.kind == "thinking":
            found: list[dict[str, Any]] = []
            if block.signature:
                text = "".join(block.text)
                found.append({"type": "thinking", "thinking": text, "signature": "".join(block.signature)})
            if block.redacted:
                found.append({"type": "redacted_thinking", "data": redacted_data(_joined(block.redacted))})
            if not found:
                return b""
            self._before += found
            self._has_thinking = True
            return self._chunk(_encode({"thinking_blocks": found}))
        if block.kind == "text" and self._said > self._cut:
            self._cut = self._said
            self._before.append(self._said)
        if block.has_arguments:
            return b""
        if block.kind == "tool":
            return self._chunk(b'{"tool_calls":[{"index":%d,"function":{"arguments":"{}"}}]}' % block.tool_index)
        return self._content("{}") if block.kind == "json" else b""

    def _on_metadata(self, event: _Metadata) -> bytes:
        from sidecar.translate.providers.anthropic import openai_usage
        from sidecar.translate.providers.bedrock import finish_reason, openai_tier, usage_of

        self.usage = usage_of(event.usage)
        if self._stop_reason is None:
            raise self.broken("ended the stream without a whole message")
        self.is_complete = True
        held = b"" if self._has_json_content else self._content("".join(self._held_text))
        if not self._has_content and not self._tool_count:
            held += self._chunk(b'{"content":""}')
        reason = finish_reason(self._stop_reason, self._tool_count > 0).encode()
        tier = openai_tier(event.serviceTier)
        out = b'%s%s,"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"%s"}]%s}\n\n' % (
            held,
            self._head,
            reason,
            b"" if tier is None else b',"service_tier":%s' % _encode(tier),
        )
        if self._wants_usage and self.usage.is_known:
            out += b'%s,"choices":[],"usage":%s}\n\n' % (self._head, _encode(openai_usage(self.usage)))
        return out + b"data: [DONE]\n\n"
