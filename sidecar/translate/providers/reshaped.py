"""Vendors that speak OpenAI's dialect but for some answers: bytes pass, and an answer that holds the odd thing is put
right. Base of `mistral`, `databricks`, `huggingface` and `watsonx`.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from sidecar.errors import UpstreamBrokenError
from sidecar.translate.fields import judge
from sidecar.translate.framing import Event
from sidecar.translate.provider import Call, Head, Reply, StreamTranslator
from sidecar.translate.providers.openai import OpenAIDialect, OpenAIStream, wants_usage
from sidecar.translate.usage import NOT_JSON

_encode = msgspec.json.encode
_decode = msgspec.json.decode


class ReshapedDialect(OpenAIDialect, is_abstract=True):
    odd: re.Pattern[bytes] = re.compile(rb"(?!)")
    """What only an answer holds that has to be reshaped; searched for in every one."""

    def reshape(self, call: Call, answer: dict[str, Any], is_chunk: bool) -> None:
        """Puts a decoded answer or chunk right, in place. May raise what decoding may, for odd shapes."""

    def changes(self, call: Call) -> tuple[dict[str, Any], set[str], list[str]]:
        changes, removed, dropped = super().changes(call)
        if not self.passes_unknown:
            for name in call.payload.keys() - self.params.keys() - self.unsupported.keys():
                found = judge(self, call, name, call.payload[name])
                if found != "passed":
                    removed.add(name)
                if found == "dropped":
                    dropped.append(name)
        return changes, removed - changes.keys(), sorted(dropped)

    def response(self, call: Call, head: Head, body: bytes) -> Reply:
        try:
            if self.odd.search(body) is not None and isinstance(answer := _decode(body), dict):
                self.reshape(call, answer, False)
                body = _encode(answer)
        except (*NOT_JSON, TypeError, AttributeError, ValueError, KeyError) as error:
            raise UpstreamBrokenError(
                f"Provider {self.name} answered {head.status} with a body that is not a chat completion."
            ) from error
        return super().response(call, head, body)

    def stream(self, call: Call, head: Head) -> StreamTranslator:
        is_hidden = self.forces_usage and bool(call.edits.get("include_usage", True)) and not wants_usage(call.payload)
        return ReshapedStream(self, call, is_hidden)


class ReshapedStream(OpenAIStream):
    __slots__ = ("_dialect",)

    def __init__(self, provider: ReshapedDialect, call: Call, is_usage_hidden: bool) -> None:
        super().__init__(provider, call, is_usage_hidden)
        self._dialect = provider

    def on_event(self, event: Event) -> bytes:
        name, data, raw = event
        if data is not None and self.needs_shape(data) and isinstance(chunk := _decode(data), dict):
            self.on_chunk(chunk)
            self._dialect.reshape(self._call, chunk, True)
            data = _encode(chunk)
            raw = b"data: %s\n\n" % data
        return super().on_event((name, data, raw))

    def needs_shape(self, data: bytes) -> bool:
        return self._dialect.odd.search(data) is not None

    def on_chunk(self, chunk: dict[str, Any]) -> None:
        """For what goes over several chunks; the chunk is as it came, and may be changed."""


def choices_of(answer: dict[str, Any], is_chunk: bool) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(choice, its message or delta) of each choice that has one."""
    key = "delta" if is_chunk else "message"
    choices = answer.get("choices")
    found = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    return [(choice, choice[key]) for choice in found if isinstance(choice.get(key), dict)]


def say(message: dict[str, Any], texts: list[str], thoughts: list[str], is_chunk: bool) -> None:
    """Content that came in parts, as the text and the reasoning it is."""
    if texts or not is_chunk:
        message["content"] = "".join(texts) if texts or not message.get("tool_calls") else None
    else:
        message.pop("content", None)
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
