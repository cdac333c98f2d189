"""Whatever a client may reasonably say, each provider's own types take it, or the client is told what to change; and
a stream says the same however it is cut. Conversations, schemas and cuts are made up; providers are all there are."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.errors import BadRequestError
from sidecar.translate import Media, Provider
from tests.translate.dialects import DISTINCT, dialect_of
from tests.translate.support import OK, call_to, fold, run, unfold

PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5Er"
    "kJggg=="
)
FETCHED = Media("image/png", b"\x89PNG\r\n\x1a\n" + b"0" * 16)
EVERY = pytest.mark.parametrize("provider", DISTINCT.values(), ids=DISTINCT)
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(str.strip)
NAMES = st.sampled_from(["weather", "look.up/city", "ünïcode tool", "a" * 70, "1st", "mcp__x-y:z"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(WORDS, VALUES, max_size=3).map(json.dumps) | st.sampled_from(["", "{}", "{bad", "null"])
TEXT = WORDS.map(lambda text: {"type": "text", "text": text})
PICTURE = st.sampled_from([PNG, "https://example.com/a.png"]).map(
    lambda url: {"type": "image_url", "image_url": {"url": url}}
)
USERS = st.fixed_dictionaries(
    {"role": st.just("user"), "content": WORDS | st.lists(TEXT | PICTURE, min_size=1, max_size=3)}
)
SYSTEMS = st.fixed_dictionaries({"role": st.sampled_from(["system", "developer"]), "content": WORDS})


@st.composite
def turns(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A user's words, and what came of them: an answer, or calls, their results in any order, and an answer."""
    messages = [draw(USERS)]
    if draw(st.booleans()):
        names = draw(st.lists(NAMES, min_size=1, max_size=3))
        calls = [
            {
                "id": f"call_{draw(st.integers(0, 10**9))}_{index}",
                "type": "function",
                "function": {"name": name, "arguments": draw(ARGUMENTS)},
            }
            for index, name in enumerate(names)
        ]
        messages.append({"role": "assistant", "content": draw(st.none() | WORDS), "tool_calls": calls})
        results = st.just("") | WORDS | VALUES.map(json.dumps) | st.lists(TEXT, min_size=1, max_size=2)
        for call in draw(st.permutations(calls)):
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": draw(results)})
    if draw(st.booleans()):
        messages.append({"role": "assistant", "content": draw(WORDS)})
    return messages


CONVERSATIONS = st.tuples(
    st.lists(SYSTEMS, max_size=2), st.lists(turns(), min_size=1, max_size=3), st.lists(SYSTEMS, max_size=1), turns()
).map(lambda parts: [*parts[0], *(message for turn in parts[1] for message in turn), *parts[2], *parts[3][:1]])

LEAVES = st.sampled_from(
    [
        {"type": "string"}, {"type": "integer", "minimum": 1}, {"type": ["string", "null"]}, {"enum": ["", "a", "b"]},
        {"const": 3}, {"type": "string", "format": "date-time", "maxLength": 9}, {"$ref": "#/$defs/node"}, {},
        {"type": "number", "exclusiveMaximum": 3, "nullable": True}, {"type": "string", "pattern": "^a(?=b)"},
        {"type": "array"}, {"type": "object"}, {"prefixItems": [{"type": "string"}], "type": "array"},
    ]
)  # fmt: skip
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(lambda items: {"type": "array", "items": items}, inner)
        | st.builds(lambda kinds: {"anyOf": kinds}, st.lists(inner, min_size=1, max_size=3))
        | st.builds(lambda one, more: {"allOf": [one], "description": more}, inner, WORDS)
        | st.builds(
            lambda properties, more: {
                "type": "object",
                "properties": properties,
                "required": [*properties][:1],
                **more,
            },
            st.dictionaries(st.sampled_from(["a", "b c", "ü", "$d"]), inner, max_size=3),
            st.sampled_from([{}, {"additionalProperties": False}, {"additionalProperties": True}]),
        )
    ),
    max_leaves=6,
)
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "name": {"type": "string"}}}
ROOTS = st.dictionaries(st.sampled_from(["x", "y-z", "w"]), SCHEMAS, max_size=3).map(
    lambda properties: {"type": "object", "properties": properties, "$defs": {"node": NODE}}
)


def refusal(provider: Provider, payload: dict[str, Any]) -> BadRequestError | None:
    """Sent as the vendor's types take it, twice the same, the payload as it was; or refused by name."""
    call = call_to(provider, payload)
    before = copy.deepcopy(call.payload)
    call.media = dict.fromkeys(provider.needs(call), FETCHED)
    try:
        request = provider.request(call)
    except BadRequestError as error:
        if not error.param:
            raise
        return error
    finally:
        assert call.payload == before
    dialect_of(provider).check(request)
    json.loads(request.body)
    assert provider.request(call) == request
    return None


@EVERY
@few
@given(messages=CONVERSATIONS, has_tools=st.booleans(), is_stream=st.booleans())
def test_any_conversation_is_one_the_vendor_takes(
    provider: Provider, messages: list[dict[str, Any]], has_tools: bool, is_stream: bool
) -> None:
    payload: dict[str, Any] = {"messages": messages, "stream": is_stream}
    if has_tools:
        called = {call["function"]["name"] for message in messages for call in message.get("tool_calls", ())}
        parameters = {"type": "object", "properties": {}}
        payload["tools"] = [
            {"type": "function", "function": {"name": name, "parameters": parameters}}
            for name in sorted(called | {"weather"})
        ]
    assert refusal(provider, payload) is None


@EVERY
@few
@given(parameters=ROOTS, strict=st.booleans(), as_answer=st.booleans())
def test_any_schema_is_one_the_vendor_takes_or_refused_by_its_place(
    provider: Provider, parameters: dict[str, Any], strict: bool, as_answer: bool
) -> None:
    if as_answer:
        asked = {"name": "answer", "schema": parameters, "strict": strict}
        error = refusal(provider, {"response_format": {"type": "json_schema", "json_schema": asked}})
    else:
        function = {"name": "look.up", "parameters": parameters, "strict": strict}
        error = refusal(provider, {"tools": [{"type": "function", "function": function}]})
    assert error is None or str(error.param).startswith("response_format" if as_answer else "tools[0].function")
    assert error is None or not provider.passes_unknown


@EVERY
@few
@given(
    words=st.lists(WORDS, min_size=1, max_size=4),
    model=st.sampled_from(["sim-echo", "sim-tools", "sim-think", "sim-long-20"]),
    cuts=st.lists(st.floats(0, 1), max_size=8),
)
def test_a_stream_cut_anywhere_says_what_the_whole_answer_says(
    provider: Provider, words: list[str], model: str, cuts: list[float]
) -> None:
    tool = {"type": "function", "function": {"name": "look.up", "parameters": {"type": "object", "properties": {}}}}
    payload: dict[str, Any] = {"messages": [{"role": "user", "content": " ".join(words)}], "tools": [tool]}
    dialect = dialect_of(provider)
    asked = call_to(provider, {**payload, "stream": True}, model=model)
    stream = b"".join(dialect.pieces(provider.request(asked)))
    places = [0, *sorted(int(cut * len(stream)) for cut in cuts), len(stream)]
    parts = [stream[start:end] for start, end in pairwise(places)]
    whole = run(provider.stream(asked, dialect.stream_head), stream)
    assert run(provider.stream(asked, dialect.stream_head), *parts) == whole
    plain = call_to(provider, payload, model=model)
    answer = b"".join(dialect.pieces(provider.request(plain)))
    folded, told = fold(whole), unfold(provider.response(plain, OK, answer).body)
    assert {**folded, "usage": None} == {**told, "usage": None}
