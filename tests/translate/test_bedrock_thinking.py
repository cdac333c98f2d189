"""Converse requests: thinking, JSON answers, what the deployment sets, and any conversation at all."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import BadRequestError
from sidecar.translate.signatures import pack
from tests.translate.support import USER, WEATHER
from tests.translate.test_bedrock_request import (
    ANSWERED,
    BEDROCK,
    CALLED,
    CLAUDE,
    CLOSED,
    FAMILIES,
    GPT_OSS,
    LLAMA,
    NEW_CLAUDE,
    NOVA,
    NOVA_2,
    OLD_CLAUDE,
    PDF,
    PNG,
    PROFILE,
    QWEN,
    bedrock_call,
    body_of,
    file,
    image,
    json_schema,
    refused,
)

THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
HIDDEN = {"type": "redacted_thinking", "data": "EroBsecret=="}


@pytest.mark.parametrize("way", ["field", "content", "id"])
def test_thinking_goes_back_to_claude_signed_and_in_its_place(way: str) -> None:
    message: dict[str, Any] = json.loads(json.dumps(CALLED)) | {"content": "text"}
    if way == "field":
        message["thinking_blocks"] = [THOUGHT, HIDDEN]
    elif way == "content":
        message["content"] = [THOUGHT, HIDDEN, {"type": "text", "text": "text"}]
    else:
        state = {"kind": "claude", "before": [THOUGHT, HIDDEN, 4]}
        message["tool_calls"][0]["id"] = pack("c1", state)
    payload = {
        "tools": [WEATHER],
        "messages": [*USER, message, {**ANSWERED, "tool_call_id": message["tool_calls"][0]["id"]}],
    }
    content = body_of(payload)["messages"][1]["content"]
    assert content[:3] == [
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "c2ln"}}},
        {"reasoningContent": {"redactedContent": base64.b64encode(b"EroBsecret==").decode()}},
        {"text": "text"},
    ]
    assert content[3]["toolUse"]["toolUseId"] == "c1"
    others = body_of(payload, NOVA)["messages"][1]["content"]
    assert [next(iter(block)) for block in others] == ["text", "toolUse"]


def test_blank_thinking_and_blank_text_beside_calls_leave_no_blank_text() -> None:
    """7b-56"""
    message = {**CALLED, "content": [{"type": "text", "text": ""}, {"type": "text", "text": " "}]}
    message["thinking_blocks"] = [{"type": "thinking", "thinking": "", "signature": "c2ln"}]
    content = body_of({"tools": [WEATHER], "messages": [*USER, message, ANSWERED]})["messages"][1]["content"]
    assert [next(iter(block)) for block in content] == ["reasoningContent", "toolUse"]


@pytest.mark.parametrize("model", [CLAUDE, "anthropic.claude-opus-4-6-v1", NEW_CLAUDE, QWEN, GPT_OSS])
def test_a_schema_for_the_answer_is_a_string_with_closed_objects(model: str) -> None:
    """7b-49, 7b-51: by the model's name, whatever region stands before it."""
    schema = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}, "required": ["a"]}
    body = body_of(json_schema(schema, description="d"), model)
    said = body["outputConfig"]["textFormat"]["structure"]["jsonSchema"]
    assert (said["name"], said["description"]) == ("answer", "d")
    sent = json.loads(said["schema"])
    assert sent["additionalProperties"] is False
    assert sent["properties"]["a"]["additionalProperties"] is False
    assert "toolConfig" not in body


@pytest.mark.parametrize(
    ("model", "schema", "options"),
    [
        (OLD_CLAUDE, CLOSED, {}),
        ("anthropic.claude-opus-4-7", CLOSED, {}),
        (NOVA, CLOSED, {}),
        (PROFILE, CLOSED, {}),
        (CLAUDE, {"type": "object", "additionalProperties": {"type": "string"}}, {}),
        (CLAUDE, {"type": "object", "properties": {"a": {"$ref": "#"}}}, {}),
        (CLAUDE, CLOSED, {"params": {"structured_output": "tool"}}),
    ],
)
def test_else_a_tool_is_forced_whose_input_is_the_answer(model: str, schema: Any, options: Any) -> None:
    """7b-49"""
    body = body_of(json_schema(schema), model, **options)
    assert "outputConfig" not in body
    assert body["toolConfig"]["toolChoice"] == {"any": {}}
    assert body["toolConfig"]["tools"][0]["toolSpec"]["name"] == "respond_in_json"
    beside = body_of({**json_schema(schema), "tools": [WEATHER]}, model, **options)["toolConfig"]
    assert beside["toolChoice"] == {"any": {}}
    assert len(beside["tools"]) == 2


def test_a_model_that_cannot_be_forced_refuses_by_name() -> None:
    for payload in ({"tools": [WEATHER], "tool_choice": "required"}, json_schema(CLOSED)):
        (param,) = payload.keys() - {"tools"}
        assert refused(payload, LLAMA).param == param
        assert BEDROCK.request(bedrock_call(payload, LLAMA, drop_params=True)).dropped == (param,)
    config = body_of({"tools": [WEATHER], "tool_choice": "required"}, "mistral.mistral-large-2402-v1:0")["toolConfig"]
    assert config["toolChoice"] == {"any": {}}
    stubs = {"messages": [*USER, CALLED, ANSWERED], "response_format": {"type": "json_object"}}
    assert body_of(stubs)["toolConfig"]["toolChoice"] == {"tool": {"name": "respond_in_json"}}


def test_json_without_a_schema_is_a_tool_and_thinking_leaves_it_free() -> None:
    body = body_of({"response_format": {"type": "json_object"}, "reasoning_effort": "low"})
    assert body["toolConfig"]["toolChoice"] == {"auto": {}}
    assert "outputConfig" not in body
    assert "toolConfig" not in body_of({"response_format": {"type": "text"}})
    assert refused({"response_format": {"type": "xml"}}).param == "response_format.type"


def test_an_arn_that_says_nothing_has_its_model_named_by_the_deployment() -> None:
    body = body_of({"reasoning_effort": "low"}, PROFILE, params={"base_model": CLAUDE})
    assert body["additionalModelRequestFields"]["thinking"]["type"] == "enabled"
    assert refused({"reasoning_effort": "low"}, PROFILE).param == "reasoning_effort"


def test_metadata_user_and_tier() -> None:
    body = body_of({"metadata": {"team": "a"}, "user": "jörg", "safety_identifier": "s-1", "service_tier": "flex"})
    assert body["requestMetadata"].keys() == {"team", "user", "safety_identifier"}
    assert len(body["requestMetadata"]["user"]) == 64  # its hash: Bedrock takes plain characters
    assert body["serviceTier"] == {"type": "flex"}
    assert "serviceTier" not in body_of({"service_tier": "auto"})
    assert refused({"metadata": {"a": 3}}).param == "metadata.a"
    assert refused({"metadata": {"a": "€"}}).param == "metadata.a"
    assert refused({"metadata": {str(n): "x" for n in range(17)}}).param == "metadata.16"
    assert refused({"service_tier": "scale"}).param == "service_tier"


def test_what_a_deployment_sets_a_client_can_neither_set_nor_change() -> None:
    params = {
        "guardrailConfig": {"guardrailIdentifier": "abc123", "guardrailVersion": "1"},
        "performanceConfig": {"latency": "optimized"},
        "requestMetadata": {"cost": "team-a"},
        "additionalModelRequestFields": {"some_field": 1},
        "anthropic_beta": "beta-1",
    }
    body = body_of({"temperature": 0.1}, params={**params, "temperature": 0.9})
    assert body["guardrailConfig"] == params["guardrailConfig"]
    assert body["performanceConfig"] == params["performanceConfig"]
    assert body["requestMetadata"] == {"cost": "team-a"}
    assert body["additionalModelRequestFields"] == {"some_field": 1, "anthropic_beta": ["beta-1"]}
    assert body["inferenceConfig"]["temperature"] == 0.1
    for name, value in params.items():
        assert refused({name: value}).param == name
    assert refused({"metadata": {"cost": "team-b"}}, params=params).param == "metadata.cost"


def test_web_search_is_novas_grounding_even_when_it_is_empty() -> None:
    """7b-65"""
    body = body_of({"web_search_options": {}}, NOVA_2)
    assert body["toolConfig"]["tools"] == [{"systemTool": {"name": "nova_grounding"}}]
    assert refused({"web_search_options": {}}).param == "web_search_options"


def test_a_field_in_a_message_or_part_that_has_no_place_is_refused_by_name() -> None:
    """7b-103"""
    message = {"role": "user", "content": [{"type": "text", "text": "x", "foo": 1}], "name": "bob"}
    assert refused({"messages": [message]}).param == "messages[0].name"
    request = BEDROCK.request(bedrock_call({"messages": [message]}, drop_params=True))
    assert request.dropped == ("messages[0].name", "messages[0].content[0].foo")
    assert (
        refused({"messages": [{"role": "user", "content": [{"type": "poem"}]}]}).param == "messages[0].content[0].type"
    )


TEXTS = st.text(max_size=12)
NAMES = st.text(min_size=1, max_size=80)
PARTS = st.one_of(
    TEXTS.map(lambda text: {"type": "text", "text": text}),
    st.just(image(f"data:image/png;base64,{PNG}")),
    TEXTS.map(lambda name: file(file_data=PDF, filename=name)),
)
CONTENT = TEXTS | st.lists(PARTS, max_size=3)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "id": NAMES,
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": NAMES, "arguments": TEXTS | st.just('{"a":1}')}),
        }
    ),
    max_size=2,
)
MESSAGES = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "developer"]), "content": TEXTS}),
    st.fixed_dictionaries({"role": st.just("user"), "content": CONTENT}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": TEXTS | st.none()},
        optional={"tool_calls": CALLS, "thinking_blocks": st.lists(st.sampled_from([THOUGHT, HIDDEN]), max_size=2)},
    ),
    st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": NAMES, "content": CONTENT}),
)
SCHEMAS = st.sampled_from(
    [{}, CLOSED, {"type": "object"}, {"anyOf": [{"type": "object"}]}, {"type": "object", "$defs": {"a": {"$ref": "#"}}}]
)


@settings(max_examples=250, deadline=None)
@given(
    model=st.sampled_from(FAMILIES),
    messages=st.lists(MESSAGES, min_size=1, max_size=6),
    tools=st.lists(st.tuples(NAMES, SCHEMAS, st.booleans()), max_size=3),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "tool_choice": st.sampled_from(["auto", "none", "required"]),
            "reasoning_effort": st.sampled_from(["none", "low", "high", "max"]),
            "response_format": SCHEMAS.map(lambda schema: json_schema(schema)["response_format"]),
            "parallel_tool_calls": st.booleans(),
            "temperature": st.floats(0, 2),
            "max_tokens": st.integers(1, 100_000),
            "stop": st.lists(TEXTS, max_size=2),
            "user": TEXTS,
            "metadata": st.dictionaries(TEXTS, TEXTS, max_size=2),
            "cache_control": st.just({"type": "ephemeral"}),
            "stream": st.booleans(),
        },
    ),
)
def test_any_conversation_is_sent_as_botocore_would_or_refused_by_name(
    model: str, messages: list[Any], tools: list[Any], fields: dict[str, Any]
) -> None:
    payload = {"messages": messages, **fields}
    if tools:
        payload["tools"] = [
            {"type": "function", "function": {"name": name, "parameters": schema, "strict": strict}}
            for name, schema, strict in tools
        ]
    try:
        body = body_of(payload, model, drop_params=True)
    except BadRequestError as error:
        if not error.param:
            raise
        return
    roles = [turn["role"] for turn in body["messages"]]
    assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
    assert all(turn["content"] for turn in body["messages"])
