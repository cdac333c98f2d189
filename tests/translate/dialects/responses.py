"""OpenAI's Responses API, held to the openai SDK's own types: a request is what their SDK lets one say, an answer and
every event is what it parses.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, ClassVar

import pydantic

from sidecar.translate import UpstreamRequest
from sidecar.translate.simulate import Plan
from tests.translate.dialects.base import Dialect, json_of

ENCRYPTED = "gAAAAABo" + "c2ltdWxhdGVk" * 8 + "=="


@lru_cache
def _params() -> pydantic.TypeAdapter[Any]:
    from openai.types.responses import response_create_params as types

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydantic.TypeAdapter(
            types.ResponseCreateParamsStreaming | types.ResponseCreateParamsNonStreaming,
        )


@lru_cache
def _events() -> pydantic.TypeAdapter[Any]:
    from openai.types.responses import ResponseStreamEvent

    return pydantic.TypeAdapter(ResponseStreamEvent)


def _plain(value: Any) -> Any:
    """Lazily validated iterables made real, which runs their validation."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (str, bytes, int, float, bool)) or value is None:
        return value
    return [_plain(item) for item in value]


def assert_openai_takes(body: Mapping[str, Any]) -> None:
    """Valid by the SDK's own types, and nothing in it that they do not know."""
    assert _plain(_params().validate_python(dict(body))) == body


def event(kind: str, number: int, **fields: Any) -> bytes:
    whole = {"type": kind, "sequence_number": number, **fields}
    _events().validate_python(whole)
    data = json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()


def items_of(plan: Plan) -> list[dict[str, Any]]:
    """The output of an answer. A thought has a summary and, for who echoes it, its encrypted form."""
    items: list[dict[str, Any]] = []
    if plan.thought:
        summary = [{"type": "summary_text", "text": plan.thought}]
        items.append({"id": "rs_sim", "type": "reasoning", "summary": summary, "encrypted_content": ENCRYPTED})
    if plan.tool is not None:
        arguments = json.dumps(plan.arguments, separators=(",", ":"))
        call = {"type": "function_call", "call_id": "call_sim", "name": plan.tool, "arguments": arguments}
        items.append({"id": "fc_sim", **call, "status": "completed"})
    else:
        part = {"type": "output_text", "text": plan.text, "annotations": [], "logprobs": []}
        message = {"type": "message", "role": "assistant", "content": [part]}
        items.append({"id": "msg_sim", **message, "status": "incomplete" if plan.is_capped else "completed"})
    return items


def response_of(plan: Plan, output: list[Any], status: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": "resp_sim", "object": "response", "created_at": 1_700_000_000, "model": plan.model, "status": status,
        "error": None, "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None, "metadata": {}, "output": output, "parallel_tool_calls": True, "temperature": 1.0,
        "tool_choice": "auto", "tools": [], "top_p": 1.0, "store": False, "usage": None,
    }  # fmt: skip
    if plan.has_usage and status not in ("in_progress", "failed"):
        body["usage"] = {
            "input_tokens": plan.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": plan.output_tokens,
            "output_tokens_details": {"reasoning_tokens": len(plan.thought.split())},
            "total_tokens": plan.input_tokens + plan.output_tokens,
        }
    return body


class ResponsesAPI(Dialect):
    model: ClassVar[str] = "gpt-5-codex"
    base_path: ClassVar[str] = "/v1"
    empty_streams = (
        *Dialect.empty_streams,
        b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n',
        b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
    )
    scraps = (
        b'data: {"type":"response.created","response":{"id":"r","model":"m"}}\n\n',
        b'data: {"type":"response.created","response":[]}\n\n',
        b'data: {"type":"response.output_text.delta","delta":"x","output_index":0,"content_index":0}\n\n',
        b'data: {"type":"response.output_text.delta","delta":"x","logprobs":[{"token":"x","logprob":null},3]}\n\n',
        b'data: {"type":"response.output_item.added","output_index":1,"item":{"type":"function_call","name":3}}\n\n',
        b'data: {"type":"response.output_item.done","output_index":1,"item":{"type":"function_call"}}\n\n',
        b'data: {"type":"response.output_item.done","item":{"type":"reasoning","id":"r","encrypted_content":"e"}}\n\n',
        b'data: {"type":"response.output_item.done","item":{"type":"message","phase":"commentary"}}\n\n',
        b'data: {"type":"response.function_call_arguments.delta","output_index":1,"delta":"{"}\n\n',
        b'data: {"type":"response.output_text.annotation.added","annotation":{"type":"url_citation","url":"u"}}\n\n',
        b'data: {"type":"response.reasoning_summary_part.added"}\n\n',
        b'data: {"type":"response.reasoning_summary_text.delta","delta":"x"}\n\n',
        b'data: {"type":"response.refusal.delta","delta":"x"}\n\n',
        b'data: {"type":"response.completed","response":{"output":[],"usage":{"input_tokens":-1}}}\n\n',
        b'data: {"type":"response.incomplete","response":{"output":[],"status":"incomplete"}}\n\n',
        b'data: {"type":"response.failed","response":{"error":{"code":3}}}\n\n',
        b'data: {"type":"error","code":"server_error","message":[]}\n\n',
    )

    def claims(self, target: str) -> bool:
        return target.partition("?")[0].endswith("/responses")

    def check(self, request: UpstreamRequest) -> None:
        assert_openai_takes(json_of(request))

    def read(self, request: UpstreamRequest) -> dict[str, Any]:
        body = json_of(request)
        asked: dict[str, Any] = {
            "model": body["model"],
            "stream": body.get("stream", False),
            "messages": [*_messages(body["input"])],
            "max_tokens": body.get("max_output_tokens"),
            "tools": [{"function": tool} for tool in body.get("tools", ()) if tool["type"] == "function"],
            "tool_choice": body.get("tool_choice"),
        }
        form = body.get("text", {}).get("format", {})
        if form.get("type") == "json_schema":
            asked["response_format"] = {"type": "json_schema", "json_schema": form}
        elif form.get("type") == "json_object":
            asked["response_format"] = form
        return asked

    def answer(self, plan: Plan) -> bytes:
        from openai.types.responses import Response

        body = response_of(plan, items_of(plan), "incomplete" if plan.is_capped else "completed")
        Response.model_validate(body)
        return json.dumps(body).encode()

    def events(self, plan: Plan, asked: Mapping[str, Any]) -> Iterator[bytes]:
        number = iter(range(1_000_000))
        for kind in ("response.created", "response.in_progress"):
            yield event(kind, next(number), response=response_of(plan, [], "in_progress"))
        items = items_of(plan)
        for index, item in enumerate(items):
            for kind, fields in item_events(item, index, plan.words):
                yield event(kind, next(number), output_index=index, **fields)
        status = "incomplete" if plan.is_capped else "completed"
        yield event(f"response.{status}", next(number), response=response_of(plan, items, status))

    def error_event(self) -> bytes:
        return event("error", 99, code="server_error", message="Simulated failure.", param=None)


def item_events(
    item: dict[str, Any], index: int, words: list[str] | None = None, cut: int = 8
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is streamed of an item, as (type, fields); arguments and texts in pieces of `cut`, or the given words."""
    kind, item_id = item["type"], item["id"]
    if kind == "reasoning":
        yield "response.output_item.added", {"item": {**item, "summary": [], "encrypted_content": ""}}
        for number, part in enumerate(item["summary"]):
            place = {"item_id": item_id, "summary_index": number}
            yield "response.reasoning_summary_part.added", {**place, "part": {"type": "summary_text", "text": ""}}
            for word in _pieces(part["text"], cut):
                yield "response.reasoning_summary_text.delta", {**place, "delta": word}
            yield "response.reasoning_summary_text.done", {**place, "text": part["text"]}
            yield "response.reasoning_summary_part.done", {**place, "part": part}
    elif kind == "message":
        yield "response.output_item.added", {"item": {**item, "content": [], "status": "in_progress"}}
        for number, part in enumerate(item["content"]):
            place = {"item_id": item_id, "content_index": number}
            what = "refusal" if part["type"] == "refusal" else "text"
            name = "refusal" if what == "refusal" else "output_text"
            empty = {**part, what: ""} | ({"annotations": []} if what == "text" else {})
            more: dict[str, Any] = {"logprobs": []} if what == "text" else {}
            yield "response.content_part.added", {**place, "part": empty}
            for word in words if words and what == "text" else _pieces(part[what], cut):
                yield f"response.{name}.delta", {**place, "delta": word, **more}
            for at, annotation in enumerate(part.get("annotations", ())):
                found = {"annotation_index": at, "annotation": annotation}
                yield "response.output_text.annotation.added", {**place, **found}
            yield f"response.{name}.done", {**place, what: part[what], **more}
            yield "response.content_part.done", {**place, "part": part}
    elif kind in ("function_call", "custom_tool_call"):
        name = "function_call_arguments" if kind == "function_call" else "custom_tool_call_input"
        key = "arguments" if kind == "function_call" else "input"
        yield "response.output_item.added", {"item": {**item, key: ""}}
        for piece in _pieces(item[key], cut):
            yield f"response.{name}.delta", {"item_id": item_id, "delta": piece}
        done = {"item_id": item_id, key: item[key]} | ({"name": item["name"]} if kind == "function_call" else {})
        yield f"response.{name}.done", done
    yield "response.output_item.done", {"item": item}


def _pieces(text: str, cut: int) -> list[str]:
    return [text[at : at + cut] for at in range(0, len(text), cut)]


def _messages(items: str | list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    for item in items:
        if item.get("type", "message") == "message":
            yield {"role": item["role"], "content": item["content"]}
        elif item["type"] in ("function_call_output", "custom_tool_call_output"):
            yield {"role": "tool", "content": item["output"]}
        else:
            yield {"role": "assistant", "content": ""}
