"""watsonx.ai's text chat as its SDK's types list it; answered by the product's simulator, in IBM's names.

https://cloud.ibm.com/apidocs/watsonx-ai#text-chat
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr, model_validator

from sidecar.translate import UpstreamRequest
from sidecar.translate.simulate import simulate
from tests.translate.dialects.base import json_of
from tests.translate.dialects.openai import OpenAIChat


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


def _in_ibms_words(piece: bytes, number: int) -> bytes:
    """One event, or a whole answer, under IBM's names."""
    if not piece.startswith(b"data: "):
        answer = json.loads(piece)
        answer["model_id"] = answer.pop("model")
        return json.dumps(answer).encode()
    chunk = json.loads(piece[6:])
    if "error" in chunk:
        errors = [{"code": "downstream_request_failed", "message": "the model broke off"}]
        told = {"errors": errors, "trace": "t", "status_code": 500}
        return b"event: error\ndata: " + json.dumps(told).encode() + b"\n\n"
    chunk["model_id"] = chunk.pop("model")
    del chunk["object"]
    return f"id: {number}\nevent: message\n".encode() + b"data: " + json.dumps(chunk).encode() + b"\n\n"


class WatsonxChat(OpenAIChat):
    options: ClassVar[Mapping[str, str]] = {"project": "p-1"}
    base_path: ClassVar[str] = ""
    end_mark = b""
    empty_streams = (*OpenAIChat.empty_streams, b"")
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

    def pieces(self, request: UpstreamRequest) -> list[bytes]:
        self.check(request)
        body = json_of(request)
        asked = {**body, "model": body["model_id"], "stream": request.path.endswith("_stream")}
        asked["stream_options"] = {"include_usage": True}
        if "tool_choice_option" in body:
            asked["tool_choice"] = body["tool_choice_option"]
        answer = simulate("openai", json.dumps(asked).encode())
        assert answer.status == 200
        pieces = [piece for _, piece in answer.pieces if piece.strip() and b"[DONE]" not in piece]
        return [_in_ibms_words(piece, number) for number, piece in enumerate(pieces)]

    def end_of(self, pieces: list[bytes]) -> int:
        """Whole from the finish reason on: nothing else ends it."""
        at = next(at for at, piece in enumerate(pieces) if b'"finish_reason": "' in piece)
        return sum(map(len, pieces[:at])) + pieces[at].rindex(b"}")
