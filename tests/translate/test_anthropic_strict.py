"""Strict tools and native JSON output for Claude: schemas are said in the part of JSON Schema that it enforces."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.translate import get_provider
from tests.translate.support import assert_anthropic_takes, make_call, sent

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "name": {"type": "string"}}}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "name": {"type": ["string", "null"], "maxLength": 40, "description": "as in the passport"},
        "place": {"$ref": "#/$defs/place"},
    },
    "required": ["age"],
    "$defs": {"place": {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}}}},
}
CLOSED = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "description": "(minimum: 0, maximum: 130)"},
        "name": {"type": ["string", "null"], "description": "as in the passport (maxLength: 40)"},
        "place": {"$ref": "#/$defs/place"},
    },
    "required": ["age"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "additionalProperties": False,
        }
    },
}
UNSAYABLE = {
    "open": {"type": "object", "properties": {}, "additionalProperties": True},
    "of one kind": {"type": "object", "additionalProperties": {"type": "string"}},
    "open within": {"type": "object", "properties": {"a": {"type": "object", "additionalProperties": True}}},
    "recursive": {**NODE, "$defs": {"node": NODE}},
    "by patterns": {"type": "object", "patternProperties": {"^x": {"type": "string"}}},
}


def tool(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema, **more}}


def answer_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def test_a_strict_tools_schema_is_said_as_claude_enforces_it() -> None:
    before = {**SCHEMA}
    body = sent("anthropic", {"tools": [tool(SCHEMA, strict=True)]})
    assert body["tools"] == [{"name": "f", "input_schema": CLOSED, "strict": True}]
    assert_anthropic_takes(body)
    assert before == SCHEMA


def test_a_tool_that_is_not_strict_keeps_its_schema_as_it_is() -> None:
    for more in ({}, {"strict": False}, {"strict": None}):
        (found,) = sent("anthropic", {"tools": [tool(SCHEMA, **more)]})["tools"]
        assert found == {"name": "f", "input_schema": SCHEMA}


@pytest.mark.parametrize("schema", UNSAYABLE.values(), ids=UNSAYABLE)
def test_a_schema_that_would_be_said_wrongly_is_sent_unstrict_and_this_is_named(schema: dict[str, Any]) -> None:
    request = get_provider("anthropic").request(make_call({"tools": [tool(schema, strict=True)]}))
    assert request.dropped == ("tools[0].function.strict",)
    (found,) = sent("anthropic", {"tools": [tool(schema, strict=True)]})["tools"]
    assert "strict" not in found
    assert found["input_schema"].items() >= schema.items()


def test_a_model_without_strict_tools_gets_them_unstrict_and_this_is_named() -> None:
    request = get_provider("anthropic").request(
        make_call({"tools": [tool(SCHEMA, strict=True)]}, model="claude-3-7-sonnet-latest")
    )
    assert request.dropped == ("tools[0].function.strict",)
    assert b'"strict"' not in request.body


def test_native_json_output_gets_the_same_schema() -> None:
    body = sent("anthropic", {"response_format": answer_format(SCHEMA)})
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": CLOSED}}
    assert "tools" not in body


@pytest.mark.parametrize("schema", UNSAYABLE.values(), ids=UNSAYABLE)
def test_json_output_by_a_schema_that_would_be_said_wrongly_goes_by_a_tool(schema: dict[str, Any]) -> None:
    body = sent("anthropic", {"response_format": answer_format(schema)})
    assert "output_config" not in body
    assert body["tools"][0]["input_schema"] == schema
    assert body["tool_choice"]["type"] == "tool"
