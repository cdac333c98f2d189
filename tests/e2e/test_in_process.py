"""The third mount: an app's own calls through the gateway without a socket. Streams are really streamed, readers who
leave are noticed, and what breaks is told – as over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest

from sidecar import InProcess
from sidecar.asgi import Receive, Scope, Send
from tests.e2e.conftest import running_as
from tests.faults.provider import WORDS, Fault, FaultProvider
from tests.promises.support import MODELS, Running, body, eventually

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
async def gateway_of_file(
    provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    async with running_as("in-process", tmp_path_factory.mktemp("gateway"), provider_of_file.base_url) as running:
        yield running


def sdk(gateway: Running, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, http_client=gateway.http)


def post(gateway: Running, key: str, model: str) -> httpx2.Request:
    headers = {"authorization": f"Bearer {key}"}
    return gateway.http.build_request("POST", gateway.url + PATH, headers=headers, json=body(model, stream=True))


@pytest.mark.parametrize("model", MODELS)
async def test_the_first_words_come_while_the_provider_is_still_speaking(
    gateway: Running, faults: FaultProvider, model: str
) -> None:
    faults.script(Fault("held"))
    stream = await sdk(gateway, await gateway.mint()).chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hi"}], stream=True
    )
    said = ""
    async with asyncio.timeout(60):
        async for chunk in stream:
            said += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            if "one" in said:
                break
        assert not faults.requests[0].is_answered, "the provider had ended"
        assert faults.requests[0].closed_at is None
        faults.release()
        async for chunk in stream:
            said += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    assert said.startswith("one")
    assert said.endswith(WORDS[-1])
    await eventually(lambda: faults.requests[0].is_answered)


async def test_many_streams_come_side_by_side(gateway: Running, faults: FaultProvider) -> None:
    key = await gateway.mint()
    faults.script(*[Fault("held")] * 20)
    answers = [await gateway.http.send(post(gateway, key, "gpt"), stream=True) for _ in range(20)]
    readers = [answer.aiter_bytes() for answer in answers]
    async with asyncio.timeout(60):
        for reader in readers:
            assert b"data:" in await anext(reader)
        assert not any(seen.is_answered for seen in faults.requests)
        faults.release()
        for reader in readers:
            assert b"".join([piece async for piece in reader]).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("when", ["before the head", "after the first words"])
async def test_a_reader_who_leaves_is_noticed_by_the_provider_and_in_the_row(
    gateway: Running, faults: FaultProvider, model: str, when: str
) -> None:
    key = await gateway.mint(max_parallel_requests=1, max_budget=1)
    faults.script(Fault("silent") if when == "before the head" else Fault("held"))
    request = post(gateway, key, model)
    if when == "before the head":
        asking = asyncio.create_task(gateway.http.send(request, stream=True))
        await eventually(lambda: faults.requests)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    else:
        answer = await gateway.http.send(request, stream=True)
        async for piece in answer.aiter_bytes():
            if b"one" in piece:
                break
        await answer.aclose()
    await eventually(lambda: faults.requests[0].closed_at is not None, name=lambda: "the provider's socket to close")
    (row,) = await gateway.rows(key, at_least=1)
    assert row["outcome"] == "client_left"
    await gateway.is_free(key)


async def test_a_reader_who_waits_holds_the_provider_up(gateway: Running, faults: FaultProvider) -> None:
    """At most a few buffers of it come before somebody reads."""
    faults.script(Fault("endless"))
    answer = await gateway.http.send(post(gateway, await gateway.mint(), "gpt"), stream=True)
    seen = faults.requests[0]

    async def stands() -> bool:
        before = seen.events_sent
        await asyncio.sleep(0.3)
        return seen.events_sent == before > 0

    await eventually(stands, 60, lambda: f"the provider to wait; it sent {seen.events_sent} events")
    stood = seen.events_sent
    async with asyncio.timeout(60):
        async for _ in answer.aiter_bytes():
            if seen.events_sent > stood:
                break
    await answer.aclose()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["cut", "malform", "ends"])
async def test_a_broken_stream_raises_in_the_sdk(
    gateway: Running, faults: FaultProvider, model: str, kind: str
) -> None:
    faults.script(Fault(kind, after=5))  # type: ignore[arg-type]
    stream = await sdk(gateway, await gateway.mint()).chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hi"}], stream=True
    )
    said = ""

    async def read() -> None:
        nonlocal said
        async for chunk in stream:
            said += (chunk.choices[0].delta.content or "") if chunk.choices else ""

    with pytest.raises(openai.APIError):
        await read()
    assert said.startswith("one two")


@pytest.mark.parametrize("when", ["at once", "after the head", "without an answer", "amid the body"])
async def test_an_app_that_fails_is_an_error_of_the_call(when: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if when == "without an answer":
            return
        if when != "at once":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        if when == "amid the body":
            await send({"type": "http.response.body", "body": b"some", "more_body": True})
            return
        raise LookupError("no such thing")

    expected = httpx2.RemoteProtocolError if when in ("without an answer", "amid the body") else LookupError
    async with httpx2.AsyncClient(transport=InProcess(app)) as client:
        with pytest.raises(expected):
            await client.get("http://app/")
    assert not [task for task in asyncio.all_tasks() if "_Call._run" in str(task.get_coro())]
