"""Each phase's timeout: which error, whether it may be billed, and that the connection is closed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sidecar.errors import UpstreamTimeoutError
from sidecar.types import Timeouts
from sidecar.upstream.base import HttpRequest, Transport
from tests.upstream.support import HELLO, PATIENCE_S, QUICK, Peer, ask, drain, serving

pytestmark = pytest.mark.anyio

SHORT = 0.05
PART = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"


def times(**changes: float) -> Timeouts:
    return Timeouts(
        **{"connect_s": PATIENCE_S, "first_byte_s": PATIENCE_S, "gap_s": PATIENCE_S, "total_s": PATIENCE_S, **changes}
    )


@contextlib.asynccontextmanager
async def full_house() -> AsyncIterator[int]:
    """A port whose queue is full: the kernel answers no further attempt to connect."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        await asyncio.sleep(0.01)
        yield listener.getsockname()[1]


async def test_who_does_not_accept_is_a_connect_timeout_and_not_billed(transport: Transport) -> None:
    async with full_house() as port:
        request = HttpRequest("POST", "http", "127.0.0.1", port, b"/", body=b"{}", timeouts=times(connect_s=SHORT))
        with pytest.raises(UpstreamTimeoutError) as caught:
            await transport.send(request)
    assert (caught.value.phase, caught.value.may_be_billed) == ("connect", False)


async def test_a_tls_handshake_that_stalls_is_a_connect_timeout(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.gone()

    async with serving(script) as server:
        server.scheme = "https"
        with pytest.raises(UpstreamTimeoutError) as caught:
            await transport.send(server.post(timeouts=times(connect_s=SHORT)))
        await server.peers[0].ended()
    assert (caught.value.phase, caught.value.may_be_billed) == ("connect", False)


async def test_the_total_also_bounds_the_connecting(transport: Transport) -> None:
    async with full_house() as port:
        request = HttpRequest("POST", "http", "127.0.0.1", port, b"/", body=b"{}", timeouts=times(total_s=SHORT))
        with pytest.raises(UpstreamTimeoutError) as caught:
            await transport.send(request)
    assert (caught.value.phase, caught.value.may_be_billed) == ("total", False)


@pytest.mark.parametrize(
    ("said", "is_stream", "limits", "phase"),
    [
        (b"", True, {"first_byte_s": SHORT}, "first_byte"),
        (b"HTTP/1.1 200 OK\r\n", True, {"first_byte_s": SHORT}, "first_byte"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", True, {"first_byte_s": SHORT}, "first_byte"),
        (b"", True, {"first_byte_s": 5.0, "total_s": SHORT}, "total"),
        (b"", False, {"total_s": SHORT}, "total"),
        (b"", False, {"total_s": SHORT, "first_byte_s": SHORT / 5}, "total"),
        (PART, True, {"gap_s": SHORT}, "gap"),
        (PART, False, {"gap_s": SHORT}, "gap"),
        (PART, True, {"total_s": SHORT}, "total"),
        (PART, False, {"total_s": SHORT}, "total"),
    ],
    ids=[
        "nothing",
        "part-of-the-head",
        "only-100",
        "nothing-total",
        "unstreamed",
        "unstreamed-has-no-first-byte",
        "gap-streamed",
        "gap-unstreamed",
        "total-streamed",
        "total-unstreamed",
    ],
)
async def test_a_provider_who_stalls_is_told_by_phase_and_may_be_billed(
    transport: Transport, said: bytes, is_stream: bool, limits: dict[str, float], phase: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(said)
        await peer.gone()

    async with serving(script) as server:
        with pytest.raises(UpstreamTimeoutError) as caught:
            await ask(transport, server.post(is_stream=is_stream, timeouts=times(**limits)))
        assert (caught.value.phase, caught.value.may_be_billed) == (phase, True)
        await server.peers[0].ended()
        assert server.accepts == 1


async def test_a_provider_who_does_not_read_is_ended_too(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await over.wait()

    over = asyncio.Event()
    async with serving(script) as server:
        with pytest.raises(UpstreamTimeoutError) as caught:
            await transport.send(server.post(b"x" * 20_000_000, timeouts=times(total_s=0.2)))
        assert caught.value.phase == "total"
        over.set()


async def test_the_total_ends_an_answer_that_never_stops(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await peer.say(b"1\r\nx\r\n")
            await asyncio.sleep(0.001)

    async with serving(script) as server:
        with pytest.raises(UpstreamTimeoutError) as caught:
            await ask(transport, server.post(is_stream=True, timeouts=times(total_s=0.1)))
        assert caught.value.phase == "total"
        await server.peers[0].ended()


async def test_pieces_within_the_gap_keep_an_answer_alive(transport: Transport) -> None:
    """The pauses add up to more than the gap; none is one."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n")
        for _ in range(12):
            await asyncio.sleep(0.05)
            await peer.say(b"x")

    async with serving(script) as server:
        got = await ask(transport, server.post(is_stream=True, timeouts=times(gap_s=0.5, first_byte_s=0.5)))
        assert got[2] == b"x" * 12


async def test_a_slow_reader_is_not_a_slow_provider(transport: Transport) -> None:
    body = b"x" * 20_000_000

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        await peer.say(body)
        await peer.gone()

    async with serving(script) as server:
        answer = await transport.send(server.post(is_stream=True, timeouts=times(gap_s=0.5)))
        got = len(await answer.read())
        await asyncio.sleep(1.0)
        assert got + len(await drain(answer)) == len(body)


async def test_a_gap_ends_the_answer_after_a_slow_read_too(transport: Transport) -> None:
    """The reader pauses past the water mark, then reads on; the provider stalls only afterwards."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 30000000\r\n\r\n")
        await peer.say(b"x" * 20_000_000)
        await peer.gone()

    async with serving(script) as server:
        answer = await transport.send(server.post(is_stream=True, timeouts=times(gap_s=0.2)))
        await answer.read()
        await asyncio.sleep(0.4)
        with pytest.raises(UpstreamTimeoutError) as caught:
            await drain(answer)
        assert caught.value.phase == "gap"
        await server.peers[0].ended()


async def test_the_timers_of_one_answer_do_not_end_the_next(make: Callable[..., Transport]) -> None:
    """One timer serves a connection: it must follow to later and to earlier deadlines."""
    transport = make()

    async def script(peer: Peer) -> None:
        while True:
            asked = await peer.request()
            if asked.target == b"/stalls":
                await peer.gone()
                return
            if asked.target == b"/slow":
                await asyncio.sleep(0.3)
            await peer.say(HELLO)

    async with serving(script) as server:
        long: dict[str, Any] = {"timeouts": QUICK}
        assert (await ask(transport, server.get(timeouts=times(total_s=0.2))))[2] == b"hello"
        assert (await ask(transport, server.get(b"/slow", **long)))[2] == b"hello"
        assert server.accepts == 1
        with pytest.raises(UpstreamTimeoutError):
            await ask(transport, server.get(b"/stalls", timeouts=times(total_s=SHORT)))
