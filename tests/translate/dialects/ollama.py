"""Ollama's own chat API, held to its types as its page lists them. https://docs.ollama.com/api/chat"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, field_validator

from sidecar.translate import UpstreamRequest
from sidecar.translate.simulate import Plan
from tests.translate.dialects.base import Dialect, json_of


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Options(_Closed):
    """https://docs.ollama.com/modelfile#valid-parameters-and-values"""

    temperature: float | None = None
    top_p: float | None = None
    top_k: StrictInt | None = None
    min_p: float | None = None
    seed: StrictInt | None = None
    num_predict: StrictInt | None = None
    num_ctx: StrictInt | None = None
    stop: list[StrictStr] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None


class Called(_Closed):
    name: StrictStr = Field(min_length=1)
    arguments: dict[str, Any]
    index: StrictInt | None = None


class ToolCall(_Closed):
    function: Called
    id: StrictStr | None = None


class Message(_Closed):
    role: Literal["system", "user", "assistant", "tool"]
    content: StrictStr
    images: list[StrictStr] | None = None
    thinking: StrictStr | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: StrictStr | None = None
    tool_call_id: StrictStr | None = None

    @field_validator("images")
    @classmethod
    def _bytes(cls, images: list[str] | None) -> list[str] | None:
        for image in images or ():
            base64.b64decode(image, validate=True)
        return images


class Function(_Closed):
    name: StrictStr = Field(min_length=1)
    description: StrictStr
    parameters: dict[str, Any]


class Tool(_Closed):
    type: Literal["function"]
    function: Function


class ChatRequest(_Closed):
    model: StrictStr = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    stream: StrictBool
    tools: list[Tool] | None = None
    format: Literal["json"] | dict[str, Any] | None = None
    options: Options | None = None
    think: StrictBool | Literal["low", "medium", "high"] | None = None
    keep_alive: StrictStr | StrictInt | StrictFloat | None = None
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = None


class ChatLine(_Closed):
    model: StrictStr
    created_at: StrictStr
    message: Message
    done: StrictBool
    done_reason: StrictStr | None = None
    total_duration: StrictInt | None = None
    prompt_eval_count: StrictInt | None = None
    eval_count: StrictInt | None = None


def assert_ollama_takes(body: Mapping[str, Any]) -> None:
    ChatRequest.model_validate(body)


def _line(value: dict[str, Any]) -> bytes:
    ChatLine.model_validate(value)
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


class OllamaChat(Dialect):
    model: ClassVar[str] = "qwen3:8b"
    stream_type = b"application/x-ndjson"
    end_mark = b"}"
    empty_streams = (b"", b"\n", b"\n\n")
    scraps = (
        b'{"model":"m","message":{"role":"assistant","content":"x"},"done":false}\n',
        b'{"message":{"thinking":"x"},"logprobs":[{"token":3}]}\n',
        b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]}}\n',
        b'{"message":{"tool_calls":[{"function":{"arguments":"{"}}]}}\n',
        b'{"message":{},"done":true,"done_reason":"x","eval_count":1.5}\n',
        b'{"error":"x"}\n',
        b'{"error":null,"message":null}\n',
        b"\r\n",
    )

    def claims(self, target: str) -> bool:
        return target.startswith("/api/chat")

    def check(self, request: UpstreamRequest) -> None:
        assert request.path == "/api/chat"
        assert_ollama_takes(json_of(request))

    def read(self, request: UpstreamRequest) -> dict[str, Any]:
        body = json_of(request)
        asked = {**body, "max_tokens": body.get("options", {}).get("num_predict")}
        if "format" in body:
            kind = body["format"]
            schema = {"type": "json_schema", "json_schema": {"schema": kind}}
            asked["response_format"] = {"type": "json_object"} if kind == "json" else schema
        return asked

    def _message(self, plan: Plan, *, content: str = "", thinking: str = "", calls: bool = False) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if thinking:
            message["thinking"] = thinking
        if calls and plan.tool is not None:
            message["tool_calls"] = [{"function": {"name": plan.tool, "arguments": plan.arguments}}]
        return {"model": plan.model, "created_at": "2026-01-01T00:00:00Z", "message": message, "done": False}

    def _end(self, plan: Plan) -> dict[str, Any]:
        counts = {"prompt_eval_count": plan.input_tokens, "eval_count": plan.output_tokens} if plan.has_usage else {}
        reason = "length" if plan.is_capped else "stop"
        return {"done": True, "done_reason": reason, "total_duration": 5, **counts}

    def answer(self, plan: Plan) -> bytes:
        said = self._message(plan, content=plan.text, thinking=plan.thought, calls=True)
        return _line({**said, **self._end(plan)}).rstrip()

    def events(self, plan: Plan, asked: Mapping[str, Any]) -> Iterator[bytes]:
        for word in plan.thought.split():
            yield _line(self._message(plan, thinking=word + " "[: word != "answer."]))
        for word in plan.words:
            yield _line(self._message(plan, content=word))
        if plan.tool is not None:
            yield _line(self._message(plan, calls=True))
        yield _line({**self._message(plan), **self._end(plan)})

    def error_event(self) -> bytes:
        return b'{"error":"an error was encountered while running the model"}\n'
