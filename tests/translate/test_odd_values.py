"""Whatever stands in any place of a request, what comes out is an error of our own tree or a request: each value of
requests that use every field, one after the other, becomes one of another kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.errors import SidecarError
from sidecar.translate import Call, get_provider
from tests.translate.dialects import DIALECTS, OPENAI_LIKE, dialect_of
from tests.translate.field_values import BESIDE, USER, VALUES

PROVIDERS = ["openai", "databricks", "huggingface", *OPENAI_LIKE, *DIALECTS]
MODELS = {
    "anthropic": ["claude-3-haiku-20240307", "claude-3-7-sonnet-20250219", "claude-opus-4-8"],
    "bedrock": [
        "amazon.nova-2-lite-v1:0", "amazon.nova-pro-v1:0", "openai.gpt-oss-120b-1:0", "mistral.mistral-large-2402-v1:0",
    ],
    "gemini": ["gemini-2.5-pro", "gemini-3-pro-preview", "gemini-2.0-flash"],
    "openai": ["gpt-5"],
}  # fmt: skip
"""Of whose kind something else is done than for the dialect's own model."""
ODD: tuple[Any, ...] = (None, True, -1, 1.5, "", "x", [], [{}], {}, {"type": []})

CACHED = {"cache_control": {"type": "ephemeral", "ttl": "5m"}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}
FILE = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}}
THOUGHTS = [{"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "redacted_thinking", "data": "d"}]
PARAMETERS = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "enum": ["x"], "description": "d"},
        "b": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/c"}]},
    },
    "required": ["a"],
    "$defs": {"c": {"type": "array", "items": {"type": "integer", "minimum": 1}}},
}
CONVERSATION = [
    {"role": "system", "content": [{"type": "text", "text": "s", **CACHED}]},
    {"role": "user", "name": "n", "content": [{"type": "text", "text": "t"}, PICTURE, SOUND, FILE]},
    {
        "role": "assistant", "content": "c", "refusal": "r", "reasoning_content": "t", "thinking_blocks": THOUGHTS,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"},
             "extra_content": {"google": {"thought_signature": "s"}}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "t"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "t"}, {"type": "refusal", "refusal": "r"}]},
    *USER,
]  # fmt: skip
FUNCTION = {"name": "f", "description": "d", "strict": True, "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION, **CACHED}]
WHOLE: list[dict[str, Any]] = [
    {"messages": CONVERSATION},
    {"messages": USER, "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"messages": USER, "thinking": {"type": "enabled", "budget_tokens": 2000}, "output_config": {"effort": "low"}},
    {"messages": USER, "stop": ["a"], "reasoning": {"effort": "low"}, **CACHED},
    *({"messages": USER} | BESIDE.get(name, {}) | {name: value} for name, values in VALUES.items() for value in values),
]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*at, key))


def put(value: Any, at: tuple[Any, ...], odd: Any) -> Any:
    if not at:
        return odd
    if isinstance(value, dict):
        return value | {at[0]: put(value[at[0]], at[1:], odd)}
    return [put(inner, at[1:], odd) if number == at[0] else inner for number, inner in enumerate(value)]


ODDITIES = list(
    {
        json.dumps(payload): payload
        for whole in WHOLE
        for at in places(whole)
        for odd in ODD
        for payload in [{"model": "m"} | put(whole, at, odd)]
    }.items()
)


@pytest.mark.parametrize(
    ("name", "model"), [(name, model) for name in PROVIDERS for model in ("", *MODELS.get(name, ()))]
)
def test_a_request_with_one_odd_value_is_translated_or_refused(name: str, model: str) -> None:
    provider, dialect = get_provider(name), dialect_of(name)
    refused, raised = 0, []
    for number, (raw, payload) in enumerate(ODDITIES):
        call = Call(
            payload=payload,
            raw=raw.encode(),
            model=model or dialect.model,
            is_stream=payload.get("stream") is True,
            drop_params=number % 2 == 0,
            options=dialect.options,
        )
        try:
            provider.request(call)
        except SidecarError:
            refused += 1
        except Exception as error:
            raised.append(f"{raw}: {error!r}")
    assert not raised, f"{len(raised)} as this one: {raised[0][:2000]}"
    assert 0 < refused < len(ODDITIES)
