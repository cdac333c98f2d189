"""Shared by the translate tests: making calls, folding streams, and the vendors' own types as oracles."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pydantic
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from sidecar.translate import PROVIDERS, Call, Head, Provider, StreamTranslator
from tests.translate.dialects import dialect_of

USER = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
OK = Head(200, [(b"content-type", b"application/json")])


def make_call(payload: dict[str, Any] | None = None, model: str = "claude-sonnet-4-5", **options: Any) -> Call:
    payload = {"model": "m", "messages": USER, **(payload or {})}
    options.setdefault("is_stream", bool(payload.get("stream")))
    return Call(
        payload=payload,
        raw=json.dumps(payload).encode(),
        model=model,
        exchange_id="ex1",
        now=1_700_000_000.0,
        **options,
    )


def call_to(provider: Provider, payload: dict[str, Any] | None = None, **options: Any) -> Call:
    """A call with what a deployment of this provider has to give, and a model that takes every field it maps."""
    dialect = dialect_of(provider)
    options.setdefault("options", dialect.options)
    options.setdefault("model", dialect.model)
    return make_call(payload, **options)


def sent(provider: str | Provider, payload: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """The JSON a provider would get for this request."""
    found = PROVIDERS[provider] if isinstance(provider, str) else provider
    body: dict[str, Any] = json.loads(found.request(call_to(found, payload, **options)).body)
    return body


def run(translator: StreamTranslator, *pieces: bytes) -> bytes:
    return b"".join(translator.feed(piece) for piece in pieces) + translator.end()


def events(stream: bytes) -> Iterator[Any]:
    """The chunks of an OpenAI stream; `[DONE]` as that string."""
    for block in stream.split(b"\n\n"):
        for line in block.split(b"\n"):
            if line.startswith(b"data:"):
                data = line[5:].strip()
                yield "[DONE]" if data == b"[DONE]" else json.loads(data)


def fold(stream: bytes) -> dict[str, Any]:
    """An OpenAI stream as the message it says, checking its form: one id, one time, tool indexes contiguous, one
    finish reason, `[DONE]` last and once."""
    chunks = list(events(stream))
    assert chunks[-1] == "[DONE]"
    assert chunks.count("[DONE]") == 1
    chunks = chunks[:-1]
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    message: dict[str, Any] = {"role": None, "content": None, "reasoning_content": "", "thinking_blocks": []}
    tools: list[dict[str, Any]] = []
    finishes: list[str] = []
    usage = None
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            assert choice["index"] == 0
            assert not finishes, "nothing follows the finish reason"
            delta = choice["delta"]
            message["role"] = delta.get("role", message["role"])
            if delta.get("content") is not None:
                message["content"] = (message["content"] or "") + delta["content"]
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            message["thinking_blocks"] += delta.get("thinking_blocks") or []
            for tool in delta.get("tool_calls") or []:
                if tool["index"] == len(tools):
                    assert tool["id"]
                    assert tool["function"]["name"]
                    tools.append({"id": tool["id"], "name": tool["function"]["name"], "arguments": ""})
                assert tool["index"] < len(tools), "tool indexes are contiguous"
                tools[tool["index"]]["arguments"] += tool["function"].get("arguments") or ""
            if choice["finish_reason"] is not None:
                finishes.append(choice["finish_reason"])
    assert len(finishes) == 1
    assert message["role"] == "assistant"
    return normal(message, tools, finishes[0], usage)


def unfold(answer: bytes) -> dict[str, Any]:
    """An unstreamed answer in the same form, valid by the OpenAI SDK's own types."""
    parsed = json.loads(answer)
    ChatCompletion.model_validate(parsed, strict=True)
    (choice,) = parsed["choices"]
    message = choice["message"]
    tools = [
        {"id": tool["id"], "name": tool["function"]["name"], "arguments": tool["function"]["arguments"]}
        for tool in message.get("tool_calls") or []
    ]
    return normal(message, tools, choice["finish_reason"], parsed.get("usage"))


def normal(message: dict[str, Any], tools: list[dict[str, Any]], finish: str, usage: Any) -> dict[str, Any]:
    return {
        "content": message.get("content"),  # null, not "", where only tools are called
        "reasoning": message.get("reasoning_content") or "",
        "thinking_blocks": message.get("thinking_blocks") or [],
        "tools": [{**tool, "arguments": json.loads(tool["arguments"])} for tool in tools],
        "finish": finish,
        "usage": usage,
    }


@lru_cache
def _anthropic_params() -> pydantic.TypeAdapter[Any]:
    from anthropic.types.message_create_params import MessageCreateParamsNonStreaming, MessageCreateParamsStreaming

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydantic.TypeAdapter(MessageCreateParamsNonStreaming | MessageCreateParamsStreaming)


def _plain(value: Any) -> Any:
    """Lazily validated iterables made real, which runs their validation."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (str, bytes, int, float, bool)) or value is None:
        return value
    return [_plain(item) for item in value]


def assert_anthropic_takes(body: dict[str, Any]) -> None:
    """Valid by the Anthropic SDK's own types, and with no field they do not know (but sampling, which the newest SDK
    no longer lists and models before 4.7 take)."""
    body = {name: value for name, value in body.items() if name not in ("temperature", "top_p", "top_k")}
    assert _plain(_anthropic_params().validate_python(body)) == body
