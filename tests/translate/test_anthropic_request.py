"""OpenAI chat requests as Anthropic gets them; the Anthropic SDK's own types judge every body."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.translate.support import USER, WEATHER, assert_anthropic_takes, sent

PNG = "iVBORw0KGgo="
TEXT = {"type": "text", "text": "hi"}
HI = [{"role": "user", "content": [TEXT]}]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
USE = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rome"}}
EPHEMERAL = {"type": "ephemeral"}
THINKING = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def image(url: str, **extra: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **extra}}


MESSAGES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "a string": (USER, {"messages": HI}),
    "leading system and developer": (
        [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, *USER],
        {"system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "messages": HI},
    ),
    "empty system and empty texts left out (14)": (
        [{"role": "system", "content": ""}, {"role": "system", "content": [{"type": "text", "text": ""}]}, *USER],
        {"messages": HI},
    ),
    "cache_control on a system block (15)": (
        [{"role": "system", "content": [{**TEXT, "cache_control": EPHEMERAL}]}, *USER],
        {"system": [{**TEXT, "cache_control": EPHEMERAL}], "messages": HI},
    ),
    "a later system message stays in its place": (
        [*USER, {"role": "assistant", "content": "yo"}, {"role": "system", "content": "now formal"}, *USER],
        {
            "messages": [
                *HI,
                {"role": "assistant", "content": [{"type": "text", "text": "yo"}]},
                user({"type": "text", "text": "<system>\nnow formal\n</system>"}, TEXT),
            ]
        },
    ),
    "only a system message": ([{"role": "system", "content": "hi"}], {"messages": HI}),
    "neighbours of one role are merged": (
        [*USER, user(TEXT), {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}, *USER],
        {
            "messages": [
                user(TEXT, TEXT),
                {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                *HI,
            ]
        },
    ),
    "a data URL becomes base64": (
        [user(image(f"data:image/png;base64,{PNG}", detail="auto"))],
        {"messages": [user({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}})]},
    ),
    "image/jpg is JPEG, a plain string is a URL (91)": (
        [user({"type": "image_url", "image_url": "data:image/jpg;base64,/9j/4AAQ"})],
        {
            "messages": [
                user({"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "/9j/4AAQ"}})
            ]
        },
    ),
    "a picture is what its bytes are, whatever the client calls it": (
        [user({"type": "image_url", "image_url": f"data:image/jpeg;base64,{PNG}"})],
        {"messages": [user({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}})]},
    ),
    "an https URL stays one": (
        [user(image("https://x.example/a.png"))],
        {"messages": [user({"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}})]},
    ),
    "a PDF": (
        [user({"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PNG}"}})],
        {
            "messages": [
                user(
                    {
                        "type": "document",
                        "source": {"type": "base64", "media_type": "application/pdf", "data": PNG},
                        "title": "a.pdf",
                    }
                )
            ]
        },
    ),
    "a text file": (
        [user({"type": "file", "file": {"file_data": "data:text/plain;base64,aGk="}})],
        {
            "messages": [
                user({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hi"}})
            ]
        },
    ),
    "a file id": (
        [user({"type": "file", "file": {"file_id": "file_1"}})],
        {"messages": [user({"type": "document", "source": {"type": "file", "file_id": "file_1"}})]},
    ),
    "parallel tool calls and their results in one turn": (
        [
            *USER,
            {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "c2"}]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "c2", "content": "", "is_error": True, "name": "weather"},
            *USER,
        ],
        {
            "messages": [
                *HI,
                {"role": "assistant", "content": [USE, {**USE, "id": "c2"}]},
                user(
                    {"type": "tool_result", "tool_use_id": "c1", "content": "sunny"},
                    {"type": "tool_result", "tool_use_id": "c2", "is_error": True},
                    TEXT,
                ),
            ]
        },
    ),
    "a text between call and result comes after the result (83)": (
        [
            *USER,
            {"role": "assistant", "tool_calls": [CALL]},
            *USER,
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ],
        {
            "messages": [
                *HI,
                {"role": "assistant", "content": [USE]},
                user({"type": "tool_result", "tool_use_id": "c1", "content": "sunny"}, TEXT),
            ]
        },
    ),
    "a tool result with images (30)": (
        [
            *USER,
            {"role": "assistant", "tool_calls": [CALL]},
            {
                "role": "tool",
                "tool_call_id": "c1",
                "content": [
                    TEXT,
                    {**image(f"data:image/png;base64,{PNG}"), "cache_control": EPHEMERAL},
                    image("http://x.example/a.png"),
                ],
            },
        ],
        {
            "messages": [
                *HI,
                {"role": "assistant", "content": [USE]},
                user(
                    {
                        "type": "tool_result",
                        "tool_use_id": "c1",
                        "content": [
                            TEXT,
                            {
                                "type": "image",
                                "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                                "cache_control": EPHEMERAL,
                            },
                            {"type": "image", "source": {"type": "url", "url": "http://x.example/a.png"}},
                        ],
                    }
                ),
            ]
        },
    ),
    "calls without arguments, and with malformed ones (102)": (
        [
            *USER,
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}},
                    {"id": "c2", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
                    {"id": "c3", "type": "function", "function": {"name": "weather", "arguments": '{"ci'}},
                    {"id": "c4", "type": "function", "function": {"name": "weather", "arguments": "[1]"}},
                ],
            },
        ],
        {
            "messages": [
                *HI,
                {
                    "role": "assistant",
                    "content": [
                        {**USE, "id": "c1", "input": {}},
                        {**USE, "id": "c2", "input": {}},
                        {**USE, "id": "c3", "input": {"malformed_arguments": '{"ci'}},
                        {**USE, "id": "c4", "input": {"malformed_arguments": "[1]"}},
                    ],
                },
            ]
        },
    ),
    "thinking is replayed first, with its signature; empty texts beside it are left out (56)": (
        [
            *USER,
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "hm",
                "thinking_blocks": [THINKING, {"type": "redacted_thinking", "data": "xyz"}],
                "tool_calls": [CALL],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ],
        {
            "messages": [
                *HI,
                {"role": "assistant", "content": [THINKING, {"type": "redacted_thinking", "data": "xyz"}, USE]},
                user({"type": "tool_result", "tool_use_id": "c1", "content": "sunny"}),
            ]
        },
    ),
    "an answer echoed by an SDK": (
        [
            *USER,
            {
                "role": "assistant",
                "content": "yo",
                "refusal": None,
                "annotations": [],
                "audio": None,
                "function_call": None,
                "tool_calls": None,
            },
            *USER,
        ],
        {"messages": [*HI, {"role": "assistant", "content": [{"type": "text", "text": "yo"}]}, *HI]},
    ),
    "cache_control on a whole message": (
        [{**USER[0], "cache_control": EPHEMERAL}],
        {"messages": [user({**TEXT, "cache_control": EPHEMERAL})]},
    ),
    "a prefill does not end in white space": (
        [*USER, {"role": "assistant", "content": "I say \n"}],
        {"messages": [*HI, {"role": "assistant", "content": [{"type": "text", "text": "I say"}]}]},
    ),
}


@pytest.mark.parametrize(("messages", "expected"), MESSAGES.values(), ids=MESSAGES)
def test_messages_are_translated(messages: list[Any], expected: dict[str, Any]) -> None:
    body = sent("anthropic", {"messages": messages, "tools": [WEATHER]})
    assert {name: body[name] for name in ("system", "messages") if name in body} == expected
    assert_anthropic_takes(body)


TOOL = {
    "name": "weather",
    "description": "Weather in a city",
    "input_schema": WEATHER["function"]["parameters"],
}
AUTO_46 = {"thinking": {"type": "adaptive"}}
NATIVE = {"output_config": {"format": {"type": "json_schema", "schema": {**SCHEMA, "additionalProperties": False}}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
JSON_TOOL = {
    "name": "respond_in_json",
    "description": "Answer with this tool: its input is your whole answer.",
    "input_schema": SCHEMA,
}

FIELDS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "max_tokens": ({"max_tokens": 9}, "claude-sonnet-4-5", {"max_tokens": 9}),
    "max_completion_tokens": ({"max_completion_tokens": 9}, "claude-sonnet-4-5", {"max_tokens": 9}),
    "both caps: the smaller": ({"max_completion_tokens": 9, "max_tokens": 8}, "claude-sonnet-4-5", {"max_tokens": 8}),
    "no cap (17)": ({"max_tokens": None}, "claude-sonnet-4-5", {"max_tokens": 4096}),
    "sampling": (
        {"temperature": 0.5, "top_p": 0.9, "top_k": 5},
        "claude-sonnet-4-5",
        {"temperature": 0.5, "top_p": 0.9, "top_k": 5},
    ),
    "the default temperature, to a model that takes none": ({"temperature": 1}, "claude-opus-5", {}),
    "stop as a string": ({"stop": "END"}, "claude-sonnet-4-5", {"stop_sequences": ["END"]}),
    "stop as a list": ({"stop": ["a", "b"]}, "claude-sonnet-4-5", {"stop_sequences": ["a", "b"]}),
    "user": ({"user": "u1"}, "claude-sonnet-4-5", {"metadata": {"user_id": "u1"}}),
    "user@domain without a dot is sent (28)": (
        {"user": "user@domain"},
        "claude-sonnet-4-5",
        {"metadata": {"user_id": "user@domain"}},
    ),
    "an empty user (29)": ({"user": ""}, "claude-sonnet-4-5", {"metadata": {"user_id": ""}}),
    "no user (29)": ({"user": None}, "claude-sonnet-4-5", {}),
    "safety_identifier": ({"safety_identifier": "s"}, "claude-sonnet-4-5", {"metadata": {"user_id": "s"}}),
    "metadata.user_id": ({"metadata": {"user_id": "m"}}, "claude-sonnet-4-5", {"metadata": {"user_id": "m"}}),
    "service_tier": ({"service_tier": "default"}, "claude-sonnet-4-5", {"service_tier": "standard_only"}),
    "stream": ({"stream": True, "stream_options": {"include_usage": True}}, "claude-sonnet-4-5", {"stream": True}),
    "cache_control at the top (16)": ({"cache_control": EPHEMERAL}, "claude-sonnet-4-5", {"cache_control": EPHEMERAL}),
    "thinking passes": (
        {"thinking": {"type": "enabled", "budget_tokens": 2000}},
        "claude-sonnet-4-5",
        {"thinking": {"type": "enabled", "budget_tokens": 2000}, "max_tokens": 6096},
    ),
    "effort on 4.6 is adaptive (18)": (
        {"reasoning_effort": "high"},
        "claude-opus-4-6",
        {**AUTO_46, "output_config": {"effort": "high"}},
    ),
    "minimal is low (18)": (
        {"reasoning_effort": "minimal"},
        "claude-opus-4.6",
        {**AUTO_46, "output_config": {"effort": "low"}},
    ),
    "effort none": ({"reasoning_effort": "none"}, "claude-opus-4-6", {"thinking": {"type": "disabled"}}),
    "effort before 4.6 is a budget": (
        {"reasoning_effort": "low"},
        "claude-sonnet-4-5",
        {"thinking": {"type": "enabled", "budget_tokens": 2048}, "max_tokens": 6144},
    ),
    "effort none before 4.6 is nothing": ({"reasoning_effort": "none"}, "claude-sonnet-4-5", {}),
    "a budget shrinks to fit the cap": (
        {"reasoning_effort": "high", "max_tokens": 2000},
        "claude-sonnet-4-5",
        {"thinking": {"type": "enabled", "budget_tokens": 1999}, "max_tokens": 2000},
    ),
    "tools": ({"tools": [WEATHER]}, "claude-sonnet-4-5", {"tools": [TOOL]}),
    "no tools": ({"tools": []}, "claude-sonnet-4-5", {}),
    "a tool without parameters": (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        "claude-sonnet-4-5",
        {"tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]},
    ),
    "tool extras, on the tool or its function; an empty list left out (23)": (
        {
            "tools": [
                {**WEATHER, "cache_control": EPHEMERAL, "defer_loading": True},
                {
                    "type": "function",
                    "function": {
                        "name": "f",
                        "strict": True,
                        "allowed_callers": ["direct"],
                        "input_examples": [],
                        "parameters": {"type": "object", "$schema": "https://json-schema.org/draft/2020-12/schema"},
                    },
                },
            ]
        },
        "claude-sonnet-4-5",
        {
            "tools": [
                {**TOOL, "cache_control": EPHEMERAL, "defer_loading": True},
                {
                    "name": "f",
                    "strict": True,
                    "allowed_callers": ["direct"],
                    "input_schema": {"type": "object", "additionalProperties": False},
                },
            ]
        },
    ),
    "odd property types pass (101)": (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "f",
                        "parameters": {
                            "type": "object",
                            "properties": {"a": {"type": ["string", "number"]}, "b": {"enum": ["", "x"]}},
                        },
                    },
                }
            ]
        },
        "claude-sonnet-4-5",
        {
            "tools": [
                {
                    "name": "f",
                    "input_schema": {
                        "type": "object",
                        "properties": {"a": {"type": ["string", "number"]}, "b": {"enum": ["", "x"]}},
                    },
                }
            ]
        },
    ),
    "Anthropic's own tools pass": (
        {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 1}]},
        "claude-sonnet-4-5",
        {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 1}]},
    ),
    **{
        f"tool_choice {json.dumps(given)}": (
            {"tools": [WEATHER], "tool_choice": given},
            "claude-sonnet-4-5",
            {"tools": [TOOL], "tool_choice": expected},
        )
        for given, expected in (  # 6, 7, 59
            ("auto", {"type": "auto"}),
            ("none", {"type": "none"}),
            ("required", {"type": "any"}),
            ("any", {"type": "any"}),
            ({"type": "auto"}, {"type": "auto"}),
            ({"type": "required"}, {"type": "any"}),
            ({"type": "function", "function": {"name": "weather"}}, {"type": "tool", "name": "weather"}),
            ({"type": "tool", "name": "weather"}, {"type": "tool", "name": "weather"}),
            (
                {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "required",
                        "tools": [{"type": "function", "function": {"name": "weather"}}],
                    },
                },
                {"type": "any"},
            ),
        )
    },
    "parallel_tool_calls": (
        {"tools": [WEATHER], "parallel_tool_calls": False},
        "claude-sonnet-4-5",
        {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    ),
    "response_format text (13)": ({"response_format": {"type": "text"}}, "claude-sonnet-4-5", {}),
    "json_schema is native from 4.5 on (11)": ({"response_format": FORMAT}, "claude-opus-4.5", NATIVE),
    "json_schema on older models is a forced tool (12)": (
        {"response_format": FORMAT},
        "claude-sonnet-4-20250514",
        {
            "tools": [JSON_TOOL],
            "tool_choice": {"type": "tool", "name": "respond_in_json", "disable_parallel_tool_use": True},
        },
    ),
    "an open schema is a forced tool": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {**SCHEMA, "additionalProperties": True}},
            }
        },
        "claude-sonnet-4-5",
        {
            "tools": [{**JSON_TOOL, "input_schema": {**SCHEMA, "additionalProperties": True}}],
            "tool_choice": {"type": "tool", "name": "respond_in_json", "disable_parallel_tool_use": True},
        },
    ),
    "json_schema with tools": (
        {"response_format": FORMAT, "tools": [WEATHER]},
        "claude-sonnet-4-20250514",
        {"tools": [TOOL, JSON_TOOL], "tool_choice": {"type": "any"}},
    ),
    "json_schema with thinking is not forced": (
        {"response_format": FORMAT, "reasoning_effort": "low"},
        "claude-sonnet-4-20250514",
        {
            "tools": [JSON_TOOL],
            "tool_choice": {"type": "auto"},
            "thinking": {"type": "enabled", "budget_tokens": 2048},
            "max_tokens": 6144,
        },
    ),
    "effort and schema share output_config": (
        {"response_format": FORMAT, "reasoning_effort": "low"},
        "claude-opus-5",
        {**AUTO_46, "output_config": {"effort": "low", **NATIVE["output_config"]}},
    ),
    "values that ask for nothing": (
        {
            "n": 1,
            "logprobs": False,
            "frequency_penalty": 0,
            "presence_penalty": 0.0,
            "store": False,
            "seed": None,
            "logit_bias": {},
        },
        "claude-sonnet-4-5",
        {},
    ),
}


@pytest.mark.parametrize(("payload", "model", "expected"), FIELDS.values(), ids=FIELDS)
def test_fields_are_translated(payload: dict[str, Any], model: str, expected: dict[str, Any]) -> None:
    body = sent("anthropic", payload, model=model)
    assert body == {"model": model, "max_tokens": 4096, "messages": HI, **expected}
    assert_anthropic_takes(body)
