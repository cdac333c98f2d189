"""Bedrock's Converse, held to botocore's model of it both ways."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from sidecar.translate import UpstreamRequest
from sidecar.translate.simulate import SIGNATURE, Plan
from tests.translate.dialects.aws import assert_fits, assert_takes, event, exception, operation, segment
from tests.translate.dialects.base import Dialect, json_of


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
