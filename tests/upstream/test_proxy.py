"""An outbound proxy: CONNECT for https, the whole URL for http, basic auth – and its credential is told to nobody."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import pathlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import pytest
import trustme

from sidecar.config.load import load_config
from sidecar.errors import UpstreamBrokenError, UpstreamConnectError, UpstreamError, UpstreamTimeoutError
from sidecar.parts import transport_of
from sidecar.types import Timeouts
from sidecar.upstream.base import FixedHeaders
from sidecar.upstream.httpx2_transport import Httpx2Transport
from tests.upstream.support import (
    HELLO,
    PATIENCE_S,
    QUICK,
    Asked,
    Peer,
    Server,
    answering,
    ask,
    at_some_pace,
    drain,
    serving,
    settled,
    until,
)

pytestmark = pytest.mark.anyio

USER, PASSWORD = "gate way", "p@ss/wörd:canary-proxy-1"
BASIC = b"Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode())
URL_AUTH = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}"
NEVER = [PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD), BASIC[6:].decode(), "canary-proxy"]


class Proxy:
    """What a small HTTP proxy does. `refusal`: said instead, to everybody."""

    def __init__(self, refusal: bytes = b"") -> None:
        self.refusal = refusal
        self.asked: list[Asked] = []
        self.passed_up = b""
        self.tunnels: list[asyncio.StreamWriter] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            asked = await peer.request()
            self.asked.append(asked)
            if asked.all(b"proxy-authorization") != [BASIC]:
                await peer.say(b"HTTP/1.1 407 Authenticate\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n")
            elif self.refusal:
                await peer.say(self.refusal)
                return
            elif asked.method == b"CONNECT":
                await self._tunnel(peer, asked)
                return
            else:
                await self._forward(peer, asked)

    async def _tunnel(self, peer: Peer, asked: Asked) -> None:
        host, _, port = asked.target.decode().rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        self.tunnels.append(writer)
        await peer.say(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def up() -> None:
            try:
                while data := await peer.reader.read(65536):
                    self.passed_up += data
                    writer.write(data)
            finally:
                writer.close()

        with contextlib.suppress(ConnectionError):
            sending = asyncio.ensure_future(up())
            try:
                while data := await reader.read(65536):
                    await peer.say(data)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                writer.transport.abort()

    async def _forward(self, peer: Peer, asked: Asked) -> None:
        assert asked.target.startswith(b"http://")
        place, _, path = asked.target[7:].partition(b"/")
        host, _, port = place.decode().rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        rows = [n + b": " + v for n, v in asked.headers if n.lower() != b"proxy-authorization"]
        writer.write(b" ".join((asked.method, b"/" + path, b"HTTP/1.1")) + b"\r\n")
        writer.write(b"\r\n".join(rows) + b"\r\n\r\n" + asked.body)
        await peer.say(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(5))
        writer.transport.abort()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, str]:
    file = str(tmp_path_factory.mktemp("ca") / "ca.pem")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(file)
    return ca, file


def context_of(trusted: tuple[trustme.CA, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trusted[0].issue_cert("127.0.0.1").configure_cert(context)
    return context


Through = Callable[..., Any]


@pytest.fixture
async def through(trusted: tuple[trustme.CA, str], caplog: pytest.LogCaptureFixture) -> AsyncIterator[Through]:
    """`async with through(proxy) as transport`. Whatever happens, the proxy's credential is in no log record."""
    caplog.set_level(logging.DEBUG)

    @contextlib.asynccontextmanager
    async def open_(proxy: Callable[[Peer], Any], auth: str = URL_AUTH, *, tls: bool = False) -> AsyncIterator[Any]:
        async with serving(proxy, tls=context_of(trusted) if tls else None) as server:
            transport = Httpx2Transport(
                ca_file=trusted[1], proxy=f"{server.scheme}://{auth}@{server.host}:{server.port}"
            )
            try:
                yield transport
            finally:
                await transport.aclose()
                await settled()

    yield open_
    told = "".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.get_records("call"))
    assert "127.0.0.1" in told, "nothing was logged: this looks at nothing"
    assert not [secret for secret in NEVER if secret in told]


@pytest.fixture
async def provider(trusted: tuple[trustme.CA, str]) -> AsyncIterator[Server]:
    async with serving(answering(HELLO), tls=context_of(trusted)) as server:
        yield server


def silent_about_it(error: UpstreamError) -> None:
    told = f"{error!r} {error} {error.message} {error.__dict__} {error.__cause__!r}"
    assert not [secret for secret in NEVER if secret in told]


async def refused(transport: Httpx2Transport, request: Any, saying: str) -> None:
    with pytest.raises(UpstreamConnectError, match=saying) as caught:
        await ask(transport, request)
    assert not caught.value.may_be_billed
    silent_about_it(caught.value)


@pytest.mark.parametrize("tls", [False, True], ids=["http proxy", "https proxy"])
async def test_https_goes_through_a_tunnel_that_is_kept(through: Through, provider: Server, tls: bool) -> None:
    proxy = Proxy()
    async with through(proxy, tls=tls) as transport:
        for _ in range(3):
            request = provider.post(b'{"a":1}', fixed=FixedHeaders([(b"authorization", b"Bearer canary-provider-key")]))
            assert (await ask(transport, request))[2] == b"hello"
        assert [a.line for a in proxy.asked] == [b"CONNECT 127.0.0.1:%d HTTP/1.1" % provider.port]
        assert proxy.asked[0].all(b"proxy-authorization") == [BASIC]
        assert proxy.asked[0].all(b"authorization") == []
        assert proxy.passed_up
        assert b"canary-provider-key" not in proxy.passed_up
        assert provider.accepts == 1


async def test_the_provider_never_gets_the_proxys_credential(through: Through, trusted: tuple[trustme.CA, str]) -> None:
    got: list[Asked] = []

    async def script(peer: Peer) -> None:
        got.append(await peer.request())
        await peer.say(HELLO)

    async with serving(script, tls=context_of(trusted)) as server, through(Proxy()) as transport:
        assert (await ask(transport, server.post()))[2] == b"hello"
    assert got[0].line == b"POST / HTTP/1.1"
    assert got[0].all(b"proxy-authorization") == []


async def test_http_is_asked_for_by_its_whole_url_as_it_stands(through: Through) -> None:
    got: list[Asked] = []

    async def script(peer: Peer) -> None:
        got.append(await peer.request())
        await peer.say(HELLO)

    proxy = Proxy()
    async with serving(script) as server, through(proxy) as transport:
        for target in (b"/v1/a%3Ab?x=%20", b"/v1//chat"):
            assert (await ask(transport, server.post(b"body", target=target)))[2] == b"hello"
            assert proxy.asked[-1].target == b"http://127.0.0.1:%d%s" % (server.port, target)
            assert proxy.asked[-1].all(b"proxy-authorization") == [BASIC]
            assert (got[-1].target, got[-1].body) == (target, b"body")


@pytest.mark.parametrize("status", [b"403 Forbidden", b"407 No", b"502 Bad Gateway", b"302 Found"])
async def test_a_tunnel_refused_bills_nothing(through: Through, provider: Server, status: bytes) -> None:
    proxy = Proxy(b"HTTP/1.1 " + status + b"\r\ncontent-length: 4\r\n\r\nno: ")
    async with through(proxy) as transport:
        await refused(transport, provider.post(), status[:3].decode())
        assert provider.accepts == 0


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_wrong_credential_is_told_as_the_proxys_refusal(
    through: Through, provider: Server, scheme: str
) -> None:
    proxy = Proxy()
    async with through(proxy, "someone:else") as transport:
        provider.scheme = scheme
        await refused(transport, provider.post(), "proxy refused.*407")
        assert provider.accepts == 0


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_proxy_that_drops_the_line_before_the_tunnel_bills_nothing(
    through: Through, provider: Server, how: str
) -> None:
    async def proxy(peer: Peer) -> None:
        await peer.request()
        if how == "reset":
            peer.reset()

    async with through(proxy) as transport:
        await refused(transport, provider.post(), "could not connect")
        assert provider.accepts == 0


async def test_a_proxy_that_says_nothing_is_a_timeout_of_connecting(through: Through, provider: Server) -> None:
    times = Timeouts(connect_s=0.2, first_byte_s=PATIENCE_S, gap_s=PATIENCE_S, total_s=PATIENCE_S)
    for is_stream in (False, True):
        async with through(Peer.gone) as transport:
            with pytest.raises(UpstreamTimeoutError) as caught:
                await ask(transport, provider.post(timeouts=times, is_stream=is_stream))
            assert caught.value.phase == "connect"
            assert not caught.value.may_be_billed
            silent_about_it(caught.value)


async def test_the_timeout_of_connecting_ends_with_the_tunnel(through: Through, trusted: Any) -> None:
    """A provider slower than `connect_s` is no reason to give up."""

    async def outlasting(connect_s: float) -> None:
        async def slow(peer: Peer) -> None:
            await peer.request()
            await asyncio.sleep(1.2 * connect_s)
            await peer.say(HELLO)

        times = Timeouts(connect_s=connect_s, first_byte_s=PATIENCE_S, gap_s=PATIENCE_S, total_s=PATIENCE_S)
        async with serving(slow, tls=context_of(trusted)) as server, through(Proxy()) as transport:
            assert (await ask(transport, server.post(timeouts=times)))[2] == b"hello"

    await at_some_pace(outlasting, 0.5, 5, 30)


async def test_no_proxy_there_is_a_connection_not_made(trusted: tuple[trustme.CA, str], provider: Server) -> None:
    async with serving(answering(HELLO)) as nobody:
        port = nobody.port
    transport = Httpx2Transport(ca_file=trusted[1], proxy=f"http://{URL_AUTH}@127.0.0.1:{port}")
    await refused(transport, provider.post(), "could not connect")
    await transport.aclose()


async def test_the_providers_certificate_is_looked_at_through_the_tunnel(through: Through) -> None:
    stranger = trustme.CA()
    async with serving(answering(HELLO), tls=context_of((stranger, ""))) as server, through(Proxy()) as transport:
        await refused(transport, server.post(), "certificate")


async def test_a_tunnel_cut_within_the_answer_is_a_broken_answer(
    through: Through, trusted: tuple[trustme.CA, str]
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HELLO[:-2])
        await peer.gone()

    proxy = Proxy()
    async with serving(script, tls=context_of(trusted)) as server, through(proxy) as transport:
        answer = await transport.send(server.post())
        proxy.tunnels[0].transport.abort()
        with pytest.raises(UpstreamBrokenError) as caught:
            await drain(answer)
        assert caught.value.may_be_billed
        silent_about_it(caught.value)


async def test_a_stream_comes_piece_by_piece_and_ends_when_the_client_leaves(
    through: Through, trusted: tuple[trustme.CA, str]
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            await peer.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await peer.gone()

    async with serving(script, tls=context_of(trusted)) as server, through(Proxy()) as transport:
        answer = await transport.send(server.post(is_stream=True))
        for n in range(20):
            await server.peers[0].say(b"8\r\ndata: %02d\r\n" % n)
            assert await asyncio.wait_for(answer.read(), PATIENCE_S) == b"data: %02d" % n
        answer.abort()
        await server.peers[0].ended()
        waiting = asyncio.create_task(transport.send(server.post(is_stream=True, timeouts=QUICK)))
        await until(lambda: server.accepts == 2, "another tunnel")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await server.peers[1].ended()


async def test_the_gateway_uses_the_proxy_it_is_configured_with(
    trusted: tuple[trustme.CA, str], provider: Server, tmp_path: pathlib.Path
) -> None:
    proxy = Proxy()
    async with serving(proxy) as server:
        file = tmp_path / "sidecar.yaml"
        file.write_text(f"upstream: {{ca_file: {trusted[1]}, proxy: 'http://{URL_AUTH}@127.0.0.1:{server.port}'}}\n")
        config = load_config(str(file), env={})
        assert not [secret for secret in NEVER if secret in f"{config!r}{config}"]
        transport = transport_of(config)
        assert (await ask(transport, provider.post()))[2] == b"hello"
        await transport.aclose()
    assert proxy.asked[0].all(b"proxy-authorization") == [BASIC]
