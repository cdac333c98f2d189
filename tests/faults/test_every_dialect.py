"""The fault provider speaks every dialect the tests know: whole, and broken at any event."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sidecar.errors import UpstreamBrokenError
from sidecar.translate import Head, get_provider
from sidecar.types import Timeouts
from sidecar.upstream.base import HttpRequest
from sidecar.upstream.httptools_transport import HttptoolsTransport
from tests.faults.provider import (
    COMPLETION_TOKENS,
    MALFORMED,
    PROMPT_TOKENS,
    WORDS,
    Fault,
    FaultProvider,
    stream_events,
)
from tests.translate.dialects import DIALECTS, dialect_of
from tests.translate.support import call_to, run, unfold

pytestmark = pytest.mark.anyio
NAMES = ["openai", *DIALECTS]


async def answered(faults: FaultProvider, name: str, *, stream: bool) -> tuple[int, bytes]:
    """What the fault provider answers to the request the provider of that name makes."""
    provider = get_provider(name)
    asked = provider.request(call_to(provider, {"stream": stream}, max_output_tokens=64))
    port = int(faults.base_url.rsplit(":", 1)[1])
    target = dialect_of(name).base_path + asked.path + (f"?{asked.query}" if asked.query else "")
    headers = [(b"content-length", b"%d" % len(asked.body))]
    request = HttpRequest(
        "POST", "http", "127.0.0.1", port, target.encode(), headers, asked.body, Timeouts(total_s=60), stream
    )
    transport = HttptoolsTransport()
    try:
        answer = await transport.send(request)
        return answer.status, await answer.read_all(100_000)
    finally:
        await transport.aclose()


@pytest.mark.parametrize("name", NAMES)
async def test_a_whole_answer_says_the_words_and_their_usage(faults: FaultProvider, name: str) -> None:
    provider = get_provider(name)
    status, body = await answered(faults, name, stream=False)
    reply = provider.response(call_to(provider), Head(status), body)
    assert unfold(reply.body)["content"] == "".join(WORDS)
    assert (reply.usage.total_input, reply.usage.total_output) == (PROMPT_TOKENS, COMPLETION_TOKENS)
    status, body = await answered(faults, name, stream=True)
    assert body == b"".join(stream_events(name, usage=True))
    translator = provider.stream(call_to(provider, {"stream": True}), dialect_of(name).stream_head)
    assert run(translator, body).endswith(b"data: [DONE]\n\n")
    assert (translator.usage.total_input, translator.usage.total_output) == (PROMPT_TOKENS, COMPLETION_TOKENS)


@pytest.mark.parametrize("name", NAMES)
async def test_faults_are_on_the_wire_at_the_event_scripted(faults: FaultProvider, name: str) -> None:
    events = stream_events(name, usage=True)
    framing = dialect_of(name).stream_type
    for at in (0, 2, len(events) - 1):
        before = b"".join(events[:at])
        faults.script(Fault("ends", after=at), Fault("torn", after=at), Fault("malform", after=at))
        assert (await answered(faults, name, stream=True))[1] == before
        assert (await answered(faults, name, stream=True))[1] == before + events[at][: len(events[at]) // 2]
        assert (await answered(faults, name, stream=True))[1].startswith(before + MALFORMED[framing])
        for kind in ("cut", "reset"):
            faults.script(Fault(kind, after=at))  # type: ignore[arg-type]
            with pytest.raises(UpstreamBrokenError):
                await answered(faults, name, stream=True)
        assert [seen.events_sent for seen in faults.requests] == [at, at + 1, len(events), at, at]
        faults.reset()


@pytest.mark.parametrize("name", NAMES)
async def test_a_stalled_stream_says_what_was_before_it_and_a_dripping_one_everything(
    faults: FaultProvider, name: str
) -> None:
    faults.script(Fault(drip_s=0.001), Fault("stall", after=2))
    assert (await answered(faults, name, stream=True))[1] == b"".join(stream_events(name, usage=True))
    stalled = asyncio.ensure_future(answered(faults, name, stream=True))
    async with asyncio.timeout(60):
        while len(faults.requests) < 2 or faults.requests[1].events_sent < 2:
            await asyncio.sleep(0.005)
    await asyncio.wait({stalled}, timeout=0.05)
    assert not stalled.done()
    stalled.cancel()
    await asyncio.wait({stalled})
    assert faults.requests[1].events_sent == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_statuses_come_as_scripted(faults: FaultProvider, name: str, status: int) -> None:
    body: Any = {"error": {"message": "scripted"}, "message": "scripted"}
    faults.script(Fault("status", status=status, body=json.dumps(body).encode()))
    found, answer = await answered(faults, name, stream=True)
    assert (found, json.loads(answer)) == (status, body)
    provider = get_provider(name)
    assert 400 <= provider.error(call_to(provider), Head(found), answer).status < 600
