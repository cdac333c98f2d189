"""Gemini's stream as OpenAI chunks.

Rule: Gemini has no end event, its stream is whole when the body ends after a finish reason; so the finish chunk is
written then, and every chunk carries the same id and time.
https://ai.google.dev/api/generate-content#method:-models.streamgeneratecontent
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sidecar.translate.framing import Event
from sidecar.translate.provider import Call, StreamTranslator, opening
from sidecar.translate.providers.gemini_answer import (
    Candidate,
    Chunk,
    Turn,
    block_reason,
    decode_chunk,
    logprobs,
    openai_usage,
    usage_of,
)
from sidecar.translate.providers.openai import wants_usage
from sidecar.translate.tool_names import GEMINI as NAMES
from sidecar.translate.tool_names import tool_names

if TYPE_CHECKING:
    from sidecar.translate.providers.gemini import Gemini

_encode = msgspec.json.encode


class GeminiStream(StreamTranslator):
    __slots__ = ("_audio_id", "_call", "_head", "_names", "_opened", "_provider", "_spoken", "_turns", "_wants_usage")

    def __init__(self, provider: Gemini, call: Call) -> None:
        super().__init__(provider.name)
        self._provider = provider
        self._call = call
        self._names = tool_names(call.payload, NAMES)
        self._turns: dict[int, Turn] = {}
        self._head = b""
        self._audio_id = ""
        self._opened: set[int] = set()
        self._spoken: set[int] = set()  # has text, tool calls or audio
        self._wants_usage = wants_usage(call.payload)

    def on_event(self, event: Event) -> bytes:
        data = event[1]
        if data is None or data == b"[DONE]":
            return b""
        chunk = decode_chunk(data)
        if chunk.error is not None:
            raise self._provider.stated_error(self._call, chunk.error)
        if chunk.usageMetadata is not None and (found := usage_of(chunk.usageMetadata)).is_known:
            self.usage = found
        if not chunk.candidates:
            reason = block_reason(chunk)
            if reason is not None:
                raise self._provider.blocked(self._call, reason)
            return b""
        if not self._head:
            self._start(chunk)
        out = b""
        for candidate in chunk.candidates:
            out += self._candidate(candidate)
        return out

    def _start(self, chunk: Chunk) -> None:
        head = {
            "id": chunk.responseId or f"chatcmpl-{self._call.exchange_id}",
            "object": "chat.completion.chunk",
            "created": int(self._call.now),
            "model": chunk.modelVersion or self._call.model,
        }
        self._head = b"data: " + _encode(head)[:-1]

    def _chunk(self, index: int, delta: bytes, probs: bytes = b"null") -> bytes:
        out = b""
        if index not in self._opened:
            self._opened.add(index)
            out = self._chunk(index, opening(delta))
        return b'%s%s,"choices":[{"index":%d,"delta":%s,"logprobs":%s,"finish_reason":null}]}\n\n' % (
            out,
            self._head,
            index,
            delta,
            probs,
        )

    def _candidate(self, candidate: Candidate) -> bytes:
        index = candidate.index or 0
        out = b""
        turn = self._turns.get(index)
        if turn is None:  # its role is said with what follows
            turn = self._turns[index] = Turn(self.provider_name, self._call, self._names, index)
        probs = b"null"
        if candidate.logprobsResult is not None:
            probs = _encode(logprobs(candidate.logprobsResult))
        parts = candidate.content.parts if candidate.content is not None else None
        for part in parts or ():
            number = turn.tools
            kind, value = turn.take(part)
            if not value:
                continue
            if kind == "content":
                delta = b'{"content":%s}' % _encode(value)
                self._spoken.add(index)
            elif kind == "reasoning":
                delta = b'{"reasoning_content":%s}' % _encode(value)
            else:
                delta = _encode(self._delta(kind, value, number))
                if kind != "image":
                    self._spoken.add(index)
            self.content_started = True
            out += self._chunk(index, delta, probs)
            probs = b"null"
        turn.note(candidate)
        return out

    def _delta(self, kind: str, value: Any, number: int) -> dict[str, Any]:
        if kind == "tool":
            return {"tool_calls": [{"index": number, **value}]}
        if kind == "image":
            return {"images": [value]}
        self._audio_id = self._audio_id or f"audio_{self._call.exchange_id}"
        return {"audio": {"id": self._audio_id, "data": value}}

    def is_whole(self) -> bool:
        return bool(self._turns) and all(turn.finish is not None for turn in self._turns.values())

    def on_end(self) -> bytes:
        out = b""
        for index, turn in sorted(self._turns.items()):
            if index not in self._spoken:
                out += self._chunk(index, b'{"content":""}')
            notes = turn.annotations()
            if notes:
                out += self._chunk(index, _encode({"annotations": notes}))
            choice = {"index": index, "delta": {}, "logprobs": None, **turn.finished()}
            out += b'%s,"choices":[%s]}\n\n' % (self._head, _encode(choice))
        if self._wants_usage and self.usage.is_known:
            out += b'%s,"choices":[],"usage":%s}\n\n' % (self._head, _encode(openai_usage(self.usage)))
        return out + b"data: [DONE]\n\n"
