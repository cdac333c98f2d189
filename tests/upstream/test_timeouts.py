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
from tests.upstream.support import HELLO, PATIENCE_S, QUICK, Asked, Peer, ask, at_some_pace, drain, serving, until

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
        await until(lambda: server.peers, "it was accepted")
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
        (b"", True, {"first_byte_s": 1}, "first_byte"),
        (b"HTTP/1.1 200 OK\r\n", True, {"first_byte_s": 1}, "first_byte"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", True, {"first_byte_s": 1}, "first_byte"),
        (b"", True, {"first_byte_s": 100, "total_s": 1}, "total"),
        (b"", False, {"total_s": 1}, "total"),
        (b"", False, {"total_s": 1, "first_byte_s": 0.2}, "total"),
        (PART, True, {"gap_s": 1}, "gap"),
        (PART, False, {"gap_s": 1}, "gap"),
        (PART, True, {"total_s": 1}, "total"),
        (PART, False, {"total_s": 1}, "total"),
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
    """`limits` are multiples of the pace."""
    asked: list[Asked] = []

    async def script(peer: Peer) -> None:
        asked.append(await peer.request())
        await peer.say(said)
        await peer.gone()

    for pace_s in (SHORT, 1.0, 20.0):
        async with serving(script) as server:
            limited = times(**{name: pace_s * limit for name, limit in limits.items()})
            with pytest.raises(UpstreamTimeoutError) as caught:
                await ask(transport, server.post(is_stream=is_stream, timeouts=limited))
            await until(lambda: server.peers, "it was accepted")
            await server.peers[0].ended()
            assert server.accepts == 1
        if asked:
            break  # else the time was too short for this machine to connect and write in
    assert (caught.value.phase, caught.value.may_be_billed) == (phase, True)


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
        await until(lambda: server.peers, "it was accepted")
        await server.peers[0].ended()


async def test_pieces_within_the_gap_keep_an_answer_alive(transport: Transport) -> None:
    """The pauses add up to more than the gap; none is one."""

    async def within(gap_s: float) -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n")
            for _ in range(12):
                await asyncio.sleep(gap_s / 10)
                await peer.say(b"x")

        async with serving(script) as server:
            got = await ask(transport, server.post(is_stream=True, timeouts=times(gap_s=gap_s, first_byte_s=gap_s)))
            assert got[2] == b"x" * 12

    await at_some_pace(within, 0.3, 3, 20)


async def test_a_slow_reader_is_not_a_slow_provider(transport: Transport) -> None:
    body = b"x" * 20_000_000

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        await peer.say(body)
        await peer.gone()

    async def pausing(gap_s: float) -> None:
        async with serving(script) as server:
            answer = await transport.send(server.post(is_stream=True, timeouts=times(gap_s=gap_s)))
            got = len(await answer.read())
            await asyncio.sleep(1.5 * gap_s)
            assert got + len(await drain(answer)) == len(body)

    await at_some_pace(pausing, 0.3, 3, 20)


async def test_a_gap_ends_the_answer_after_a_slow_read_too(transport: Transport) -> None:
    """The reader pauses past the water mark, then reads on; the provider stalls only afterwards."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 30000000\r\n\r\n")
        await peer.say(b"x" * 20_000_000)
        await peer.gone()

    async def stalling(gap_s: float) -> None:
        async with serving(script) as server:
            answer = await transport.send(server.post(is_stream=True, timeouts=times(gap_s=gap_s)))
            await answer.read()
            await asyncio.sleep(1.5 * gap_s)
            with pytest.raises(UpstreamTimeoutError) as caught:
                await drain(answer)
            assert caught.value.phase == "gap"
            await server.peers[0].ended()

    await at_some_pace(stalling, 0.2, 2, 20)


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
                await asyncio.sleep(1.2 * shortest_s[0])
            await peer.say(HELLO)

    shortest_s: list[float] = []

    async def followed(total_s: float) -> None:
        shortest_s[:] = [total_s]
        async with serving(script) as server:
            long: dict[str, Any] = {"timeouts": QUICK}
            assert (await ask(transport, server.get(timeouts=times(total_s=total_s))))[2] == b"hello"
            assert (await ask(transport, server.get(b"/slow", **long)))[2] == b"hello"
            assert server.accepts == 1
            with pytest.raises(UpstreamTimeoutError):
                await ask(transport, server.get(b"/stalls", timeouts=times(total_s=SHORT)))

    await at_some_pace(followed, 0.2, 2, 20)
