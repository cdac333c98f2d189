"""Mistral: a closed schema on the way in, content in parts on the way back, bytes that pass where nothing differs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from sidecar.errors import BadRequestError, UpstreamBrokenError
from sidecar.translate import Head, get_provider
from sidecar.translate.losses import told
from sidecar.translate.providers.mistral_request import sent_id
from sidecar.translate.signatures import pack
from sidecar.types import Usage
from tests.translate.dialects.mistral import assert_mistral_takes
from tests.translate.support import OK, USER, WEATHER, call_to, events, fold, run, sent, unfold

MISTRAL = get_provider("mistral")
CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[%s]%s}\n\n'
DONE = b"data: [DONE]\n\n"


def body_of(payload: dict[str, Any], **options: Any) -> dict[str, Any]:
    body = sent("mistral", payload, **options)
    assert_mistral_takes(body)
    return body


def messages(*given: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = body_of({"messages": list(given), **fields})["messages"]
    return found


def refused(payload: dict[str, Any], **options: Any) -> str | None:
    with pytest.raises(BadRequestError) as caught:
        sent("mistral", payload, **options)
    return caught.value.param


def called(tool_id: str, name: str = "weather", arguments: Any = '{"city":"Rome"}', **fields: Any) -> dict[str, Any]:
    call = {"id": tool_id, "type": "function", "function": {"name": name, "arguments": arguments}, **fields}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def answer(message: dict[str, Any], **choice: Any) -> bytes:
    choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}, **choice}]
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
    return json.dumps(whole).encode()


def test_a_request_that_is_right_already_keeps_its_bytes() -> None:
    payload = {
        "tools": [WEATHER],
        "messages": [*USER, called("D681PevKs"), {"role": "tool", "tool_call_id": "D681PevKs", "content": "sunny"}],
    }
    call = call_to(MISTRAL, {**payload, "model": "mistral-large-latest"}, model="mistral-large-latest")
    assert MISTRAL.request(call).body == call.raw


def test_ids_have_nine_letters_and_digits_and_results_fit_their_calls() -> None:
    packed = pack("call_1", {"kind": "gemini", "sig": "x"})
    found = messages(
        *USER,
        called("call_0fypS1hVX8xJ"),
        {"role": "tool", "tool_call_id": "call_0fypS1hVX8xJ", "content": "sunny"},
        called(packed),
        {"role": "tool", "tool_call_id": packed, "content": "rain"},
        called("D681PevKs"),
        {"role": "tool", "tool_call_id": "D681PevKs", "content": "fog"},
    )
    ids = [message["tool_calls"][0]["id"] for message in found if message["role"] == "assistant"]
    assert ids == [message["tool_call_id"] for message in found if message["role"] == "tool"]
    assert ids == [sent_id("call_0fypS1hVX8xJ"), sent_id("call_1"), "D681PevKs"]
    assert len(set(ids)) == 3


def test_fields_its_messages_do_not_have_and_that_say_nothing_are_left_out() -> None:
    found = messages(
        {"role": "developer", "content": "be brief", "name": None},
        {"role": "user", "content": [{"type": "text", "text": "hi", "annotations": []}]},
        {"role": "assistant", "content": "yo", "refusal": None, "annotations": [], "audio": None},
        called("D681PevKs", index=0) | {"function_call": None},
        {"role": "tool", "tool_call_id": "D681PevKs", "content": "x", "name": "weather"},
    )
    assert [message.keys() for message in found] == [
        {"role", "content"},
        {"role", "content"},
        {"role", "content"},
        {"role", "content", "tool_calls"},
        {"role", "content", "tool_call_id", "name"},
    ]
    assert found[0]["role"] == "system"


@pytest.mark.parametrize("arguments", ["", None])
def test_arguments_that_are_nothing_are_an_empty_object(arguments: Any) -> None:
    """7b-102."""
    result = {"role": "tool", "tool_call_id": "D681PevKs", "content": ""}
    assert messages(*USER, called("D681PevKs", arguments=arguments), result)[1]["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": "{}",
    }


def test_an_assistant_that_says_nothing_is_left_out_and_a_prefill_is_marked() -> None:
    assert messages(*USER, {"role": "assistant", "content": ""}, *USER) == [*USER, *USER]
    assert messages(*USER, {"role": "assistant", "content": "{"})[-1] == {
        "role": "assistant",
        "content": "{",
        "prefix": True,
    }
    assert messages(*USER, {"role": "assistant", "content": None, "refusal": "no"}, *USER)[1]["content"] == "no"


def test_a_user_who_speaks_before_the_model_saw_the_result_is_let_speak() -> None:
    """Mistral's "Unexpected role 'user' after role 'tool'" (3230), after a tool loop that was broken off."""
    result = {"role": "tool", "tool_call_id": "D681PevKs", "content": "sunny"}
    found = messages(*USER, called("D681PevKs"), result, *USER)
    assert [message["role"] for message in found] == ["user", "assistant", "tool", "assistant", "user"]
    assert found[3] == {"role": "assistant", "content": "OK"}


def test_thinking_goes_back_as_mistral_says_it() -> None:
    said = {"role": "assistant", "content": "4", "reasoning_content": "2+2"}
    assert messages(*USER, said, *USER)[1]["content"] == [
        {"type": "thinking", "thinking": [{"type": "text", "text": "2+2"}]},
        {"type": "text", "text": "4"},
    ]


def test_pictures_documents_and_sound() -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}
    (message,) = messages(
        {
            "role": "user",
            "content": [
                picture,
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0x"}},
                {"type": "file", "file": {"file_url": "https://example.com/b.pdf"}},
                {"type": "file", "file": {"file_id": "f1"}},
                {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
            ],
        }
    )
    assert message["content"] == [
        picture,
        {"type": "document_url", "document_url": "data:application/pdf;base64,JVBERi0x", "document_name": "a.pdf"},
        {"type": "document_url", "document_url": "https://example.com/b.pdf"},
        {"type": "file", "file_id": "f1"},
        {"type": "input_audio", "input_audio": "UklGRg=="},
    ]
    video = {"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}
    assert refused(video) == "messages[0].content[0]"
    request = MISTRAL.request(call_to(MISTRAL, video, drop_params=True))
    assert request.dropped == ("messages[0].content[0]",)


def test_tools_have_parameters_and_only_known_fields() -> None:
    bare = {"type": "function", "function": {"name": "f", "strict": None, "description": None}}
    assert body_of({"tools": [bare]})["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    ]
    odd = {"type": "function", "function": {"name": "f", "defer_loading": True}}
    assert refused({"tools": [odd]}) == "tools[0].function.defer_loading"
    assert refused({"tools": [{"type": "function"}]}) == "tools[0].function"
    assert sent("mistral", {"tools": [{"type": "web_search"}]})["tools"] == [{"type": "web_search"}]


def test_names_outside_its_alphabet_come_back_as_they_were() -> None:
    tool = {**WEATHER, "function": {**WEATHER["function"], "name": "get.weather now"}}
    payload = {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "get.weather now"}}}
    body = body_of(payload)
    name = body["tools"][0]["function"]["name"]
    assert body["tool_choice"]["function"]["name"] == name
    message = {"content": "", "tool_calls": [{"id": "D681PevKs", "function": {"name": name, "arguments": "{}"}}]}
    reply = MISTRAL.response(call_to(MISTRAL, payload), OK, answer(message, finish_reason="tool_calls"))
    folded = unfold(reply.body)
    assert folded["tools"] == [{"id": "D681PevKs", "name": "get.weather now", "arguments": {}}]
    assert folded["content"] is None


@pytest.mark.parametrize("choice", ["auto", "none", "required", "any"])
def test_tool_choice_in_words(choice: str) -> None:
    assert body_of({"tools": [WEATHER], "tool_choice": choice})["tool_choice"] == choice
    assert body_of({"tools": [WEATHER], "tool_choice": {"type": choice}})["tool_choice"] == choice


def test_allowed_tools_are_the_only_ones_sent() -> None:
    other = {**WEATHER, "function": {**WEATHER["function"], "name": "other"}}
    inner = {"mode": "required", "tools": [{"type": "function", "function": {"name": "other"}}]}
    body = body_of({"tools": [WEATHER, other], "tool_choice": {"type": "allowed_tools", "allowed_tools": inner}})
    assert body["tool_choice"] == "required"
    assert [tool["function"]["name"] for tool in body["tools"]] == ["other"]


def test_parameters_of_its_own_pass_and_unknown_ones_are_refused() -> None:
    body = body_of(
        {"safe_prompt": True, "prompt_mode": "reasoning", "seed": 3, "max_completion_tokens": 9, "top_k": 4,
         "prediction": {"type": "content", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}
    )  # fmt: skip
    assert body["safe_prompt"] is True
    assert (body["random_seed"], body["max_tokens"]) == (3, 9)
    assert body["prediction"] == {"type": "content", "content": "ab"}
    assert refused({"enable_thinking": True}) == "enable_thinking"
    assert refused({"user": "u"}) == "user"
    assert MISTRAL.request(call_to(MISTRAL, {"user": "u"}, drop_params=True)).dropped == ("user",)
    assert body_of({}, params={"safe_prompt": True})["safe_prompt"] is True


THINK = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "hm "}, {"type": "reference", "reference_ids": [1]}]},
    {"type": "text", "text": "4"},
]


def test_content_in_parts_is_text_and_reasoning() -> None:
    reply = MISTRAL.response(call_to(MISTRAL), OK, answer({"content": THINK}, finish_reason="model_length"))
    folded = unfold(reply.body)
    assert (folded["content"], folded["reasoning"], folded["finish"]) == ("4", "hm ", "length")
    assert reply.usage == Usage(input=3, output=2)


def test_a_stream_of_thinking_then_text() -> None:
    thought, said = THINK
    stream = b"".join(
        CHUNK % (json.dumps({"index": 0, "delta": delta, "finish_reason": finish}).encode(), b"")
        for delta, finish in (
            ({"role": "assistant", "content": ""}, None),
            ({"content": [thought]}, None),
            ({"content": [said]}, None),
            ({"content": ""}, "model_length"),
        )
    )
    folded = fold(run(MISTRAL.stream(call_to(MISTRAL, {"stream": True}), OK), stream + DONE))
    assert (folded["content"], folded["reasoning"], folded["finish"]) == ("4", "hm ", "length")


def test_calls_without_type_id_or_index_get_them() -> None:
    tool = {"id": "null", "function": {"name": "weather", "arguments": {"city": "x"}}}
    delta = {"role": "assistant", "content": "", "tool_calls": [tool, {**tool, "id": "D681PevKs"}]}
    choice = json.dumps({"index": 0, "delta": delta, "finish_reason": "tool_calls"}).encode()
    out = run(MISTRAL.stream(call_to(MISTRAL, {"stream": True}), OK), CHUNK % (choice, b"") + DONE)
    folded = fold(out)
    assert [tool["arguments"] for tool in folded["tools"]] == [{"city": "x"}, {"city": "x"}]
    assert [tool["id"] for tool in folded["tools"]] == [sent_id("ex1.0"), "D681PevKs"]
    assert next(events(out))["choices"][0]["delta"]["content"] is None


def test_other_bytes_pass_untouched() -> None:
    plain = answer({"content": "hi"})
    assert MISTRAL.response(call_to(MISTRAL), OK, plain).body == plain
    chunk = CHUNK % (b'{"index":0,"delta":{"content":"\\u00fc"},"finish_reason":null}', b',"p":"abc"')
    assert MISTRAL.stream(call_to(MISTRAL, {"stream": True}), OK).feed(chunk) == chunk


@pytest.mark.parametrize(
    "content", [[3], [{"type": "thinking"}], [{"type": "text"}], [{"type": "thinking", "thinking": [3]}]]
)
def test_odd_parts_are_a_broken_answer(content: Any) -> None:
    with pytest.raises(UpstreamBrokenError):
        MISTRAL.response(call_to(MISTRAL), OK, answer({"content": content}))


def test_cached_tokens_under_mistral_s_name() -> None:
    usage = {"prompt_tokens": 70, "completion_tokens": 12, "total_tokens": 82, "num_cached_tokens": 69}
    body = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": usage}).encode()
    assert MISTRAL.response(call_to(MISTRAL), OK, body).usage == Usage(input=1, cached_input=69, output=12)


@pytest.mark.parametrize(
    ("status", "fields", "kind"),
    [
        (400, {"message": "Prompt contains 40000 tokens, too large for model with 32768 maximum context length",
               "type": "invalid_request_prompt", "code": "3051"}, "context_window"),
        (400, {"message": "Invalid model: x", "type": "invalid_model", "code": "1500"}, "not_found"),
        (400, {"message": "Tool call id was x", "type": "invalid_function_call", "code": "3280"}, "bad_request"),
        (401, {"detail": "Unauthorized"}, "authentication"),
        (422, {"object": "error", "message": {"detail": [{"loc": ["body", "user"], "msg": "Extra inputs"}]}},
         "bad_request"),
        (429, {"message": "Service tier capacity exceeded for this model.",
               "type": "service_tier_capacity_exceeded", "code": "3505"}, "rate_limit"),
        (429, {"message": "Requests rate limit exceeded"}, "rate_limit"),
        (500, {"message": "prompt contains", "type": "invalid_model"}, "server"),
        (503, {"message": "overflow"}, "overloaded"),
    ],
)  # fmt: skip
def test_errors(status: int, fields: dict[str, Any], kind: str) -> None:
    error = MISTRAL.error(call_to(MISTRAL), Head(status, [(b"retry-after", b"2")]), json.dumps(fields).encode())
    assert (error.kind, error.retry_after_s) == (kind, 2.0)
    if status == 422:
        assert "Extra inputs" in error.message


def test_the_schema_refuses_what_mistral_would() -> None:
    """The oracle can fail."""
    for odd in ({"user": "u"}, {"messages": [*USER, called("call_1")]}, {"messages": [{"role": "developer"}]}):
        with pytest.raises(ValidationError):
            assert_mistral_takes({"model": "m", "messages": USER, **odd})


def test_what_is_left_out_or_renamed_is_told_to_whoever_asks() -> None:
    turns = [*USER, {"role": "assistant", "content": ""}, called("call_1"),
             {"role": "tool", "tool_call_id": "call_1", "content": "x"}]  # fmt: skip
    with told() as losses:
        body_of({"messages": turns})
    assert [(loss.kind, loss.where) for loss in losses] == [
        ("dropped", "messages[1]"),
        ("renamed", "tool call call_1"),
    ]
