"""What a translated answer is made of, whole or streamed: OpenAI's chunks, usage, and ids for calls that have none.

Shared by the providers whose dialect is not OpenAI's. https://platform.openai.com/docs/api-reference/chat/streaming
"""

from __future__ import annotations

from typing import Any

import msgspec

from sidecar.translate.provider import Call, opening
from sidecar.types import Usage

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode


def call_id(exchange_id: str, *numbers: int) -> str:
    """The id of a tool call whose provider gave none: the same for the same place in the same exchange, and within the
    40 characters OpenAI takes (`signatures.MAX_OPENAI_ID`)."""
    return "_".join(("call", exchange_id.replace("-", "")[-24:], *map(str, numbers)))


def openai_usage(usage: Usage) -> dict[str, Any]:
    prompt = {"cached_tokens": usage.cached_input}
    completion = {"reasoning_tokens": usage.reasoning}
    return {
        "prompt_tokens": usage.total_input,
        "completion_tokens": usage.total_output,
        "total_tokens": usage.total,
        "prompt_tokens_details": {name: value for name, value in prompt.items() if value is not None},
        "completion_tokens_details": {name: value for name, value in completion.items() if value is not None},
    }


def completion(call: Call, answer_id: str | None, model: str | None, choice: dict[str, Any], usage: Usage) -> bytes:
    """A whole answer of one choice."""
    result: dict[str, Any] = {
        "id": answer_id or f"chatcmpl-{call.exchange_id}",
        "object": "chat.completion",
        "created": int(call.now),
        "model": model or call.model,
        "choices": [choice],
    }
    if usage.is_known:
        result["usage"] = openai_usage(usage)
    return _encode(result)


class Chunks:
    """The chunks of one stream: one id and time for all, the role before the first delta."""

    __slots__ = ("_has_content", "_head", "_is_opened")

    def __init__(self, call: Call, answer_id: str | None = None, model: str | None = None) -> None:
        head = {
            "id": answer_id or f"chatcmpl-{call.exchange_id}",
            "object": "chat.completion.chunk",
            "created": int(call.now),
            "model": model or call.model,
        }
        self._head = b"data: " + _encode(head)[:-1]
        self._is_opened = False
        self._has_content = False

    def delta(self, delta: bytes, probs: bytes = b"null") -> bytes:
        out = b""
        if not self._is_opened:
            self._is_opened = True
            out = self.delta(opening(delta))
        return b'%s%s,"choices":[{"index":0,"delta":%s,"logprobs":%s,"finish_reason":null}]}\n\n' % (
            out,
            self._head,
            delta,
            probs,
        )

    def text(self, text: str, probs: bytes = b"null") -> bytes:
        self._has_content = True
        return self.delta(b'{"content":%s}' % _encode(text), probs)

    def reasoning(self, text: str) -> bytes:
        return self.delta(b'{"reasoning_content":%s}' % _encode(text))

    def tool(self, index: int, tool: dict[str, Any]) -> bytes:
        self._has_content = True
        return self.delta(_encode({"tool_calls": [{"index": index, **tool}]}))

    def arguments(self, index: int, part: str) -> bytes:
        return self.delta(b'{"tool_calls":[{"index":%d,"function":{"arguments":%s}}]}' % (index, _encode(part)))

    def end(self, ending: dict[str, Any], usage: Usage | None) -> bytes:
        """The finish reason (`ending`), the usage if it is asked for, and the end. A stream without text and calls
        says an empty text, as the whole answer does."""
        out = b"" if self._has_content else self.text("")
        choice = {"index": 0, "delta": {}, "logprobs": None, **ending}
        out += b'%s,"choices":[%s]}\n\n' % (self._head, _encode(choice))
        if usage is not None and usage.is_known:
            out += b'%s,"choices":[],"usage":%s}\n\n' % (self._head, _encode(openai_usage(usage)))
        return out + DONE
