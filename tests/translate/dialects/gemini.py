"""Gemini's generateContent, held to Google's own types: a request is what their SDK would have sent.

https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from sidecar.translate import UpstreamRequest
from sidecar.translate.simulate import SIGNATURE, Plan
from tests.translate.dialects.base import Dialect, json_of

_CONFIG = ("tools", "toolConfig", "safetySettings", "cachedContent", "labels", "serviceTier", "store")


def _bytes(value: Any) -> Any:
    """JSON with the signatures and data that the SDK holds as bytes."""
    if isinstance(value, dict):
        return {
            name: base64.urlsafe_b64decode(item.replace("+", "-").replace("/", "_") + "==")
            if name in ("thoughtSignature", "data") and isinstance(item, str)
            else _bytes(item)
            for name, item in value.items()
        }
    return [_bytes(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """What the SDK would send, as JSON; bytes in base64, what is not given left out."""
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump(by_alias=True, exclude_none=True))
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return getattr(value, "value", value)


def as_google_sends(body: Mapping[str, Any], *, is_vertex: bool) -> dict[str, Any]:
    """The body after a round trip through google-genai: its types forbid unknown keys, its converters what the API in
    question does not take."""
    from google import genai
    from google.genai import models, types

    client = genai.Client(
        **(
            {"vertexai": True, "project": "p", "location": "r", "credentials": _nobody()}
            if is_vertex
            else {"api_key": "k"}
        )
    )
    given = _bytes(json.loads(json.dumps(body)))
    config = {name: given.pop(name) for name in _CONFIG if name in given}
    if "systemInstruction" in given:
        config["systemInstruction"] = given.pop("systemInstruction")
    config |= given.pop("generationConfig", {})
    parameters = types._GenerateContentParameters(
        model="m",
        contents=[types.Content.model_validate(content) for content in given.pop("contents")],
        config=types.GenerateContentConfig.model_validate(config),
    )
    assert not given, f"no field of the API: {sorted(given)}"
    convert = models._GenerateContentParameters_to_vertex if is_vertex else models._GenerateContentParameters_to_mldev
    sent = _plain(convert(client._api_client, parameters))
    assert isinstance(sent, dict)
    sent.pop("_url", None)
    if not sent.get("generationConfig"):
        sent.pop("generationConfig", None)
    return sent


def assert_google_takes(body: Mapping[str, Any], *, is_vertex: bool = False) -> None:
    assert _bytes(as_google_sends(body, is_vertex=is_vertex)) == _bytes(body)


def _nobody() -> Any:
    from google.auth.credentials import AnonymousCredentials

    return AnonymousCredentials()


class GeminiContents(Dialect):
    model: ClassVar[str] = "gemini-3-flash-preview"
    values: ClassVar[Mapping[str, Any]] = {"audio": {"voice": "Kore", "format": "pcm16"}}
    empty_streams = (*Dialect.empty_streams, b'data: {"usageMetadata":{"promptTokenCount":3}}\n\n')
    is_vertex: ClassVar[bool] = False
    scraps = (
        b'data: {"candidates":[{"content":{"parts":[{"text":"x","thoughtSignature":"c2ln"}]}}]}\n\n',
        b'data: {"candidates":[{"content":{"parts":[{"text":"x","thought":true}]}}]}\n\n',
        b'data: {"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":"{"}}]}}]}\n\n',
        b'data: {"candidates":[{"content":{"parts":[{"functionCall":{"args":[1]},"thoughtSignature":"eA"}]}}]}\n\n',
        b'data: {"candidates":[{"index":1,"content":null,"finishReason":"STOP"}]}\n\n',
        b'data: {"candidates":[{"finishReason":"OTHER","groundingMetadata":{"groundingChunks":[3]}}]}\n\n',
        b'data: {"candidates":[{"logprobsResult":{"chosenCandidates":[{"token":3}]},"content":{"parts":[{}]}}]}\n\n',
        b'data: {"usageMetadata":{"promptTokensDetails":[{"modality":3}],"totalTokenCount":1}}\n\n',
        b'data: {"promptFeedback":{"blockReason":"SAFETY"}}\n\n',
    )

    def claims(self, target: str) -> bool:
        return ("/v1/projects/" in target) == self.is_vertex and ("enerateContent" in target)

    def check(self, request: UpstreamRequest) -> None:
        body = json_of(request)
        assert_google_takes(body, is_vertex=self.is_vertex)
        assert request.query == ("alt=sse" if request.path.endswith(":streamGenerateContent") else "")

    def read(self, request: UpstreamRequest) -> dict[str, Any]:
        body = json_of(request)
        folder, _, method = request.path.rpartition(":")
        config = body.get("generationConfig", {})
        asked: dict[str, Any] = {
            "model": folder.rpartition("/")[2],
            "stream": method == "streamGenerateContent",
            "messages": [*_messages(body)],
            "max_tokens": config.get("maxOutputTokens"),
            "tools": [
                {"function": {"name": f["name"], "parameters": f.get("parametersJsonSchema", {})}}
                for tool in body.get("tools", ())
                for f in tool.get("functionDeclarations", ())
            ],
        }
        mode = body.get("toolConfig", {}).get("functionCallingConfig", {}).get("mode")
        asked["tool_choice"] = {"ANY": "required", "NONE": "none"}.get(mode)
        if config.get("responseMimeType") == "application/json":
            schema = config.get("responseJsonSchema")
            asked["response_format"] = {"type": "json_object"}
            if schema is not None:
                asked["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
        return asked

    def answer(self, plan: Plan) -> bytes:
        """One body, spread over lines as Google's are."""
        parts = [
            *([{"text": plan.thought, "thought": True}] if plan.thought else []),
            *([{"text": plan.text}] if plan.words else []),
            *_call(plan),
        ]
        return json.dumps(_chunk(plan, parts, finish=True), indent=2).encode()

    def events(self, plan: Plan, asked: Mapping[str, Any]) -> Iterator[bytes]:
        parts: list[dict[str, Any]] = [{"text": word, "thought": True} for word in plan.thought.split(" ") if word]
        for part in parts[1:]:
            part["text"] = " " + part["text"]
        parts += [{"text": word} for word in plan.words]
        parts += _call(plan)
        for part in parts:
            yield _event(_chunk(plan, [part]))
        yield _event(_chunk(plan, [{"text": ""}], finish=True))

    def error_event(self) -> bytes:
        return _event({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}})


class VertexContents(GeminiContents):
    is_vertex = True
    options: ClassVar[Mapping[str, str]] = {"project": "my-project", "region": "europe-west4"}


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\r\n\r\n"


def _messages(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if "systemInstruction" in body:
        yield {"role": "system", "content": _text(body["systemInstruction"]["parts"])}
    for content in body["contents"]:
        is_result = any("functionResponse" in part for part in content["parts"])
        role = "tool" if is_result else {"user": "user", "model": "assistant"}[content["role"]]
        yield {"role": role, "content": _text(content["parts"])}


def _text(parts: list[dict[str, Any]]) -> str:
    return " ".join(part["text"] for part in parts if "text" in part)


def _call(plan: Plan) -> list[dict[str, Any]]:
    if plan.tool is None:
        return []
    signed = {"thoughtSignature": SIGNATURE}
    return [{"functionCall": {"name": plan.tool, "args": plan.arguments}, **signed}]


def _chunk(plan: Plan, parts: list[dict[str, Any]], *, finish: bool = False) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    thoughts = len(plan.thought.split())
    usage = {"promptTokenCount": plan.input_tokens, "totalTokenCount": plan.input_tokens + thoughts}
    usage["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": plan.input_tokens}]  # type: ignore[assignment]
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    if finish:
        candidate["finishReason"] = "MAX_TOKENS" if plan.is_capped else "STOP"
        usage["candidatesTokenCount"] = plan.output_tokens - thoughts
        usage["totalTokenCount"] = plan.input_tokens + plan.output_tokens
    found: dict[str, Any] = {"candidates": [candidate], "modelVersion": plan.model, "responseId": "resp-sim"}
    return {**found, "usageMetadata": usage} if plan.has_usage else found
