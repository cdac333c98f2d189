"""Whatever a client or a provider sends, only errors of our own tree come out."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import SidecarError
from sidecar.translate import Call, Head, get_provider
from sidecar.translate.simulate import simulate
from tests.translate.dialects import DIALECTS, OPENAI, OPENAI_LIKE, dialect_of
from tests.translate.support import OK, call_to, make_call, run

PROVIDERS = ["openai", "databricks", "huggingface", *OPENAI_LIKE, *DIALECTS]
SCRAPS = st.sampled_from(
    [
        b"data: ", b"event: error\n", b"\n\n", b"\r", b"{", b"}", b"[DONE]", b'"usage":', b'"choices":[', b"null",
        *OPENAI.scraps, *(scrap for dialect in (*DIALECTS.values(), *OPENAI_LIKE.values()) for scrap in dialect.scraps),
    ]
)  # fmt: skip
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize("name", PROVIDERS)
@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(SCRAPS | st.binary(max_size=40), max_size=12))
def test_random_streams(name: str, pieces: list[bytes]) -> None:
    provider = get_provider(name)
    for payload in ({"stream": True}, {"stream": True, "response_format": {"type": "json_object"}}):
        outcomes = []
        for cut in (pieces, [b"".join(pieces)]):
            translator = provider.stream(call_to(provider, payload), dialect_of(provider).stream_head)
            try:
                outcomes.append((True, run(translator, *cut)))
            except SidecarError:
                outcomes.append((False, b""))
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("name", PROVIDERS)
@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=60) | JSONS.map(lambda value: json.dumps(value).encode()), status=st.integers(100, 999))
def test_random_answers_and_errors(name: str, body: bytes, status: int) -> None:
    provider = get_provider(name)
    with contextlib.suppress(SidecarError):
        provider.response(call_to(provider), OK, body)
    json.loads(provider.error(call_to(provider), Head(status), body).body_bytes())


@pytest.mark.parametrize(
    "content",
    [
        [{}],
        [{"type": None}],
        [{"type": 3}],
        [{"type": "text", "text": 3}],
        [{"type": "tool_use", "input": 3}],
        [3],
        [[]],
    ],
)
def test_odd_anthropic_content(content: Any) -> None:
    with contextlib.suppress(SidecarError):
        get_provider("anthropic").response(make_call(), OK, json.dumps({"content": content}).encode())


PARTS = JSONS | st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "file", "thinking", "refusal", 3])},
    optional={"text": JSONS, "image_url": JSONS, "file": JSONS, "cache_control": JSONS, "thinking": JSONS},
)
MESSAGES = JSONS | st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"])},
    optional={
        "content": JSONS | st.lists(PARTS, max_size=3),
        "tool_calls": JSONS | st.lists(st.fixed_dictionaries({"id": JSONS, "function": JSONS}), max_size=2),
        "tool_call_id": JSONS,
        "thinking_blocks": JSONS | st.lists(PARTS, max_size=2),
    },
)
FIELDS = ["tools", "tool_choice", "stop", "response_format", "reasoning_effort", "thinking", "metadata", "user", "n"]
FIELDS += ["max_tokens", "temperature", "stream_options", "parallel_tool_calls", "cache_control", "output_config", "é"]


@pytest.mark.parametrize("name", PROVIDERS)
@settings(max_examples=100, deadline=None)
@given(
    messages=JSONS | st.lists(MESSAGES, max_size=4),
    fields=st.dictionaries(st.sampled_from(FIELDS), JSONS, max_size=4),
    drop_params=st.booleans(),
    is_stream=st.booleans(),
)
def test_random_requests(name: str, messages: Any, fields: dict[str, Any], drop_params: bool, is_stream: bool) -> None:
    payload = {"model": "m", "messages": messages, **fields}
    raw = json.dumps(payload).encode()
    dialect = dialect_of(name)
    call = Call(
        payload=payload,
        raw=raw,
        model=dialect.model,
        is_stream=is_stream,
        drop_params=drop_params,
        options=dialect.options,
    )
    with contextlib.suppress(SidecarError):
        get_provider(name).request(call)


@settings(max_examples=100, deadline=None)
@given(
    body=st.binary(max_size=40)
    | st.fixed_dictionaries(
        {
            "model": st.sampled_from(["sim-tools", "sim-long-3", "x"]),
            "messages": JSONS | st.lists(MESSAGES, min_size=1),
        },
        optional={
            "tools": JSONS,
            "tool_choice": JSONS,
            "stream": st.booleans(),
            "max_tokens": JSONS,
            "response_format": JSONS,
            "system": JSONS,
        },
    ).map(lambda value: json.dumps(value).encode())
)
def test_the_simulator_never_raises(body: bytes) -> None:
    for dialect in ("openai", "anthropic"):
        answer = simulate(dialect, body)  # type: ignore[arg-type]
        assert answer.status in (200, 400)
        assert answer.pieces
