"""TLS: who is trusted, under which name, and that all else holds here too. The CA is made for the run."""

from __future__ import annotations

import datetime
import pathlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import trustme

from sidecar.errors import UpstreamBrokenError, UpstreamConnectError
from sidecar.upstream.base import Transport
from tests.upstream.support import HELLO, Peer, answering, ask, drain, serving, settled

pytestmark = pytest.mark.anyio


@dataclass
class Authority:
    ca: trustme.CA
    file: str

    def server(self, *names: str, not_after: datetime.datetime | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names, not_after=not_after).configure_cert(context)
        return context


def authority_in(folder: pathlib.Path) -> Authority:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    return Authority(ca, str(folder / "ca.pem"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority_in(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority_in(tmp_path_factory.mktemp("stranger"))


async def test_a_given_ca_is_trusted_and_the_connection_kept(
    make: Callable[..., Transport], authority: Authority
) -> None:
    transport = make(ca_file=authority.file)
    context = authority.server("127.0.0.1")
    context.set_alpn_protocols(["h2", "http/1.1"])
    spoken: list[str | None] = []

    async def script(peer: Peer) -> None:
        spoken.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await answering(HELLO)(peer)

    async with serving(script, tls=context) as server:
        for _ in range(3):
            assert (await ask(transport, server.post()))[2] == b"hello"
        assert server.accepts == 1
        assert server.peers[0].number == 1
    assert spoken == ["http/1.1"]


async def test_the_systems_store_is_used_where_no_ca_is_given(
    make: Callable[..., Transport], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", authority.file)
    async with serving(answering(HELLO), tls=authority.server("127.0.0.1")) as server:
        assert (await ask(make(), server.post()))[2] == b"hello"


async def test_a_given_ca_replaces_the_systems_store(
    make: Callable[..., Transport], authority: Authority, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", stranger.file)
    transport = make(ca_file=authority.file)
    async with serving(answering(HELLO), tls=stranger.server("127.0.0.1")) as server:
        with pytest.raises(UpstreamConnectError):
            await transport.send(server.post())


async def test_an_untrusted_certificate_is_refused_before_anything_is_sent(
    make: Callable[..., Transport], authority: Authority, stranger: Authority
) -> None:
    for transport in (make(), make(ca_file=stranger.file)):
        await refused(transport, authority.server("127.0.0.1"))


async def test_a_certificate_of_another_name_is_refused(make: Callable[..., Transport], authority: Authority) -> None:
    await refused(make(ca_file=authority.file), authority.server("localhost", "api.example.com"))


async def test_an_expired_certificate_is_refused(make: Callable[..., Transport], authority: Authority) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    await refused(make(ca_file=authority.file), authority.server("127.0.0.1", not_after=past))


async def refused(transport: Transport, context: ssl.SSLContext) -> None:
    asked: list[bytes] = []

    async def script(peer: Peer) -> None:
        asked.append((await peer.request()).line)

    async with serving(script, tls=context) as server:
        with pytest.raises(UpstreamConnectError) as caught:
            await transport.send(server.post())
        await settled()
    assert not caught.value.may_be_billed
    assert "certificate" in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)  # which host the gateway asks is not for its clients
    assert not asked


async def test_the_name_asked_for_is_the_name_checked(make: Callable[..., Transport], authority: Authority) -> None:
    transport = make(ca_file=authority.file)
    names: list[str | None] = []
    context = authority.server("localhost")
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    async with serving(answering(HELLO), tls=context) as server:
        assert (await ask(transport, server.post(host="localhost")))[2] == b"hello"
    assert names == ["localhost"]


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Plain\r\ncontent-length: 0\r\n\r\n", b""], ids=["plain", "close"])
async def test_who_speaks_no_tls_is_a_connection_not_made(transport: Transport, said: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(1)
        await peer.say(said)

    async with serving(script) as server:
        server.scheme = "https"
        with pytest.raises(UpstreamConnectError) as caught:
            await transport.send(server.post())
    assert not caught.value.may_be_billed


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_an_answer_cut_short_is_broken(make: Callable[..., Transport], authority: Authority, then: str) -> None:
    transport = make(ca_file=authority.file)
    async with serving(answering(HELLO[:-2], then=then), tls=authority.server("127.0.0.1")) as server:
        with pytest.raises(UpstreamBrokenError) as caught:
            await ask(transport, server.post())
        assert caught.value.may_be_billed


async def test_a_connection_closed_while_idle_is_replaced_with_tls_too(
    make: Callable[..., Transport], authority: Authority
) -> None:
    transport = make(ca_file=authority.file)
    async with serving(answering(HELLO, then="close"), tls=authority.server("127.0.0.1")) as server:
        for number in (1, 2, 3):
            assert (await ask(transport, server.post()))[2] == b"hello"
            await server.peers[-1].ended()
            await settled()
            assert server.accepts == number


async def test_bodies_arrive_whole_both_ways(make: Callable[..., Transport], authority: Authority) -> None:
    transport = make(ca_file=authority.file)
    body = bytes(range(256)) * 40_000

    async def script(peer: Peer) -> None:
        while True:
            got = (await peer.request()).body
            await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(got))
            await peer.say(got)

    async with serving(script, tls=authority.server("127.0.0.1")) as server:
        for _ in range(2):
            answer = await transport.send(server.post(body))
            assert await drain(answer) == body
        assert server.accepts == 1


async def test_a_client_certificate_is_shown(
    make: Callable[..., Transport], authority: Authority, tmp_path: pathlib.Path
) -> None:
    mine = authority.ca.issue_cert("gateway")
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    mine.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    context = authority.server("127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.ca.configure_trust(context)
    shown: list[object] = []

    async def script(peer: Peer) -> None:
        shown.append(peer.writer.get_extra_info("peercert")["subjectAltName"])
        await answering(HELLO)(peer)

    certificate = (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    async with serving(script, tls=context) as server:
        assert (await ask(make(ca_file=authority.file, client_cert=certificate), server.post()))[2] == b"hello"
        with pytest.raises((UpstreamBrokenError, UpstreamConnectError)):  # TLS 1.3 tells who shows none only later
            await ask(make(ca_file=authority.file), server.post())
    assert shown == [(("DNS", "gateway"),)]


async def test_a_certificate_that_cannot_be_read_is_told_at_once(
    make: Callable[..., Transport], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        make(client_cert=(str(tmp_path / "bad.pem"), str(tmp_path / "bad.pem")))
