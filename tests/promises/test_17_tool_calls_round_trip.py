"""*Tool calls round-trip.* Generated parallel tool calls, streamed as every provider's vendor streams them, in pieces
cut at every byte: the client's stream, folded, is the unstreamed answer, is what the model called; and it is a history
the same provider takes back. Once more over the wire, byte by byte, with the stock OpenAI SDK.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.simulated import serve
from sidecar.translate import PROVIDERS, Head
from sidecar.translate.signatures import bare_id
from tests.promises.sizes import IS_FULL, measured, size
from tests.promises.support import PROVIDER_KEY, Running, served
from tests.promises.tool_streams import ENCODERS, Called, Said, Turn, chat, messages, responses
from tests.translate.dialects import DISTINCT, dialect_of
from tests.translate.support import OK, USER, fold, make_call, run, unfold

EXAMPLES = size("PROMISE_17_EXAMPLES", 10, full=150)
NO_IDS = {"ollama"}
"""Vendors whose calls have none; the gateway makes them up."""
ROWS = {
    **{name: (name, "", ENCODERS.get(name, chat)) for name in DISTINCT},
    "vertex-claude": ("vertex", "claude-sonnet-4-5", messages),
    "vertex-open": ("vertex", "meta/llama-4", chat),
    "openai-codex": ("openai", "gpt-5-codex", responses),
    "azure-o3-pro": ("azure", "o3-pro", responses),
}
TOOLS = [{"type": "function", "function": {"name": f"tool_{n}", "parameters": {"type": "object"}}} for n in range(4)]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.integers(0, 3), st.dictionaries(st.text(min_size=1, max_size=6), VALUES, max_size=3)),
    min_size=1,
    max_size=4,
).map(lambda given: tuple(Called(f"call_{at}", f"tool_{n}", value) for at, (n, value) in enumerate(given)))
TURNS = st.builds(
    Turn,
    st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).filter(
        lambda text: text == text.strip()
    ),
    CALLS,
    st.integers(1, 9),
    st.booleans(),
)
FIXED = Turn(
    "Hm\u2028\U0001f600",
    (
        Called("call_a", "tool_1", {"é": 'a"\\\n', "n": [1, {"x": None}]}),
        Called("call_b", "tool_1", {}),
        Called("call_c", "tool_0", {"data: ": "\n\ndata: [DONE]\n\n\U0001f469"}),
    ),
    8,
    True,
)


def call_of(row: str, **more: Any) -> Any:
    name, model, _ = ROWS[row]
    dialect = dialect_of(name)
    payload = {"tools": TOOLS, **more}
    if more.get("stream"):
        payload["stream_options"] = {"include_usage": True}
    return make_call(payload, model=model or dialect.model, options=dialect.options)


def head(row: str) -> Head:
    name, model, _ = ROWS[row]
    return Head(200, [(b"content-type", b"text/event-stream")]) if model else dialect_of(name).stream_head


OF_THEIR_OWN = set({type(PROVIDERS[ROWS[row][0]].stream(call_of(row, stream=True), head(row))): row
                    for row in reversed(ROWS)}.values())  # fmt: skip
"""The first row of each kind of stream."""


def streamed(row: str, *pieces: bytes) -> dict[str, Any]:
    return fold(run(PROVIDERS[ROWS[row][0]].stream(call_of(row, stream=True), head(row)), *pieces))


def assert_round_trip(row: str, turn: Turn, said: Said) -> dict[str, Any]:
    """The unstreamed answer says what was called, the stream the same, and the provider takes it back."""
    provider = PROVIDERS[ROWS[row][0]]
    plain = unfold(provider.response(call_of(row), OK, said[0]).body)
    assert [(tool["name"], tool["arguments"]) for tool in plain["tools"]] == [
        (call.name, call.arguments) for call in turn.calls
    ]
    ids = [bare_id(tool["id"]) for tool in plain["tools"]]
    assert len({*ids}) == len(turn.calls)
    assert ROWS[row][0] in NO_IDS or ids == [call.id for call in turn.calls]
    assert plain["finish"] == "tool_calls"
    assert (plain["content"] or "") == turn.text
    assert streamed(row, b"".join(said[1])) == plain
    calls = [
        {
            "id": tool["id"],
            "type": "function",
            "function": {"name": tool["name"], "arguments": json.dumps(tool["arguments"])},
        }
        for tool in plain["tools"]
    ]
    echoed = {"role": "assistant", "content": plain["content"], "tool_calls": calls}
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in calls]
    again = provider.request(call_of(row, messages=[*USER, echoed, *results]))
    assert again.dropped == ()
    assert again.body.count(b"tool_") >= len(calls)
    return plain


@pytest.mark.parametrize("row", ROWS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(turn=TURNS, places=st.lists(st.integers(0, 10_000), max_size=6))
def test_generated_parallel_calls_are_the_same_streamed_unstreamed_and_cut_anywhere(
    row: str, turn: Turn, places: list[int]
) -> None:
    said = ROWS[row][2](turn)
    plain = assert_round_trip(row, turn, said)
    stream = b"".join(said[1])
    assert streamed(row, *(stream[at : at + 1] for at in range(len(stream)))) == plain
    cuts = [0, *sorted(place % len(stream) for place in places), len(stream)]
    assert streamed(row, *(stream[start:end] for start, end in pairwise(cuts))) == plain


@pytest.mark.parametrize("row", ROWS)
def test_one_turn_is_cut_in_two_at_every_byte(row: str) -> None:
    said = ROWS[row][2](FIXED)
    assert_round_trip(row, FIXED, said)
    stream = b"".join(said[1])
    provider = PROVIDERS[ROWS[row][0]]
    whole = run(provider.stream(call_of(row, stream=True), head(row)), stream)
    # Whoever streams by another row's code is cut at some bytes only, but in the full run.
    step = 1 if IS_FULL or row in OF_THEIR_OWN else 23
    for at in range(0, len(stream), step):
        translator = provider.stream(call_of(row, stream=True), head(row))
        assert run(translator, stream[:at], stream[at:]) == whole
        assert translator.usage.is_known
    measured(
        17,
        f"{row}: {len(FIXED.calls)} calls in {len(stream)} bytes, cut at every {'one' if step == 1 else f'{step}rd'}",
    )


class Vendor:
    """Answers with the turn as the row's vendor says it; streams byte by byte."""

    def __init__(self) -> None:
        self.said: Said = (b"", [])
        self.kind = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        raw = b""
        while (message := await receive())["type"] == "http.request":
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        is_stream = b'"stream":true' in raw.replace(b" ", b"") or "tream" in scope["path"].rpartition("/")[2]
        kind = self.kind if is_stream else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        whole = b"".join(self.said[1]) if is_stream else self.said[0]
        step = 1 if is_stream else len(whole)
        for at in range(0, len(whole), step):
            await send({"type": "http.response.body", "body": whole[at : at + step], "more_body": True})
            if at % 64 == 0:
                await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture(scope="module")
async def wired(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Vendor, Running]]:
    vendor = Vendor()
    async with serve(vendor) as url:
        models = []
        for row, (name, model, _) in ROWS.items():
            dialect = dialect_of(name)
            deployment = {
                "provider": name, "model": model or dialect.model, "api_key": PROVIDER_KEY, "base_url": url,
                "price": {"input": 1, "output": 2}, "max_output_tokens": 64, **dialect.options,
            }  # fmt: skip
            models.append({"name": row, "deployments": [deployment]})
        async with served(tmp_path_factory.mktemp("tools"), url, top={"models": models}) as running:
            yield vendor, running


@pytest.mark.parametrize("row", ROWS)
async def test_the_stock_sdk_gets_the_same_calls_streamed_and_not(wired: tuple[Vendor, Running], row: str) -> None:
    vendor, running = wired
    vendor.said, vendor.kind = ROWS[row][2](FIXED), head(row).headers[0][1]
    payload: dict[str, Any] = {"model": row, "messages": USER, "tools": TOOLS}
    client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=await running.mint(), max_retries=0)
    async with client:
        answer = await client.chat.completions.create(**payload)
        async with client.chat.completions.stream(**payload) as stream:
            final = await stream.get_final_completion()
    whole, folded = answer.choices[0].message, final.choices[0].message
    assert whole.tool_calls is not None
    assert folded.tool_calls is not None
    assert (folded.content or "") == (whole.content or "") == FIXED.text
    said = [[(call.id, call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]
            for message in (whole, folded)]  # type: ignore[union-attr]  # fmt: skip
    if ROWS[row][0] in NO_IDS:  # made of the exchange's, so others in each answer
        said = [[("", *call[1:]) for call in calls] for calls in said]
    assert said[0] == said[1]
    assert [(name, arguments) for _, name, arguments in said[0]] == [(c.name, c.arguments) for c in FIXED.calls]
    assert final.choices[0].finish_reason == answer.choices[0].finish_reason == "tool_calls"
