"""*Usage on every stream*, asked for or not: the provider is always asked, the ledger row always has it, the client
gets the provider's bytes, less the usage event it did not ask for. Where a provider tells none, the row says
`estimated`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest

from sidecar.asgi import Receive, Scope, Send
from sidecar.simulated import serve
from sidecar.translate import PROVIDERS
from tests.faults.provider import COMPLETION_TOKENS, PROMPT_TOKENS, WORDS, stream_events
from tests.promises.support import PROVIDER_KEY, Running, body, served
from tests.translate.dialects import DISTINCT, OPENAI, dialect_of
from tests.translate.dialects.base import Dialect

pytestmark = pytest.mark.anyio

TOTAL = PROMPT_TOKENS + COMPLETION_TOKENS
CALL_USD = (PROMPT_TOKENS * 1 + COMPLETION_TOKENS * 2) / 1e6
SAME_DIALECT = [name for name, provider in DISTINCT.items() if provider.is_same_dialect]
OTHERS = [name for name, provider in DISTINCT.items() if not provider.is_same_dialect]
UNASKED = [{}, {"stream_options": {}}, {"stream_options": None}, {"stream_options": {"include_usage": False}}]
ASKED = {"stream_options": {"include_usage": True}}


class Scripted:
    """A provider that answers every stream with exactly these events and notes what it was asked."""

    def __init__(self) -> None:
        self.dialect: Dialect = OPENAI
        self.events: list[bytes] = []
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        content = b""
        while (message := await receive())["type"] == "http.request":
            content += message.get("body", b"")
            if not message.get("more_body", False):
                break
        self.asked.append(json.loads(content))
        head = [(b"content-type", self.dialect.stream_type)]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for event in self.events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.fixture(scope="module")
async def scripted(anyio_backend: str) -> AsyncIterator[tuple[Scripted, str]]:
    provider = Scripted()
    async with serve(provider) as url:
        yield provider, url


@pytest.fixture(scope="module")
async def every(scripted: tuple[Scripted, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A gateway with one model per registered provider, all at the scripted one."""
    deployment = {"api_key": PROVIDER_KEY, "base_url": scripted[1], "price": {"input": 1, "output": 2}}
    deployment["max_output_tokens"] = 64
    models = [
        {
            "name": name,
            "deployments": [{"provider": name, "model": f"{name}-1", **deployment, **dialect_of(name).options}],
        }
        for name in DISTINCT
    ]
    async with served(tmp_path_factory.mktemp("every"), scripted[1], top={"models": models}) as running:
        yield running


@pytest.fixture
def provider(scripted: tuple[Scripted, str]) -> Scripted:
    scripted[0].asked.clear()
    scripted[0].dialect = OPENAI
    return scripted[0]


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"id": "c", "model": "m", "choices": choices, **more}).encode() + b"\n\n"


COUNTS = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": TOTAL}
ALONE = b'data: {"id":"c","choices":[],"usage":' + json.dumps(COUNTS).encode() + b"}\n\n"
END = b"data: [DONE]\n\n"
WORDS_ONLY = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": word}) for word in WORDS)]
SHAPES: dict[str, list[bytes]] = {
    "a chunk of its own": [*WORDS_ONLY, chunk({}, "stop"), ALONE, END],
    "nulls on every other chunk": [chunk({"content": "hi"}, usage=None), chunk({}, "stop", usage=None), ALONE, END],
    "with the finish reason": [*WORDS_ONLY, chunk({}, "stop", usage=COUNTS), END],
    "counting up on every chunk": [
        *(
            chunk({"content": word}, usage={**COUNTS, "completion_tokens": at, "total_tokens": PROMPT_TOKENS + at})
            for at, word in enumerate(WORDS)
        ),
        chunk({}, "stop", usage=COUNTS),
        END,
    ],
    "twice": [*WORDS_ONLY, chunk({}, "stop", usage=COUNTS), ALONE, END],
    "under x_groq": [*WORDS_ONLY, chunk({}, "stop", x_groq={"id": "r", "usage": COUNTS}), END],
    "before the finish reason": [*WORDS_ONLY, ALONE, chunk({}, "stop"), END],
    "in a chunk without choices": [
        *WORDS_ONLY,
        chunk({}, "stop"),
        b'data: {"id":"c","usage":' + json.dumps(COUNTS).encode() + b"}\n\n",
        END,
    ],
    "carriage returns, comments and odd spacing": [
        b": keep-alive\r\n\r\n",
        b'data:{"id":"c", "choices" : [ {"index":0,"delta":{"content":"\\u00e9"},"finish_reason":"stop"} ] }\r\n\r\n',
        b'data:  {"id":"c", "choices" : [ ] , "usage" : ' + json.dumps(COUNTS).encode() + b"}\r\n\r\n",
        b"data: [DONE]\r\n\r\n",
    ],
}


MATRIX = [
    (name, shape)
    for name in SAME_DIALECT
    for shape in SHAPES
    if name in ("openai", "mistral") or shape == next(iter(SHAPES))
]


def without_usage(events: list[bytes]) -> bytes:
    """What is left if the events that hold nothing but usage are taken out."""
    lean = [event.replace(b" ", b"") for event in events]
    kept = (b'"choices":[{', b"[DONE]", b":keep-alive")
    return b"".join(event for event, text in zip(events, lean, strict=True) if any(word in text for word in kept))


async def check_row(gateway: Running, key: str) -> None:
    row = (await gateway.rows(key, at_least=1))[-1]
    assert (row["status"], row["outcome"], row["stream"]) == ("settled", "ok", True)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (PROMPT_TOKENS, COMPLETION_TOKENS)
    assert row["spend"] == pytest.approx(CALL_USD)


@pytest.mark.parametrize(("name", "shape"), MATRIX)
async def test_the_clients_bytes_are_the_providers_less_a_usage_chunk_it_did_not_ask_for(
    every: Running, provider: Scripted, name: str, shape: str
) -> None:
    provider.events = SHAPES[shape]
    key = await every.mint()
    tells_unasked = not PROVIDERS[name].forces_usage  # type: ignore[attr-defined]
    answer = await every.chat(key, body(name, stream=True))
    assert answer.content == (b"".join(provider.events) if tells_unasked else without_usage(provider.events))
    await check_row(every, key)
    asked = await every.chat(key, body(name, stream=True, **ASKED))
    assert asked.content == b"".join(provider.events)
    await every.rows(key, at_least=2)
    for sent in provider.asked:
        assert ("stream_options" in sent) is not tells_unasked
        assert tells_unasked or sent["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("options", UNASKED, ids=str)
async def test_however_a_client_does_not_ask_the_provider_is_asked(
    every: Running, provider: Scripted, options: dict[str, Any]
) -> None:
    provider.events = SHAPES["a chunk of its own"]
    key = await every.mint()
    answer = await every.chat(key, body("openai", stream=True, **options))
    assert answer.content == without_usage(provider.events)
    assert provider.asked[0]["stream_options"] == {"include_usage": True}
    await check_row(every, key)


async def test_the_clients_other_stream_options_travel_along(every: Running, provider: Scripted) -> None:
    provider.events = SHAPES["a chunk of its own"]
    key = await every.mint()
    options = {"stream_options": {"include_obfuscation": False}}
    assert (await every.chat(key, body("openai", stream=True, **options))).status_code == 200
    assert provider.asked[0]["stream_options"] == {"include_obfuscation": False, "include_usage": True}


def shown(answer: httpx2.Response) -> list[Any]:
    """The chunks, without what differs from answer to answer."""
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [
        line if line == "[DONE]" else {k: v for k, v in json.loads(line).items() if k not in ("id", "created")}
        for line in lines
    ]


@pytest.mark.parametrize("name", OTHERS)
async def test_a_translated_stream_has_a_usage_chunk_exactly_if_it_was_asked_for(
    every: Running, provider: Scripted, name: str
) -> None:
    provider.dialect, provider.events = dialect_of(name), stream_events(name, usage=True)
    key = await every.mint()
    plain = shown(await every.chat(key, body(name, stream=True)))
    await check_row(every, key)
    asked = shown(await every.chat(key, body(name, stream=True, **ASKED)))
    (extra,) = (item for item in asked if item not in plain)
    assert extra["choices"] == []
    assert {name: extra["usage"][name] for name in COUNTS} == COUNTS
    assert [item for item in asked if item != extra] == plain
    assert not any("usage" in item for item in plain if item != "[DONE]")
    rows = await every.rows(key, at_least=2)
    assert [row["total_tokens"] for row in rows] == [TOTAL, TOTAL]


@pytest.mark.parametrize("options", [{}, ASKED], ids=["unasked", "asked"])
@pytest.mark.parametrize("name", ["openai", "together", *OTHERS])
async def test_where_the_provider_tells_no_usage_the_row_is_labelled_and_the_client_is_told_none(
    every: Running, provider: Scripted, name: str, options: dict[str, Any]
) -> None:
    provider.dialect, provider.events = dialect_of(name), stream_events(name, usage=False)
    key = await every.mint(max_budget=1)
    answer = await every.chat(key, body(name, stream=True, **options))
    assert answer.text.endswith("data: [DONE]\n\n")
    assert not any(item["usage"] for item in shown(answer) if item != "[DONE]" and item.get("usage"))
    assert '"prompt_tokens"' not in answer.text
    (row,) = await every.rows(key, at_least=1)
    assert (row["status"], row["outcome"]) == ("estimated", "ok")
    assert row["spend"] >= CALL_USD, "never under what it may have cost"
    assert row["spend"] == await every.spend(key)


@pytest.mark.parametrize("name", ["openai", *OTHERS])
async def test_the_stock_sdk_sees_usage_if_it_asks_and_a_plain_stream_if_not(
    every: Running, provider: Scripted, name: str
) -> None:
    provider.dialect, provider.events = dialect_of(name), stream_events(name, usage=True)
    key = await every.mint()
    messages: Any = [{"role": "user", "content": "hi"}]
    async with openai.AsyncOpenAI(base_url=f"{every.url}/v1", api_key=key, max_retries=0) as client:
        for options in ({}, ASKED):
            stream: Any = await client.chat.completions.create(model=name, messages=messages, stream=True, **options)  # type: ignore[call-overload]
            chunks = [item async for item in stream]
            assert "".join(item.choices[0].delta.content or "" for item in chunks if item.choices) == "".join(WORDS)
            told = [item.usage for item in chunks if item.usage is not None]
            assert [usage.total_tokens for usage in told] == ([TOTAL] if options else [])
            # Programs written for streams without usage index into choices without looking.
            assert all(item.choices for item in chunks) or options
