"""watsonx.ai's text chat, held to what its SDK's types list.

https://cloud.ibm.com/apidocs/watsonx-ai#text-chat
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr, model_validator

from sidecar.translate import UpstreamRequest
from sidecar.translate.simulate import Plan
from tests.translate.dialects.base import Dialect, json_of


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Message(BaseModel):
    role: Literal["system", "user", "assistant", "tool", "control"]


class _Name(_Closed):
    name: StrictStr


class _Choice(_Closed):
    type: Literal["function"]
    function: _Name


class ChatRequest(_Closed):
    model_id: StrictStr | None = None
    project_id: StrictStr | None = None
    space_id: StrictStr | None = None
    messages: list[_Message]
    tools: list[dict[str, Any]] | None = None
    tool_choice: _Choice | None = None
    tool_choice_option: Literal["none", "auto", "required"] | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = None
    presence_penalty: float | None = None
    response_format: dict[str, Any] | None = None
    temperature: float | None = None
    max_tokens: StrictInt | None = None
    max_completion_tokens: StrictInt | None = None
    time_limit: StrictInt | None = None
    top_p: float | None = None
    n: StrictInt | None = None
    seed: StrictInt | None = None
    stop: list[StrictStr] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["low", "medium", "high"] | None = None
    include_reasoning: StrictBool | None = None

    @model_validator(mode="after")
    def _one_choice(self) -> ChatRequest:
        assert self.tool_choice is None or self.tool_choice_option is None
        return self


def assert_watsonx_takes(body: Mapping[str, Any]) -> None:
    ChatRequest.model_validate(body)


BASE = {"id": "chat-sim", "model_id": "ibm/sim", "created": 1, "created_at": "2026-01-01T00:00:00Z"}


def _event(number: int, choices: list[dict[str, Any]], **fields: Any) -> bytes:
    data = json.dumps({**BASE, "choices": choices, **fields})
    return f"id: {number}\nevent: message\ndata: {data}\n\n".encode()


class WatsonxChat(Dialect):
    model: ClassVar[str] = "ibm/granite-4-h-small"
    options: ClassVar[Mapping[str, str]] = {"project": "p-1"}
    empty_streams = (*Dialect.empty_streams, b"")
    scraps = (
        b'event: error\ndata: {"errors":[{"code":3}],"status_code":429}\n\n',
        b'id: 1\nevent: message\ndata: {"choices":[{"index":0,"finish_reason":"stop","delta":{}}]}\n\n',
        b'data: {"model_id":3,"choices":[{"finish_reason":"error"}]}\n\n',
        b'data: {"choices":[3]}\n\n',
    )

    def claims(self, target: str) -> bool:
        return target.startswith("/ml/v1/")

    def check(self, request: UpstreamRequest) -> None:
        assert request.path in ("/ml/v1/text/chat", "/ml/v1/text/chat_stream")
        assert request.query.startswith("version=20")
        assert_watsonx_takes(json_of(request))

    def read(self, request: UpstreamRequest) -> dict[str, Any]:
        body = json_of(request)
        asked = {**body, "model": body["model_id"], "stream": request.path.endswith("_stream")}
        if "tool_choice_option" in body:
            asked["tool_choice"] = body["tool_choice_option"]
        return asked

    def answer(self, plan: Plan) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": plan.text}
        if plan.thought:
            message["reasoning_content"] = plan.thought
        if plan.tool is not None:
            message |= {"content": None, "tool_calls": [_call(plan)]}
        choice = {"index": 0, "message": message, "finish_reason": _reason(plan)}
        return json.dumps({**BASE, "choices": [choice], **_usage(plan)}).encode()

    def events(self, plan: Plan, asked: Mapping[str, Any]) -> Iterator[bytes]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "" if plan.tool is None else None}]
        deltas += [{"reasoning_content": word + " "[: word != "answer."]} for word in plan.thought.split()]
        deltas += [{"content": word} for word in plan.words]
        if plan.tool is not None:
            call = _call(plan)
            given = call["function"]["arguments"]
            first = {"index": 0, **call, "function": {"name": plan.tool, "arguments": ""}}
            deltas += [{"tool_calls": [first]}]
            for at in range(0, len(given), 7):
                deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": given[at : at + 7]}}]}]
        for number, delta in enumerate(deltas):
            yield _event(number, [{"index": 0, "finish_reason": None, "delta": delta}])
        yield _event(len(deltas), [{"index": 0, "finish_reason": _reason(plan), "delta": {"content": ""}}])
        if plan.has_usage:
            yield _event(len(deltas) + 1, [], **_usage(plan))

    def end_of(self, pieces: list[bytes]) -> int:
        """Whole from the finish reason on: nothing else ends it."""
        at = next(at for at, piece in enumerate(pieces) if b'"finish_reason": "' in piece)
        return sum(map(len, pieces[:at])) + pieces[at].rindex(b"}")

    def error_event(self) -> bytes:
        errors = [{"code": "downstream_request_failed", "message": "the model broke off"}]
        told = {"errors": errors, "trace": "t", "status_code": 500}
        return b"event: error\ndata: " + json.dumps(told).encode() + b"\n\n"


def _call(plan: Plan) -> dict[str, Any]:
    function = {"name": plan.tool, "arguments": json.dumps(plan.arguments)}
    return {"id": "chatcmpl-tool-1", "type": "function", "function": function}


def _reason(plan: Plan) -> str:
    return "tool_calls" if plan.tool is not None else "length" if plan.is_capped else "stop"


def _usage(plan: Plan) -> dict[str, Any]:
    counts = {"prompt_tokens": plan.input_tokens, "completion_tokens": plan.output_tokens}
    return {"usage": {**counts, "total_tokens": sum(counts.values())}} if plan.has_usage else {}
