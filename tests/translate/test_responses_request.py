"""The Responses bridge, the way in: what is sent is held to the openai SDK's own types."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import BadRequestError
from sidecar.translate import get_provider
from sidecar.translate.losses import told
from sidecar.translate.providers.responses_models import RESPONSES_ONLY, is_responses_only, thinks
from sidecar.translate.signatures import pack
from tests.translate.dialects.responses import assert_openai_takes
from tests.translate.support import USER, WEATHER, make_call

CALLED = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}


def asked(payload: dict[str, Any] | None = None, *, model: str = "gpt-5-codex", **options: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(get_provider("openai").request(make_call(payload, model=model, **options)).body)
    assert_openai_takes(body)
    return body


def refused(payload: dict[str, Any]) -> str | None:
    with pytest.raises(BadRequestError) as caught:
        get_provider("openai").request(make_call(payload, model="gpt-5-codex"))
    return caught.value.param


def test_the_table_knows_every_model_the_sdk_names_for_responses_alone() -> None:
    from openai.types import ResponsesModel

    named = {name for part in get_args(ResponsesModel) for name in get_args(part) if isinstance(name, str)}
    chat = {name for part in get_args(ResponsesModel)[1:2] for name in get_args(part)}
    assert named - chat
    assert [name for name in sorted(named - chat) if not is_responses_only(name)] == []
    assert all(is_responses_only(f"{name}-2026-01-31") for name in RESPONSES_ONLY)


@pytest.mark.parametrize(
    ("model", "is_bridged"),
    [
        ("o1-pro", True), ("o3-pro-2025-06-10", True), ("gpt-5-codex", True), ("o4-mini-deep-research", True),
        ("o1", False), ("o3-mini", False), ("gpt-5", False), ("gpt-4o", False), ("gpt-5-pro-mini", False),
    ],
)  # fmt: skip
def test_the_model_says_which_api_is_asked_and_the_deployments_api_overrules_it(model: str, is_bridged: bool) -> None:
    for name, chat, responses in (
        ("openai", "/chat/completions", "/responses"),
        ("azure", "/openai/v1/chat/completions", "/openai/v1/responses"),
    ):
        provider = get_provider(name)
        assert provider.request(make_call(model=model)).path == (responses if is_bridged else chat)
        assert provider.request(make_call(model=model, options={"api": "chat"})).path == chat
        assert provider.request(make_call(model=model, options={"api": "responses"})).path == responses


def test_azures_names_say_nothing_its_base_model_does() -> None:
    azure = get_provider("azure")
    request = azure.request(make_call(model="prod", params={"base_model": "o3-pro"}))
    body = json.loads(request.body)
    assert_openai_takes(body)
    assert (request.path, request.query, body["model"]) == ("/openai/v1/responses", "", "prod")
    for version in ("2025-04-01-preview", "preview"):
        request = azure.request(make_call(model="o3-pro", options={"api_version": version}))
        path = "/openai/responses" if "2025" in version else "/openai/v1/responses"
        assert (request.path, request.query) == (path, f"api-version={version}")


def test_messages_become_items_in_their_places_and_nothing_is_stored() -> None:
    data = "data:image/png;base64,iVBORw0KGgo="
    content = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": data, "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": "JVBERi0="}},
    ]
    body = asked(
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": content},
                {"role": "developer", "content": [{"type": "text", "text": "now in verse"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": None, "refusal": "no"},
            ]
        }
    )
    assert body["store"] is False
    system, user, developer, assistant, refusal = body["input"]
    assert system == {"type": "message", "role": "system", "content": "be brief"}
    assert user["content"] == [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": data, "detail": "high"},
        {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "auto"},
        {"type": "input_file", "file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"},
        {"type": "input_file", "file_id": "file-1"},
        {"type": "input_file", "file_data": "data:application/pdf;base64,JVBERi0=", "filename": "file"},
    ]
    assert developer["content"] == [{"type": "input_text", "text": "now in verse"}]
    assert [assistant["content"], refusal["content"]] == ["ab", "no"]
    assert asked({"store": True})["store"] is True


def test_tool_calls_and_results_become_items_and_foreign_state_is_left_out() -> None:
    grep = {"id": "c2", "type": "custom", "custom": {"name": "grep", "input": "x|y"}}
    signed = {**CALLED, "id": pack("toolu_1", {"kind": "anthropic", "before": [{"id": "x"}]})}
    picture = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
    long_id = "call_" + "x" * 90
    body = asked(
        {
            "messages": [
                *USER,
                {"role": "assistant", "content": "hm", "tool_calls": [signed, grep, {**CALLED, "id": long_id}]},
                {"role": "tool", "tool_call_id": signed["id"], "content": "sunny"},
                {"role": "tool", "tool_call_id": "c2", "content": ""},
                {"role": "tool", "tool_call_id": long_id, "content": picture},
            ]
        }
    )
    assert "tools" not in body  # history alone is fine
    _, said, call, custom, other, result, nothing, seen = body["input"]
    assert said["content"] == "hm"
    assert call == {
        "type": "function_call", "call_id": "toolu_1", "name": "weather", "arguments": '{"city":"Rome"}',
    }  # fmt: skip
    assert custom == {"type": "custom_tool_call", "call_id": "c2", "name": "grep", "input": "x|y"}
    assert result == {"type": "function_call_output", "call_id": "toolu_1", "output": "sunny"}
    assert nothing == {"type": "custom_tool_call_output", "call_id": "c2", "output": ""}
    assert len(other["call_id"]) <= 64
    assert seen["call_id"] == other["call_id"]
    assert seen["output"] == [{"type": "input_image", "image_url": "https://example.com/a.png", "detail": "auto"}]


def test_tools_say_that_they_are_not_strict_and_names_fit_the_alphabet() -> None:
    odd = {"type": "function", "function": {"name": "get.weather/ü", "strict": True}}
    grammar = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "a+"}}
    custom = {"type": "custom", "custom": {"name": "grep", "description": "d", "format": grammar}}
    search = {"type": "web_search", "search_context_size": "low"}
    body = asked({"tools": [WEATHER, odd, custom, search], "parallel_tool_calls": False})
    plain, renamed, free, hosted = body["tools"]
    assert plain == {"type": "function", "strict": False, **WEATHER["function"]}
    assert renamed["strict"] is True
    assert renamed["parameters"]["additionalProperties"] is False
    assert renamed["name"].isascii()
    assert free["format"] == {"type": "grammar", "syntax": "regex", "definition": "a+"}
    assert hosted == search
    assert body["parallel_tool_calls"] is False
    assert body["include"] == ["reasoning.encrypted_content"]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "weather"}}, {"type": "function", "name": "weather"}),
        ({"type": "custom", "custom": {"name": "grep"}}, {"type": "custom", "name": "grep"}),
        ({"type": "web_search_preview"}, {"type": "web_search_preview"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]},
            },
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
        ),
    ],
)
def test_tool_choice_in_all_its_forms(choice: Any, sent: Any) -> None:
    assert asked({"tools": [WEATHER], "tool_choice": choice})["tool_choice"] == sent
    if choice in ("auto", "none"):
        assert "tool_choice" not in asked({"tool_choice": choice})  # nothing is there to choose
        return
    with pytest.raises(BadRequestError) as caught:
        asked({"tool_choice": choice})
    assert caught.value.param == "tool_choice"


def test_formats_efforts_caps_logprobs_and_search() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True, "description": "d"}}
    text = asked({"response_format": wanted, "verbosity": "low"})["text"]
    assert text == {
        "verbosity": "low",
        "format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True, "description": "d"},
    }
    assert asked({"response_format": {"type": "json_object"}})["text"] == {"format": {"type": "json_object"}}
    assert "text" not in asked({"response_format": {"type": "text"}})
    assert asked({"reasoning_effort": "high"})["reasoning"] == {"effort": "high"}
    both = {"reasoning_effort": "low", "reasoning": {"effort": "high", "summary": "auto"}}
    assert asked(both)["reasoning"] == {"effort": "low", "summary": "auto"}
    assert asked({}, params={"reasoning": {"summary": "auto"}})["reasoning"] == {"summary": "auto"}
    assert asked({"max_tokens": 90, "max_completion_tokens": 80})["max_output_tokens"] == 80
    assert asked({"max_tokens": 90}, edits={"output_cap": 50})["max_output_tokens"] == 50
    body = asked({"logprobs": True, "top_logprobs": 3})
    assert (body["include"], body["top_logprobs"]) == (["message.output_text.logprobs"], 3)
    place = {"type": "approximate", "approximate": {"city": "Rome", "country": "IT"}}
    (tool,) = asked({"web_search_options": {"search_context_size": "high", "user_location": place}})["tools"]
    assert tool == {
        "type": "web_search",
        "search_context_size": "high",
        "user_location": {"type": "approximate", "city": "Rome", "country": "IT"},
    }


def test_streams_are_asked_for_and_encrypted_reasoning_only_where_it_is_known_and_of_use() -> None:
    body = asked({"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}})
    assert (body["stream"], body["stream_options"]) == (True, {"include_obfuscation": False})
    assert "stream_options" not in asked({"stream": True})
    assert "include" not in asked({"tools": [{"type": "web_search"}]})
    assert "include" not in asked({"tools": [WEATHER]}, model="gpt-4o", options={"api": "responses"})
    assert [thinks(m) for m in ("o3-pro", "my-own", "gpt-4.1", "gpt-5-chat-latest", "gpt-45")] == [
        *(True, True, False, False, True)
    ]


@pytest.mark.parametrize(
    ("payload", "param"),
    [
        ({"n": 2}, "n"),
        ({"stop": "END"}, "stop"),
        ({"seed": 1}, "seed"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"tools": [{"type": "computer_use_preview"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "response_format.json_schema"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"max_tokens": "9"}, "max_completion_tokens"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
        ({"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://e.com"}}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "function"}]}]},
         "messages[0].tool_calls[0].type"),
    ],
)  # fmt: skip
def test_what_the_api_cannot_say_is_a_400_that_names_it(payload: dict[str, Any], param: str) -> None:
    assert refused(payload) == param


NAMES = st.sampled_from(["weather", "get.weather", "ü", "x" * 70])
ROLES = st.sampled_from(["system", "developer", "user"])
TURNS = st.one_of(
    st.fixed_dictionaries({"role": ROLES, "content": st.text(max_size=20)}),
    st.fixed_dictionaries(
        {
            "role": st.just("user"),
            "content": st.lists(
                st.one_of(
                    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=9)}),
                    st.just({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}),
                    st.just({"type": "file", "file": {"file_id": "file-1"}}),
                ),
                max_size=3,
            ),
        }
    ),
    st.builds(
        lambda text, names: {
            "role": "assistant",
            "content": text,
            "tool_calls": [
                {"id": f"c{at}", "type": "function", "function": {"name": name, "arguments": "{}"}}
                for at, name in enumerate(names)
            ],
        },
        st.none() | st.text(max_size=9),
        st.lists(NAMES, max_size=3),
    ),
    st.builds(
        lambda at, text: {"role": "tool", "tool_call_id": f"c{at}", "content": text}, st.integers(0, 3), st.text()
    ),
)


@settings(max_examples=150, deadline=None)
@given(messages=st.lists(TURNS, min_size=1, max_size=6), tools=st.lists(NAMES, max_size=3), is_stream=st.booleans())
def test_any_conversation_is_one_the_sdk_could_have_sent(
    messages: list[Any], tools: list[str], is_stream: bool
) -> None:
    payload = {
        "messages": messages,
        "tools": [{"type": "function", "function": {"name": name}} for name in tools],
        "stream": is_stream,
    }
    body = asked(payload)
    names = [tool["name"] for tool in body.get("tools", ())]
    assert all(name.isascii() and len(name) <= 64 for name in names)
    assert len(set(names)) == len(set(tools))


def test_what_is_left_out_without_a_policy_is_told_to_who_asks() -> None:
    foreign = {**CALLED, "id": pack("c1", {"kind": "responses", "at": "azure", "before": [], "from": 0, "to": 0})}
    turn = {"role": "assistant", "content": None, "tool_calls": [foreign]}
    with told() as losses:
        asked({"messages": [*USER, turn], "tool_choice": "auto", "parallel_tool_calls": False})
    assert [(loss.kind, loss.where) for loss in losses] == [
        ("dropped", "messages[1].tool_calls[0].id"),
        ("dropped", "tool_choice"),
        ("dropped", "parallel_tool_calls"),
    ]
