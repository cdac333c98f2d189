"""Parallel tool calls as each vendor streams them and as it answers them whole: one turn, said in every dialect.

Written from the vendors' pages, not from our simulators, which call one tool at a time. Where a dialect marks deltas
with an index, calls may come interleaved; where it has none, in turn.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from sidecar.translate.simulate import Plan
from tests.translate.dialects.aws import event as aws_event
from tests.translate.dialects.responses import event as responses_event
from tests.translate.dialects.responses import item_events, response_of

Body = dict[str, Any]


@dataclass(frozen=True)
class Called:
    id: str
    name: str
    arguments: Body

    @property
    def text(self) -> str:
        return json.dumps(self.arguments, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Turn:
    """`cut`: characters per piece of arguments and of text."""

    text: str
    calls: tuple[Called, ...]
    cut: int = 5
    is_interleaved: bool = False

    def words(self) -> list[str]:
        return _cut(self.text, self.cut)

    def ordered(self, streams: list[list[Any]]) -> Iterator[Any]:
        """The deltas of all calls, in turn or one of each by turns."""
        if not self.is_interleaved:
            for stream in streams:
                yield from stream
            return
        for round_ in zip_longest(*streams):
            yield from (item for item in round_ if item is not None)


def _cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def _sse(value: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


Said = tuple[bytes, list[bytes]]
"""(the whole answer, the stream's events)"""


def chat(turn: Turn) -> Said:
    """https://platform.openai.com/docs/guides/function-calling#streaming"""
    base = {"id": "chatcmpl-1", "created": 1, "model": "m"}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.text}}
        for call in turn.calls
    ]
    message = {"role": "assistant", "content": turn.text or None, "tool_calls": calls}
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    whole = {**base, "object": "chat.completion", "choices": [choice], "usage": usage}

    def chunk(delta: Body, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _sse({**base, "object": "chat.completion.chunk", "choices": [choice]})

    streams = []
    for at, call in enumerate(turn.calls):
        function = {"name": call.name, "arguments": ""}
        begin = {"tool_calls": [{"index": at, "id": call.id, "type": "function", "function": function}]}
        pieces = [{"tool_calls": [{"index": at, "function": {"arguments": p}}]} for p in _cut(call.text, turn.cut)]
        streams.append([chunk(begin), *map(chunk, pieces)])
    events = [chunk({"role": "assistant", "content": None}), *(chunk({"content": word}) for word in turn.words())]
    events += [*turn.ordered(streams), chunk({}, "tool_calls")]
    events += [_sse({**base, "object": "chat.completion.chunk", "choices": [], "usage": usage}), b"data: [DONE]\n\n"]
    return json.dumps(whole).encode(), events


def in_payload_parts(turn: Turn) -> Said:
    """SageMaker frames a container's stream wherever it likes."""
    whole, events = chat(turn)
    stream = b"".join(events)
    step = 3 + 11 * turn.cut
    return whole, [aws_event("PayloadPart", stream[at : at + step]) for at in range(0, len(stream), step)]


def messages(turn: Turn) -> Said:
    """https://platform.claude.com/docs/en/build-with-claude/streaming"""
    content: list[Body] = [{"type": "text", "text": turn.text}] if turn.text else []
    content += [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in turn.calls]
    start = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
    usage = {"input_tokens": 5, "output_tokens": 7}
    whole = {**start, "content": content, "stop_reason": "tool_use", "usage": usage}

    def event(kind: str, **fields: Any) -> bytes:
        return _sse({"type": kind, **fields}, kind)

    begun = {**start, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    events = [event("message_start", message=begun), event("ping")]
    streams = []
    for index, block in enumerate(content):
        is_text = block["type"] == "text"
        empty = {**block, **({"text": ""} if is_text else {"input": {}})}
        pieces = turn.words() if is_text else _cut(turn.calls[index - bool(turn.text)].text, turn.cut)
        kind, key = ("text_delta", "text") if is_text else ("input_json_delta", "partial_json")
        stream = [event("content_block_start", index=index, content_block=empty)]
        stream += [event("content_block_delta", index=index, delta={"type": kind, key: piece}) for piece in pieces]
        stream.append(event("content_block_stop", index=index))
        if is_text:
            events += stream
        else:
            streams.append(stream)
    events += turn.ordered(streams)
    stop = {"stop_reason": "tool_use", "stop_sequence": None}
    events += [event("message_delta", delta=stop, usage={"output_tokens": 7}), event("message_stop")]
    return json.dumps(whole).encode(), events


def in_chunks(turn: Turn) -> Said:
    """Claude on Bedrock's InvokeModel: its events, base64 in AWS's."""
    whole, events = messages(turn)
    data = [event.partition(b"data: ")[2].strip() for event in events]
    return whole, [aws_event("chunk", {"bytes": base64.b64encode(one).decode()}) for one in data]


def converse(turn: Turn) -> Said:
    """https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html"""
    content: list[Body] = [{"text": turn.text}] if turn.text else []
    for call in turn.calls:
        content.append({"toolUse": {"toolUseId": call.id, "name": call.name, "input": call.arguments}})
    usage = {"inputTokens": 5, "outputTokens": 7, "totalTokens": 12}
    tail = {"usage": usage, "metrics": {"latencyMs": 1}}
    message = {"role": "assistant", "content": content}
    whole = {"output": {"message": message}, "stopReason": "tool_use", **tail}

    def delta(index: int, value: Body) -> bytes:
        return aws_event("contentBlockDelta", {"contentBlockIndex": index, "delta": value})

    events = [aws_event("messageStart", {"role": "assistant"})]
    first = 1 if turn.text else 0
    if turn.text:
        events += [*(delta(0, {"text": word}) for word in turn.words())]
        events.append(aws_event("contentBlockStop", {"contentBlockIndex": 0}))
    streams = []
    for index, call in enumerate(turn.calls, first):
        start = {"toolUse": {"toolUseId": call.id, "name": call.name}}
        stream = [aws_event("contentBlockStart", {"contentBlockIndex": index, "start": start})]
        stream += [delta(index, {"toolUse": {"input": piece}}) for piece in _cut(call.text, turn.cut)]
        streams.append([*stream, aws_event("contentBlockStop", {"contentBlockIndex": index})])
    events += turn.ordered(streams)
    events += [aws_event("messageStop", {"stopReason": "tool_use"}), aws_event("metadata", tail)]
    return json.dumps(whole).encode(), events


def contents(turn: Turn) -> Said:
    """Gemini says a call whole, several in one chunk or one in each.
    https://ai.google.dev/gemini-api/docs/function-calling#parallel_function_calling"""
    calls = [{"functionCall": {"id": call.id, "name": call.name, "args": call.arguments}} for call in turn.calls]
    usage = {"promptTokenCount": 5, "candidatesTokenCount": 7, "totalTokenCount": 12}
    base = {"modelVersion": "m", "responseId": "r"}

    def chunk(parts: list[Body], **more: Any) -> Body:
        candidate = {"content": {"role": "model", "parts": parts}, "index": 0, **more}
        return {"candidates": [candidate], **base, "usageMetadata": usage}

    text = [{"text": turn.text}] if turn.text else []
    whole = chunk([*text, *calls], finishReason="STOP")
    groups = [calls[at : at + 2] for at in range(0, len(calls), 2)] if turn.is_interleaved else [[c] for c in calls]
    parts = [*([{"text": word}] for word in turn.words()), *groups]
    chunks = [*map(chunk, parts), chunk([{"text": ""}], finishReason="STOP")]
    return json.dumps(whole, indent=2).encode(), [_sse(one).replace(b"\n\n", b"\r\n\r\n") for one in chunks]


def cohere(turn: Turn) -> Said:
    """https://docs.cohere.com/docs/streaming · https://docs.cohere.com/docs/tool-use-parameters"""
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.text}}
        for call in turn.calls
    ]
    usage = {"billed_units": {"input_tokens": 5, "output_tokens": 7}, "tokens": {"input_tokens": 5, "output_tokens": 7}}
    message: Body = {"role": "assistant", "tool_calls": calls}
    if turn.text:
        message["content"] = [{"type": "text", "text": turn.text}]
    whole = {"id": "x", "finish_reason": "TOOL_CALL", "message": message, "usage": usage}

    def event(kind: str, index: int | None = None, message: Any = None, **delta: Any) -> bytes:
        found: Body = {"type": kind} if index is None else {"type": kind, "index": index}
        if message is not None or delta:
            found["delta"] = delta if message is None else {"message": message}
        return _sse(found, kind)

    events = [_sse({"type": "message-start", "id": "x", "delta": {"message": {"role": "assistant"}}}, "message-start")]
    if turn.text:
        events.append(event("content-start", 0, {"content": {"type": "text", "text": ""}}))
        events += [event("content-delta", 0, {"content": {"text": word}}) for word in turn.words()]
        events.append(event("content-end", 0))
    for index, call in enumerate(calls):
        begun = {**call, "function": {"name": turn.calls[index].name, "arguments": ""}}
        events.append(event("tool-call-start", index, {"tool_calls": begun}))
        for piece in _cut(turn.calls[index].text, turn.cut):
            events.append(event("tool-call-delta", index, {"tool_calls": {"function": {"arguments": piece}}}))
        events.append(event("tool-call-end", index))
    events.append(event("message-end", finish_reason="TOOL_CALL", usage=usage))
    return json.dumps(whole).encode(), events


def ollama(turn: Turn) -> Said:
    """Calls come whole and without ids, one or more a line.
    https://docs.ollama.com/capabilities/tool-calling#tool-calling-with-streaming"""
    calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in turn.calls]
    base = {"model": "m", "created_at": "2026-01-01T00:00:00Z"}
    end = {"done": True, "done_reason": "stop", "prompt_eval_count": 5, "eval_count": 7}
    message = {"role": "assistant", "content": turn.text, "tool_calls": calls}

    def line(**fields: Any) -> bytes:
        said = {"role": "assistant", "content": "", **fields}
        return json.dumps({**base, "message": said, "done": False}, ensure_ascii=False).encode() + b"\n"

    groups = [calls[at : at + 2] for at in range(0, len(calls), 2)] if turn.is_interleaved else [[c] for c in calls]
    events = [*(line(content=word) for word in turn.words()), *(line(tool_calls=group) for group in groups)]
    last = {**base, "message": {"role": "assistant", "content": ""}, **end}
    return json.dumps({**base, "message": message, **end}).encode(), [*events, json.dumps(last).encode() + b"\n"]


def responses(turn: Turn) -> Said:
    """https://platform.openai.com/docs/guides/function-calling?api-mode=responses#streaming"""
    plan = Plan(model="m", words=[], input_tokens=5, output_tokens=7)
    items: list[Body] = []
    if turn.text:
        part = {"type": "output_text", "text": turn.text, "annotations": [], "logprobs": []}
        items.append(
            {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        )  # fmt: skip
    for at, call in enumerate(turn.calls):
        items.append(
            {"id": f"fc_{at}", "type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.text}
        )
    whole = response_of(plan, items, "completed")
    events = [responses_event("response.created", 0, response=response_of(plan, [], "in_progress"))]
    streams = []
    for index, item in enumerate(items):
        pieces = item_events(item, index, cut=turn.cut)
        found = [responses_event(kind, 1, output_index=index, **fields) for kind, fields in pieces]
        if item["type"] == "message":
            events += found
        else:
            streams.append(found)
    events += [*turn.ordered(streams), responses_event("response.completed", 2, response=whole)]
    return json.dumps(whole).encode(), events


ENCODERS: dict[str, Callable[[Turn], Said]] = {
    "anthropic": messages,
    "bedrock": converse,
    "bedrock-invoke": in_chunks,
    "cohere": cohere,
    "gemini": contents,
    "ollama": ollama,
    "openai-responses": responses,
    "sagemaker": in_payload_parts,
    "vertex": contents,
}
"""By provider; all others stream as OpenAI does."""
