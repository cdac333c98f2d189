"""*Nothing is dropped silently*, inside messages, parts, tools, tool calls and tool_choice too: every field of OpenAI's
and one it does not have, in each place, at each provider, reaches it, or is a 400 that names the place, or is named as
dropped. What has no meaning for the answer is quietly fine. docs/translation.md says it in words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from sidecar.errors import BadRequestError
from sidecar.translate import Provider, UpstreamRequest
from tests.translate.dialects import DISTINCT
from tests.translate.support import call_to

MARK = "marked-7f3a"
"""Found again in what is sent, if it was."""
ODD = {"frobnicate": MARK, "prompt_cache_breakpoint": {"mode": MARK}}
CACHE = {"cache_control": {"type": "ephemeral"}}
PNG = "data:image/png;base64,iVBORw0KGgo="
TEXT_FILE = {"file_data": "data:text/plain;base64,aGk=", "filename": "a.txt"}
BASE: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {"role": "user", "content": [
            {"type": "text", "text": "hi"},
            {"type": "image_url", "image_url": {"url": PNG}},
            {"type": "file", "file": TEXT_FILE},
        ]},
        {"role": "assistant", "content": [{"type": "text", "text": "so"}], "tool_calls": [
            {"id": "abcdefgh1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "abcdefgh1", "content": [{"type": "text", "text": "42"}]},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "go on"},
    ],
    "tools": [{"type": "function", "function": {
        "name": "f", "description": "d",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    }}],
    "tool_choice": "auto",
}  # fmt: skip
PLACES: dict[str, dict[str, Any]] = {
    "messages[0]": {"name": MARK, **ODD, **CACHE},
    "messages[1]": {"name": MARK, "audio": {"id": MARK}, "refusal": MARK, **ODD, **CACHE},
    "messages[2]": {"name": MARK, "refusal": MARK, "audio": {"id": MARK},
                    "function_call": {"name": MARK, "arguments": "{}"}, **ODD, **CACHE},
    "messages[3]": {"is_error": True, **ODD, **CACHE},
    "messages[4]": {"name": MARK, "refusal": MARK, "audio": {"id": MARK}, **ODD},
    "messages[0].content[0]": {**ODD, **CACHE},
    "messages[1].content[0]": {"image_url": {"url": MARK}, **ODD, **CACHE},
    "messages[1].content[1]": {"detail": MARK, **ODD, **CACHE},
    "messages[1].content[1].image_url": {"detail": "low", **ODD},
    "messages[1].content[2]": {**ODD, **CACHE},
    "messages[1].content[2].file": ODD,
    "messages[2].content[0]": {**ODD, **CACHE},
    "messages[2].tool_calls[0]": {"custom": {"name": MARK}, **ODD, **CACHE},
    "messages[2].tool_calls[0].function": {"strict": True, **ODD},
    "messages[3].content[0]": {**ODD, **CACHE},
    "tools[0]": {"custom": {"name": MARK}, **ODD, **CACHE},
    "tools[0].function": {"strict": True, **ODD, **CACHE},
}  # fmt: skip
CHOICES: list[Any] = [
    {"type": "function", "function": {"name": "f"}, "frobnicate": MARK},
    {"type": "function", "function": {"name": "f", "frobnicate": MARK}},
    {"type": "auto", "disable_parallel_tool_use": True},
    {"type": "allowed_tools", "allowed_tools": {
        "mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}], "frobnicate": MARK}},
    {"type": "allowed_tools", "allowed_tools": {
        "mode": MARK, "tools": [{"type": "function", "function": {"name": "f"}}]}},
    {"type": MARK},
    MARK,
    7,
]  # fmt: skip
QUIET: dict[str, dict[str, Any]] = {
    "messages[1]": {"name": None, "refusal": None, "audio": None},
    "messages[2]": {"name": None, "refusal": None, "audio": None, "annotations": [], "function_call": None},
    "messages[1].content[0]": {"annotations": [], "cache_control": None},
    "messages[2].tool_calls[0]": {"index": 0},
}
"""What stock SDKs echo, or say without asking for anything."""
ASKS_NOTHING = {"gemini": ("cache_control",), "vertex": ("cache_control",)}
"""It caches by itself what `cache_control` marks, so that changes nothing in what is sent."""


def at(payload: dict[str, Any], place: str) -> dict[str, Any]:
    found: Any = payload
    for step in place.replace("]", "").replace("[", ".").split("."):
        found = found[int(step) if step.isdigit() else step]
    assert isinstance(found, dict)
    return found


def request_of(provider: Provider, payload: dict[str, Any], **options: Any) -> UpstreamRequest:
    return provider.request(call_to(provider, {"max_tokens": 4096, **payload}, **options))


def seen(request: UpstreamRequest) -> tuple[Any, ...]:
    return json.loads(request.body), sorted(request.headers)


def cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(place, the field's full name, payload)"""
    for place, fields in PLACES.items():
        for field, value in fields.items():
            payload = deepcopy(BASE)
            at(payload, place)[field] = value
            yield place, f"{place}.{field}", payload


@pytest.mark.parametrize("name", DISTINCT)
def test_each_nested_field_reaches_the_provider_or_is_named(name: str) -> None:
    provider = DISTINCT[name]
    plain = seen(request_of(provider, BASE))
    for _, where, payload in cases():
        field = where.rpartition(".")[2]
        try:
            request = request_of(provider, payload)
        except BadRequestError as error:
            assert error.param == where, error.param  # noqa: PT017
            assert where in error.message  # noqa: PT017
            dropped = request_of(provider, payload, drop_params=True)
            assert dropped.dropped == (where,)
            assert seen(dropped) == plain, f"{where} left something"
            continue
        if request.dropped:
            assert request.dropped == (where,)
            assert seen(request) == plain
        elif field in ASKS_NOTHING.get(name, ()):
            assert seen(request) == plain
        else:
            assert seen(request) != plain, f"{where} was dropped without a word"


WRONG = {
    "messages[1].content[1].image_url": {"detail": 7},
    "messages[1].content[2].file": {"filename": 7},
    "tools[0].function": {"strict": "yes"},
}


@pytest.mark.parametrize("name", [name for name, provider in DISTINCT.items() if not provider.is_same_dialect])
def test_a_value_of_the_wrong_type_is_refused_rather_than_left_out(name: str) -> None:
    provider = DISTINCT[name]
    for place, fields in WRONG.items():
        payload = deepcopy(BASE)
        at(payload, place).update(fields)
        (field,) = fields
        if name == "watsonx":  # its bytes pass
            assert request_of(provider, payload).dropped == ()
            continue
        with pytest.raises(BadRequestError) as caught:
            request_of(provider, payload)
        assert caught.value.param == f"{place}.{field}"


@pytest.mark.parametrize("name", DISTINCT)
def test_each_form_of_tool_choice_reaches_the_provider_or_is_named(name: str) -> None:
    provider = DISTINCT[name]
    for choice in CHOICES:
        payload = {**BASE, "tool_choice": choice}
        try:
            request = request_of(provider, payload)
        except BadRequestError as error:
            assert str(error.param).startswith("tool_choice"), choice  # noqa: PT017
            assert str(error.param) in error.message  # noqa: PT017
            if error.code == "unsupported_parameter":
                assert error.param in request_of(provider, payload, drop_params=True).dropped  # noqa: PT017
            continue
        assert seen(request)[0]["tool_choice"] == choice, f"{choice} was changed without a word"


@pytest.mark.parametrize("name", DISTINCT)
def test_what_says_nothing_is_quietly_fine(name: str) -> None:
    provider = DISTINCT[name]
    payload = deepcopy(BASE)
    for place, fields in QUIET.items():
        at(payload, place).update(fields)
    request = request_of(provider, payload)
    assert request.dropped == ()
    if not provider.is_same_dialect and name != "watsonx":
        assert seen(request) == seen(request_of(provider, BASE))
