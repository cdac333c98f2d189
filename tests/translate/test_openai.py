"""The same dialect: bytes pass, but for the closed list of edits; usage is sniffed, not rewritten."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.errors import BadRequestError, ProviderError, UpstreamBrokenError
from sidecar.translate import Call, Head, get_provider
from sidecar.translate.providers.openai import output_cap_name
from sidecar.types import Usage
from tests.translate.support import OK, events, make_call, run, sent

OPENAI = get_provider("openai")
RAW = (
    b'{ "messages" : [ {"role":"user","content":"h\\u00efi \xc3\xbc"} ],\n'
    b' "temperature": 1.50, "seed": 1e2, "model": "m" }'
)


def raw_call(raw: bytes, model: str = "m", **options: Any) -> Call:
    return Call(payload=json.loads(raw), raw=raw, model=model, **options)


def test_without_edits_the_original_bytes_are_sent() -> None:
    raw = b'{ "messages" : [ {"role":"user","content":"hi"} ],\n "temperature": 1.50, "model": "m" }'
    assert OPENAI.request(raw_call(raw)).body is raw


def test_an_edit_leaves_the_bytes_of_all_other_values() -> None:
    body = OPENAI.request(raw_call(RAW, model="gpt-x")).body
    assert json.loads(body)["model"] == "gpt-x"
    for piece in (b'[ {"role":"user","content":"h\\u00efi \xc3\xbc"} ]', b"1.50", b"1e2"):
        assert piece in body


def test_a_field_given_twice_is_sent_once_as_it_was_read() -> None:
    raw = b'{"model":"cheap","messages":[],"max_tokens":5,"max_tokens":9,"model":"m"}'
    assert json.loads(OPENAI.request(raw_call(raw)).body) == json.loads(raw)
    assert OPENAI.request(raw_call(raw)).body.count(b"max_tokens") == 1
    escaped = b'{"mod\\u0065l":"other","messages":[],"model":"m"}'
    assert OPENAI.request(raw_call(escaped)).body.count(b"model") == 1


@pytest.mark.parametrize(
    ("provider", "model", "payload", "edits", "expected"),
    [
        ("openai", "gpt-4o", {"max_tokens": 5}, {}, {"max_tokens": 5}),
        ("openai", "gpt-4o", {"max_completion_tokens": 5}, {}, {"max_completion_tokens": 5}),
        ("openai", "gpt-5-mini", {"max_tokens": 5}, {}, {"max_completion_tokens": 5}),
        ("openai", "o3", {"max_tokens": 5, "max_completion_tokens": 4}, {}, {"max_completion_tokens": 4}),
        ("openai", "gpt-4o", {}, {"output_cap": 7}, {"max_tokens": 7}),
        ("openai", "gpt-4o", {"max_completion_tokens": 9}, {"output_cap": 7}, {"max_tokens": 7}),
        ("openai", "gpt-5", {"max_tokens": 9}, {"output_cap": 7}, {"max_completion_tokens": 7}),
        ("mistral", "mistral-large", {"max_completion_tokens": 5}, {}, {"max_tokens": 5}),
        ("groq", "llama", {"max_tokens": 5}, {}, {"max_completion_tokens": 5}),
        ("together", "llama", {"max_completion_tokens": 5}, {}, {"max_completion_tokens": 5}),
    ],
)
def test_the_output_cap_has_the_name_the_model_takes(
    provider: str, model: str, payload: dict[str, Any], edits: dict[str, Any], expected: dict[str, Any]
) -> None:
    """88."""
    body = sent(provider, payload, model=model, edits=edits)
    assert {name: value for name, value in body.items() if name.startswith("max_")} == expected


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o-mini", "max_tokens"),
        ("gpt-4.1", "max_tokens"),
        ("gpt-oss-120b", "max_tokens"),
        ("gpt-5", "max_completion_tokens"),
        ("gpt-6-pro", "max_completion_tokens"),
        ("o1", "max_completion_tokens"),
        ("o4-mini", "max_completion_tokens"),
        ("openai/o3", "max_completion_tokens"),
        ("ollama", "max_tokens"),
    ],
)
def test_cap_names(model: str, name: str) -> None:
    assert output_cap_name(model) == name


def test_usage_is_asked_for_on_streams_only_and_keeps_the_clients_other_options() -> None:
    """89."""
    assert "stream_options" not in sent("openai", {})
    assert sent("openai", {"stream": True})["stream_options"] == {"include_usage": True}
    given = {"stream": True, "stream_options": {"include_usage": False, "include_obfuscation": False}}
    assert sent("openai", given)["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert "stream_options" not in sent("openai", {"stream": True}, edits={"include_usage": False})
    with pytest.raises(BadRequestError):
        sent("openai", {"stream": True, "stream_options": 3})


def test_mistral_gets_its_own_seed_and_no_stream_options() -> None:
    body = sent("mistral", {"seed": 7, "stream": True, "stream_options": {"include_usage": True}, "user": None})
    assert body["random_seed"] == 7
    assert not {"seed", "stream_options", "user"} & body.keys()


def test_deployment_params_are_defaults_under_the_clients() -> None:
    body = sent("openai", {"temperature": 0.5}, params={"temperature": 0.1, "service_tier": "flex"})
    assert (body["temperature"], body["service_tier"]) == (0.5, "flex")


@pytest.mark.parametrize("raw", [b"[]", b"\xff", b'{"model":', b"[" * 50_000, b"null"])
def test_a_body_that_is_no_object_is_a_400(raw: bytes) -> None:
    with pytest.raises(BadRequestError):
        OPENAI.request(Call(payload={"model": "a"}, raw=raw, model="m"))


CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[%s]%s}\n\n'
ROLE = CHUNK % (b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}', b',"usage":null')
WORD = CHUNK % (b'{"index":0,"delta":{"content":"w\xe2\x80\xa8\\"usage\\":{"},"finish_reason":null}', b',"usage":null')
LAST = CHUNK % (b'{"index":0,"delta":{},"finish_reason":"stop"}', b',"usage":null')
USAGE = CHUNK % (b"", b',"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}')
DONE = b"data: [DONE]\n\n"


def streamed(provider: str = "openai", **payload: Any) -> Any:
    return get_provider(provider).stream(make_call({"stream": True, **payload}), OK)


def test_passing_bytes_are_unchanged_but_for_the_usage_chunk_nobody_asked_for() -> None:
    """Promise 15; 93, 97."""
    comment, odd = b": keep-alive\n\n", b"id: 1\r\nevent: message\r\n" + WORD[:-2] + b"\r\n\r\n"
    body = ROLE + comment + WORD + odd + LAST + USAGE + DONE
    translator = streamed()
    assert run(translator, body) == ROLE + comment + WORD + odd + LAST + DONE
    assert translator.usage == Usage(input=9, output=4)
    asked = streamed(stream_options={"include_usage": True})
    assert run(asked, body) == body
    for at in range(len(body)):
        assert run(streamed(), body[:at], body[at:]) == ROLE + comment + WORD + odd + LAST + DONE


def test_a_chunk_with_choices_and_usage_passes_and_an_empty_one_without_usage_too() -> None:
    """93: Azure's first chunk has no choices; Mistral's last has both."""
    empty = CHUNK % (b"", b',"prompt_filter_results":[]')
    both = CHUNK % (
        b'{"index":0,"delta":{},"finish_reason":"stop"}',
        b',"usage":{"prompt_tokens":1,"completion_tokens":2}',
    )
    translator = streamed("mistral")
    assert run(translator, empty + ROLE + both + DONE) == empty + ROLE + both + DONE
    assert translator.usage == Usage(input=1, output=2)


def test_groqs_usage_beside_the_chunk_is_read() -> None:
    last = CHUNK % (
        b'{"index":0,"delta":{},"finish_reason":"stop"}',
        b',"x_groq":{"id":"r","usage":{"prompt_tokens":1,"completion_tokens":2}}',
    )
    translator = streamed("groq")
    assert run(translator, ROLE + last + DONE) == ROLE + last + DONE
    assert translator.usage == Usage(input=1, output=2)


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "x"},
        {"reasoning_content": "x"},
        {"refusal": "no"},
        {"tool_calls": [{"index": 0, "function": {"name": "f"}}]},
        {"annotations": [{"type": "url_citation"}]},
    ],
)
def test_content_of_any_kind_counts_as_started(delta: dict[str, Any]) -> None:
    """95."""
    translator = streamed()
    translator.feed(ROLE)
    assert not translator.content_started
    translator.feed(CHUNK % (json.dumps({"index": 0, "delta": delta}).encode(), b""))
    assert translator.content_started


@pytest.mark.parametrize(
    "tail",
    [b"", LAST, LAST + USAGE, b"data: [DONE", b"data: {\n\n", b"data: nope\n\n", b"data: []\n\n", b"data: null\n\n"],
)
def test_a_stream_without_its_end_event_or_with_a_malformed_one_is_broken(tail: bytes) -> None:
    translator = streamed()
    out = translator.feed(ROLE + WORD)
    with pytest.raises(UpstreamBrokenError):  # noqa: PT012
        out += translator.feed(tail)
        translator.end()
    assert b"[DONE]" not in out


def test_a_missing_last_blank_line_is_forgiven_and_nothing_passes_after_the_end() -> None:
    assert run(streamed(), ROLE + WORD + LAST + b"data: [DONE]\n") == ROLE + WORD + LAST + DONE
    assert run(streamed(), ROLE + WORD + LAST + b"data: [DONE]") == ROLE + WORD + LAST + DONE
    assert run(streamed(), ROLE + LAST + DONE + WORD, WORD) == ROLE + LAST + DONE


@pytest.mark.parametrize("before", [b"", ROLE, ROLE + WORD])
@pytest.mark.parametrize("after", [b"", b"\n", b"\n\n" + DONE])
@pytest.mark.parametrize(
    "said", [b'{"error":{"message":"slow down","code":429}}', b'error: {"code":429,"message":"slow down","type":"t"}']
)
def test_an_error_that_is_no_event_is_one_all_the_same(said: bytes, after: bytes, before: bytes) -> None:
    translator = streamed()
    with pytest.raises(ProviderError) as caught:
        run(translator, *([before] if before else []), said + after)
    assert (caught.value.kind, caught.value.status) == ("rate_limit", 429)


def test_an_empty_event_is_a_sign_of_life_and_no_more() -> None:
    for empty in (b"data: \n\n", b"data:\r\n\r\n", b"data\n\n"):
        assert run(streamed(), ROLE, empty, WORD + LAST + DONE) == ROLE + WORD + LAST + DONE
    with pytest.raises(UpstreamBrokenError):
        run(streamed(), ROLE, b"event: error\ndata:\n\n", WORD + LAST + DONE)


def test_what_is_neither_an_event_nor_an_error_passes() -> None:
    for odd in (b": error\n\n", b'{"a":"\\"error\\""}\n\n', b'{"error"\n\n', b"id: error\n\n"):
        assert run(streamed(), ROLE, odd, WORD + LAST + DONE) == ROLE + odd + WORD + LAST + DONE


@pytest.mark.parametrize(
    ("event", "kind", "status"),
    [
        (b'data: {"error":{"message":"m","type":"server_error","code":null}}\n\n', "server", 502),
        (b'event: error\ndata: {"error":{"message":"m","code":429}}\n\n', "rate_limit", 429),
        (b'data: {"error":{"message":"m","code":"rate_limit_exceeded"}}\n\n', "rate_limit", 429),
        (b'data: {"error":{"message":"m","type":null,"code":"context_length_exceeded"}}\n\n', "context_window", 400),
        (b'data: {"error":{"message":"m","type":"rate_limit_error"}}\n\n', "rate_limit", 429),
        (b'data: {"error":"boom"}\n\n', "server", 502),
        (b'event: error\ndata: {"message":"m"}\n\n', "server", 502),
        (b'data: {"error":{"message":"m","code":"529"},"choices":[]}\n\n', "overloaded", 503),
    ],
)
def test_an_error_event_is_recognised(event: bytes, kind: str, status: int) -> None:
    translator = streamed()
    assert translator.feed(ROLE) == ROLE
    with pytest.raises(ProviderError) as caught:
        translator.feed(event)
    assert (caught.value.kind, caught.value.status) == (kind, status)


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (b'data: {"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}\n\n', 400),
        (b'data: {"type":"error","message":"gone"}\n\n', 502),
        (b'data: {"detail":"not here"}\n\n', 502),
        (b'data: {"errors":[{"message":"no"}]}\n\n', 502),
    ],
)
def test_an_event_that_is_an_error_in_another_form_is_an_error(event: bytes, status: int) -> None:
    translator = OPENAI.stream(make_call({"stream": True}), OK)
    with pytest.raises(ProviderError) as caught:
        translator.feed(event)
    assert caught.value.status == status


@pytest.mark.parametrize("event", [b'data: {"type":"ping"}\n\n', b'data: {"choices":[],"detail":"x"}\n\n'])
def test_an_event_of_the_vendors_own_passes(event: bytes) -> None:
    assert OPENAI.stream(make_call({"stream": True}), OK).feed(event) == event


def test_an_unstreamed_answer_passes_unchanged() -> None:
    body = b' {"choices": [ {"message": {"content": null}} ], "usage": {"prompt_tokens": 3, "completion_tokens": 1}} '
    reply = OPENAI.response(make_call(), OK, body)
    assert reply.body is body
    assert reply.usage == Usage(input=3, output=1)


def test_an_error_inside_a_200_is_an_error() -> None:
    with pytest.raises(ProviderError) as caught:
        OPENAI.response(make_call(), OK, b'{"error": {"message": "slow down", "code": 429}}')
    assert (caught.value.kind, caught.value.status) == ("rate_limit", 429)


@pytest.mark.parametrize(
    ("status", "fields", "kind", "out_status", "code"),
    [
        (
            400,
            {"code": "context_length_exceeded", "type": "invalid_request_error"},
            "context_window",
            400,
            "context_length_exceeded",
        ),
        (400, {"code": "content_policy_violation"}, "content_policy", 400, "content_policy_violation"),
        (400, {"message": "he said 429 rate limit"}, "bad_request", 400, "bad_request"),
        (401, {"code": "invalid_api_key"}, "authentication", 401, "invalid_api_key"),
        (404, {"code": "model_not_found"}, "not_found", 404, "model_not_found"),
        (422, {"type": "invalid_request_error"}, "bad_request", 422, "invalid_request_error"),
        (429, {"code": "insufficient_quota", "type": "insufficient_quota"}, "quota", 429, "insufficient_quota"),
        (429, {"type": "tokens", "code": "rate_limit_exceeded"}, "rate_limit", 429, "rate_limit_exceeded"),
        (500, {"type": "server_error"}, "server", 500, "server_error"),
        (503, {}, "overloaded", 503, "overloaded"),
        (529, {}, "overloaded", 503, "overloaded"),
    ],
)
def test_errors_keep_status_type_and_code(
    status: int, fields: dict[str, Any], kind: str, out_status: int, code: str
) -> None:
    body = json.dumps({"error": {"message": "m", "param": "p", **fields}}).encode()
    error = OPENAI.error(make_call(), Head(status), body)
    assert (error.kind, error.status, error.code, error.param) == (kind, out_status, code, "p")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"retry-after", b"3")], 3.0),
        ([(b"retry-after", b"1.5")], 1.5),
        ([(b"retry-after-ms", b"250"), (b"retry-after", b"9")], 0.25),
        ([(b"Retry-After", b"Tue, 14 Nov 2023 22:13:50 GMT")], 30.0),
        ([(b"retry-after", b"Tue, 14 Nov 2000 22:13:50 GMT")], 0.0),
        ([(b"retry-after", b"soon")], None),
        ([(b"retry-after", b"-1")], None),
        ([(b"retry-after", b"nan")], None),
        ([(b"retry-after", b"9" * 12)], 86_400.0),
        ([(b"retry-after", b"\xff")], None),
        ([], None),
    ],
)
def test_retry_after(headers: list[tuple[bytes, bytes]], expected: float | None) -> None:
    assert OPENAI.error(make_call(), Head(429, headers), b"").retry_after_s == expected


@pytest.mark.parametrize(
    "said",
    [
        "Incorrect API key provided: sk-proj-abcdefghijklmnop.",
        "bad header Authorization: Bearer abc.def.ghi-canary",
        'api_key="canary-0123456789" is wrong',
    ],
)
@pytest.mark.parametrize("status", [400, 401, 403, 500])
def test_what_looks_like_a_credential_is_blanked(said: str, status: int) -> None:
    """Promise 11."""
    message = OPENAI.error(make_call(), Head(status), json.dumps({"error": {"message": said}}).encode()).message
    assert "canary" not in message
    assert "abcdefghijklmnop" not in message


def test_streamed_events_parse_with_the_official_sdk() -> None:
    from openai.types.chat import ChatCompletionChunk

    for chunk in events(run(streamed(), ROLE + WORD + LAST + USAGE + DONE)):
        if chunk != "[DONE]":
            ChatCompletionChunk.model_validate(chunk, strict=True)
