"""HTTP/2 over TLS: requests side by side, bodies through windows, and clients who leave."""

from __future__ import annotations

import asyncio
import pathlib
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trustme
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from sidecar.errors import UpstreamBrokenError, UpstreamConnectError
from sidecar.upstream.base import FixedHeaders
from sidecar.upstream.connection import HIGH_WATER
from sidecar.upstream.http2_connection import MAX_STREAMS
from sidecar.upstream.http2_transport import Http2Transport
from tests.upstream.http2 import H2Server, Told, anyio_backend, authority, hello, place, transport
from tests.upstream.support import HELLO, PATIENCE_S, Peer, answering, ask, drain, serving, settled, until

__all__ = ["anyio_backend", "authority", "place", "transport"]  # fixtures
pytestmark = pytest.mark.anyio


async def test_a_request_and_its_answer(transport: Http2Transport, place: Callable[..., Any]) -> None:
    async with place() as server:
        request = server.post(
            b'{"a":1}',
            target=b"/v1/a%3Ab?x=%20",
            headers=[(b"X-One", b"1"), (b"connection", b"x-gone"), (b"x-gone", b"1"), (b"cookie", b"c=1")],
            fixed=FixedHeaders([(b"Authorization", b"Bearer k")]),
        )
        answer = await transport.send(request)
        assert (answer.status, answer.headers, await drain(answer)) == (200, [(b"x-from", b"h2")], b"hello")
        (told,) = server.told
        assert told.body == b'{"a":1}'
        assert told.headers == {
            ":method": "POST",
            ":authority": f"127.0.0.1:{server.port}",
            ":scheme": "https",
            ":path": "/v1/a%3Ab?x=%20",
            "authorization": "Bearer k",
            "x-one": "1",
            "accept-encoding": "identity",
            "content-length": "7",
        }


async def test_a_get_has_no_body_and_a_head_none_back(transport: Http2Transport, place: Callable[..., Any]) -> None:
    def react(server: H2Server, told: Told) -> None:
        server.head(told.stream, "204", end=True)

    async with place(react) as server:
        for method in ("GET", "HEAD"):
            answer = await transport.send(server.get(method=method))
            assert (answer.status, await drain(answer), answer.is_complete) == (204, b"", True)
        assert [told.body for told in server.told] == [b"", b""]
        assert "content-length" not in server.told[0].headers


async def test_what_may_not_come_back_does_not(transport: Http2Transport, place: Callable[..., Any]) -> None:
    def react(server: H2Server, told: Told) -> None:
        server.h2.config.validate_outbound_headers = False
        server.head(told.stream, "200", ("set-cookie", "a=b"), ("keep-alive", "1"), ("content-type", "text/plain"))
        server.say(told.stream, b"x", end=True)

    async with place(react) as server:
        answer = await transport.send(server.get())
        assert answer.headers == [(b"x-from", b"h2"), (b"content-type", b"text/plain")]
        assert await drain(answer) == b"x"


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b=c", "a\nb", "a\0b"])
async def test_a_header_that_would_begin_another_line_is_no_answer(
    transport: Http2Transport, place: Callable[..., Any], value: str
) -> None:
    def react(server: H2Server, told: Told) -> None:
        server.h2.config.validate_outbound_headers = False
        server.h2.config.normalize_outbound_headers = False
        server.head(told.stream, "200", ("x-bad", value))

    async with place(react) as server:
        with pytest.raises(UpstreamBrokenError, match="not proper HTTP/2"):
            await transport.send(server.get())
        await until(lambda: server.told[0].reset == ErrorCodes.CANCEL, "the stream is reset")


async def test_answers_come_side_by_side_on_one_connection(
    transport: Http2Transport, place: Callable[..., Any]
) -> None:
    async with place(lambda server, told: None) as server:
        first = asyncio.create_task(ask(transport, server.post(b"1")))
        await until(lambda: server.told, "the first is there")
        others = [asyncio.create_task(ask(transport, server.post(b"%d" % n))) for n in range(2, 6)]
        await until(lambda: len(server.told) == 5 and all(t.is_whole for t in server.told), "all are there")
        (line,) = server.lines
        for told in reversed(server.told):  # the last is answered first
            line.head(told.stream)
            line.say(told.stream, b"to " + told.body, end=True)
        got = await asyncio.gather(first, *others)
        assert [body for _, _, body in got] == [b"to %d" % n for n in range(1, 6)]


async def test_a_stream_arrives_piece_by_piece(transport: Http2Transport, place: Callable[..., Any]) -> None:
    async with place(lambda server, told: server.head(told.stream)) as server:
        answer = await transport.send(server.post(is_stream=True))
        for n in range(50):
            server.lines[0].say(1, b"data: %d\n\n" % n)
            assert await asyncio.wait_for(answer.read(), PATIENCE_S) == b"data: %d\n\n" % n
            assert not answer.is_complete
        server.lines[0].say(1, b"", end=True)
        assert await answer.read() == b""
        assert answer.is_complete


async def test_large_bodies_go_both_ways_through_small_windows(
    transport: Http2Transport, place: Callable[..., Any]
) -> None:
    def react(server: H2Server, told: Told) -> None:
        server.head(told.stream)
        server.say(told.stream, told.body, end=True)

    body = bytes(range(256)) * 4_000
    async with place(react) as server:
        for _ in range(2):
            assert (await ask(transport, server.post(body)))[2] == body
        got = await asyncio.gather(*(ask(transport, server.post(body + b"%d" % n)) for n in range(4)))
        assert [b for _, _, b in got] == [body + b"%d" % n for n in range(4)]
        assert len(server.lines) == 1


async def test_a_body_waits_for_the_providers_window(transport: Http2Transport, place: Callable[..., Any]) -> None:
    async with place(early=True, react=lambda server, told: setattr(server, "hands_out_windows", False)) as server:
        sending = asyncio.create_task(ask(transport, server.post(b"x" * 100_000)))
        await until(lambda: server.told and len(server.told[0].body) == 65_535, "the window is full")
        for _ in range(20):
            await settled()
        assert len(server.told[0].body) == 65_535
        line = server.lines[0]
        line.h2.acknowledge_received_data(65_535, 1)
        line.flush()
        await until(lambda: server.told[0].is_whole, "the rest came")
        hello(line, server.told[0])
        assert (await sending)[2] == b"hello"


async def test_an_answer_before_the_body_was_taken_is_given_and_the_rest_not_sent(
    transport: Http2Transport, place: Callable[..., Any]
) -> None:
    def react(server: H2Server, told: Told) -> None:
        server.hands_out_windows = False
        server.head(told.stream, "413")
        server.say(told.stream, b"too long", end=True)

    async with place(react, early=True) as server:
        status, _, body = await ask(transport, server.post(b"x" * 1_000_000))
        assert (status, body) == (413, b"too long")
        await until(lambda: server.told[0].reset == ErrorCodes.CANCEL, "the rest is called off")


# The client leaves ----------------------------------------------------------------------------------------------------


async def test_a_client_who_leaves_mid_stream_resets_its_stream_and_no_other(
    transport: Http2Transport, place: Callable[..., Any]
) -> None:
    async with place(lambda server, told: server.head(told.stream)) as server:
        staying, leaving = [await transport.send(server.post(is_stream=True)) for _ in range(2)]
        (line,) = server.lines
        line.say(3, b"one")
        assert await leaving.read() == b"one"
        leaving.abort()
        await until(lambda: line.told[3].reset == ErrorCodes.CANCEL, "the stream is reset")
        line.say(1, b"whole", end=True)
        assert await drain(staying) == b"whole"
        assert line.told[1].reset is None
        assert (await transport.send(server.post())).status == 200
        assert len(server.lines) == 1


@pytest.mark.parametrize("where", ["before the head", "between pieces"])
async def test_cancelling_the_wait_resets_the_stream(
    transport: Http2Transport, place: Callable[..., Any], where: str
) -> None:
    def react(server: H2Server, told: Told) -> None:
        if where == "between pieces":
            server.head(told.stream)

    async with place(react) as server:
        waiting = asyncio.create_task(ask(transport, server.post(is_stream=True)))
        await until(lambda: server.told and server.told[0].is_whole, "the request is there")
        await settled()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: server.told[0].reset == ErrorCodes.CANCEL, "the stream is reset")
        assert not server.lines[0].gone


async def test_what_was_on_its_way_to_clients_who_left_does_not_close_the_window(
    transport: Http2Transport, place: Callable[..., Any]
) -> None:
    """More than the connection's window (16 MB) in answers nobody read; then one that is read whole."""

    def react(server: H2Server, told: Told) -> None:
        server.head(told.stream)
        if told.body != b"stay":
            server.say(told.stream, b"x" * 1_000_000, end=told.body == b"whole")

    async with place(react) as server:
        await transport.send(server.post(b"stay", is_stream=True))
        for _ in range(100):
            answer = await transport.send(server.post(is_stream=True))
            await answer.read()
            answer.abort()
        assert (await ask(transport, server.post(b"whole")))[2] == b"x" * 1_000_000
        assert len(server.lines) == 1


# Back-pressure, limits, life ------------------------------------------------------------------------------------------


async def test_a_slow_reader_holds_up_the_provider_and_nobody_else(
    transport: Http2Transport, place: Callable[..., Any]
) -> None:
    size = 4_000_000  # more than the windows together

    def react(server: H2Server, told: Told) -> None:
        server.head(told.stream)
        server.say(told.stream, b"x" * size if told.body == b"slow" else b"hello", end=True)

    async with place(react) as server:
        slow = await transport.send(server.post(b"slow", is_stream=True))
        (line,) = server.lines

        async def idle() -> int:
            """What is left of it at the server once it no longer gets less."""
            left = -1
            while left != (left := len(line.waiting[1][0])):
                for _ in range(3):  # a round trip each: all that was under way has come
                    line.h2.ping(b"12345678")
                    line.flush()
                    seen = line.pings
                    await until(lambda seen=seen: line.pings > seen, "a round trip")  # type: ignore[misc]
            return left

        held = size - await idle()
        assert 0 < held <= 2 * HIGH_WATER + 65_536
        for _ in range(20):
            assert (await ask(transport, server.post()))[2] == b"hello"
        assert len(server.lines) == 1
        got = 0
        while piece := await slow.read():
            got += len(piece)
            assert len(piece) <= 2 * HIGH_WATER + 65_536
        assert got == size


async def test_no_more_streams_than_the_provider_allows(transport: Http2Transport, place: Callable[..., Any]) -> None:
    async with place(
        lambda server, told: None if told.body == b"wait" else hello(server, told),
        settings={SettingCodes.MAX_CONCURRENT_STREAMS: 2},
    ) as server:
        await ask(transport, server.post())  # its settings have come
        waiting = [asyncio.create_task(ask(transport, server.post(b"wait"))) for _ in range(3)]
        await until(lambda: sum(t.is_whole for t in server.told) == 4, "all are there")
        assert sorted(len(line.told) for line in server.lines) == [1, 3]
        for line in server.lines:
            for told in line.told.values():
                if told.body == b"wait":
                    hello(line, told)
        assert [body for _, _, body in await asyncio.gather(*waiting)] == [b"hello"] * 3
    assert MAX_STREAMS == 100


async def test_a_connection_closed_while_idle_is_replaced(transport: Http2Transport, place: Callable[..., Any]) -> None:
    async with place() as server:
        for number in (1, 2, 3):
            assert (await ask(transport, server.post()))[2] == b"hello"
            assert len(server.lines) == number
            server.lines[-1].peer.writer.close()
            await server.lines[-1].peer.ended()


async def test_an_idle_connection_is_closed_without_another_request(
    authority: tuple[trustme.CA, str], place: Callable[..., Any]
) -> None:
    transport = Http2Transport(ca_file=authority[1], idle_s=0.1)
    async with place() as server:
        for _ in range(3):
            assert (await ask(transport, server.post()))[2] == b"hello"
        await until(lambda: server.lines[-1].gone, "it is closed")
        await transport.aclose()


async def test_closing_the_transport_ends_what_is_under_way(
    transport: Http2Transport, place: Callable[..., Any]
) -> None:
    async with place(lambda server, told: server.head(told.stream)) as server:
        answer = await transport.send(server.post(is_stream=True))
        await transport.aclose()
        with pytest.raises(UpstreamBrokenError):
            await answer.read()
        await until(lambda: server.lines[0].gone, "the connection is closed")
        with pytest.raises(UpstreamConnectError):
            await transport.send(server.post())


async def test_who_offers_no_http2_is_spoken_to_as_ever(
    transport: Http2Transport, authority: tuple[trustme.CA, str]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority[0].issue_cert("127.0.0.1").configure_cert(context)
    for alpn in ([], ["http/1.1"]):
        if alpn:
            context.set_alpn_protocols(alpn)
        async with serving(answering(HELLO), tls=context) as server:
            for _ in range(3):
                assert (await ask(transport, server.post()))[2] == b"hello"
            assert server.accepts == 1
    async with serving(answering(HELLO)) as server:
        assert (await ask(transport, server.post()))[2] == b"hello"


async def test_a_client_certificate_is_shown_over_http2(
    authority: tuple[trustme.CA, str], tmp_path: pathlib.Path
) -> None:
    ca, file = authority
    mine = ca.issue_cert("gateway")
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    mine.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(["h2"])
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    shown: list[object] = []

    async def script(peer: Peer) -> None:
        shown.append(peer.writer.get_extra_info("peercert")["subjectAltName"])
        await H2Server(peer, hello, False, None).run()

    transport = Http2Transport(ca_file=file, client_cert=(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")))
    async with serving(script, tls=context) as server:
        assert (await ask(transport, server.post()))[2] == b"hello"
        await transport.aclose()
    assert shown == [(("DNS", "gateway"),)]
