"""Databricks: bytes pass, content in parts is put right, and signed reasoning comes back with its tool calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.errors import UpstreamBrokenError
from sidecar.translate import Head, get_provider
from sidecar.translate.signatures import bare_id, unpack
from sidecar.types import Usage
from tests.translate.support import OK, USER, WEATHER, call_to, fold, run, sent, unfold

DATABRICKS = get_provider("databricks")
CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[%s]}\n\n'
DONE = b"data: [DONE]\n\n"


def reasoning(text: str, signature: str | None = None) -> dict[str, Any]:
    signed = {} if signature is None else {"signature": signature}
    return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text, **signed}]}


def tool(tool_id: str = "toolu_1") -> dict[str, Any]:
    return {"id": tool_id, "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


def answer(message: dict[str, Any], finish: str = "stop") -> bytes:
    choices = [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}]
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
    return json.dumps(whole).encode()


def stream_of(*deltas: dict[str, Any], finish: str = "stop") -> bytes:
    chunks = [json.dumps({"index": 0, "delta": delta, "finish_reason": None}).encode() for delta in deltas]
    chunks.append(json.dumps({"index": 0, "delta": {}, "finish_reason": finish}).encode())
    return b"".join(CHUNK % chunk for chunk in chunks) + DONE


def test_the_endpoint_is_the_model_and_bytes_pass() -> None:
    call = call_to(DATABRICKS, {"model": "databricks-claude-sonnet-4-5"}, model="databricks-claude-sonnet-4-5")
    request = DATABRICKS.request(call)
    assert (request.path, request.body) == ("/chat/completions", call.raw)
    plain = answer({"content": "hi"})
    assert DATABRICKS.response(call, OK, plain).body == plain
    assert (DATABRICKS.keyless, DATABRICKS.default_base_url) == ("databricks", None)


def test_content_in_parts_is_text_and_reasoning_both_ways() -> None:
    text = {"type": "text", "text": "4"}
    reply = DATABRICKS.response(call_to(DATABRICKS), OK, answer({"content": [reasoning("hm"), text]}))
    whole = unfold(reply.body)
    assert reply.usage == Usage(input=3, output=9)
    first = {"role": "assistant", "content": ""}
    given = stream_of(first, {"content": [reasoning("h")]}, {"content": [reasoning("m")]}, {"content": [text]})
    folded = fold(run(DATABRICKS.stream(call_to(DATABRICKS, {"stream": True}), OK), given))
    for found in (whole, folded):
        assert (found["content"], found["reasoning"]) == ("4", "hm")


@pytest.mark.parametrize("is_stream", [False, True])
def test_signed_reasoning_travels_in_the_id_of_the_first_call_and_comes_back(is_stream: bool) -> None:
    """Promise 16: a stock client echoes nothing but ids."""
    parts = [reasoning("I look", "c2ln"), {"type": "text", "text": "Wait."}]
    if is_stream:
        given = stream_of(
            {"role": "assistant", "content": ""},
            {"content": [reasoning("I ")]},
            {"content": [reasoning("look")]},
            {"content": [reasoning("", "c2ln")]},
            {"content": [parts[1]]},
            {"tool_calls": [{"index": 0, **tool("toolu_1")}]},
            {"tool_calls": [{"index": 1, **tool("toolu_2")}]},
            finish="tool_calls",
        )
        found = fold(run(DATABRICKS.stream(call_to(DATABRICKS, {"stream": True}), OK), given))
    else:
        said = answer({"content": parts, "tool_calls": [tool("toolu_1"), tool("toolu_2")]}, "tool_calls")
        found = unfold(DATABRICKS.response(call_to(DATABRICKS), OK, said).body)
    first, second = (call["id"] for call in found["tools"])
    assert unpack(first) == ("toolu_1", {"kind": "databricks", "text": "I look", "sig": "c2ln"})
    assert second == "toolu_2"
    echoed = {"role": "assistant", "content": found["content"], "tool_calls": [tool(first), tool(second)]}
    results = [{"role": "tool", "tool_call_id": tool_id, "content": "x"} for tool_id in (first, second)]
    sent_turn = sent("databricks", {"tools": [WEATHER], "messages": [*USER, echoed, *results]})["messages"]
    assert sent_turn[1]["content"] == [reasoning("I look", "c2ln"), {"type": "text", "text": "Wait."}]
    assert [call["id"] for call in sent_turn[1]["tool_calls"]] == ["toolu_1", "toolu_2"]
    assert [message["tool_call_id"] for message in sent_turn[2:]] == ["toolu_1", "toolu_2"]
    assert bare_id(first) == "toolu_1"


def test_unsigned_reasoning_needs_no_way_back() -> None:
    said = answer({"content": [reasoning("hm")], "tool_calls": [tool()]}, "tool_calls")
    found = unfold(DATABRICKS.response(call_to(DATABRICKS), OK, said).body)
    assert (found["tools"][0]["id"], found["content"], found["reasoning"]) == ("toolu_1", None, "hm")


@pytest.mark.parametrize("content", [[3], [{"type": "text"}], [{"type": "reasoning", "summary": [3]}]])
def test_odd_parts_are_a_broken_answer(content: Any) -> None:
    with pytest.raises(UpstreamBrokenError):
        DATABRICKS.response(call_to(DATABRICKS), OK, answer({"content": content}))
    with pytest.raises(UpstreamBrokenError):
        run(DATABRICKS.stream(call_to(DATABRICKS, {"stream": True}), OK), stream_of({"content": content}))


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "BAD_REQUEST", "bad_request"),
        (400, "INVALID_PARAMETER_VALUE", "bad_request"),
        (401, "UNAUTHENTICATED", "authentication"),
        (403, "PERMISSION_DENIED", "permission"),
        (404, "RESOURCE_DOES_NOT_EXIST", "not_found"),
        (404, "ENDPOINT_NOT_FOUND", "not_found"),
        (429, "REQUEST_LIMIT_EXCEEDED", "rate_limit"),
        (403, "QUOTA_EXCEEDED", "quota"),
        (503, "TEMPORARILY_UNAVAILABLE", "overloaded"),
        (504, "DEADLINE_EXCEEDED", "timeout"),
        (500, "INTERNAL_ERROR", "server"),
        (429, "SOMETHING_NEW", "rate_limit"),
    ],
)
def test_errors_by_code(status: int, code: str, kind: str) -> None:
    told = json.dumps({"error_code": code, "message": "see https://docs.databricks.com"}).encode()
    error = DATABRICKS.error(call_to(DATABRICKS), Head(status, [(b"retry-after", b"4")]), told)
    assert (error.kind, error.retry_after_s) == (kind, 4.0)
