"""A deterministic provider in two dialects: request bytes in, answer pieces out. Pure: the caller does the waiting.

For the demo, tests and users' CI; `sidecar/simulated.py` serves it over HTTP. The model's name chooses what happens
(anything before `sim-` is ignored; an unknown name echoes):

    sim-echo       "echo: " and the last user text       sim-429       rate limit, retry-after 2
    sim-tools      calls the first tool                   sim-500       server error
    sim-think      thinks, with a signature               sim-529       overloaded
    sim-long-N     N words                                sim-cut       breaks off half-way
    sim-slow[-MS]  waits MS milliseconds (100) a piece    sim-error     error event half-way (streams)
    sim-no-usage   reports no usage

A token is a word. Output caps are kept, with the dialect's word for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from sidecar.translate.usage import NOT_JSON
from sidecar.types import Headers

Dialect = Literal["openai", "anthropic"]
Piece = tuple[float, bytes]
"""(seconds to wait before it, bytes)"""

CREATED = 1_700_000_000
SIGNATURE = "c2ltdWxhdGVkLXNpZ25hdHVyZQ=="
_WORD = re.compile(r"\s*\S+\s*")


@dataclass(slots=True)
class Simulated:
    """`is_cut`: after the last piece the connection is broken, not ended."""

    status: int
    headers: Headers
    pieces: list[Piece]
    is_cut: bool = False


@dataclass(slots=True)
class Plan:
    """What to answer, before it is put into a dialect."""

    model: str
    words: list[str]
    thought: str = ""
    tool: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    input_tokens: int = 1
    output_tokens: int = 1
    is_capped: bool = False
    has_usage: bool = True
    delay_s: float = 0.0

    @property
    def text(self) -> str:
        return "".join(self.words)


def _dump(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _words(text: str) -> list[str]:
    return _WORD.findall(text) or ([text] if text else [])


def _texts(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(
            _texts(part.get("text") or part.get("content")) for part in content if isinstance(part, dict)
        ).strip()
    return ""


def sample(schema: Any) -> Any:
    """A small value that fits a JSON schema."""
    if not isinstance(schema, dict):
        return {}
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(name), list) and schema[name]:
            return sample(schema[name][0])
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "string":
        return "example"
    if kind in ("integer", "number"):
        return 1
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    if kind == "array":
        return [sample(schema["items"])] if "items" in schema else []
    properties = schema.get("properties")
    if isinstance(properties, dict):
        return {name: sample(sub) for name, sub in properties.items()}
    return {}


def _first_tool(dialect: Dialect, request: dict[str, Any], is_asked: bool) -> tuple[str, dict[str, Any]] | None:
    """(name, schema) of the tool to call: the one forced, or the first if the model's name asks for it."""
    tools = request.get("tools")
    choice = request.get("tool_choice")
    found: dict[str, dict[str, Any]] = {}
    for tool in tools if isinstance(tools, list) else ():
        spec = (tool.get("function") if dialect == "openai" else tool) if isinstance(tool, dict) else None
        if isinstance(spec, dict) and isinstance(spec.get("name"), str):
            found[spec["name"]] = spec.get("parameters" if dialect == "openai" else "input_schema") or {}
    if not found:
        return None
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if isinstance(choice, dict) and kind in ("tool", "function"):
        inner = choice.get("function") if kind == "function" else choice
        name = inner.get("name") if isinstance(inner, dict) else None
        if name in found:
            return str(name), found[str(name)]
    if kind in ("any", "required"):
        is_asked = True
    if not is_asked or kind == "none":
        return None
    name = next(iter(found))
    return name, found[name]


def plan_answer(dialect: Dialect, request: dict[str, Any], trigger: str) -> Plan:
    messages = request.get("messages")
    messages = [item for item in messages if isinstance(item, dict)] if isinstance(messages, list) else []
    asked = [_texts(item.get("content")) for item in messages if item.get("role") == "user"]
    everything = " ".join([_texts(request.get("system")), *(_texts(item.get("content")) for item in messages)])
    plan = Plan(model=str(request.get("model")), words=[])
    plan.input_tokens = max(1, len(everything.split()))
    last = messages[-1] if messages else {}
    content = last.get("content")
    is_result = last.get("role") == "tool" or (
        isinstance(content, list)
        and any(isinstance(part, dict) and part.get("type") == "tool_result" for part in content)
    )
    tool = _first_tool(dialect, request, trigger.startswith("sim-tools") and not is_result)
    wanted = request.get("response_format") if dialect == "openai" else None
    if tool is None and isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        inner = wanted.get("json_schema")
        plan.words = [_dump(sample(inner.get("schema") if isinstance(inner, dict) else {})).decode()]
    elif tool is None and isinstance(wanted, dict) and wanted.get("type") == "json_object":
        plan.words = ["{}"]
    elif tool is not None:
        plan.tool = tool[0]
        given = sample({"type": "object", **tool[1]})
        plan.arguments = given if isinstance(given, dict) else {}
    elif match := re.match(r"sim-long-(\d{1,6})", trigger):
        plan.words = [f"word{index} " for index in range(1, int(match.group(1)) + 1)]
    else:
        plan.words = _words("echo: " + ((asked[-1] if asked else "") or _texts(content)))
    if trigger.startswith("sim-think"):
        plan.thought = "The user wants an answer."
    if match := re.match(r"sim-slow(?:-(\d{1,6}))?", trigger):
        plan.delay_s = int(match.group(1) or 100) / 1000
    plan.has_usage = not trigger.startswith("sim-no-usage")
    caps = [request.get(name) for name in ("max_tokens", "max_completion_tokens")]
    cap = min((cap for cap in caps if type(cap) is int and cap > 0), default=None)
    if cap is not None and len(plan.words) > cap:
        plan.words, plan.is_capped = plan.words[:cap], True
    plan.output_tokens = max(1, len(plan.words) + len(plan.thought.split()) + len(plan.arguments))
    return plan


def simulate(dialect: Dialect, body: bytes) -> Simulated:
    """The answer to one request. Never raises: a bad request gets the dialect's 400."""
    try:
        request = msgspec.json.decode(body)
    except NOT_JSON:
        return _error(dialect, 400, "The body is not JSON.")
    if not isinstance(request, dict) or not isinstance(request.get("model"), str):
        return _error(dialect, 400, "model: a string is required.")
    if not isinstance(request.get("messages"), list) or not request["messages"]:
        return _error(dialect, 400, "messages: a non-empty list is required.")
    if dialect == "anthropic" and type(request.get("max_tokens")) is not int:
        return _error(dialect, 400, "max_tokens: Field required")
    model = request["model"]
    trigger = model[model.find("sim-") :] if "sim-" in model else "sim-echo"
    for status, message in ((429, "Simulated rate limit."), (500, "Simulated failure."), (529, "Overloaded")):
        if trigger.startswith(f"sim-{status}"):
            return _error(dialect, status, message)
    try:
        plan = plan_answer(dialect, request, trigger)
    except RecursionError:
        return _error(dialect, 400, "The body is nested too deeply.")
    is_cut = trigger.startswith("sim-cut")
    if request.get("stream") is True:
        options = request.get("stream_options")
        asks_usage = isinstance(options, dict) and options.get("include_usage") is True
        events = list(_openai_events(plan, asks_usage) if dialect == "openai" else _anthropic_events(plan))
        if is_cut:
            events = events[: max(1, len(events) // 2)]
        elif trigger.startswith("sim-error"):
            events = [*events[: max(1, len(events) // 2)], _error_event(dialect)]
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        return Simulated(200, headers, [(plan.delay_s, event) for event in events], is_cut)
    answer = _dump(_openai_answer(plan) if dialect == "openai" else _anthropic_answer(plan))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    if is_cut:
        answer = answer[: len(answer) // 2]
    return Simulated(200, headers, [(plan.delay_s, answer)], is_cut)


_ERROR_TYPES = {400: "invalid_request_error", 429: "rate_limit_error", 500: "api_error", 529: "overloaded_error"}


def _error(dialect: Dialect, status: int, message: str) -> Simulated:
    body: dict[str, Any] = {"error": {"message": message, "type": _ERROR_TYPES[status]}}
    if dialect == "openai":
        status = 503 if status == 529 else status
        body["error"] |= {"param": None, "code": "rate_limit_exceeded" if status == 429 else None}
    else:
        body = {"type": "error", **body, "request_id": "req_simulated"}
    data = _dump(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    if status == 429:
        headers.append((b"retry-after", b"2"))
    return Simulated(status, headers, [(0.0, data)])


def _error_event(dialect: Dialect) -> bytes:
    if dialect == "openai":
        return b'data: {"error":{"message":"Simulated failure.","type":"server_error","param":null,"code":null}}\n\n'
    return b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'


def _openai_usage(plan: Plan) -> dict[str, Any]:
    return {
        "prompt_tokens": plan.input_tokens,
        "completion_tokens": plan.output_tokens,
        "total_tokens": plan.input_tokens + plan.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": len(plan.thought.split()), "audio_tokens": 0},
    }


def _openai_finish(plan: Plan) -> str:
    return "tool_calls" if plan.tool is not None else "length" if plan.is_capped else "stop"


def _openai_call(plan: Plan) -> dict[str, Any]:
    arguments = _dump(plan.arguments).decode()
    return {"id": "call_sim_1", "type": "function", "function": {"name": plan.tool, "arguments": arguments}}


def _openai_answer(plan: Plan) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": plan.text or None, "refusal": None}
    if plan.thought:
        message["reasoning_content"] = plan.thought
    if plan.tool is not None:
        message["tool_calls"] = [_openai_call(plan)]
    answer: dict[str, Any] = {
        "id": "chatcmpl-sim",
        "object": "chat.completion",
        "created": CREATED,
        "model": plan.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _openai_finish(plan)}],
    }
    if plan.has_usage:
        answer["usage"] = _openai_usage(plan)
    return answer


def _openai_events(plan: Plan, asks_usage: bool) -> Iterator[bytes]:
    head: dict[str, Any] = {
        "id": "chatcmpl-sim",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": plan.model,
    }
    tail: dict[str, Any] = {"usage": None} if asks_usage else {}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + _dump({**head, "choices": [choice], **tail}) + b"\n\n"

    yield chunk({"role": "assistant", "content": "" if plan.tool is None else None})
    for word in _words(plan.thought):
        yield chunk({"reasoning_content": word})
    if plan.tool is not None:
        call = _openai_call(plan)
        arguments = call["function"]["arguments"]
        call["function"] = {"name": plan.tool, "arguments": ""}
        yield chunk({"tool_calls": [{"index": 0, **call}]})
        for start in range(0, len(arguments), 8):
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": arguments[start : start + 8]}}]})
    for word in plan.words:
        yield chunk({"content": word})
    yield chunk({}, _openai_finish(plan))
    if asks_usage and plan.has_usage:
        yield b"data: " + _dump({**head, "choices": [], "usage": _openai_usage(plan)}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _anthropic_usage(plan: Plan) -> dict[str, Any]:
    if not plan.has_usage:
        return {}
    return {
        "usage": {
            "input_tokens": plan.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": plan.output_tokens,
        }
    }


def _anthropic_stop(plan: Plan) -> str:
    return "tool_use" if plan.tool is not None else "max_tokens" if plan.is_capped else "end_turn"


def _anthropic_content(plan: Plan) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    if plan.thought:
        content.append({"type": "thinking", "thinking": plan.thought, "signature": SIGNATURE})
    if plan.words:
        content.append({"type": "text", "text": plan.text})
    if plan.tool is not None:
        content.append({"type": "tool_use", "id": "toolu_sim_1", "name": plan.tool, "input": plan.arguments})
    return content


def _anthropic_answer(plan: Plan) -> dict[str, Any]:
    return {
        "id": "msg_sim",
        "type": "message",
        "role": "assistant",
        "model": plan.model,
        "content": _anthropic_content(plan),
        "stop_reason": _anthropic_stop(plan),
        "stop_sequence": None,
        **_anthropic_usage(plan),
    }


def _anthropic_events(plan: Plan) -> Iterator[bytes]:
    def event(name: str, **fields: Any) -> bytes:
        return b"event: " + name.encode() + b"\ndata: " + _dump({"type": name, **fields}) + b"\n\n"

    def delta(index: int, kind: str, **fields: Any) -> bytes:
        return event("content_block_delta", index=index, delta={"type": kind, **fields})

    start = {**_anthropic_answer(plan), "content": [], "stop_reason": None}
    if plan.has_usage:
        start["usage"] = {**start["usage"], "output_tokens": 1}
    yield event("message_start", message=start)
    for index, block in enumerate(_anthropic_content(plan)):
        kind = block["type"]
        blank: dict[str, dict[str, Any]] = {"thinking": {"thinking": "", "signature": ""}, "text": {"text": ""}}
        empty = blank.get(kind, {"input": {}})
        yield event("content_block_start", index=index, content_block={**block, **empty})
        if index == 0:
            yield event("ping")
        if kind == "thinking":
            for word in _words(plan.thought):
                yield delta(index, "thinking_delta", thinking=word)
            yield delta(index, "signature_delta", signature=SIGNATURE)
        elif kind == "text":
            for word in plan.words:
                yield delta(index, "text_delta", text=word)
        else:
            arguments = _dump(plan.arguments).decode()
            yield delta(index, "input_json_delta", partial_json="")
            for at in range(0, len(arguments), 8):
                yield delta(index, "input_json_delta", partial_json=arguments[at : at + 8])
        yield event("content_block_stop", index=index)
    usage = {"usage": {"output_tokens": plan.output_tokens}} if plan.has_usage else {}
    yield event("message_delta", delta={"stop_reason": _anthropic_stop(plan), "stop_sequence": None}, **usage)
    yield event("message_stop")
