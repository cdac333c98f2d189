"""Much data, slow readers, and callers who leave: memory stays bounded, and nothing is left open."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable

import pytest

from sidecar.errors import UpstreamBrokenError, UpstreamError
from sidecar.upstream.base import HttpAnswer, Transport
from sidecar.upstream.connection import HIGH_WATER
from tests.upstream.support import HELLO, QUICK, Peer, Server, answering, ask, drain, serving, settled, until

pytestmark = pytest.mark.anyio

MB = 1 << 20
BLOCK = b"\xa5" * 65_536
ENDLESS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + BLOCK + b"\r\n"


@pytest.fixture
async def traced() -> AsyncIterator[Callable[[], int]]:
    """The most that was allocated since the test began, by the server in this process too."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    yield lambda: tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("head", "block", "end"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (100 * MB), BLOCK, b""),
        (ENDLESS, CHUNK, b"0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", BLOCK, b""),
    ],
    ids=["length", "chunked", "until-close"],
)
async def test_100_mb_pass_in_bounded_memory(
    transport: Transport, traced: Callable[[], int], head: bytes, block: bytes, end: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(head)
        for _ in range(100 * MB // len(BLOCK)):
            await peer.say(block)
        await peer.say(end)

    async with serving(script) as server:
        answer = await transport.send(server.get(is_stream=True))
        size = 0
        while piece := await answer.read():
            assert piece.strip(b"\xa5") == b""
            size += len(piece)
        assert (size, answer.is_complete) == (100 * MB, True)
        assert traced() < 8 * MB


async def stops_growing(peer: Peer) -> int:
    """What the provider got rid of before it was held back."""
    steady = 0
    before = -1
    while steady < 20:
        await asyncio.sleep(0.005)
        steady = steady + 1 if peer.sent == before else 0
        before = peer.sent
    return before


async def test_a_slow_reader_slows_the_provider(transport: Transport, traced: Callable[[], int]) -> None:
    """What is in flight is the sockets' own buffers and our water mark, however much there is to come."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(ENDLESS)
        for _ in range(100 * MB // len(BLOCK)):
            await peer.say(CHUNK)
        await peer.say(b"0\r\n\r\n")

    async with serving(script, sndbuf=65_536) as server:
        answer = await transport.send(server.get(is_stream=True))
        peer = server.peers[0]
        held = await stops_growing(peer)
        assert held < 20 * MB, "the rest waits with the provider"
        assert traced() < 4 * HIGH_WATER + 2 * MB
        size = 0
        for _ in range(3):
            size += len(await answer.read())
        again = await stops_growing(peer)
        assert again < 20 * MB + size
        assert size + len(await drain(answer)) == 100 * MB


async def test_a_reader_who_stopped_may_leave(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(ENDLESS)
        while True:
            await peer.say(CHUNK)

    async with serving(script) as server:
        answer = await transport.send(server.get(is_stream=True))
        await stops_growing(server.peers[0])
        answer.abort()
        await server.peers[0].ended()


async def test_an_answer_longer_than_allowed_is_ended(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(ENDLESS)
        while True:
            await peer.say(CHUNK)

    async with serving(script) as server:
        answer = await transport.send(server.get())
        with pytest.raises(UpstreamBrokenError, match="longer"):
            await answer.read_all(1_000_000)
        await server.peers[0].ended()


# The caller leaves ------------------------------------------------------------------------------------------------


async def stalls_at_once(peer: Peer) -> None:
    await peer.head()
    await peer.gone()


async def stalls_in_the_head(peer: Peer) -> None:
    await peer.request()
    await peer.say(b"HTTP/1.1 200 OK\r\n")
    await peer.gone()


async def stalls_in_the_body(peer: Peer) -> None:
    await peer.request()
    await peer.say(ENDLESS + b"5\r\nhello\r\n")
    await peer.gone()


@pytest.mark.parametrize("script", [stalls_at_once, stalls_in_the_head, stalls_in_the_body])
async def test_the_provider_is_closed_when_the_caller_leaves(
    transport: Transport, script: Callable[[Peer], object]
) -> None:
    async with serving(script) as server:  # type: ignore[arg-type]
        task = asyncio.ensure_future(ask(transport, server.post(is_stream=True)))
        await until(lambda: server.peers, "connected")
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.peers[0].ended()


async def test_the_caller_may_leave_while_the_body_is_written(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        at_body.set()
        await left.wait()
        await peer.gone()

    at_body, left = asyncio.Event(), asyncio.Event()
    async with serving(script) as server:
        task = asyncio.ensure_future(ask(transport, server.post(b"x" * 20_000_000)))
        await at_body.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left.set()
        await server.peers[0].ended()


async def test_an_abort_wakes_the_one_who_reads(transport: Transport) -> None:
    async with serving(stalls_in_the_body) as server:
        answer = await transport.send(server.post(is_stream=True))
        assert await answer.read() == b"hello"
        reading = asyncio.ensure_future(answer.read())
        await settled()
        answer.abort()
        answer.abort()
        with pytest.raises(UpstreamError):
            await reading
        await server.peers[0].ended()


async def test_an_abort_between_two_pieces_closes(transport: Transport) -> None:
    async with serving(stalls_in_the_body) as server:
        answer = await transport.send(server.post(is_stream=True))
        answer.abort()
        await server.peers[0].ended()
        assert not answer.is_complete


async def test_an_abort_after_the_end_keeps_the_connection(transport: Transport) -> None:
    async with serving(answering(HELLO)) as server:
        for _ in range(3):
            answer = await transport.send(server.get())
            await drain(answer)
            answer.abort()
        assert server.accepts == 1


async def test_an_answer_not_read_is_closed_with_its_transport(make: Callable[..., Transport]) -> None:
    transport = make()
    async with serving(stalls_in_the_body) as server:
        answer: HttpAnswer = await transport.send(server.post(is_stream=True))
        assert answer.status == 200
        await transport.aclose()
        await server.peers[0].ended()


async def test_leaving_at_any_step_leaves_nothing_behind_and_mixes_nothing_up(transport: Transport) -> None:
    """One more step of the event loop each time, until the whole exchange fits before the leaving."""

    async def script(peer: Peer) -> None:
        while True:
            body = (await peer.request()).body
            await peer.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            await asyncio.sleep(0)
            for i in range(len(body)):
                await peer.say(b"1\r\n" + body[i : i + 1] + b"\r\n")
                await asyncio.sleep(0)
            await peer.say(b"0\r\n\r\n")

    async def one(server: Server, body: bytes, steps: int) -> bool:
        task = asyncio.ensure_future(ask(transport, server.post(body, is_stream=True, timeouts=QUICK)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        try:
            assert (await task)[2] == body
        except asyncio.CancelledError:
            return False
        return True

    async with serving(script) as server:
        ended_in_a_row = 0
        steps = left = 0
        while ended_in_a_row < 5:
            assert steps < 2_000
            if await one(server, b"abandoned %d" % steps, steps):
                ended_in_a_row += 1
            else:
                ended_in_a_row = 0
                left += 1
            body = b"wanted %d" % steps
            assert (await ask(transport, server.post(body)))[2] == body
            steps += 1
        assert left > 5
        await until(lambda: sum(not p.is_over for p in server.peers) <= 1, "only the idle one is open")
