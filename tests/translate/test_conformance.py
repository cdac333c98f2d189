"""Every provider × every case: the same rules for all, and no provider can be forgotten."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.errors import BadRequestError, ProviderError, UpstreamBrokenError
from sidecar.translate import PROVIDERS, Head, get_provider
from sidecar.translate.provider import OPENAI_CHAT_FIELDS, SMUGGLING_FIELDS, Provider, StreamTranslator, check_provider
from tests.translate.dialects import DIALECTS, DISTINCT, OPENAI_LIKE, dialect_of
from tests.translate.support import OK, USER, WEATHER, call_to, events, fold, run, unfold

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("sim-echo", {}),
    "system and turns": (
        "sim-echo",
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "1"},
                {"role": "user", "content": "two ünï \u2028 \U0001f600"},
            ]
        },
    ),
    "tool call": ("sim-tools", {"tools": [WEATHER]}),
    "tool result": (
        "sim-tools",
        {
            "tools": [WEATHER],
            "messages": [
                *USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            ],
        },
    ),
    "thinking": ("sim-think", {}),
    "json schema": (
        "sim-echo",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "answer",
                    "schema": {
                        "type": "object",
                        "properties": {"n": {"type": "integer"}, "s": {"type": "string"}},
                        "required": ["n", "s"],
                        "additionalProperties": False,
                    },
                },
            }
        },
    ),
    "output cap": ("sim-long-50", {"max_tokens": 7}),
    "no usage": ("sim-no-usage", {}),
    "long": ("sim-long-40", {}),
}

DECLINED: dict[tuple[str, str], str] = {}
"""(provider, case) → reason. A provider answers each case or is listed here."""

MATRIX = [
    pytest.param(provider, case, id=f"{name}-{case}")
    for name, provider in DISTINCT.items()
    for case in CASES
    if (name, case) not in DECLINED
]
CLOSELY_CUT = {"openai", *OPENAI_LIKE, *DIALECTS}


def exchange(provider: Provider, case: str, is_stream: bool, asks_usage: bool = False) -> tuple[Any, list[bytes]]:
    """(call, upstream's answer in pieces): what the provider would send went through its dialect's simulator."""
    model, extra = CASES[case]
    payload = dict(extra)
    if is_stream:
        payload["stream"] = True
        if asks_usage:
            payload["stream_options"] = {"include_usage": True}
    call = call_to(provider, payload, model=model)
    return call, dialect_of(provider).pieces(provider.request(call))


def head_of(provider: Provider) -> Head:
    return dialect_of(provider).stream_head


@pytest.mark.parametrize(("provider", "case"), MATRIX)
def test_the_same_request_twice_gives_the_same_bytes_and_leaves_the_payload_alone(
    provider: Provider, case: str
) -> None:
    model, extra = CASES[case]
    call = call_to(provider, dict(extra), model=model)
    before = json.dumps(call.payload)
    assert provider.request(call) == provider.request(call)
    assert json.dumps(call.payload) == before


@pytest.mark.parametrize(("provider", "case"), MATRIX)
def test_the_folded_stream_equals_the_unstreamed_answer(provider: Provider, case: str) -> None:
    call, pieces = exchange(provider, case, is_stream=False)
    reply = provider.response(call, OK, b"".join(pieces))
    call, pieces = exchange(provider, case, is_stream=True, asks_usage=True)
    translator = provider.stream(call, head_of(provider))
    folded = fold(run(translator, *pieces))
    plain = unfold(reply.body)
    if not provider.forces_usage if provider.is_same_dialect else False:  # type: ignore[attr-defined]
        folded["usage"] = plain["usage"]  # the vendor streams usage without being asked; the simulator does not
    else:
        assert translator.usage == reply.usage
        assert reply.usage.is_known == (case != "no usage")
    assert folded == plain
    if case == "output cap":
        assert plain["finish"] == "length"
    if case == "tool call":
        assert plain["tools"] == [{"id": plain["tools"][0]["id"], "name": "weather", "arguments": {"city": "example"}}]
    if case == "json schema":
        assert json.loads(plain["content"]) == {"n": 1, "s": "example"}
        assert plain["finish"] == "stop"


@pytest.mark.parametrize(("provider", "case"), MATRIX)
def test_a_stream_cut_at_every_byte_gives_the_same_output(provider: Provider, case: str) -> None:
    call, pieces = exchange(provider, case, is_stream=True)
    stream = b"".join(pieces)
    whole = run(provider.stream(call, head_of(provider)), stream)
    single = provider.stream(call, head_of(provider))
    assert run(single, *(stream[at : at + 1] for at in range(len(stream)))) == whole
    step = 1 if provider.name in CLOSELY_CUT and case in ("text", "tool call", "thinking") else 97
    for at in range(0, len(stream), step):
        translator = provider.stream(call, head_of(provider))
        assert run(translator, stream[:at], stream[at:]) == whole
        assert translator.usage == single.usage


@pytest.mark.parametrize(("provider", "case"), [p for p in MATRIX if p.values[1] in ("text", "tool call")])
def test_a_stream_opens_as_openais_own_does(provider: Provider, case: str) -> None:
    """Text with an empty string, tool calls alone with null."""
    call, pieces = exchange(provider, case, is_stream=True)
    first = next(events(run(provider.stream(call, head_of(provider)), *pieces)))
    delta = first["choices"][0]["delta"]
    assert delta.items() >= {"role": "assistant", "content": "" if case == "text" else None}.items()


@pytest.mark.parametrize(("provider", "case"), MATRIX)
def test_a_truncated_stream_raises_and_never_ends_in_done(provider: Provider, case: str) -> None:
    call, pieces = exchange(provider, case, is_stream=True)
    stream, end = b"".join(pieces), dialect_of(provider).end_of(pieces)
    step = 1 if provider.name in CLOSELY_CUT and case == "text" else 41
    for at in [*range(0, end, step), end]:
        translator = provider.stream(call, head_of(provider))
        out = translator.feed(stream[:at])
        with pytest.raises(UpstreamBrokenError):
            translator.end()
        with pytest.raises(UpstreamBrokenError):
            translator.feed(b"data: [DONE]\n\n")
        assert b"[DONE]" not in out
        if not provider.is_same_dialect:
            assert all(chunk["choices"][0]["finish_reason"] is None for chunk in events(out))


@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_usage_is_obtained_and_hidden_from_a_client_who_did_not_ask(provider: Provider) -> None:
    if provider.is_same_dialect and not provider.forces_usage:  # type: ignore[attr-defined]
        assert "stream_options" not in json.loads(provider.request(call_to(provider, {"stream": True})).body)
        return
    call, pieces = exchange(provider, "text", is_stream=True)
    translator = provider.stream(call, head_of(provider))
    assert not any(chunk.get("usage") for chunk in events(run(translator, *pieces)) if chunk != "[DONE]")
    assert translator.usage.is_known
    call, pieces = exchange(provider, "text", is_stream=True, asks_usage=True)
    chunks = list(events(run(provider.stream(call, head_of(provider)), *pieces)))
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_content_starts_with_the_first_content_and_not_with_the_role(provider: Provider) -> None:
    call, pieces = exchange(provider, "text", is_stream=True)
    translator = provider.stream(call, head_of(provider))
    first = next(at for at, piece in enumerate(pieces) if dialect_of(provider).says(piece, b"echo:"))
    translator.feed(b"".join(pieces[:first]))
    assert not translator.content_started
    translator.feed(pieces[first])
    assert translator.content_started


BODIES = {
    "html": b"<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>",
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "text": b"upstream connect error",
    "string error": b'{"error": "nope"}',
    "null error": b'{"error": null}',
    "number": b"3",
    "truncated": b'{"error": {"mess',
    "odd types": b'{"error": {"message": [1, {"a": 2}], "type": 5, "code": {}, "param": []}}',
    "depth bomb": b"[" * 100_000,
    "bad utf-8": b'{"error": {"message": "\xff\xfe"}}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("status", [302, 400, 401, 429, 500, 503, 529, 599])
@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_any_error_body_gives_a_valid_openai_error(provider: Provider, status: int, body: bytes) -> None:
    error = provider.error(call_to(provider), Head(status), body)
    assert isinstance(error, ProviderError)
    assert 400 <= error.status < 600
    parsed = json.loads(error.body_bytes())["error"]
    assert set(parsed) == {"message", "type", "param", "code"}
    assert isinstance(parsed["type"], str)
    assert isinstance(parsed["code"], str)
    assert provider.name in parsed["message"]
    assert "<" not in parsed["message"]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_a_success_that_is_none_is_an_upstream_error(provider: Provider, body: bytes) -> None:
    with pytest.raises((UpstreamBrokenError, ProviderError)):
        provider.response(call_to(provider), OK, body)
    translator = provider.stream(call_to(provider, {"stream": True}), head_of(provider))
    with pytest.raises((UpstreamBrokenError, ProviderError)):
        run(translator, body)


@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_a_stream_that_ends_properly_but_says_nothing_is_broken(provider: Provider) -> None:
    """Promise 5."""
    for body in dialect_of(provider).empty_streams:
        with pytest.raises(UpstreamBrokenError):
            run(provider.stream(call_to(provider, {"stream": True}), head_of(provider)), body)


@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_an_error_event_in_a_stream_is_raised_after_the_content_before_it(provider: Provider) -> None:
    call = call_to(provider, {"stream": True}, model="sim-error")
    stream = b"".join(dialect_of(provider).pieces(provider.request(call)))
    outputs = []
    for pieces in ([stream], [stream[at : at + 1] for at in range(len(stream))]):
        translator: StreamTranslator = provider.stream(call, head_of(provider))
        collected: list[bytes] = []

        def drive(translator: StreamTranslator = translator, pieces: list[bytes] = pieces) -> None:
            for piece in pieces:
                collected.append(translator.feed(piece))  # noqa: B023
            translator.end()

        with pytest.raises(ProviderError) as caught:
            drive()
        out = b"".join(collected)
        outputs.append(out)
        assert translator.error is caught.value
        assert caught.value.may_be_billed
        assert b"[DONE]" not in out
    assert outputs[0] == outputs[1]
    assert b"echo" in outputs[0]


FIELD_VALUES: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "mp3"},
    "frequency_penalty": 0.5,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 9,
    "max_tokens": 9,
    "messages": USER,
    "metadata": {"user_id": "u"},
    "modalities": ["text", "audio"],
    "model": "x",
    "moderation": {"model": "omni"},
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 0.5,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"a": 1},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "safety_identifier": "user-1",
    "seed": 7,
    "service_tier": "default",
    "stop": ["END"],
    "store": True,
    "stream": False,
    "stream_options": {"include_usage": True},
    "temperature": 0.3,
    "tool_choice": "auto",
    "tools": [WEATHER],
    "top_logprobs": 2,
    "top_p": 0.9,
    "user": "user-1",
    "verbosity": "low",
    "web_search_options": {},
}


def test_the_field_values_cover_every_openai_field_of_the_installed_sdk() -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

    assert set(CompletionCreateParamsStreaming.__annotations__) | {"messages", "model"} <= OPENAI_CHAT_FIELDS | {
        "stream"
    }
    assert FIELD_VALUES.keys() == OPENAI_CHAT_FIELDS


@pytest.mark.parametrize("field", sorted(OPENAI_CHAT_FIELDS))
@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_every_openai_field_is_sent_or_refused_by_name_and_dropped_only_by_policy(
    provider: Provider, field: str
) -> None:
    """Promise 18."""
    payload = {field: dialect_of(provider).values.get(field, FIELD_VALUES[field])}
    without = provider.request(call_to(provider))
    if field in provider.unsupported:
        with pytest.raises(BadRequestError) as caught:
            provider.request(call_to(provider, payload))
        assert caught.value.param == field
        assert provider.name in caught.value.message
        request = provider.request(call_to(provider, payload, drop_params=True))
        assert request.dropped == (field,)
        assert request.body == without.body
    else:
        request = provider.request(call_to(provider, payload))
        assert request.dropped == ()
        if field not in ("model", "messages", "stream", "stream_options", "parallel_tool_calls", "tool_choice"):
            assert request != without


@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_an_unknown_field_is_passed_in_the_same_dialect_and_refused_elsewhere(provider: Provider) -> None:
    payload = {"frobnicate": {"a": [1, 2]}}
    if provider.passes_unknown:
        assert json.loads(provider.request(call_to(provider, payload)).body)["frobnicate"] == {"a": [1, 2]}
        return
    with pytest.raises(BadRequestError) as caught:
        provider.request(call_to(provider, payload))
    assert caught.value.param == "frobnicate"
    assert provider.request(call_to(provider, payload, drop_params=True)).dropped == ("frobnicate",)


@pytest.mark.parametrize("field", sorted(SMUGGLING_FIELDS))
@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_a_request_cannot_choose_destination_or_credential(provider: Provider, field: str) -> None:
    """Promise 10. Not even the drop policy lets such a field through unnoticed."""
    for drop_params in (False, True):
        with pytest.raises(BadRequestError) as caught:
            provider.request(call_to(provider, {field: "https://evil.example"}, drop_params=drop_params))
        assert caught.value.param == field
        assert caught.value.code == "forbidden_parameter"


@pytest.mark.parametrize("field", sorted(SMUGGLING_FIELDS))
@pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
def test_no_field_at_any_depth_reaches_the_path_or_the_headers(provider: Provider, field: str) -> None:
    tool = {**WEATHER, "function": {**WEATHER["function"], "parameters": {"type": "object", "properties": {field: {}}}}}
    plain, smuggled = (provider.request(call_to(provider, payload)) for payload in ({}, {"tools": [tool]}))
    assert (smuggled.path, smuggled.query, smuggled.headers) == (plain.path, plain.query, plain.headers)


def test_the_provider_contract_is_checked_when_a_class_is_made() -> None:
    with pytest.raises(TypeError, match="must be a lower-case name"):
        type("Nameless", (Provider,), {})
    with pytest.raises(TypeError, match="does not define request"):
        type("Silent", (Provider,), {"name": "silent"})
    functions = dict.fromkeys(("request", "response", "stream", "error"), lambda *_: None)
    with pytest.raises(TypeError, match="does not say what happens to"):
        type("Vague", (Provider,), {"name": "vague", **functions})
    with pytest.raises(TypeError, match="both supported and unsupported"):
        type("Torn", (Provider,), {"name": "torn", "params": {"n": ""}, "unsupported": {"n": ""}, **functions})
    for provider in PROVIDERS.values():
        check_provider(provider)


def test_every_provider_has_a_dialect_and_every_dialect_a_provider() -> None:
    others = {name for name, each in PROVIDERS.items() if not each.is_same_dialect or each.framing != "sse"}
    assert DIALECTS.keys() == others
    for provider in PROVIDERS.values():
        given = dialect_of(provider).options.keys()
        assert {*provider.needs_options} <= given <= {*provider.needs_options, *provider.takes_options}


def test_a_provider_is_found_by_name() -> None:
    assert get_provider("anthropic").name == "anthropic"
    with pytest.raises(KeyError):
        get_provider("nobody")
