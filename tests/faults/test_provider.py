"""The fault provider does what its script says, on the wire."""

from __future__ import annotations

import asyncio
import json

import pytest

from sidecar.errors import UpstreamBrokenError
from sidecar.types import Timeouts
from sidecar.upstream.base import HttpRequest
from sidecar.upstream.httptools_transport import HttptoolsTransport
from tests.faults.provider import Fault, FaultProvider, chat_events, message_events

pytestmark = pytest.mark.anyio


def request(faults: FaultProvider, path: str, *, stream: bool = False) -> HttpRequest:
    port = int(faults.base_url.rsplit(":", 1)[1])
    body = json.dumps({"model": "m", "stream": stream}).encode()
    return HttpRequest("POST", "http", "127.0.0.1", port, path.encode(), [], body, Timeouts(total_s=60), stream)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_whole_answer_keeps_the_connection(faults: FaultProvider, path: str) -> None:
    transport = HttptoolsTransport()
    for stream in (False, True, False):
        answer = await transport.send(request(faults, path, stream=stream))
        body = await answer.read_all(10_000)
        assert body.count(b"data:") > 5 if stream else json.loads(body)
    await transport.aclose()
    assert [r.connection for r in faults.requests] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["cut", "reset"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_broken_answer_is_broken_on_the_wire(faults: FaultProvider, kind: str, stream: bool) -> None:
    faults.script(Fault(kind, after=2))  # type: ignore[arg-type]
    transport = HttptoolsTransport()

    async def whole() -> bytes:
        answer = await transport.send(request(faults, "/v1/chat/completions", stream=stream))
        return await answer.read_all(10_000)

    with pytest.raises(UpstreamBrokenError):
        await whole()
    await transport.aclose()


async def test_the_close_of_a_client_is_logged(faults: FaultProvider) -> None:
    faults.script(Fault("stall", after=2))
    transport = HttptoolsTransport()
    answer = await transport.send(request(faults, "/v1/chat/completions", stream=True))
    await answer.read()
    answer.abort()
    async with asyncio.timeout(60):
        while faults.requests[0].closed_at is None:
            await asyncio.sleep(0.01)
    assert faults.requests[0].closed_how in ("left", "reset")
    await transport.aclose()


def test_both_dialects_have_events_to_break_at() -> None:
    assert len(chat_events(usage=True, forced_usage=True)) == 9
    assert len(message_events(usage=True)) == 10
