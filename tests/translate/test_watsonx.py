"""watsonx.ai's text chat: IBM's names on the way in, OpenAI's on the way back, and streams that end without a word."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from sidecar.errors import BadRequestError, ProviderError, UpstreamBrokenError
from sidecar.translate import Head, get_provider
from sidecar.types import Usage
from tests.translate.dialects.watsonx import assert_watsonx_takes
from tests.translate.support import OK, USER, WEATHER, call_to, fold, run, sent, unfold

WATSONX = get_provider("watsonx")
MODEL = "ibm/granite-4-h-small"
BASE = {"id": "chat-1", "model_id": MODEL, "created": 1, "created_at": "2026-01-01T00:00:00Z", "model_version": "1.0.0"}


def body_of(payload: dict[str, Any], **options: Any) -> dict[str, Any]:
    body = sent("watsonx", payload, **options)
    assert_watsonx_takes(body)
    return body


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **fields: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "finish_reason": finish, "delta": delta}]
    return b"id: 1\nevent: message\ndata: " + json.dumps({**BASE, "choices": choices, **fields}).encode() + b"\n\n"


def test_model_project_and_version_stand_where_ibm_has_them() -> None:
    request = WATSONX.request(call_to(WATSONX, {}, model=MODEL))
    assert (request.path, request.query) == ("/ml/v1/text/chat", "version=2024-10-08")
    assert json.loads(request.body) == {"messages": USER, "model_id": MODEL, "project_id": "p-1"}
    options = {"api_version": "2025-02-11"}
    request = WATSONX.request(call_to(WATSONX, {"stream": True}, options=options, params={"space_id": "s"}))
    assert (request.path, request.query) == ("/ml/v1/text/chat_stream", "version=2025-02-11")
    body = json.loads(request.body)
    assert body.keys() == {"messages", "model_id", "space_id"}


def test_a_deployment_of_a_space_stands_in_the_path_alone() -> None:
    request = WATSONX.request(call_to(WATSONX, {"stream": True}, model="deployment/a b"))
    assert request.path == "/ml/v1/deployments/a%20b/text/chat_stream"
    assert json.loads(request.body) == {"messages": USER}


@pytest.mark.parametrize("field", ["project_id", "space_id", "model_id"])
def test_a_client_chooses_neither_project_nor_space(field: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        sent("watsonx", {field: "x"})
    assert caught.value.param == field


def test_choices_in_words_have_a_field_of_their_own() -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    other = {**WEATHER, "function": {**WEATHER["function"], "name": "other"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    for given, expected in (
        ("auto", "auto"),
        ("required", "required"),
        ({"type": "none"}, "none"),
        ("any", "required"),
    ):
        body = body_of({"tools": [WEATHER], "tool_choice": given})
        assert (body["tool_choice_option"], "tool_choice" in body) == (expected, False)
    body = body_of({"tools": [WEATHER], "tool_choice": named})
    assert (body["tool_choice"], "tool_choice_option" in body) == (named, False)
    body = body_of({"tools": [other, WEATHER], "tool_choice": allowed})
    assert (body["tool_choice_option"], body["tools"]) == ("required", [WEATHER])
    with pytest.raises(BadRequestError):
        sent("watsonx", {"tools": [WEATHER], "tool_choice": "sometimes"})


def test_a_developer_is_a_system_and_one_stop_is_a_list() -> None:
    body = body_of({"messages": [{"role": "developer", "content": "x"}, *USER], "stop": "END", "time_limit": 5000})
    assert body["messages"] == [{"role": "system", "content": "x"}, *USER]
    assert (body["stop"], body["time_limit"]) == (["END"], 5000)


def test_an_answer_under_openais_names() -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "time_limit"}
    usage = {"completion_tokens": 2, "prompt_tokens": 3, "total_tokens": 5}
    reply = WATSONX.response(call_to(WATSONX), OK, json.dumps({**BASE, "choices": [choice], "usage": usage}).encode())
    assert unfold(reply.body)["finish"] == "length"
    assert reply.usage == Usage(input=3, output=2)
    parsed = json.loads(reply.body)
    assert (parsed["model"], parsed["object"], "model_id" in parsed) == (MODEL, "chat.completion", False)
    assert parsed["choices"][0]["native_finish_reason"] == "time_limit"


def test_a_stream_gets_its_end_when_the_body_ends_after_the_finish_reason() -> None:
    usage = {"completion_tokens": 2, "prompt_tokens": 3, "total_tokens": 5}
    pieces = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "hi"}),
        chunk({"content": ""}, "stop"),
        chunk(usage=usage),
    ]
    payload = {"stream": True, "stream_options": {"include_usage": True}}
    translator = WATSONX.stream(call_to(WATSONX, payload), OK)
    folded = fold(run(translator, *pieces))
    assert (folded["content"], folded["finish"], folded["usage"]) == ("hi", "stop", usage)
    assert translator.usage == Usage(input=3, output=2)
    hidden = WATSONX.stream(call_to(WATSONX, {"stream": True}), OK)
    assert fold(run(hidden, *pieces))["usage"] is None
    assert hidden.usage == Usage(input=3, output=2)
    ended = WATSONX.stream(call_to(WATSONX, {"stream": True}), OK)
    assert run(ended, *pieces, b"data: [DONE]\n\n").count(b"[DONE]") == 1


def test_several_choices_have_to_finish_each() -> None:
    def both(first: str | None, second: str | None) -> bytes:
        choices = [{"index": at, "finish_reason": one, "delta": {}} for at, one in enumerate((first, second))]
        return chunk(choices=choices)

    translator = WATSONX.stream(call_to(WATSONX, {"stream": True, "n": 2}), OK)
    translator.feed(both(None, None) + both("stop", None))
    with pytest.raises(UpstreamBrokenError):
        translator.end()
    run(WATSONX.stream(call_to(WATSONX, {"stream": True, "n": 2}), OK), both("stop", None), both(None, "length"))


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_input_argument", "bad_request"),
        (401, "authentication_token_expired", "authentication"),
        (403, "token_quota_reached", "quota"),
        (404, "model_not_supported", "not_found"),
        (429, "rate_limit_reached_requests", "rate_limit"),
        (429, "consumption_limit_reached", "rate_limit"),
        (500, "downstream_request_failed", "server"),
        (503, "unknown", "overloaded"),
    ],
)
def test_errors_by_code_and_status(status: int, code: str, kind: str) -> None:
    """7b-99: the text decides nothing."""
    told = {"errors": [{"code": code, "message": "429 rate limit"}], "trace": "t", "status_code": status}
    error = WATSONX.error(call_to(WATSONX), Head(status), json.dumps(told).encode())
    assert error.kind == kind
    event = b"id: 2\nevent: error\ndata: " + json.dumps(told).encode() + b"\n\n"
    with pytest.raises(ProviderError) as caught:
        run(WATSONX.stream(call_to(WATSONX, {"stream": True}), OK), chunk({"content": "x"}), event)
    assert (caught.value.kind, caught.value.may_be_billed) == (kind, True)


def test_a_choice_that_ends_in_an_error_is_one() -> None:
    with pytest.raises(ProviderError):
        run(WATSONX.stream(call_to(WATSONX, {"stream": True}), OK), chunk({"content": ""}, "error"))


def test_the_schema_refuses_what_ibm_would() -> None:
    """The oracle can fail."""
    for odd in ({"user": "u"}, {"stream": True}, {"tool_choice": "auto"}, {"model": "m"}):
        with pytest.raises(ValidationError):
            assert_watsonx_takes({"model_id": "m", "messages": USER, **odd})
