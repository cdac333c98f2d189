"""Cohere's v2 chat: what goes in, what comes back, and what its own types say of both."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import BadRequestError, ProviderError, UpstreamBrokenError
from sidecar.translate import Head, get_provider
from sidecar.translate.losses import told
from sidecar.translate.signatures import pack
from sidecar.types import Usage
from tests.translate.dialects.cohere import CohereChat, assert_cohere_takes
from tests.translate.support import OK, USER, WEATHER, call_to, events, fold, run, sent, unfold

COHERE = get_provider("cohere")
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


def body_of(payload: dict[str, Any], **options: Any) -> dict[str, Any]:
    body = sent("cohere", payload, **options)
    assert_cohere_takes(body)
    return body


def messages(*given: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = body_of({"messages": list(given)})["messages"]
    return found


def refused(payload: dict[str, Any], **options: Any) -> str | None:
    with pytest.raises(BadRequestError) as caught:
        sent("cohere", payload, **options)
    return caught.value.param


def answer(**fields: Any) -> bytes:
    message = fields.pop("message", {"role": "assistant", "content": [{"type": "text", "text": "hi"}]})
    return json.dumps({"id": "c", "finish_reason": "COMPLETE", "message": message, **fields}).encode()


def sse(*given: dict[str, Any]) -> bytes:
    return b"".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in given)


START = {"type": "message-start", "id": "c", "delta": {"message": {"role": "assistant"}}}
END = {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}}


def test_system_and_developer_messages_lead_and_later_ones_stay_in_their_place() -> None:
    assert messages(
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": [{"type": "text", "text": "be kind"}]},
        *USER,
        {"role": "system", "content": "now shout"},
        {"role": "user", "content": "again"},
    ) == [
        {"role": "system", "content": "be brief\n\nbe kind"},
        {"role": "user", "content": "hi"},
        {"role": "user", "content": "<system>\nnow shout\n</system>"},
        {"role": "user", "content": "again"},
    ]
    assert messages({"role": "system", "content": "alone"}) == [{"role": "system", "content": "alone"}]


def test_pictures_go_as_urls_of_either_kind_and_text_files_as_text() -> None:
    png = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n1234").decode()
    note = base64.b64encode("ünï".encode()).decode()
    (message,) = messages(
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is it?"},
                {"type": "image_url", "image_url": {"url": png, "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
                {"type": "file", "file": {"filename": "a.txt", "file_data": f"data:text/plain;base64,{note}"}},
            ],
        }
    )
    assert message["content"] == [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": png, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "text", "text": "<document name='a.txt'>\nünï\n</document>"},
    ]


def test_what_cohere_cannot_read_is_refused_by_its_place_or_dropped_by_policy() -> None:
    pdf = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0x"}}
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    for part in (pdf, sound, {"type": "video_url"}):
        payload = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]}
        assert refused(payload) == "messages[0].content[1]"
        request = COHERE.request(call_to(COHERE, payload, drop_params=True))
        assert request.dropped == ("messages[0].content[1]",)


def test_a_round_of_tool_use_keeps_plan_calls_results_and_errors() -> None:
    packed = pack("c2", {"kind": "anthropic", "x": 1})
    found = body_of(
        {
            "tools": [WEATHER],
            "messages": [
                *USER,
                {"role": "assistant", "content": "I look.", "tool_calls": [CALL, {**CALL, "id": packed}]},
                {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
                {"role": "tool", "tool_call_id": packed, "content": "no such city", "is_error": True},
            ],
        }
    )
    function = {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert found["messages"][1:] == [
        {
            "role": "assistant",
            "tool_plan": "I look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": function},
                {"id": "c2", "type": "function", "function": function},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {
            "role": "tool",
            "tool_call_id": "c2",
            "content": [{"type": "document", "document": {"data": {"error": "no such city"}}}],
        },
    ]


@pytest.mark.parametrize(
    ("given", "expected"), [("", "{}"), (None, "{}"), ("not json", '{"malformed_arguments":"not json"}'), ("{}", "{}")]
)
def test_arguments_of_the_history_are_an_object(given: Any, expected: str) -> None:
    """7b-102."""
    call = {**CALL, "function": {"name": "f", "arguments": given}}
    (_, message) = messages(*USER, {"role": "assistant", "tool_calls": [call]})
    assert message["tool_calls"][0]["function"]["arguments"] == expected


def test_reasoning_of_the_history_goes_back_as_thinking() -> None:
    said = {"role": "assistant", "content": "4", "reasoning_content": "2+2"}
    assert messages(*USER, said, *USER)[1]["content"] == [
        {"type": "thinking", "thinking": "2+2"},
        {"type": "text", "text": "4"},
    ]
    assert messages(*USER, {"role": "assistant", "content": None, "refusal": "no"}, *USER)[1]["content"] == "no"
    assert len(messages(*USER, {"role": "assistant", "content": ""}, *USER)) == 2


def test_real_life_schemas_become_what_cohere_takes() -> None:
    """7b-101, 7b-86: type lists, references, empty enum values, no properties at all."""
    schema = {
        "$schema": "x",
        "type": "object",
        "$defs": {"p": {"type": "object", "properties": {"x": {"type": ["string", "null"]}}}},
        "properties": {"a": {"$ref": "#/$defs/p"}, "b": {"enum": ["", "x"]}, "c": {"anyOf": [{"type": "string"}]}},
        "required": ["a"],
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    (sent_tool,) = body_of({"tools": [tool]})["tools"]
    assert "$ref" not in json.dumps(sent_tool)
    assert "$schema" not in json.dumps(sent_tool)
    (bare,) = body_of({"tools": [{"type": "function", "function": {"name": "f"}}]})["tools"]
    assert bare["function"]["parameters"] == {"type": "object", "properties": {}}


def test_strict_holds_for_all_tools_or_none() -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    assert body_of({"tools": [strict]})["strict_tools"] is True
    other = {**WEATHER, "function": {**WEATHER["function"], "name": "other"}}
    request = COHERE.request(call_to(COHERE, {"tools": [strict, other]}))
    assert "strict_tools" not in json.loads(request.body)
    assert request.dropped == ("tools[0].function.strict",)


def test_names_outside_cohere_s_alphabet_come_back_as_they_were() -> None:
    tool = {**WEATHER, "function": {**WEATHER["function"], "name": "get-weather.now"}}
    payload = {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "get-weather.now"}}}
    body = body_of(payload)
    name = body["tools"][0]["function"]["name"]
    assert name.replace("_", "a").isalnum()
    assert body["tool_choice"] == "REQUIRED"
    call = {"id": "x", "type": "function", "function": {"name": name, "arguments": "{}"}}
    said = answer(message={"role": "assistant", "tool_calls": [call]}, finish_reason="TOOL_CALL")
    (tool_call,) = unfold(COHERE.response(call_to(COHERE, payload), OK, said).body)["tools"]
    assert tool_call["name"] == "get-weather.now"


@pytest.mark.parametrize(
    ("choice", "sent_choice", "sent_tools"),
    [
        ("auto", None, ["weather", "other"]),
        ("none", "NONE", ["weather", "other"]),
        ("required", "REQUIRED", ["weather", "other"]),
        ({"type": "required"}, "REQUIRED", ["weather", "other"]),
        ({"type": "function", "function": {"name": "other"}}, "REQUIRED", ["other"]),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "other"}}]},
            },
            None,
            ["other"],
        ),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]},
            },
            "REQUIRED",
            ["weather"],
        ),
    ],
)
def test_tool_choice_in_all_its_forms(choice: Any, sent_choice: str | None, sent_tools: list[str]) -> None:
    """7b-6, 7b-7, 7b-92: what is accepted is sent."""
    other = {**WEATHER, "function": {**WEATHER["function"], "name": "other"}}
    body = body_of({"tools": [WEATHER, other], "tool_choice": choice})
    assert body.get("tool_choice") == sent_choice
    assert [tool["function"]["name"] for tool in body["tools"]] == sent_tools


def test_a_choice_that_cannot_be_is_refused() -> None:
    """7b-8, 7b-59."""
    for choice in ("required", {"type": "function"}, {"type": "function", "function": {"name": "f"}}, "sometimes", 3):
        assert refused({"tool_choice": choice}) == "tool_choice"
    assert refused({"tools": [WEATHER], "parallel_tool_calls": False}) == "parallel_tool_calls"
    assert "parallel_tool_calls" not in body_of({"tools": [WEATHER], "parallel_tool_calls": True})


def test_parameters_under_cohere_s_names() -> None:
    body = body_of(
        {
            "max_tokens": 9,
            "max_completion_tokens": 7,
            "top_p": 1,
            "top_k": 40,
            "stop": "END",
            "seed": 3,
            "temperature": 0,
            "frequency_penalty": 0.5,
            "presence_penalty": 0.25,
            "logprobs": True,
            "n": 1,
            "safety_mode": "STRICT",
            "documents": [{"data": {"title": "x"}}],
        }
    )
    del body["messages"], body["model"], body["stream"]
    assert body == {
        "max_tokens": 7,
        "p": 0.99,
        "k": 40,
        "stop_sequences": ["END"],
        "seed": 3,
        "temperature": 0,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.25,
        "logprobs": True,
        "safety_mode": "STRICT",
        "documents": [{"data": {"title": "x"}}],
    }
    assert body_of({}, edits={"output_cap": 5})["max_tokens"] == 5
    assert body_of({}, params={"priority": 2})["priority"] == 2
    assert refused({"stop": ["1", "2", "3", "4", "5", "6"]}) == "stop"
    assert refused({"temperature": "hot"}) == "temperature"
    assert refused({"max_tokens": 0}) == "max_tokens"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"reasoning_effort": "none"}, {"type": "disabled"}),
        ({"reasoning_effort": "low"}, {"type": "enabled", "token_budget": 2048}),
        ({"reasoning_effort": "high"}, {"type": "enabled"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 500}}, {"type": "enabled", "token_budget": 500}),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "high"}, {"type": "disabled"}),
    ],
)
def test_reasoning(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """7b-47: none leaves it out, garbage is refused."""
    assert body_of(given)["thinking"] == expected
    assert refused({"reasoning_effort": "loads"}) == "reasoning_effort"


def test_json_output_is_native_and_does_not_stand_beside_tools() -> None:
    assert body_of({"response_format": {"type": "json_object"}})["response_format"] == {"type": "json_object"}
    schema = {"type": "object", "properties": {"n": {"type": ["integer", "null"], "minimum": 1}}, "required": ["n"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    sent_schema = body_of({"response_format": wanted})["response_format"]["json_schema"]
    assert sent_schema["required"] == ["n"]
    assert "minimum" not in sent_schema["properties"]["n"]
    assert refused({"response_format": wanted, "tools": [WEATHER]}) == "response_format"
    assert "response_format" not in body_of({"response_format": {"type": "text"}})  # 7b-13
    assert "tools" not in body_of({"response_format": {"type": "text"}})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"billed_units": {"input_tokens": 13.0, "output_tokens": 61.0}, "tokens": {"input_tokens": 542.0}},
         Usage(input=13, output=61)),
        ({"billed_units": {"input_tokens": 2406, "output_tokens": 2}, "cached_tokens": 2928},
         Usage(input=0, cached_input=2406, output=2)),
        ({"billed_units": {"input_tokens": 10, "output_tokens": 2}, "cached_tokens": 4.0},
         Usage(input=6, cached_input=4, output=2)),
        ({"tokens": {"input_tokens": 5, "output_tokens": 2}}, Usage(input=5, output=2)),
        ({"billed_units": {"search_units": 1}}, Usage()),
        (None, Usage()),
        ("x", Usage()),
    ],
)  # fmt: skip
def test_usage_is_what_is_billed(given: Any, expected: Usage) -> None:
    assert COHERE.response(call_to(COHERE), OK, answer(usage=given)).usage == expected


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("COMPLETE", "stop"), ("STOP_SEQUENCE", "stop"), ("MAX_TOKENS", "length"), ("TOOL_CALL", "tool_calls")],
)
def test_finish_reasons(reason: str, finish: str) -> None:
    assert unfold(COHERE.response(call_to(COHERE), OK, answer(finish_reason=reason)).body)["finish"] == finish


def test_a_finish_reason_we_do_not_know_is_a_stop_with_its_own_word() -> None:
    choice = json.loads(COHERE.response(call_to(COHERE), OK, answer(finish_reason="BORED")).body)["choices"][0]
    assert (choice["finish_reason"], choice["native_finish_reason"]) == ("stop", "BORED")


def test_thinking_plan_text_citations_and_logprobs_of_an_answer() -> None:
    source = {"type": "document", "id": "d", "document": {"url": "https://a.example", "title": "A", "snippet": "s"}}
    tool = {"type": "tool", "id": "t", "tool_output": {"temperature": "4"}}
    message = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "it is"}],
        "citations": [{"start": 0, "end": 2, "text": "it", "sources": [source, tool, 3]}],
    }
    probs = [{"text": "it is", "token_ids": [1, 2], "logprobs": [-0.5, -0.25]}]
    said = COHERE.response(call_to(COHERE), OK, answer(message=message, logprobs=probs)).body
    unfold(said)
    (choice,) = json.loads(said)["choices"]
    assert choice["message"]["reasoning_content"] == "hm"
    assert choice["message"]["content"] == "it is"
    note = {"url": "https://a.example", "title": "A", "start_index": 0, "end_index": 2}
    assert choice["message"]["annotations"] == [{"type": "url_citation", "url_citation": note}]
    (entry,) = choice["logprobs"]["content"]
    assert (entry["token"], entry["logprob"]) == ("it is", -0.75)


def test_a_stream_tells_plan_tools_citations_and_logprobs_in_order() -> None:
    source = {"type": "document", "document": {"url": "https://a.example"}}
    given = sse(
        START,
        {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": "I look."}}},
        {"type": "tool-call-start", "index": 0, "delta": {"message": {"tool_calls": {
            "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}}}}},
        {"type": "tool-call-end", "index": 0},
        {"type": "tool-call-start", "index": 7, "delta": {"message": {"tool_calls": {
            "id": "", "type": "function", "function": {"name": "weather", "arguments": '{"city":'}}}}},
        {"type": "tool-call-delta", "index": 7, "delta": {"message": {"tool_calls": {
            "function": {"arguments": '"x"}'}}}}},
        {"type": "tool-call-end", "index": 7},
        {"type": "citation-start", "index": 0, "delta": {"message": {"citations": {
            "start": 0, "end": 1, "sources": [source]}}}},
        {"type": "citation-end", "index": 0},
        {"type": "message-end", "delta": {"finish_reason": "TOOL_CALL", "usage": {
            "billed_units": {"input_tokens": 3, "output_tokens": 2}}}},
    )  # fmt: skip
    translator = COHERE.stream(call_to(COHERE, {"stream": True, "tools": [WEATHER]}), OK)
    out = run(translator, given)
    folded = fold(out)
    assert folded["content"] == "I look."
    assert [(tool["id"], tool["arguments"]) for tool in folded["tools"]] == [("a", {}), ("call_ex1_1", {"city": "x"})]
    assert folded["finish"] == "tool_calls"
    assert translator.usage == Usage(input=3, output=2)
    deltas = [chunk["choices"][0]["delta"] for chunk in events(out) if chunk != "[DONE]" and chunk["choices"]]
    assert deltas[-2]["annotations"][0]["url_citation"]["url"] == "https://a.example"


def test_an_unknown_event_is_passed_over_and_the_end_may_be_followed_by_done() -> None:
    said = {"type": "content-delta", "delta": {"message": {"content": {"text": "x"}}}}
    given = sse(START, {"type": "debug", "prompt": "p"}, said, END) + b"data: [DONE]\n\n"
    assert fold(run(COHERE.stream(call_to(COHERE), OK), given))["content"] == "x"


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "broke"}}, "server"),
        ({"type": "message-end", "delta": {"finish_reason": "TIMEOUT"}}, "timeout"),
        ({"message": "internal"}, "server"),
    ],
)
def test_an_error_in_a_stream_may_be_billed(given: dict[str, Any], kind: str) -> None:
    stream = sse(START) + b"data: " + json.dumps(given).encode() + b"\n\n"
    with pytest.raises(ProviderError) as caught:
        run(COHERE.stream(call_to(COHERE, {"stream": True}), OK), stream)
    assert (caught.value.kind, caught.value.may_be_billed) == (kind, True)
    whole = {"finish_reason": "ERROR", "message": {"role": "assistant"}}
    with pytest.raises(ProviderError):
        COHERE.response(call_to(COHERE), OK, json.dumps(whole).encode())
    with pytest.raises(UpstreamBrokenError):
        run(COHERE.stream(call_to(COHERE), OK), sse(START, {"type": "message-end", "delta": {}}))


@pytest.mark.parametrize(
    ("status", "message", "kind", "answered"),
    [
        (400, "too many tokens: total number of tokens in the prompt cannot exceed 4081", "context_window", 400),
        (400, "too many tokens: max tokens must be less than or equal to 4096", "bad_request", 400),
        (400, 'invalid request: "too many tokens 429"', "bad_request", 400),
        (401, "invalid api token", "authentication", 401),
        (404, "model 'x' not found", "not_found", 404),
        (422, "unprocessable", "bad_request", 422),
        (429, "You are using a Trial key", "rate_limit", 429),
        (498, "blocked", "content_policy", 400),
        (499, "closed", "server", 502),
        (500, "internal", "server", 500),
        (503, "busy", "overloaded", 503),
    ],
)
def test_errors_by_status(status: int, message: str, kind: str, answered: int) -> None:
    """7b-99, 7b-100: echoed text decides nothing but where Cohere has no code, and then only its beginning."""
    head = Head(status, [(b"retry-after", b"7")])
    error = COHERE.error(call_to(COHERE), head, json.dumps({"id": "x", "message": message}).encode())
    assert (error.kind, error.status, error.retry_after_s) == (kind, answered, 7.0)


PIECES = st.lists(st.text(max_size=6), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(thoughts=PIECES, texts=PIECES, cuts=st.lists(st.integers(0, 3000), max_size=8))
def test_any_cut_of_any_stream_gives_the_same_bytes(thoughts: list[str], texts: list[str], cuts: list[int]) -> None:
    parts = [("thinking", text) for text in thoughts] + [("text", text) for text in texts]
    deltas = [{"type": "content-delta", "delta": {"message": {"content": {kind: text}}}} for kind, text in parts]
    stream = sse(START, *deltas, END)
    whole = run(COHERE.stream(call_to(COHERE), OK), stream)
    places = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
    pieces = [stream[start:end] for start, end in pairwise(places)]
    assert run(COHERE.stream(call_to(COHERE), OK), *pieces) == whole
    folded = fold(whole)
    assert (folded["reasoning"], folded["content"] or "") == ("".join(thoughts), "".join(texts))


def test_the_dialect_refuses_what_cohere_would() -> None:
    """The oracle can fail."""
    for odd in ({"user": "u"}, {"tool_choice": "AUTO"}, {"messages": [{"role": "developer", "content": "x"}]}):
        with pytest.raises(AssertionError):
            assert_cohere_takes({"model": "m", "messages": USER, "stream": False, **odd})
    assert CohereChat().claims("/v2/chat")


def test_what_is_rewritten_is_told_to_whoever_asks() -> None:
    turns = [*USER, {"role": "assistant", "content": ""}, {"role": "system", "content": "shout"}, *USER]
    with told() as losses:
        body_of({"messages": turns, "top_p": 1})
    assert [(loss.kind, loss.where) for loss in losses] == [
        ("dropped", "messages[1]"),
        ("replaced", "messages[2]"),
        ("capped", "top_p"),
    ]
