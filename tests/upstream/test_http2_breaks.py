"""HTTP/2 over TLS when the provider breaks off: resets, refusals, GOAWAY, lost connections, no HTTP/2 at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, HeadersFrame

from sidecar.errors import UpstreamBrokenError, UpstreamConnectError, UpstreamTimeoutError
from sidecar.types import Timeouts
from sidecar.upstream.http2_transport import Http2Transport
from tests.upstream.http2 import H2Server, Told, anyio_backend, authority, hello, place, transport
from tests.upstream.support import ask, drain, until

__all__ = ["anyio_backend", "authority", "place", "transport"]  # fixtures
pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_stream_the_provider_resets_is_broken_and_may_be_billed(
    transport: Http2Transport, place: Callable[..., Any], has_begun: bool
) -> None:
    def react(server: H2Server, told: Told) -> None:
        if told.body == b"reset":
            if has_begun:
                server.head(told.stream)
                server.say(told.stream, b"some")
            server.reset(told.stream, ErrorCodes.INTERNAL_ERROR)
        else:
            hello(server, told)

    async with place(react) as server:
        with pytest.raises(UpstreamBrokenError, match="INTERNAL_ERROR") as caught:
            await ask(transport, server.post(b"reset"))
        assert caught.value.may_be_billed
        assert (await ask(transport, server.post()))[2] == b"hello"
        assert len(server.lines) == 1


async def test_a_stream_refused_is_sent_once_more_elsewhere_and_bills_nothing(
    transport: Http2Transport, place: Callable[..., Any]
) -> None:
    def react(server: H2Server, told: Told) -> None:
        if told.body == b"never" or (told.body == b"later" and told.stream > 1):
            server.reset(told.stream, ErrorCodes.REFUSED_STREAM)
        else:
            hello(server, told)

    async with place(react) as server:
        assert (await ask(transport, server.post()))[2] == b"hello"
        assert (await ask(transport, server.post(b"later")))[2] == b"hello"
        assert [t.body for t in server.told] == [b"{}", b"later", b"later"]
        with pytest.raises(UpstreamConnectError) as caught:
            await ask(transport, server.post(b"never"))
        assert not caught.value.may_be_billed
        assert [t.body for t in server.told].count(b"never") == 2


async def test_goaway_lets_what_began_end_and_the_next_request_goes_elsewhere(
    transport: Http2Transport, place: Callable[..., Any]
) -> None:
    async with place(lambda server, told: server.head(told.stream)) as server:
        answer = await transport.send(server.post(is_stream=True))
        line = server.lines[0]
        line.say(1, b"one ")
        assert await answer.read() == b"one "
        line.leave(last=1)
        line.say(1, b"two ")  # in the same packet, or the next
        assert await answer.read() == b"two "
        other = await transport.send(server.post(is_stream=True))
        assert len(server.lines) == 2
        line.say(1, b"three", end=True)
        assert await drain(answer) == b"three"
        await until(lambda: line.gone, "the old connection is closed once nothing is on it")
        server.lines[1].say(1, b"other", end=True)
        assert await drain(other) == b"other"


async def test_requests_a_goaway_leaves_out_go_elsewhere_at_once(
    transport: Http2Transport, place: Callable[..., Any]
) -> None:
    def react(server: H2Server, told: Told) -> None:
        if told.body == b"first":
            server.head(told.stream)
        elif len(told.headers) and server is servers[0]:
            server.leave(last=1)
        else:
            hello(server, told)

    async with place(react) as server:
        servers = server.lines
        first = await transport.send(server.post(b"first", is_stream=True))
        assert (await ask(transport, server.post(b"second")))[2] == b"hello"
        assert len(server.lines) == 2
        server.lines[0].say(1, b"end", end=True)
        assert await drain(first) == b"end"


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_connection_lost_breaks_every_answer_on_it(
    transport: Http2Transport, place: Callable[..., Any], has_begun: bool
) -> None:
    def react(server: H2Server, told: Told) -> None:
        if has_begun:
            server.head(told.stream)
        if len(server.told) == 2:
            server.flush()
            server.peer.writer.close()

    async with place(react) as server:
        one = asyncio.create_task(ask(transport, server.post()))
        await until(lambda: server.told, "the first is there")
        for task in (one, asyncio.create_task(ask(transport, server.post()))):
            with pytest.raises(UpstreamBrokenError) as caught:
                await task
            assert caught.value.may_be_billed
        assert len(server.lines) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0\0\x05\4\0\0\0\0\0hello",
        DataFrame(99, b"of no stream").serialize(),
        HeadersFrame(1, b"\xff\xff\xff\xff\xff\xff", flags=["END_HEADERS"]).serialize(),
    ],
    ids=["bad-settings", "no-such-stream", "bad-headers"],
)
async def test_what_is_no_http2_breaks_the_answers_and_closes(
    transport: Http2Transport, place: Callable[..., Any], garbage: bytes
) -> None:
    async with place(lambda server, told: server.raw(garbage)) as server:
        with pytest.raises(UpstreamBrokenError, match="not proper HTTP/2"):
            await ask(transport, server.post())
        await until(lambda: server.lines[0].gone, "the connection is closed")


async def test_a_length_that_does_not_fit_is_a_broken_answer(
    transport: Http2Transport, place: Callable[..., Any]
) -> None:
    def react(server: H2Server, told: Told) -> None:
        server.head(told.stream, "200", ("content-length", "99"))
        server.say(told.stream, b"hello", end=True)

    async with place(react) as server:
        with pytest.raises(UpstreamBrokenError):
            await ask(transport, server.post())


@pytest.mark.parametrize("phase", ["first_byte", "gap", "total"])
async def test_timeouts_reset_the_stream(transport: Http2Transport, place: Callable[..., Any], phase: str) -> None:
    def react(server: H2Server, told: Told) -> None:
        if told.body == b"hello":
            hello(server, told)
        elif phase != "first_byte":
            server.head(told.stream)

    times = {"connect_s": 60.0, "first_byte_s": 60.0, "gap_s": 60.0, "total_s": 60.0, f"{phase}_s": 0.2}
    async with place(react) as server:
        await ask(transport, server.post(b"hello"))  # connected: that is not within the time
        with pytest.raises(UpstreamTimeoutError) as caught:
            await ask(transport, server.post(is_stream=True, timeouts=Timeouts(**times)))
        assert caught.value.phase == phase
        await until(lambda: [told.reset for told in server.told[1:]] == [ErrorCodes.CANCEL], "the stream is reset")
        assert not server.lines[0].gone


async def test_a_connection_that_fell_silent_gets_no_more_requests_until_it_is_heard_again(
    transport: Http2Transport, place: Callable[..., Any]
) -> None:
    """Else all requests would time out on it, one after the other, until TCP gives up."""
    short = Timeouts(connect_s=60, first_byte_s=0.2)
    async with place() as server:
        assert (await ask(transport, server.post()))[2] == b"hello"
        line = server.lines[0]
        deaf = asyncio.Event()
        line.peer.writer.write, line.flush = lambda data: deaf.set(), lambda: deaf.set()  # type: ignore[method-assign]
        with pytest.raises(UpstreamTimeoutError):
            await ask(transport, server.post(is_stream=True, timeouts=short))
        assert (await ask(transport, server.post()))[2] == b"hello"
        assert len(server.lines) == 2


async def test_one_that_is_only_slow_is_asked_on_and_keeps_its_connection(
    transport: Http2Transport, place: Callable[..., Any]
) -> None:
    short = Timeouts(connect_s=60, first_byte_s=0.2)

    def react(server: H2Server, told: Told) -> None:
        if told.body != b"slow":
            hello(server, told)

    async with place(react) as server:
        with pytest.raises(UpstreamTimeoutError):
            await ask(transport, server.post(b"slow", is_stream=True, timeouts=short))
        await until(lambda: server.told and server.told[0].reset == ErrorCodes.CANCEL, "the stream is reset")
        (shared,) = transport._shared.values()
        await until(lambda: shared[0].has_room, "it answered our question whether anybody is there")
        assert (await ask(transport, server.post()))[2] == b"hello"
        assert len(server.lines) == 1
