"""*A broken answer never looks whole*, for clients of the Responses API: broken at every event of a stream and in every
quarter of a body. OpenAI's SDK raises, no `response.completed` is seen, the row says so; before the first content the
status is honest, or another deployment answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.faults.provider import COMPLETION_TOKENS, PROMPT_TOKENS, WORDS, Fault, FaultProvider, Kind, stream_events
from tests.promises.support import PROVIDER_KEY, Running, eventually, model_for, served

pytestmark = pytest.mark.anyio

EVENTS = stream_events("openai-responses", usage=True)
CONTENT_AT = next(number for number, event in enumerate(EVENTS) if b"output_text.delta" in event)
WAYS: tuple[Kind, ...] = ("cut", "reset", "stall", "malform", "torn", "ends")
COST_NANO = PROMPT_TOKENS * 1000 + COMPLETION_TOKENS * 2000
ENDS = (b"response.completed", b"response.incomplete", b"[DONE]")


@pytest.fixture(scope="module")
async def gateway_of_file(
    provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    soon = {"gap_s": 0.2}
    async with served(tmp_path_factory.mktemp("gateway"), provider_of_file.base_url, impatient=soon) as running:
        yield running


async def ask(gateway: Running, key: str, **fields: Any) -> bytes:
    body = {"model": "gpt", "input": "hi", "stream": True, **fields}
    headers = {"authorization": f"Bearer {key}"}
    async with gateway.http.stream("POST", f"{gateway.url}/v1/responses", headers=headers, json=body) as answer:
        return b"%d " % answer.status_code + await answer.aread()


@pytest.mark.parametrize("way", WAYS)
async def test_broken_at_every_event(way: Kind, gateway: Running, faults: FaultProvider) -> None:
    key = await gateway.mint()
    for number in range(len(EVENTS)):
        faults.script(Fault(way, after=number))
        answer = await ask(gateway, key, model=model_for(way, "gpt"))
        assert not any(end in answer for end in ENDS), (number, answer)
        if number <= CONTENT_AT:
            assert answer.startswith((b"502 {", b"504 {")), (number, answer)
            assert json.loads(answer[4:])["error"]["code"].startswith("upstream_")
            continue
        assert answer.startswith(b"200 event: response.created\n"), (number, answer)
        *_, last, rest = answer.split(b"\n\n")
        assert rest == b""
        name, _, data = last.partition(b"\ndata: ")
        event = json.loads(data)
        assert (name, event["type"]) == (b"event: error", "error")
        assert event["code"] == event["error"]["code"]
        assert event["message"] == event["error"]["message"]
        assert event["sequence_number"] >= answer.count(b"output_text.delta\n")
    rows = await gateway.rows(key, at_least=len(EVENTS))
    assert [row["outcome"] for row in rows] == [
        "provider_error" if number <= CONTENT_AT else "incomplete" for number in range(len(EVENTS))
    ]
    assert {row["status"] for row in rows} == {"unknown"}


@pytest.mark.parametrize("way", WAYS)
async def test_the_sdk_raises(way: Kind, gateway: Running, faults: FaultProvider) -> None:
    model = model_for(way, "gpt")
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=await gateway.mint(), max_retries=0) as client:
        for number in (1, CONTENT_AT + 1, len(EVENTS) - 1):
            faults.script(Fault(way, after=number), Fault(way, after=number))
            seen: list[str] = []
            with pytest.raises(openai.APIError):
                seen += [e.type async for e in await client.responses.create(model=model, input="hi", stream=True)]
            assert "response.completed" not in seen
            with pytest.raises(openai.APIError):
                async with client.responses.stream(model=model, input="hi") as stream:
                    await stream.get_final_response()


@pytest.mark.parametrize("fault", [Fault("cut", q) for q in range(4)] + [Fault(k) for k in ("empty", "null", "html")])
async def test_a_broken_body_is_an_error(fault: Fault, gateway: Running, faults: FaultProvider) -> None:
    key = await gateway.mint()
    faults.script(fault)
    answer = await ask(gateway, key, stream=False)
    assert answer.startswith(b"502 {"), answer
    (row,) = await gateway.rows(key, at_least=1)
    assert (row["outcome"], row["status"]) == ("provider_error", "unknown")


def failed(code: str, **response: Any) -> bytes:
    whole = {"id": "resp_1", "object": "response", "status": "failed", "output": []}
    return json.dumps({**whole, "error": {"code": code, "message": "No."}, **response}).encode()


@pytest.mark.parametrize(("code", "status"), [("server_error", 500), ("rate_limit_exceeded", 429)])
async def test_a_failed_response_is_the_error_it_means(
    code: str, status: int, gateway: Running, faults: FaultProvider
) -> None:
    key = await gateway.mint()
    faults.script(Fault("status", status=200, body=failed(code)))
    answer = await ask(gateway, key, stream=False)
    assert answer.startswith(b"%d {" % status), answer
    event = b'event: response.failed\ndata: {"type":"response.failed","sequence_number":3,"response":%s}\n\n'
    faults.script(
        Fault(
            "status",
            status=200,
            body=EVENTS[0] + event % failed(code),
            headers=(("content-type", "text/event-stream"),),
        )
    )
    answer = await ask(gateway, key)
    assert answer.startswith(b"%d {" % status), answer


async def test_a_stream_that_fails_after_content_keeps_what_it_cost(gateway: Running, faults: FaultProvider) -> None:
    key = await gateway.mint()
    usage = {"input_tokens": 7, "output_tokens": 3}
    event = b'event: response.failed\ndata: {"type":"response.failed","sequence_number":9,"response":%s}\n\n'
    body = b"".join(EVENTS[: CONTENT_AT + 2]) + event % failed("server_error", usage=usage)
    faults.script(Fault("status", status=200, body=body, headers=(("content-type", "text/event-stream"),)))
    answer = await ask(gateway, key)
    last = json.loads(answer.split(b"\n\n")[-2].partition(b"\ndata: ")[2])
    assert (last["type"], last["code"], last["sequence_number"]) == ("error", "server_error", 10)
    assert "No." in last["message"]
    (row,) = await gateway.rows(key, at_least=1)
    assert row["outcome"] == "incomplete"
    assert row["usage"]["input"] == 7


async def test_another_deployment_answers_before_the_first_content(tmp_path: Path, faults: FaultProvider) -> None:
    deployment = {
        "provider": "openai", "model": "gpt-1", "api_key": PROVIDER_KEY, "base_url": f"{faults.base_url}/v1",
        "price": {"input": 1, "output": 2},
    }  # fmt: skip
    top = {
        "models": [{"name": "gpt", "deployments": [deployment, {**deployment, "order": 2}]}],
        "routing": {"retries": 1, "cooldown_s": 0.001},
    }
    async with served(tmp_path, faults.base_url, top=top) as gateway:
        key = await gateway.mint()
        for number in range(CONTENT_AT + 1):
            faults.script(Fault("cut", after=number), Fault())
            answer = await ask(gateway, key)
            assert answer.startswith(b"200 event: response.created\n")
            assert answer.count(b"event: response.created\n") == answer.count(b"event: response.completed\n") == 1
        faults.reset()
        faults.script(Fault("cut", after=CONTENT_AT + 1), Fault())
        assert b"response.completed" not in await ask(gateway, key)
        assert len(faults.requests) == 1


async def test_the_client_leaves_and_the_spending_stops(tmp_path: Path, faults: FaultProvider) -> None:
    async with served(tmp_path, faults.base_url) as gateway:
        key = await gateway.mint(max_parallel_requests=1)
        headers = {"authorization": f"Bearer {key}"}
        body = {"model": "gpt", "input": "hi", "stream": True}
        faults.script(Fault("stall", after=CONTENT_AT + 2))
        async with gateway.http.stream("POST", f"{gateway.url}/v1/responses", headers=headers, json=body) as answer:
            async for piece in answer.aiter_bytes():
                if b"output_text.delta" in piece:
                    break
        await eventually(lambda: faults.requests[0].closed_at is not None)
        assert faults.requests[0].closed_how == "left"
        await gateway.is_free(key)
        (row, *_) = await gateway.rows(key, at_least=2)
        assert (row["outcome"], row["status"]) == ("client_left", "estimated")


async def test_whole_streams_and_answers_cost_what_they_say(gateway: Running, faults: FaultProvider) -> None:
    key, before_nano = await gateway.mint(max_budget=1), gateway.counted_nano
    answers = await asyncio.gather(*(ask(gateway, key, stream=n % 2 == 0) for n in range(10)))
    for number, answer in enumerate(answers):
        if number % 2 == 0:
            assert answer.rstrip().split(b"\n\n")[-1].startswith(b"event: response.completed\n")
            assert all(f'"delta":"{word}"'.encode() in answer for word in WORDS)
    rows = await gateway.rows(key, at_least=10)
    assert {(row["outcome"], row["status"]) for row in rows} == {("ok", "settled")}
    assert await gateway.spend(key) == pytest.approx(10 * COST_NANO / 1e9)
    assert gateway.counted_nano - before_nano == 10 * COST_NANO


async def test_a_stream_without_usage_is_charged_at_its_bound(gateway: Running, faults: FaultProvider) -> None:
    key = await gateway.mint(max_budget=1)
    faults.script(Fault("no_usage"))
    assert b"response.completed" in await ask(gateway, key)
    (row,) = await gateway.rows(key, at_least=1)
    assert (row["outcome"], row["status"]) == ("ok", "estimated")
    assert row["spend"] * 1e9 > COST_NANO


async def test_a_stream_longer_than_its_hold_is_ended(gateway: Running, faults: FaultProvider) -> None:
    key = await gateway.mint(max_budget=0.01)
    body = b"".join((*EVENTS[:CONTENT_AT], *(EVENTS[CONTENT_AT],) * 200, *EVENTS[CONTENT_AT + 1 :]))
    faults.script(Fault("status", status=200, body=body, headers=(("content-type", "text/event-stream"),)))
    answer = await ask(gateway, key, max_output_tokens=16)
    assert b'"code":"budget_exceeded"' in answer
    assert not any(end in answer for end in ENDS)
    (row,) = await gateway.rows(key, at_least=1)
    assert (row["outcome"], row["status"]) == ("incomplete", "estimated")


async def test_an_answer_that_a_heartbeat_began_ends_in_this_dialect_too(tmp_path: Path, faults: FaultProvider) -> None:
    early = {"server": {"heartbeat_s": 0.05, "heartbeat_early": True}}
    async with served(tmp_path, faults.base_url, top=early) as gateway:
        headers = {"authorization": f"Bearer {await gateway.mint()}"}
        asked = {"model": "gpt", "input": "hi", "stream": True}
        faults.script(Fault("silent"))
        async with gateway.http.stream("POST", f"{gateway.url}/v1/responses", headers=headers, json=asked) as streamed:
            assert streamed.status_code == 200
            pieces = streamed.aiter_bytes()
            answer = await anext(pieces)
            assert answer.startswith(b": keep-alive\n\n")
            faults.hang_up()
            answer += b"".join([piece async for piece in pieces])
        name, _, data = answer.split(b"\n\n")[-2].partition(b"\ndata: ")
        event = json.loads(data)
        assert (name, event["type"], event["code"]) == (b"event: error", "error", "upstream_broken")
        assert event["error"]["code"] == event["code"]
