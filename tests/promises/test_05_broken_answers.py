"""*A broken answer never looks whole.* The provider cuts, resets, stalls, malforms or properly ends at every event of a
stream and in every part of an unstreamed body, in both dialects: the client gets an error event (or, before the first
content, an error answer), no `[DONE]`, no finish reason of ours; the stock OpenAI SDK raises; the row says incomplete.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import openai
import pytest

from tests.faults.provider import WORDS, Fault, FaultProvider, chat_events, message_events
from tests.promises.support import MODELS, Running, body, model_for, served

pytestmark = pytest.mark.anyio
EVENTS = {"gpt": len(chat_events(usage=True, forced_usage=True)), "claude": len(message_events(usage=True))}
FIRST_WORD = {"gpt": 1, "claude": 2}
"""The index of the first event with content."""
FINISH = {"gpt": 6, "claude": 8}
"""The index of the event in which the provider itself says why it finished."""
KINDS: tuple[Literal["cut", "reset", "stall", "malform", "ends"], ...] = ("cut", "reset", "stall", "malform", "ends")


@pytest.fixture(scope="module")
async def gateway_of_file(
    provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    async with served(folder, provider_of_file.base_url, impatient={"gap_s": 0.3}) as running:
        yield running


def sdk(gateway: Running, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1",
        api_key=key,
        max_retries=0,
        http_client=httpx2.AsyncClient(trust_env=False, verify=False),
    )


async def sdk_raises(gateway: Running, key: str, payload: dict[str, Any]) -> None:
    client = sdk(gateway, key)

    async def use() -> None:
        answer = await client.chat.completions.create(**payload)
        if payload["stream"]:
            async for chunk in answer:
                assert chunk.choices or chunk.usage

    try:
        with pytest.raises(openai.APIError):
            await use()
    finally:
        await client.close()


def events_of(text: str) -> list[Any]:
    """The data of each event; whatever is not JSON stays text."""
    found: list[Any] = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        data = "\n".join(line[5:].strip() for line in block.split("\n") if line.startswith("data:"))
        if data:
            found.append(json.loads(data) if data.startswith("{") else data)
    return found


def assert_broken(
    answer: httpx2.Response, *, content_began: bool, provider_finished: bool, is_reset: bool = False
) -> None:
    if not content_began or (is_reset and answer.status_code != 200):  # a reset throws away what nobody has read yet
        assert answer.status_code in (502, 504), answer.text
        assert answer.json()["error"]["message"]
        assert "data:" not in answer.text
        return
    *events, last = events_of(answer.text)
    assert set(last) == {"error"}, f"the last event is no error: {answer.text[-300:]}"
    assert last["error"]["message"]
    assert "[DONE]" not in answer.text
    assert all("error" not in event for event in events)
    finishes = [choice["finish_reason"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert finishes == [] or provider_finished


def assert_row(row: dict[str, Any], *, content_began: bool, is_reset: bool = False) -> None:
    outcomes = {"incomplete" if content_began else "provider_error"} | ({"provider_error"} if is_reset else set())
    assert row["outcome"] in outcomes, row
    assert row["status"] in ("unknown", "estimated", "settled")
    assert row["spend"] > 0, "the provider may charge for it"


async def broken_streams(gateway: Running, faults: FaultProvider, model: str, script: list[Fault]) -> None:
    """One stream per fault, at once; each is told apart by its text, its place by what the provider sent."""
    key = await gateway.mint()
    faults.script(*script)
    texts = [f"call {number}" for number in range(len(script))]
    asked = model_for(script[0].kind, model)
    answers = await asyncio.gather(
        *(gateway.chat(key, body(asked, stream=True, messages=[{"role": "user", "content": t}])) for t in texts)
    )
    assert len(faults.requests) == len(script)
    sent = {number: seen for seen in faults.requests for number, t in enumerate(texts) if f'"{t}"' in str(seen.body)}
    assert {seen.fault for seen in sent.values()} == set(script)
    rows = {row["exchange_id"]: row for row in await gateway.rows(key, at_least=len(script))}
    assert len(rows) == len(script)
    for number, answer in enumerate(answers):
        at = sent[number].fault.after
        began = at > FIRST_WORD[model]
        is_reset = sent[number].fault.kind == "reset"
        assert_broken(answer, content_began=began, provider_finished=at > FINISH[model], is_reset=is_reset)
        assert_row(rows[answer.headers["x-request-id"]], content_began=began, is_reset=is_reset)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_broken_at_any_event_ends_with_an_error(
    gateway: Running, faults: FaultProvider, model: str, kind: Any
) -> None:
    await broken_streams(gateway, faults, model, [Fault(kind, after=at, drip_s=0.002) for at in range(EVENTS[model])])


@pytest.mark.parametrize("model", MODELS)
async def test_words_and_their_break_in_one_piece_are_words_and_an_error(
    gateway: Running, faults: FaultProvider, model: str
) -> None:
    events = {"gpt": chat_events(usage=True, forced_usage=True), "claude": message_events(usage=True)}[model]
    key = await gateway.mint()
    for at in range(EVENTS[model]):
        for tail in (b"", b"data: {broken\n\n", events[at][:8]):
            whole = Fault("status", body=b"".join(events[:at]) + tail, headers=(("content-type", "text/event-stream"),))
            faults.script(whole)
            answer = await gateway.chat(key, body(model, stream=True))
            began = at > FIRST_WORD[model]
            assert_broken(answer, content_began=began, provider_finished=at > FINISH[model])
            if began:
                said = [c["delta"].get("content") or "" for e in events_of(answer.text)[:-1] for c in e["choices"]]
                words = min(at - FIRST_WORD[model], 5)
                assert "".join(said) == "".join(WORDS[:words])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("kind", "at"),
    [("stall", "content"), *((k, a) for k in KINDS if k != "stall" for a in ("start", "content", "end"))],
)
async def test_the_stock_sdk_raises_on_a_broken_stream(
    gateway: Running, faults: FaultProvider, model: str, kind: Any, at: str
) -> None:
    key = await gateway.mint()
    after = {"start": 0, "content": FIRST_WORD[model] + 2, "end": EVENTS[model] - 1}[at]
    faults.script(Fault(kind, after=after, drip_s=0.002))
    await sdk_raises(gateway, key, body(model_for(kind, model), stream=True))
    assert_row((await gateway.rows(key, at_least=1))[0], content_began=at != "start", is_reset=kind == "reset")


@pytest.mark.parametrize("model", MODELS)
async def test_a_stream_that_ends_at_once_or_says_only_done_is_no_answer(
    gateway: Running, faults: FaultProvider, model: str
) -> None:
    key = await gateway.mint()
    faults.script(Fault("done_only"), Fault("done_only"))
    answer = await gateway.chat(key, body(model, stream=True))
    assert_broken(answer, content_began=False, provider_finished=False)
    await sdk_raises(gateway, key, body(model, stream=True))
    for row in await gateway.rows(key, at_least=2):
        assert_row(row, content_began=False)


WHOLE_BUT_WRONG = (
    Fault("empty"),
    Fault("null"),
    Fault("html"),
    Fault("status", body=b"{}"),
    Fault("status", body=b"[]"),
    Fault("status", body=b'"ok"'),
    Fault("status", body=b"data: [DONE]\n\n"),
    Fault("status", body=b'{"error":{"message":"no","type":"server_error"}}'),
    Fault("status", body=b'{"choices":null,"content":null}'),
)
"""Answers with status 200 that are none, streamed or not."""


async def broken_bodies(
    gateway: Running, faults: FaultProvider, model: str, script: tuple[Fault, ...], *, is_stream: bool
) -> None:
    """Each fault twice: seen by a plain client and by the stock SDK."""
    key = await gateway.mint()
    faults.script(*script, *script)
    answers = await asyncio.gather(*(gateway.chat(key, body(model, stream=is_stream)) for _ in script))
    await asyncio.gather(*(sdk_raises(gateway, key, body(model, stream=is_stream)) for _ in script))
    for answer in answers:
        assert_broken(answer, content_began=False, provider_finished=False)
    rows = await gateway.rows(key, at_least=2 * len(script))
    assert len(rows) == len(faults.requests) == 2 * len(script)
    for row in rows:
        assert_row(row, content_began=False)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["cut", "reset", "stall"])
async def test_an_unstreamed_answer_that_breaks_off_anywhere_is_an_error(
    gateway: Running, faults: FaultProvider, model: str, kind: Any
) -> None:
    script = tuple(Fault(kind, after=quarter) for quarter in range(4))
    await broken_bodies(gateway, faults, model_for(kind, model), script, is_stream=False)


@pytest.mark.parametrize("is_stream", [False, True], ids=["unstreamed", "streamed"])
@pytest.mark.parametrize("model", MODELS)
async def test_an_answer_that_is_none_is_an_error(
    gateway: Running, faults: FaultProvider, model: str, is_stream: bool
) -> None:
    malformed = () if is_stream else (Fault("malform"),)
    await broken_bodies(gateway, faults, model, WHOLE_BUT_WRONG + malformed, is_stream=is_stream)
