"""What Claude cannot be told: refused by its place or dropped by policy and named; names, ids, caps and models."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.errors import BadRequestError
from sidecar.translate import get_provider
from sidecar.translate.providers.anthropic_models import traits
from tests.translate.support import USER, WEATHER, assert_anthropic_takes, make_call, sent
from tests.translate.test_anthropic_request import CALL, TEXT, image, user

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "audio": ({"messages": [user({"type": "input_audio", "input_audio": {}})]}, "messages[0].content[0].type"),
    "video": ({"messages": [user({"type": "video_url"})]}, "messages[0].content[0].type"),
    "image in an assistant turn": (
        {"messages": [{"role": "assistant", "content": [image("https://x.example/a")]}]},
        "messages[0].content[0].type",
    ),
    "a file: URL": ({"messages": [user(image("file:///etc/passwd"))]}, "messages[0].content[0].image_url.url"),
    "a TIFF": ({"messages": [user(image("data:image/tiff;base64,AA=="))]}, "messages[0].content[0]"),
    "a data URL without base64": (
        {"messages": [user(image("data:image/png,xx"))]},
        "messages[0].content[0].image_url.url",
    ),
    "a zip": (
        {"messages": [user({"type": "file", "file": {"file_data": "data:application/zip;base64,AA=="}})]},
        "messages[0].content[0].file",
    ),
    "a part that is no object": ({"messages": [user(3)]}, "messages[0].content[0]"),
    "content that is a number": ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    "a message that is a string": ({"messages": ["hi"]}, "messages[0]"),
    "no messages": ({"messages": []}, "messages"),
    "messages with nothing in them": ({"messages": [{"role": "user", "content": ""}]}, "messages"),
    "an unknown role": ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    "role function": ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
    "a list as role": ({"messages": [{"role": [], "content": "x"}]}, "messages[0].role"),
    "a result without its id": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    "a custom tool": ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    "a tool that takes a list": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
        "tools[0].function.parameters",
    ),
    "a tool without a name": ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    "tool_choice without a name (8)": (
        {"tools": [WEATHER], "tool_choice": {"type": "function"}},
        "tool_choice.function.name",
    ),
    "an unknown tool_choice names it (59)": ({"tools": [WEATHER], "tool_choice": "maybe"}, "tool_choice"),
    "tool_choice without tools": ({"tool_choice": "required"}, "tool_choice"),
    "a negative cap": ({"max_tokens": -1}, "max_tokens"),
    "a cap that is a string": ({"max_tokens": "9"}, "max_tokens"),
    "a temperature that is a string": ({"temperature": "hot"}, "temperature"),
    "garbage effort (47)": ({"reasoning_effort": "ludicrous"}, "reasoning_effort"),
    "a user that is a number": ({"user": 3}, "user"),
    "an unknown response format": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "a schema that is no object": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema.schema",
    ),
    "a stop list of numbers": ({"stop": [1]}, "stop"),
    "top-level cache_control that is no object (16)": ({"cache_control": "yes"}, "cache_control"),
    "thinking without a signature": (
        {"messages": [{"role": "assistant", "thinking_blocks": [{"type": "thinking", "thinking": "x"}]}]},
        "messages[0].thinking_blocks[0]",
    ),
    "thinking that cannot fit": ({"reasoning_effort": "low", "max_tokens": 500}, "max_completion_tokens"),
}


@pytest.mark.parametrize(("payload", "param"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_said_is_a_400_that_names_its_place(payload: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        sent("anthropic", payload)
    assert caught.value.param == param
    assert caught.value.message.startswith("The gateway refused the request")


DROPPABLE: dict[str, tuple[dict[str, Any], str, str]] = {
    "a temperature over 1": ({"temperature": 1.5}, "claude-sonnet-4-5", "temperature"),
    "any temperature from 4.7 on": ({"temperature": 0}, "claude-opus-4-7", "temperature"),
    "a name (103)": ({"messages": [{**USER[0], "name": "Ann"}]}, "claude-sonnet-4-5", "messages[0].name"),
    "picture detail": (
        {"messages": [user(TEXT, image("https://x.example/a", detail="high"))]},
        "claude-sonnet-4-5",
        "messages[0].content[1].image_url.detail",
    ),
    "a stop of white space": ({"stop": [" ", "x"]}, "claude-sonnet-4-5", "stop"),
    "metadata": ({"metadata": {"team": "a"}}, "claude-sonnet-4-5", "metadata.team"),
    "effort where the model cannot think": (
        {"reasoning_effort": "low"},
        "claude-3-5-haiku-20241022",
        "reasoning_effort",
    ),
    "effort xhigh before 4.7 (19)": ({"reasoning_effort": "xhigh"}, "claude-opus-4-6", "reasoning_effort"),
    "effort with a forced tool (46)": (
        {"reasoning_effort": "low", "tools": [WEATHER], "tool_choice": "required"},
        "claude-sonnet-4-5",
        "reasoning_effort",
    ),
    "an unknown field": ({"frobnicate": 1}, "claude-sonnet-4-5", "frobnicate"),
    "flex tier": ({"service_tier": "flex"}, "claude-sonnet-4-5", "service_tier"),
}


@pytest.mark.parametrize(("payload", "model", "param"), DROPPABLE.values(), ids=DROPPABLE)
def test_what_claude_lacks_is_refused_or_dropped_by_policy_and_named(
    payload: dict[str, Any], model: str, param: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        sent("anthropic", payload, model=model)
    assert caught.value.param == param
    request = get_provider("anthropic").request(make_call(payload, model=model, drop_params=True))
    assert request.dropped == (param,)
    assert_anthropic_takes(json.loads(request.body))


@pytest.mark.parametrize("value", ["ann@example.org", "+49 (170) 123-4567", "x" * 300])
def test_a_user_that_identifies_a_person_is_sent_as_its_hash(value: str) -> None:
    user_id = sent("anthropic", {"user": value})["metadata"]["user_id"]
    assert len(user_id) == 64
    assert user_id == sent("anthropic", {"user": value})["metadata"]["user_id"]


def test_odd_tool_names_and_ids_are_rewritten_the_same_way_everywhere() -> None:
    names = ["get.weather", "get_weather", "get weather", "ünï", "x" * 65, "x" * 66]
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    call = {"id": "call|1 é", "type": "function", "function": {"name": "get.weather", "arguments": "{}"}}
    body = sent(
        "anthropic",
        {
            "tools": tools,
            "tool_choice": {"type": "function", "function": {"name": "get.weather"}},
            "messages": [
                *USER,
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call|1 é", "content": "x"},
            ],
        },
    )
    sent_names = [tool["name"] for tool in body["tools"]]
    assert len(set(sent_names)) == len(names)
    assert sent_names[1] == "get_weather"
    assert all(len(name) <= 64 and name.isascii() and " " not in name for name in sent_names)
    assert body["tool_choice"]["name"] == body["messages"][1]["content"][0]["name"] == sent_names[0]
    assert body["messages"][1]["content"][0]["id"] == body["messages"][2]["content"][0]["tool_use_id"]
    assert_anthropic_takes(body)


def test_tools_of_the_conversation_are_defined_even_if_the_request_has_none() -> None:
    body = sent("anthropic", {"messages": [*USER, {"role": "assistant", "tool_calls": [CALL]}]})
    assert [tool["name"] for tool in body["tools"]] == ["weather"]
    assert body["tool_choice"] == {"type": "none"}
    assert_anthropic_takes(body)


def test_a_client_tool_named_like_the_json_tool_keeps_its_name() -> None:
    tool = {"type": "function", "function": {"name": "respond_in_json"}}
    body = sent("anthropic", {"tools": [tool], "response_format": {"type": "json_object"}})
    assert [item["name"] for item in body["tools"]] == ["respond_in_json", "respond_in_json_"]


def test_the_output_cap_edit_and_the_deployments_default_set_max_tokens() -> None:
    assert sent("anthropic", {"max_tokens": 900}, edits={"output_cap": 50})["max_tokens"] == 50
    assert sent("anthropic", {}, edits={"output_cap": 50}, max_output_tokens=8000)["max_tokens"] == 50
    assert sent("anthropic", {}, max_output_tokens=8000)["max_tokens"] == 8000


def test_deployment_params_are_defaults_under_the_clients_and_betas_become_a_header() -> None:
    params = {"temperature": 0.2, "thinking": {"type": "disabled"}, "anthropic_beta": ["a-1", "b-2", "a-1"]}
    request = get_provider("anthropic").request(make_call({"temperature": 0.7}, params=params))
    body = json.loads(request.body)
    assert (body["temperature"], body["thinking"]) == (0.7, {"type": "disabled"})
    assert "anthropic_beta" not in body
    assert (b"anthropic-beta", b"a-1,b-2") in request.headers  # 9: merged, none twice


@pytest.mark.parametrize(
    ("model", "native", "adaptive", "sampling"),
    [
        ("claude-3-7-sonnet-20250219", False, False, True),
        ("claude-sonnet-4-20250514", False, False, True),
        ("claude-opus-4-1", False, False, True),
        ("claude-haiku-4-5-20251001", True, False, True),
        ("anthropic.claude-sonnet-4-5-20250929-v1:0", True, False, True),
        ("claude-sonnet-4.6", True, True, True),
        ("claude-opus-4-7", True, True, False),
        ("claude-sonnet-5", True, True, False),
        ("claude-haiku-5-5", True, True, False),
        ("claude-mythos-preview", True, True, False),
        ("claude-2.1", False, False, True),
        ("some-other-model", False, False, True),
    ],
)
def test_what_a_model_can_do_is_read_from_its_version(model: str, native: bool, adaptive: bool, sampling: bool) -> None:
    found = traits(model)
    assert (found.has_native_schema, found.has_adaptive_thinking, found.takes_sampling) == (native, adaptive, sampling)


def test_a_depth_bomb_is_a_400() -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(20_000):
        schema = {"type": "object", "properties": {"a": schema}}
    call = make_call({})
    call.payload = {**call.payload, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    with pytest.raises(BadRequestError):
        get_provider("anthropic").request(call)
