"""Mistral's closed schema, as its SDK's types list it. https://docs.mistral.ai/api/endpoint/chat"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from sidecar.translate import UpstreamRequest
from tests.translate.dialects.base import json_of
from tests.translate.dialects.openai import OpenAIChat


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Text(_Closed):
    type: Literal["text"]
    text: StrictStr


class _ImageURL(_Closed):
    url: StrictStr
    detail: Literal["auto", "low", "high"] | None = None


class _Image(_Closed):
    type: Literal["image_url"]
    image_url: _ImageURL | StrictStr


class _Document(_Closed):
    type: Literal["document_url"]
    document_url: StrictStr
    document_name: StrictStr | None = None


class _File(_Closed):
    type: Literal["file"]
    file_id: StrictStr


class _Audio(_Closed):
    type: Literal["input_audio"]
    input_audio: StrictStr


class _Think(_Closed):
    type: Literal["thinking"]
    thinking: list[_Text]


Chunk = Annotated[_Text | _Image | _Document | _File | _Audio | _Think, Field(discriminator="type")]


class _Function(_Closed):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    arguments: StrictStr | dict[str, Any]


class _ToolCall(_Closed):
    id: str = Field(pattern=r"^[a-zA-Z0-9]{9}$")
    type: Literal["function"] = "function"
    function: _Function


class _System(_Closed):
    role: Literal["system"]
    content: StrictStr | list[_Text | _Think]


class _User(_Closed):
    role: Literal["user"]
    content: StrictStr | list[Chunk]


class _Assistant(_Closed):
    role: Literal["assistant"]
    content: StrictStr | list[Chunk] | None = None
    tool_calls: list[_ToolCall] | None = None
    prefix: StrictBool = False

    @model_validator(mode="after")
    def _says_something(self) -> _Assistant:
        assert self.content or self.tool_calls, "Assistant message must have either content or tool_calls"
        return self


class _Tool(_Closed):
    role: Literal["tool"]
    content: StrictStr | list[Chunk]
    tool_call_id: str = Field(pattern=r"^[a-zA-Z0-9]{9}$")
    name: StrictStr | None = None


class _ToolFunction(_Closed):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    parameters: dict[str, Any]
    description: StrictStr | None = None
    strict: StrictBool | None = None


class _ToolSpec(_Closed):
    type: Literal["function"]
    function: _ToolFunction


class _Name(_Closed):
    name: StrictStr


class _Choice(_Closed):
    type: Literal["function"]
    function: _Name


class _Schema(_Closed):
    name: StrictStr
    schema_: dict[str, Any] = Field(alias="schema")
    description: StrictStr | None = None
    strict: StrictBool | None = None


class _Format(_Closed):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class _Prediction(_Closed):
    type: Literal["content"]
    content: StrictStr


class ChatRequest(_Closed):
    model: StrictStr
    messages: list[Annotated[_System | _User | _Assistant | _Tool, Field(discriminator="role")]]
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: StrictInt | None = None
    stream: StrictBool = False
    stop: StrictStr | list[StrictStr] | None = None
    random_seed: StrictInt | None = None
    metadata: dict[str, Any] | None = None
    response_format: _Format | None = None
    tools: list[_ToolSpec] | None = None
    tool_choice: Literal["auto", "none", "any", "required"] | _Choice | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = None
    top_k: StrictInt | None = None
    n: StrictInt | None = None
    prediction: _Prediction | None = None
    parallel_tool_calls: StrictBool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    prompt_mode: Literal["reasoning"] | None = None
    prompt_cache_key: StrictStr | None = None
    service_tier: StrictStr | None = None
    safe_prompt: StrictBool | None = None

    @field_validator("messages")
    @classmethod
    def _ends_well(cls, messages: list[Any]) -> list[Any]:
        for one, other in pairwise(messages):
            assert not (isinstance(one, _Tool) and isinstance(other, _User)), "Unexpected role 'user' after role 'tool'"
        last = messages[-1]
        assert not isinstance(last, _Assistant) or last.prefix, "Expected last role User or Tool, or a prefix"
        return messages


def assert_mistral_takes(body: Mapping[str, Any]) -> None:
    ChatRequest.model_validate(body)


class MistralChat(OpenAIChat):
    def check(self, request: UpstreamRequest) -> None:
        assert_mistral_takes(json_of(request))

    def pieces(self, request: UpstreamRequest) -> list[bytes]:
        self.check(request)
        return super().pieces(request)
