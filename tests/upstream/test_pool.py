"""Connections: kept, expired, shared by origin, found stale, and never trusted after anything odd."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from sidecar.errors import UpstreamBrokenError, UpstreamConnectError, UpstreamError
from sidecar.upstream.base import FixedHeaders, HttpRequest, Transport
from tests.upstream.support import HELLO, PATIENCE_S, QUICK, Peer, answering, ask, drain, serving, settled, until

pytestmark = pytest.mark.anyio

EVIL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"


async def test_refused_and_dropped_after_sending_are_two_errors(transport: Transport) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        port = deaf.getsockname()[1]
        with pytest.raises(UpstreamConnectError) as refused:
            await transport.send(HttpRequest("POST", "http", "127.0.0.1", port, b"/", body=b"{}", timeouts=QUICK))
    async with serving(answering(b"", then="close")) as server:
        with pytest.raises(UpstreamBrokenError) as dropped:
            await transport.send(server.post())
    assert (refused.value.may_be_billed, dropped.value.may_be_billed) == (False, True)
    assert refused.value.code != dropped.value.code


async def test_one_connection_serves_one_after_another(transport: Transport) -> None:
    async with serving(answering(HELLO)) as server:
        for number in range(20):
            fixed = FixedHeaders([(b"authorization", b"Bearer %d" % number)])
            assert (await ask(transport, server.post(fixed=fixed)))[2] == b"hello"
        assert server.accepts == 1, "pools are keyed by origin, not by credential"


async def test_another_name_is_another_pool(transport: Transport) -> None:
    async with serving(answering(HELLO)) as server:
        for host in ("127.0.0.1", "localhost", "127.0.0.1", "localhost"):
            assert (await ask(transport, server.get(host=host)))[2] == b"hello"
        assert server.accepts == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive, Close\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    ],
    ids=["close", "close-among-others", "http-1.0"],
)
async def test_a_connection_the_provider_will_close_is_not_kept(transport: Transport, answer: bytes) -> None:
    async with serving(answering(answer)) as server:
        for number in (1, 2):
            assert (await ask(transport, server.get()))[2] == b"hello"
            assert server.accepts == number
            await server.peers[-1].ended()


async def test_a_connection_idle_for_too_long_is_not_used_again(make: Callable[..., Transport]) -> None:
    transport = make(idle_s=0.05)
    async with serving(answering(HELLO)) as server:
        await ask(transport, server.get())
        await asyncio.sleep(0.1)
        await ask(transport, server.get())
        assert server.accepts == 2
        await server.peers[0].ended()


async def test_an_idle_connection_is_closed_without_another_request(make: Callable[..., Transport]) -> None:
    transport = make(idle_s=0.05)
    async with serving(answering(HELLO)) as server:
        await asyncio.gather(*(ask(transport, server.get()) for _ in range(3)))
        for peer in server.peers:
            await peer.ended()


async def test_no_more_idle_connections_are_kept_than_allowed(make: Callable[..., Transport]) -> None:
    transport = make(max_idle=2)
    all_in = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 6:
            all_in.set()
        await all_in.wait()
        await peer.say(HELLO)
        await peer.gone()
        closed.append(peer.number)

    closed: list[int] = []
    async with serving(script) as server:
        await asyncio.gather(*(ask(transport, server.get()) for _ in range(6)))
        await until(lambda: len(closed) == 4, "4 of 6 closed")
        await settled()
        assert len(closed) == 4


async def test_closing_the_transport_closes_what_is_idle_and_what_is_not(make: Callable[..., Transport]) -> None:
    transport = make()

    async def script(peer: Peer) -> None:
        asked = await peer.request()
        await peer.say(HELLO if asked.target == b"/idle" else HELLO[:-2])
        await peer.gone()

    async with serving(script) as server:
        busy = await transport.send(server.get(b"/busy"))
        await ask(transport, server.get(b"/idle"))
        await transport.aclose()
        with pytest.raises(UpstreamError):
            await drain(busy)
        for peer in server.peers:
            await peer.ended()


# After an answer something is left over -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra", [EVIL, b"\x00", b"\r\n" + EVIL, b"HTTP/1.1 "], ids=["answer", "nul", "newline", "part"]
)
@pytest.mark.parametrize(
    "answer",
    [
        HELLO,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No\r\n\r\n",
    ],
    ids=["length", "chunked", "no-body"],
)
@pytest.mark.parametrize("when", ["at-once", "later"])
async def test_bytes_after_an_answer_never_answer_the_next_request(
    transport: Transport, answer: bytes, extra: bytes, when: str
) -> None:
    next_one = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnext"
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            await peer.say(answer + (extra if when == "at-once" else b""))
            await go.wait()
            if when == "later":
                await peer.say(extra)
            await peer.gone()
        else:
            await peer.say(next_one)

    async with serving(script) as server:
        assert (await ask(transport, server.get()))[2] == (b"" if b"204" in answer else b"hello")
        go.set()
        if when == "later":
            await until(lambda: server.peers[0].sent > len(answer), "the extra bytes are on their way")
            await asyncio.sleep(0.02)
        assert (await ask(transport, server.get()))[2] == b"next"
        assert server.accepts == 2


# A kept connection is gone when it is needed ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_connection_closed_while_idle_is_replaced(transport: Transport, how: str) -> None:
    async with serving(answering(HELLO, then=how)) as server:
        for number in range(1, 5):
            assert (await ask(transport, server.post()))[2] == b"hello"
            await server.peers[-1].ended()
            await settled()
            assert server.accepts == number


class Blocking:
    """A server on a thread of its own, so that it acts while the event loop does not run."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.asked: list[bytes] = []
        self.kept: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.kept.append(connection)
                self.asked.append(connection.recv(65_536))
                connection.sendall(HELLO)

    def close(self) -> None:
        if self._thread.is_alive():
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join(PATIENCE_S)
        for connection in self.kept:
            connection.close()


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    server = Blocking()
    yield server
    server.close()


@pytest.mark.parametrize("how", ["close", "reset", "says"])
async def test_what_happened_since_the_loop_last_looked_is_seen_before_sending(
    make: Callable[..., Transport], blocking: Blocking, how: str
) -> None:
    transport = make()
    request = HttpRequest("POST", "http", "127.0.0.1", blocking.port, b"/", body=b"{}", timeouts=QUICK)
    assert (await ask(transport, request))[2] == b"hello"
    connection = blocking.kept[0]
    if how == "says":
        connection.sendall(EVIL)
    else:
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    # No await between: the event loop does not know yet.
    assert (await ask(transport, request))[2] == b"hello"
    assert len(blocking.asked) == 2
    blocking.close()


async def test_a_reset_is_seen_when_writing_where_the_platform_cannot_look_before(
    make: Callable[..., Transport], blocking: Blocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "poll")
    transport = make()
    request = HttpRequest("POST", "http", "127.0.0.1", blocking.port, b"/", body=b"{}", timeouts=QUICK)
    assert (await ask(transport, request))[2] == b"hello"
    connection = blocking.kept[0]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert (await ask(transport, request))[2] == b"hello"
    assert len(blocking.asked) == 2
    blocking.close()


async def test_a_request_dropped_on_a_kept_connection_is_not_sent_again(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        asked.append(await peer.request())
        await peer.say(HELLO)
        asked.append(await peer.request())  # taken, perhaps billed, not answered

    asked: list[object] = []
    async with serving(script) as server:
        await ask(transport, server.post())
        with pytest.raises(UpstreamBrokenError) as caught:
            await ask(transport, server.post())
        assert caught.value.may_be_billed
        await settled()
        assert (len(asked), server.accepts) == (2, 1)


async def test_a_request_half_written_on_a_kept_connection_goes_once_more_on_a_fresh_one(transport: Transport) -> None:
    """No provider can act on a body it has not got; so once more costs nothing."""
    body = b"x" * 20_000_000

    async def script(peer: Peer) -> None:
        if peer.number == 1:
            await peer.request()
            await peer.say(HELLO)
            await peer.head()
            return
        assert (await peer.request()).body == body
        await peer.say(HELLO)

    async with serving(script) as server:
        await ask(transport, server.post())
        assert (await ask(transport, server.post(body)))[2] == b"hello"
        assert server.accepts == 2


async def test_a_request_half_written_on_a_fresh_connection_is_not_sent_again(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()

    async with serving(script) as server:
        with pytest.raises(UpstreamBrokenError):
            await ask(transport, server.post(b"x" * 20_000_000))
        assert server.accepts == 1


async def test_an_answer_to_a_body_not_yet_read_is_given_and_the_connection_closed(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await asyncio.sleep(0.02)
        await peer.gone()

    async with serving(script) as server:
        assert (await ask(transport, server.post(b"x" * 20_000_000)))[::2] == (413, b"big")
        await server.peers[0].ended()
        await ask(transport, server.post(b"y"))
        assert server.accepts == 2
