"""Bedrock's Converse and InvokeModel and SageMaker's endpoints, held to botocore's models of them both ways."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar

from sidecar.translate import UpstreamRequest
from sidecar.translate.simulate import SIGNATURE, Plan, simulate
from tests.translate.dialects.anthropic import AnthropicMessages
from tests.translate.dialects.aws import assert_fits, assert_invokes, assert_takes, event, exception, operation, segment
from tests.translate.dialects.base import Dialect, json_of
from tests.translate.dialects.openai import OpenAIChat


class Converse(Dialect):
    model = "us.amazon.nova-2-lite-v1:0"
    options: ClassVar[Mapping[str, str]] = {"region": "eu-central-1"}
    stream_type = b"application/vnd.amazon.eventstream"
    empty_streams = (b"", event("metadata", {}), event("messageStop", {"stopReason": "end_turn"}))
    scraps = (
        event("messageStart", {"role": "assistant"}),
        event("messageStart", {"role": 3}),
        event("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": {"toolUseId": "t", "name": "n"}}}),
        event("contentBlockStart", {"contentBlockIndex": 1, "start": {}}),
        event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "x"}}),
        event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"toolUse": {"input": "{"}}}),
        event("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"reasoningContent": {"text": "x"}}}),
        event("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"reasoningContent": {"signature": "x"}}}),
        event("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"reasoningContent": {"redactedContent": "?"}}}),
        event("contentBlockDelta", {"contentBlockIndex": 2, "delta": {"citation": {"location": {"web": {}}}}}),
        event("contentBlockStop", {"contentBlockIndex": 0}),
        event("messageStop", {"stopReason": "tool_use"}),
        event("metadata", {"usage": {"inputTokens": 1, "outputTokens": "x"}}),
        event("brandNew", {}),
        exception("throttlingException", message="slow down"),
        event("messageStart", {"role": "assistant"})[:30],
    )

    def claims(self, target: str) -> bool:
        return target.startswith("/model/") and target.endswith(("/converse", "/converse-stream"))

    def check(self, request: UpstreamRequest) -> None:
        name = "ConverseStream" if request.path.endswith("-stream") else "Converse"
        assert_takes("bedrock-runtime", name, request, modelId=segment(request.path))

    def read(self, request: UpstreamRequest) -> dict[str, Any]:
        body = json_of(request)
        asked: dict[str, Any] = {"model": segment(request.path), "messages": []}
        asked["stream"] = request.path.endswith("-stream")
        for block in body.get("system", ()):
            asked["messages"].append({"role": "system", "content": block.get("text", "")})
        for turn in body["messages"]:
            texts = [block["text"] for block in turn["content"] if "text" in block]
            results = [block["toolResult"] for block in turn["content"] if "toolResult" in block]
            for result in results:
                content = "".join(part.get("text", "") for part in result["content"])
                asked["messages"].append({"role": "tool", "tool_call_id": result["toolUseId"], "content": content})
            if texts or not results:
                asked["messages"].append({"role": turn["role"], "content": "".join(texts)})
        config = body.get("toolConfig", {})
        specs = [tool["toolSpec"] for tool in config.get("tools", ()) if "toolSpec" in tool]
        if specs:
            asked["tools"] = [
                {"type": "function", "function": {"name": spec["name"], "parameters": spec["inputSchema"]["json"]}}
                for spec in specs
            ]
        choice = config.get("toolChoice", {})
        if "tool" in choice:
            asked["tool_choice"] = {"type": "function", "function": choice["tool"]}
        elif "any" in choice:
            asked["tool_choice"] = "required"
        if "maxTokens" in body.get("inferenceConfig", {}):
            asked["max_tokens"] = body["inferenceConfig"]["maxTokens"]
        if "textFormat" in body.get("outputConfig", {}):
            schema = json.loads(body["outputConfig"]["textFormat"]["structure"]["jsonSchema"]["schema"])
            asked["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
        return asked

    def content(self, plan: Plan) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = []
        if plan.thought:
            content.append({"reasoningContent": {"reasoningText": {"text": plan.thought, "signature": SIGNATURE}}})
        if plan.words:
            content.append({"text": plan.text})
        if plan.tool is not None:
            content.append({"toolUse": {"toolUseId": "tooluse_sim-1", "name": plan.tool, "input": plan.arguments}})
        return content

    def _stop(self, plan: Plan) -> str:
        return "tool_use" if plan.tool is not None else "max_tokens" if plan.is_capped else "end_turn"

    def _tail(self, plan: Plan) -> dict[str, Any]:
        usage = {
            "inputTokens": plan.input_tokens,
            "outputTokens": plan.output_tokens,
            "totalTokens": plan.input_tokens + plan.output_tokens,
        }
        return {"metrics": {"latencyMs": 7}} | ({"usage": usage} if plan.has_usage else {})

    def answer(self, plan: Plan) -> bytes:
        message = {"role": "assistant", "content": self.content(plan)}
        answer = {"output": {"message": message}, "stopReason": self._stop(plan), **self._tail(plan)}
        if plan.has_usage:
            shape = operation("bedrock-runtime", "Converse").output_shape
            assert shape is not None
            assert_fits(shape, answer)
        return json.dumps(answer).encode()

    def events(self, plan: Plan, asked: Mapping[str, Any]) -> Iterator[bytes]:
        yield self.event("messageStart", {"role": "assistant"})
        for index, block in enumerate(self.content(plan)):
            if "reasoningContent" in block:
                for word in plan.thought.split(" "):
                    yield self._delta(index, {"reasoningContent": {"text": word + " "[: word != "answer."]}})
                yield self._delta(index, {"reasoningContent": {"signature": SIGNATURE}})
            elif "text" in block:
                for word in plan.words:
                    yield self._delta(index, {"text": word})
            else:
                use = block["toolUse"]
                start = {"toolUse": {"toolUseId": use["toolUseId"], "name": use["name"]}}
                yield self.event("contentBlockStart", {"contentBlockIndex": index, "start": start})
                given = json.dumps(use["input"])
                yield self._delta(index, {"toolUse": {"input": ""}})
                for at in range(0, len(given), 8):
                    yield self._delta(index, {"toolUse": {"input": given[at : at + 8]}})
            yield self.event("contentBlockStop", {"contentBlockIndex": index})
        yield self.event("messageStop", {"stopReason": self._stop(plan)})
        yield self.event("metadata", self._tail(plan), is_checked=plan.has_usage)

    def _delta(self, index: int, delta: dict[str, Any]) -> bytes:
        return self.event("contentBlockDelta", {"contentBlockIndex": index, "delta": delta})

    def event(self, name: str, payload: dict[str, Any], *, is_checked: bool = True) -> bytes:
        if is_checked:
            shape = operation("bedrock-runtime", "ConverseStream").get_event_stream_output()
            assert_fits(shape.members[name], payload, where=name)
        return event(name, {**payload, "p": "abcdefghijklmnopqrstuvwxyz"[: len(name)]})  # padding, as the service sends

    def error_event(self) -> bytes:
        return exception("modelStreamErrorException", message="Simulated failure.", originalStatusCode=500)


def _data_of(sse: bytes) -> bytes:
    return next(line[6:] for line in sse.split(b"\n") if line.startswith(b"data: "))


class InvokeClaude(AnthropicMessages):
    """Anthropic's events, each base64 in a `chunk`."""

    model = "anthropic.claude-sonnet-4-5-20250929-v1:0"
    options: ClassVar[Mapping[str, str]] = {"region": "eu-central-1"}
    stream_type = b"application/vnd.amazon.eventstream"
    end_mark = b""
    empty_streams = (b"", event("chunk", {"bytes": base64.b64encode(b'{"type":"message_stop"}').decode()}))
    scraps = (
        *(event("chunk", {"bytes": base64.b64encode(_data_of(scrap)).decode()}) for scrap in AnthropicMessages.scraps),
        event("chunk", {"bytes": "!"}),
        event("chunk", {"bytes": 3}),
        event("brandNew", {}),
        exception("modelTimeoutException", message="slow"),
    )

    def claims(self, target: str) -> bool:
        return target.startswith("/model/") and target.endswith(("/invoke", "/invoke-with-response-stream"))

    def read(self, request: UpstreamRequest) -> dict[str, Any]:
        is_stream = request.path.endswith("-stream")
        return {**json_of(request), "model": segment(request.path), "stream": is_stream}

    def check(self, request: UpstreamRequest) -> None:
        body = json_of(request)
        assert body["anthropic_version"] == "bedrock-2023-05-31"
        assert not {"model", "stream", "metadata", "service_tier"} & body.keys()
        name = "InvokeModelWithResponseStream" if request.path.endswith("-stream") else "InvokeModel"
        headers = {name: value.decode() for name, value in request.headers if name.startswith(b"x-amzn")}
        assert_invokes("bedrock-runtime", name, request, headers, modelId=segment(request.path))

    def pieces(self, request: UpstreamRequest) -> list[bytes]:
        self.check(request)
        asked = self.read(request)
        answer = simulate("anthropic", json.dumps(asked).encode())
        assert answer.status == 200, answer
        pieces = [piece for _, piece in answer.pieces]
        if not asked["stream"]:
            return pieces
        events = [self.chunk(piece) for piece in pieces]
        if "sim-error" in asked["model"]:
            events[-1] = self.error_event()
        return events

    def says(self, piece: bytes, text: bytes) -> bool:
        return text in base64.b64decode(re.findall(rb'"bytes": "([^"]*)"', piece)[0])

    def chunk(self, sse: bytes) -> bytes:
        return event("chunk", {"bytes": base64.b64encode(_data_of(sse)).decode(), "p": "abcdef"})

    def answer(self, plan: Plan) -> bytes:
        asked = {"model": "sim-long-5", "messages": [{"role": "user", "content": "x"}], "max_tokens": 99}
        found = json.loads(simulate("anthropic", json.dumps(asked).encode()).pieces[0][1])
        usage = {"input_tokens": plan.input_tokens, "output_tokens": plan.output_tokens} if plan.has_usage else {}
        found |= {"content": [{"type": "text", "text": plan.text}], "usage": usage}
        return json.dumps(found).encode()

    def events(self, plan: Plan, asked: Mapping[str, Any]) -> Iterator[bytes]:
        def chunk(**fields: Any) -> bytes:
            return event("chunk", {"bytes": base64.b64encode(json.dumps(fields).encode()).decode()})

        counts = {"input_tokens": plan.input_tokens, "output_tokens": 1} if plan.has_usage else {}
        start = {"id": "msg_f", "type": "message", "role": "assistant", "model": "fault", "content": []}
        yield chunk(type="message_start", message={**start, "stop_reason": None, "usage": counts})
        yield chunk(type="content_block_start", index=0, content_block={"type": "text", "text": ""})
        for word in plan.words:
            yield chunk(type="content_block_delta", index=0, delta={"type": "text_delta", "text": word})
        yield chunk(type="content_block_stop", index=0)
        usage = {"output_tokens": plan.output_tokens} if plan.has_usage else {}
        yield chunk(type="message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
        yield chunk(type="message_stop", **{"amazon-bedrock-invocationMetrics": {"inputTokenCount": 1}})

    def error_event(self) -> bytes:
        return exception("modelStreamErrorException", message="Simulated failure.", originalStatusCode=500)


class SageMakerChat(OpenAIChat):
    """OpenAI's events, cut anywhere, as the payload parts of AWS's event stream."""

    model = "my-endpoint"
    options: ClassVar[Mapping[str, str]] = {"region": "eu-central-1"}
    stream_type = b"application/vnd.amazon.eventstream"
    base_path = ""
    empty_streams = (b"", event("PayloadPart", b": ping\n\n"), event("PayloadPart", b"data: [DONE]\n\n"))
    scraps = (
        *(event("PayloadPart", scrap) for scrap in OpenAIChat.scraps),
        event("PayloadPart", b"data: [DO"),
        event("PayloadPart", b"NE]\n\n"),
        event("Other", b"data: x\n\n"),
        exception("InternalStreamFailure", Message="x"),
    )

    def claims(self, target: str) -> bool:
        return target.startswith("/endpoints/")

    def check(self, request: UpstreamRequest) -> None:
        is_stream = request.path.endswith("-stream")
        name = "InvokeEndpointWithResponseStream" if is_stream else "InvokeEndpoint"
        headers = {name: value.decode() for name, value in request.headers if name.startswith(b"x-amzn")}
        assert_invokes("sagemaker-runtime", name, request, headers, EndpointName=segment(request.path))

    def pieces(self, request: UpstreamRequest) -> list[bytes]:
        self.check(request)
        pieces = super().pieces(request)
        if not request.path.endswith("-stream"):
            return pieces
        *pieces, last = pieces
        cuts = [0, *(sum(map(len, pieces[:at])) + 20 for at in range(1, len(pieces))), sum(map(len, pieces))]
        whole = b"".join(pieces)
        parts = [event("PayloadPart", whole[start:end]) for start, end in pairwise(cuts)]
        is_error = "sim-error" in request.path
        return [*parts, self.error_event() if is_error else event("PayloadPart", last)]

    def answer(self, plan: Plan) -> bytes:
        return json.dumps(_chat(plan, plan.text)).encode()

    def events(self, plan: Plan, asked: Mapping[str, Any]) -> Iterator[bytes]:
        base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fault"}

        def part(**fields: Any) -> bytes:
            return event("PayloadPart", b"data: " + json.dumps({**base, **fields}).encode() + b"\n\n")

        for delta in ({"role": "assistant", "content": ""}, *({"content": word} for word in plan.words)):
            yield part(choices=[{"index": 0, "delta": delta, "finish_reason": None}])
        yield part(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
        if plan.has_usage and (asked.get("stream_options") or {}).get("include_usage"):
            yield part(choices=[], usage=_chat(plan, "")["usage"])
        yield event("PayloadPart", b"data: [DONE]\n\n")

    def error_event(self) -> bytes:
        return exception("ModelStreamError", Message="the model broke off", ErrorCode="StreamBroken")


def _chat(plan: Plan, text: str) -> dict[str, Any]:
    total = plan.input_tokens + plan.output_tokens
    counts = {"prompt_tokens": plan.input_tokens, "completion_tokens": plan.output_tokens, "total_tokens": total}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "fault", "choices": [choice]}
    return answer | ({"usage": counts} if plan.has_usage else {})
