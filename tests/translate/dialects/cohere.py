"""Cohere's v2 chat, held to its SDK's types both ways. https://docs.cohere.com/reference/chat"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, ClassVar, get_type_hints

from sidecar.translate import UpstreamRequest
from sidecar.translate.simulate import Plan
from tests.translate.dialects.base import Dialect, json_of
from tests.translate.dialects.sdk_types import assert_fits


@lru_cache
def _parameters() -> dict[str, Any]:
    from cohere import ClientV2
    from cohere.types import AssistantMessage, ChatMessageV2  # noqa: F401 - the hints need it loaded

    hints = get_type_hints(ClientV2.chat, include_extras=True)
    return {name: hints[name] for name in hints.keys() - {"return", "request_options"}}


def assert_cohere_takes(body: Mapping[str, Any]) -> None:
    known = _parameters()
    given = {name: value for name, value in body.items() if name != "stream"}
    assert given.keys() <= known.keys(), f"Cohere has no {sorted(given.keys() - known.keys())}"
    assert {"model", "messages"} <= given.keys()
    assert isinstance(body["stream"], bool)
    for name, value in given.items():
        assert_fits(known[name], value, name)


def _assert_said(value: dict[str, Any]) -> None:
    from cohere.v2.types import V2ChatResponse

    assert_fits(V2ChatResponse, value, "answer")


def _event(value: dict[str, Any]) -> bytes:
    from cohere.v2.types import V2ChatStreamResponse

    assert_fits(V2ChatStreamResponse, value, value["type"])
    return f"event: {value['type']}\ndata: {json.dumps(value)}\n\n".encode()


class CohereChat(Dialect):
    model: ClassVar[str] = "command-a-03-2025"
    end_mark = b'"finish_reason"'
    empty_streams = (
        *Dialect.empty_streams,
        b'event: message-start\ndata: {"id":"c","type":"message-start","delta":{"message":{"role":"assistant"}}}\n\n',
        b'event: message-end\ndata: {"type":"message-end","delta":{}}\n\n',
    )
    scraps = (
        b'data: {"type":"message-start","id":3}\n\n',
        b'data: {"type":"content-delta","delta":{"message":{"content":{"text":"x"}}},"logprobs":{"logprobs":[3]}}\n\n',
        b'data: {"type":"content-delta","delta":{"message":{"content":{"thinking":"x"}}}}\n\n',
        b'data: {"type":"tool-plan-delta","delta":{"message":{"tool_plan":"x"}}}\n\n',
        b'data: {"type":"tool-call-start","delta":{"message":{"tool_calls":{"id":"","function":{}}}}}\n\n',
        b'data: {"type":"tool-call-delta","delta":{"message":{"tool_calls":{"function":{"arguments":"{"}}}}}\n\n',
        b'data: {"type":"tool-call-end","index":0}\n\n',
        b'data: {"type":"citation-start","delta":{"message":{"citations":[{"start":0,"sources":[3]}]}}}\n\n',
        b'data: {"type":"message-end","delta":{"finish_reason":"X","usage":{"tokens":{"input_tokens":1.5}}}}\n\n',
        b'data: {"message":"too many requests"}\n\n',
    )

    def claims(self, target: str) -> bool:
        return target.startswith("/v2/chat")

    def check(self, request: UpstreamRequest) -> None:
        assert request.path == "/v2/chat"
        assert_cohere_takes(json_of(request))

    def read(self, request: UpstreamRequest) -> dict[str, Any]:
        body = json_of(request)
        choice = body.get("tool_choice", "")
        asked = {**body, "tool_choice": choice.lower() or None}
        wanted = body.get("response_format", {})
        if "json_schema" in wanted:
            asked["response_format"] = {"type": "json_schema", "json_schema": {"schema": wanted["json_schema"]}}
        return asked

    def answer(self, plan: Plan) -> bytes:
        message: dict[str, Any] = {"role": "assistant"}
        content = [{"type": "thinking", "thinking": plan.thought}] if plan.thought else []
        if plan.words:
            content.append({"type": "text", "text": plan.text})
        if content:
            message["content"] = content
        if plan.tool is not None:
            message["tool_calls"] = [{"id": "weather_sim", "type": "function", "function": _function(plan)}]
        answer = {"id": "sim", "finish_reason": _reason(plan), "message": message, **_usage(plan)}
        _assert_said(answer)
        return json.dumps(answer).encode()

    def events(self, plan: Plan, asked: Mapping[str, Any]) -> Iterator[bytes]:
        yield _event({"type": "message-start", "id": "sim", "delta": {"message": {"role": "assistant"}}})
        blocks = [("thinking", [word + " "[: word != "answer."] for word in plan.thought.split()])]
        for index, (kind, words) in enumerate((*blocks, ("text", plan.words))):
            if not words:
                continue
            start = {"type": kind, kind: ""}
            yield _event({"type": "content-start", "index": index, "delta": {"message": {"content": start}}})
            for word in words:
                delta = {"message": {"content": {kind: word}}}
                yield _event({"type": "content-delta", "index": index, "delta": delta})
            yield _event({"type": "content-end", "index": index})
        if plan.tool is not None:
            function = _function(plan)
            call = {"id": "weather_sim", "type": "function", "function": {**function, "arguments": ""}}
            yield _event({"type": "tool-call-start", "index": 0, "delta": {"message": {"tool_calls": call}}})
            given = function["arguments"]
            for at in range(0, len(given), 7):
                part = {"function": {"arguments": given[at : at + 7]}}
                yield _event({"type": "tool-call-delta", "index": 0, "delta": {"message": {"tool_calls": part}}})
            yield _event({"type": "tool-call-end", "index": 0})
        yield _event({"type": "message-end", "delta": {"finish_reason": _reason(plan), **_usage(plan)}})

    def error_event(self) -> bytes:
        return _event({"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "the model broke off"}})


def _function(plan: Plan) -> dict[str, Any]:
    return {"name": plan.tool, "arguments": json.dumps(plan.arguments)}


def _reason(plan: Plan) -> str:
    return "TOOL_CALL" if plan.tool is not None else "MAX_TOKENS" if plan.is_capped else "COMPLETE"


def _usage(plan: Plan) -> dict[str, Any]:
    counts = {"input_tokens": float(plan.input_tokens), "output_tokens": float(plan.output_tokens)}
    tokens = {"input_tokens": 496.0 + plan.input_tokens, "output_tokens": 2.0 + plan.output_tokens}
    return {"usage": {"billed_units": counts, "tokens": tokens}} if plan.has_usage else {}
