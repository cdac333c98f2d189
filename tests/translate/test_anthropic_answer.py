"""Anthropic's answers, streams and errors as an OpenAI client gets them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.errors import ProviderError, UpstreamBrokenError
from sidecar.translate import Head, get_provider
from sidecar.translate.signatures import unpack
from sidecar.types import UNKNOWN_USAGE, Usage
from tests.translate.support import OK, USER, WEATHER, events, fold, make_call, run, unfold

ANTHROPIC = get_provider("anthropic")


def message(*content: Any, **fields: Any) -> bytes:
    base = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": list(content),
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    return json.dumps({**base, **fields}).encode()


def sse(*items: Any) -> bytes:
    return b"".join(b"event: %s\ndata: %s\n\n" % (item["type"].encode(), json.dumps(item).encode()) for item in items)


START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": 3, "output_tokens": 1},
    },
}
STOP = {"type": "message_stop"}


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def end(reason: str | None = "end_turn", **usage: Any) -> dict[str, Any]:
    return {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": None},
        "usage": {"output_tokens": 4, **usage},
    }


def text(value: str) -> dict[str, Any]:
    return {"type": "text_delta", "text": value}


def part(value: str) -> dict[str, Any]:
    return {"type": "input_json_delta", "partial_json": value}


def stream(*items: Any, payload: dict[str, Any] | None = None, **options: Any) -> tuple[bytes, Any]:
    translator = ANTHROPIC.stream(make_call({"stream": True, **(payload or {})}, **options), OK)
    return run(translator, sse(*items)), translator


RICH = [
    {"type": "thinking", "thinking": "let me see", "signature": "c2ln"},
    {"type": "redacted_thinking", "data": "opaque"},
    {"type": "text", "text": "It is "},
    {"type": "text", "text": "sunny."},
    {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome", "n": 1.0}},
    {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {}},
]
RICH_STREAM = [
    START,
    {"type": "ping"},
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "let me "},
        {"type": "thinking_delta", "thinking": "see"},
        {"type": "signature_delta", "signature": "c2ln"},
    ),
    *block(1, {"type": "redacted_thinking", "data": "opaque"}),
    *block(2, {"type": "text", "text": ""}, text("It "), text("is ")),
    *block(3, {"type": "text", "text": ""}, text("sunny.")),
    *block(
        4,
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
        part(""),
        part('{"city": "R'),
        part('ome", "n": 1.0}'),
    ),
    *block(5, {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {}}, part("")),
    {"type": "some_new_event", "x": 1},
    end("tool_use"),
    STOP,
]


def test_thinking_texts_and_parallel_tool_calls_come_out_the_same_streamed_or_not() -> None:
    """33, 34, 38, 39, 94, 102 and promise 17."""
    payload = {"tools": [WEATHER], "stream_options": {"include_usage": True}}
    reply = ANTHROPIC.response(make_call(payload), OK, message(*RICH, stop_reason="tool_use"))
    plain = unfold(reply.body)
    out, translator = stream(*RICH_STREAM, payload=payload)
    assert fold(out) == plain
    assert translator.usage == reply.usage == Usage(input=3, output=4)
    assert plain["content"] == "It is sunny."
    assert plain["reasoning"] == "let me see"
    assert plain["thinking_blocks"] == RICH[:2]
    assert [(unpack(tool["id"])[0], tool["arguments"]) for tool in plain["tools"]] == [
        ("toolu_1", {"city": "Rome", "n": 1.0}),
        ("toolu_2", {}),
    ]
    assert plain["finish"] == "tool_calls"


def test_a_rich_stream_is_the_same_however_it_is_cut() -> None:
    """35."""
    data = sse(*RICH_STREAM)
    call = make_call({"stream": True, "tools": [WEATHER]})
    whole = run(ANTHROPIC.stream(call, OK), data)
    for at in range(len(data)):
        assert run(ANTHROPIC.stream(call, OK), data[:at], data[at:]) == whole
    crlf = data.replace(b"\n", b"\r\n")
    assert run(ANTHROPIC.stream(call, OK), crlf) == whole
    cr = data.replace(b"\n", b"\r")
    assert run(ANTHROPIC.stream(call, OK), *(cr[at : at + 1] for at in range(len(cr)))) == whole


def test_the_answer_can_be_sent_back_as_the_next_request() -> None:
    """39, promise 16; also for clients that echo standard fields only."""
    reply = ANTHROPIC.response(make_call({"tools": [WEATHER]}), OK, message(*RICH, stop_reason="tool_use"))
    answer = json.loads(reply.body)["choices"][0]["message"]
    standard = {name: answer[name] for name in ("role", "content", "tool_calls")}
    for echoed in (answer, standard):
        body = json.loads(ANTHROPIC.request(make_call({"tools": [WEATHER], "messages": [*USER, echoed]})).body)
        assert body["messages"][1]["content"] == RICH


def test_tool_names_come_back_as_the_client_wrote_them() -> None:
    tools = [{"type": "function", "function": {"name": "get.weather"}}]
    call = make_call({"tools": tools})
    sent_name = json.loads(ANTHROPIC.request(call).body)["tools"][0]["name"]
    use = {"type": "tool_use", "id": "t", "name": sent_name, "input": {}}
    plain = unfold(ANTHROPIC.response(call, OK, message(use, stop_reason="tool_use")).body)
    out, _ = stream(START, *block(0, use), end("tool_use"), STOP, payload={"tools": tools})
    assert plain["tools"][0]["name"] == fold(out)["tools"][0]["name"] == "get.weather"


JSON = {"response_format": {"type": "json_object"}}


def test_the_json_tool_becomes_content_and_stop() -> None:
    """41, 43."""
    use = {"type": "tool_use", "id": "t", "name": "respond_in_json", "input": {"a": [1, 2]}}
    reply = ANTHROPIC.response(
        make_call(JSON), OK, message({"type": "text", "text": "Here:"}, use, stop_reason="tool_use")
    )
    plain = unfold(reply.body)
    out, _ = stream(
        START,
        *block(0, {"type": "text", "text": ""}, text("Here:")),
        *block(1, {**use, "input": {}}, part('{"a": '), part("[1, 2]}")),
        end("tool_use"),
        STOP,
        payload=JSON,
    )
    folded = fold(out)
    assert json.loads(plain["content"]) == json.loads(folded["content"]) == {"a": [1, 2]}
    assert plain["finish"] == folded["finish"] == "stop"
    assert plain["tools"] == folded["tools"] == []


def test_a_normal_tool_in_json_mode_stays_a_tool_call_and_text_without_the_tool_is_kept() -> None:
    """42."""
    payload = {**JSON, "tools": [WEATHER]}
    use = {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "Rome"}}
    out, _ = stream(
        START, *block(0, {**use, "input": {}}, part('{"city":"Rome"}')), end("tool_use"), STOP, payload=payload
    )
    plain = unfold(ANTHROPIC.response(make_call(payload), OK, message(use, stop_reason="tool_use")).body)
    assert fold(out)["tools"] == plain["tools"]
    assert plain["finish"] == "tool_calls"
    out, _ = stream(
        START, *block(0, {"type": "text", "text": ""}, text("no "), text("JSON")), end(), STOP, payload=JSON
    )
    assert fold(out)["content"] == "no JSON"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_finish_reasons(reason: str, expected: str) -> None:
    content = {"type": "text", "text": "x"}
    assert unfold(ANTHROPIC.response(make_call(), OK, message(content, stop_reason=reason)).body)["finish"] == expected
    out, _ = stream(START, *block(0, content), end(reason), STOP)
    assert fold(out)["finish"] == expected


USAGES: dict[str, tuple[Any, Usage]] = {
    "cache classes (1)": (
        {
            "input_tokens": 10,
            "cache_read_input_tokens": 200,
            "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
            "output_tokens": 5,
        },
        Usage(input=10, cached_input=200, cache_write_5m=20, cache_write_1h=10, output=5),
    ),
    "cache writes without their lifetime are 5 minutes": (
        {"input_tokens": 10, "cache_creation_input_tokens": 30, "output_tokens": 5},
        Usage(input=10, cache_write_5m=30, output=5),
    ),
    "nulls (2, 3)": (
        {
            "input_tokens": 10,
            "cache_read_input_tokens": None,
            "cache_creation_input_tokens": None,
            "cache_creation": None,
            "server_tool_use": None,
            "output_tokens": 5,
        },
        Usage(input=10, output=5),
    ),
    "thinking told apart": (
        {"input_tokens": 1, "output_tokens": 50, "output_tokens_details": {"thinking_tokens": 20}},
        Usage(input=1, output=30, reasoning=20),
    ),
    "none": (None, UNKNOWN_USAGE),
    "nonsense": ({"foo": 1, "bar": 2}, UNKNOWN_USAGE),
    "wrong types": ({"input_tokens": "9", "output_tokens": -1}, UNKNOWN_USAGE),
}


@pytest.mark.parametrize(("usage", "expected"), USAGES.values(), ids=USAGES)
def test_usage_classes_are_disjoint_and_the_openai_totals_hold_them_all(usage: Any, expected: Usage) -> None:
    reply = ANTHROPIC.response(make_call(), OK, message({"type": "text", "text": "x"}, usage=usage))
    assert reply.usage == expected
    said = json.loads(reply.body).get("usage")
    if not expected.is_known:
        assert said is None
        return
    assert said["prompt_tokens"] == expected.total_input
    assert said["completion_tokens"] == expected.total_output
    start = {"type": "message_start", "message": {**START["message"], "usage": {**usage, "output_tokens": 1}}}
    last = {
        **end(),
        "usage": {"output_tokens": usage["output_tokens"], **{k: v for k, v in usage.items() if "details" in k}},
    }
    out, translator = stream(
        start,
        *block(0, {"type": "text", "text": "x"}),
        last,
        STOP,
        payload={"stream_options": {"include_usage": True}},
    )
    assert translator.usage == expected
    assert list(events(out))[-2]["usage"] == said


def test_usage_is_known_while_the_stream_runs() -> None:
    translator = ANTHROPIC.stream(make_call({"stream": True}), OK)
    translator.feed(sse(START))
    assert translator.usage == Usage(input=3, output=1)


BROKEN: dict[str, list[Any]] = {
    "proper but empty": [],
    "no message": [STOP],
    "no stop reason": [START, *block(0, {"type": "text", "text": "x"}), STOP],
    "an open block": [START, *block(0, {"type": "text", "text": "x"})[:-1], end(), STOP],
    "started twice": [START, START],
    "a delta for no block": [START, {"type": "content_block_delta", "index": 0, "delta": text("x")}],
    "a block before the start": [*block(0, {"type": "text", "text": "x"})],
    "a block begun twice": [START, *(block(0, {"type": "text", "text": "x"})[:1] * 2)],
    "a delta that is no object": [START, {"type": "content_block_delta", "index": 0, "delta": 3}],
    "a start that is no object": [{"type": "message_start", "message": [1]}],
}


@pytest.mark.parametrize("items", BROKEN.values(), ids=BROKEN)
def test_a_broken_stream_never_looks_whole(items: list[Any]) -> None:
    translator = ANTHROPIC.stream(make_call({"stream": True}), OK)
    out: list[bytes] = []
    with pytest.raises(UpstreamBrokenError):  # noqa: PT012
        out.append(translator.feed(sse(*items)))
        translator.end()
    assert b"[DONE]" not in b"".join(out)
    assert b'"stop"' not in b"".join(out)


def test_deltas_that_do_not_fit_their_block_are_ignored() -> None:
    """36, 40."""
    out, _ = stream(
        START,
        *block(0, {"type": "text", "text": ""}, {"type": "thinking_delta", "thinking": "no"}, text("yes")),
        *block(1, {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}, part("{}")),
        end(),
        STOP,
    )
    folded = fold(out)
    assert (folded["content"], folded["reasoning"], folded["tools"]) == ("yes", "", [])


ERRORS: list[tuple[int, str, str, str, int, str]] = [
    (400, "invalid_request_error", "messages: bad", "bad_request", 400, "invalid_request_error"),
    (
        400,
        "invalid_request_error",
        "prompt is too long: 9 tokens > 8 maximum",
        "context_window",
        400,
        "invalid_request_error",
    ),
    (
        400,
        "invalid_request_error",
        "Output blocked by content filtering policy",
        "content_policy",
        400,
        "invalid_request_error",
    ),
    (
        400,
        "invalid_request_error",
        "the text '429 rate limit prompt is too long' is odd",
        "bad_request",
        400,
        "invalid_request_error",
    ),
    (
        401,
        "authentication_error",
        "invalid x-api-key sk-ant-secret-123456789",
        "authentication",
        401,
        "authentication_error",
    ),
    (402, "billing_error", "pay", "quota", 429, "insufficient_quota"),
    (403, "permission_error", "no", "permission", 403, "permission_error"),
    (404, "not_found_error", "model: x", "not_found", 404, "invalid_request_error"),
    (413, "request_too_large", "big", "too_large", 413, "invalid_request_error"),
    (429, "rate_limit_error", "slow", "rate_limit", 429, "rate_limit_error"),
    (500, "api_error", "oops", "server", 500, "api_error"),
    (504, "timeout_error", "late", "timeout", 504, "api_error"),
    (529, "overloaded_error", "Overloaded", "overloaded", 503, "service_unavailable"),
]


@pytest.mark.parametrize(("status", "kind_said", "text_said", "kind", "out_status", "out_type"), ERRORS)
def test_errors_keep_their_meaning(
    status: int, kind_said: str, text_said: str, kind: str, out_status: int, out_type: str
) -> None:
    """99, promise 21."""
    body = json.dumps({"type": "error", "error": {"type": kind_said, "message": text_said}}).encode()
    error = ANTHROPIC.error(make_call(), Head(status, [(b"retry-after", b"7")]), body)
    assert (error.kind, error.status, error.type) == (kind, out_status, out_type)
    assert error.retry_after_s == 7
    assert error.message.startswith(f"Provider anthropic answered {status}")
    assert "secret" not in error.message
    assert not error.may_be_billed


def test_an_overload_in_the_stream_is_the_same_error() -> None:
    translator = ANTHROPIC.stream(make_call({"stream": True}), OK)
    translator.feed(sse(START))
    with pytest.raises(ProviderError) as caught:
        translator.feed(sse({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}))
    assert (caught.value.kind, caught.value.status, caught.value.may_be_billed) == ("overloaded", 503, True)
    with pytest.raises(ProviderError):
        translator.end()


def test_an_empty_answer_is_an_empty_string() -> None:
    plain = unfold(ANTHROPIC.response(make_call(), OK, message()).body)
    assert plain["content"] == ""
    assert plain["finish"] == "stop"


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ([{"type": "thinking", "thinking": "hm", "signature": "c2ln"}], ""),
        ([], ""),
        ([{"type": "text", "text": ""}], ""),
        ([{"type": "tool_use", "id": "t", "name": "weather", "input": {}}], None),
        (
            [
                {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                {"type": "tool_use", "id": "t", "name": "weather", "input": {}},
            ],
            None,
        ),
        (
            [{"type": "tool_use", "id": "t", "name": "weather", "input": {}}, {"type": "text", "text": "so"}],
            "so",
        ),
    ],
)
def test_content_is_null_only_where_tools_are_called_streamed_or_not(content: list[Any], shown: str | None) -> None:
    blocks = [part for index, given in enumerate(content) for part in block(index, given)]
    streamed = fold(stream(START, *blocks, end("end_turn"), STOP)[0])
    plain = unfold(ANTHROPIC.response(make_call(), OK, message(*content)).body)
    assert (streamed["content"], plain["content"]) == (shown, shown)
