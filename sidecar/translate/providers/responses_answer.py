"""What a response says, in chat's words: output items, usage, finish reasons; shared by whole answers and streams.

https://platform.openai.com/docs/api-reference/responses/object
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.translate.provider import Call
from sidecar.translate.providers.responses_state import Turn
from sidecar.translate.tool_names import ToolNames
from sidecar.types import Usage

BETWEEN_SUMMARIES = "\n\n"
_TIERS = ("auto", "default", "flex", "scale", "priority", "fast")
_FINISH = {"max_output_tokens": "length", "max_messages": "length", "content_filter": "content_filter"}


def finish_reason(response: Mapping[str, Any], has_tool_calls: bool) -> str:
    if response.get("status") == "incomplete":
        details = response.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        return _FINISH.get(reason, "stop") if isinstance(reason, str) else "length"
    return "tool_calls" if has_tool_calls else "stop"


def chat_usage(usage: Usage) -> dict[str, Any]:
    """Chat's `usage` object: totals that include every class."""
    prompt: dict[str, int] = {"cached_tokens": usage.cached_input or 0}
    if usage.cache_write_5m is not None:
        prompt["cache_write_tokens"] = usage.cache_write_5m
    return {
        "prompt_tokens": usage.total_input,
        "completion_tokens": usage.total_output,
        "total_tokens": usage.total,
        "prompt_tokens_details": prompt,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning or 0},
    }


def head_of(call: Call, response: Mapping[str, Any], kind: str) -> dict[str, Any]:
    given_id, model, created = response.get("id"), response.get("model"), response.get("created_at")
    head = {
        "id": given_id if isinstance(given_id, str) and given_id else f"chatcmpl-{call.exchange_id}",
        "object": kind,
        "created": int(created) if isinstance(created, (int, float)) and 0 <= created < 1 << 40 else int(call.now),
        "model": model if isinstance(model, str) and model else call.model,
    }
    if response.get("service_tier") in _TIERS:
        head["service_tier"] = response["service_tier"]
    return head


def annotation_of(source: Any, shift: int) -> dict[str, Any] | None:
    """A URL citation, its place counted from the content's start; other kinds have no form in chat.
    https://platform.openai.com/docs/guides/tools-web-search#output-and-citations"""
    if not isinstance(source, dict) or source.get("type") != "url_citation" or not isinstance(source.get("url"), str):
        return None
    start, end = source.get("start_index"), source.get("end_index")
    cited = {
        "url": source["url"],
        "title": str(source.get("title") or ""),
        "start_index": shift + (start if type(start) is int else 0),
        "end_index": shift + (end if type(end) is int else 0),
    }
    return {"type": "url_citation", "url_citation": cited}


def logprobs_of(source: Any) -> list[dict[str, Any]]:
    """Streams tell tokens and their logarithms alone, whole answers also the bytes."""
    found = []
    for token in source if isinstance(source, list) else ():
        if not isinstance(token, dict) or not isinstance(token.get("token"), str):
            continue
        tops = token.get("top_logprobs")
        others = [top for top in tops if isinstance(top, dict)] if isinstance(tops, list) else []
        found.append(
            {**_one(token), "top_logprobs": [_one(top) for top in others if isinstance(top.get("token"), str)]}
        )
    return found


def _one(token: Mapping[str, Any]) -> dict[str, Any]:
    value, raw = token.get("logprob"), token.get("bytes")
    if not isinstance(raw, list):
        raw = list(token["token"].encode("utf-8", "replace"))
    return {
        "token": token["token"],
        "logprob": float(value) if isinstance(value, (int, float)) else -9999.0,
        "bytes": raw,
    }


def tool_call(item: Mapping[str, Any], turn: Turn, names: ToolNames, fallback_id: str) -> dict[str, Any]:
    """A function's or a custom tool's call; its id holds the reasoning before it."""
    given = item.get("call_id")
    call_id = turn.call_id(given if isinstance(given, str) and given else fallback_id)
    name = str(item.get("name") or "")
    if item.get("type") == "custom_tool_call":
        custom = {"name": name, "input": str(item.get("input") or "")}
        return {"id": call_id, "type": "custom", "custom": custom}
    function = {"name": names.original(name), "arguments": str(item.get("arguments") or "")}
    return {"id": call_id, "type": "function", "function": function}


def message_of(call: Call, output: list[Any], names: ToolNames, name: str) -> tuple[dict[str, Any], list[Any]]:
    """(the message, its tokens' logprobs) of a whole answer."""
    turn = Turn(name)
    texts: list[str] = []
    refusals: list[str] = []
    thoughts: list[str] = []
    annotations: list[dict[str, Any]] = []
    tokens: list[Any] = []
    calls: list[dict[str, Any]] = []
    for item in output:
        kind = item.get("type")
        if kind == "message":
            for part in item.get("content") or ():
                if part.get("type") == "refusal":
                    refusals.append(part.get("refusal") or "")
                elif part.get("type") == "output_text":
                    found = (annotation_of(source, turn.said) for source in part.get("annotations") or ())
                    annotations += [one for one in found if one is not None]
                    texts.append(part.get("text") or "")
                    turn.said += len(texts[-1])
                    tokens += logprobs_of(part.get("logprobs"))
            turn.ended_message(item.get("phase"))
        elif kind == "reasoning":
            thoughts += _thoughts(item)
            turn.reasoned(item)
        elif kind in ("function_call", "custom_tool_call"):
            made = tool_call(item, turn, names, f"call_{call.exchange_id}_{len(calls)}")
            if kind == "function_call":
                made["function"]["arguments"] = made["function"]["arguments"] or "{}"
            calls.append(made)
    content: str | None = "".join(texts)
    if not content and (calls or refusals):
        content = None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": "".join(refusals) or None}
    if annotations:
        message["annotations"] = annotations
    if thoughts:
        message["reasoning_content"] = BETWEEN_SUMMARIES.join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message, tokens


def _thoughts(item: Mapping[str, Any]) -> list[str]:
    """Summaries, or what open models tell of their reasoning itself."""
    summary, content = item.get("summary"), item.get("content")
    parts = [*(summary if isinstance(summary, list) else ()), *(content if isinstance(content, list) else ())]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return [text for text in texts if isinstance(text, str) and text]
