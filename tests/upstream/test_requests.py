"""What a request looks like on the wire, byte for byte, and what is refused before anything is sent."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sidecar.errors import BadRequestError, UpstreamConnectError
from sidecar.types import Headers
from sidecar.upstream.base import FixedHeaders, Transport
from tests.upstream.support import HELLO, Asked, Peer, Script, Server, ask, drain, serving

pytestmark = pytest.mark.anyio


def noting(asked: list[Asked], answer: bytes = HELLO) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            asked.append(await peer.request())
            await peer.say(answer)

    return script


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/v1/models/a%3Ab",
        b"/v1/models/a:b",
        b"/v1/models/a%3ab",
        b"/model/arn%3Aaws%3Abedrock%2Fx/invoke",
        b"/%2e%2e/%2F/%5C",
        b"/a/../b/./c",
        b"//double//slash/",
        b"/a;b=c,d",
        b"/a?",
        b"/a?b=%20+%2B&c&&d==",
        b"/a?x=?/y",
        b"/?/",
        b"/100%",
        b"/%zz",
        b"/[x]{y}|\\^`\"<>'!()*~@$",
        b"/a#b",
        b"/" + b"a" * 20_000,
    ],
    ids=lambda t: t[:30].decode(),
)
async def test_the_path_arrives_as_sent(transport: Transport, target: bytes) -> None:
    asked: list[Asked] = []
    async with serving(noting(asked)) as server:
        await ask(transport, server.get(target))
    assert asked[0].line == b"GET " + target + b" HTTP/1.1"


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"*",
        b"a",
        b"http://x/",
        b"/a b",
        b"/a\r\nx: y",
        b"/a\n",
        b"/a\r",
        b"/a\x00",
        b"/a\tb",
        b"/a\x7f",
        b"/\xc3\xa9",
    ],
    ids=repr,
)
async def test_a_path_that_would_smuggle_is_refused_before_connecting(transport: Transport, target: bytes) -> None:
    async with serving(noting([])) as server:
        with pytest.raises(BadRequestError):
            await transport.send(server.get(target))
        assert server.accepts == 0


@pytest.mark.parametrize("method", ["", "GET ", "GET / HTTP/1.1\r\nx:", "G\nT", "GÉT", "CONNECT"], ids=repr)
async def test_a_method_that_would_smuggle_is_refused_before_connecting(transport: Transport, method: str) -> None:
    async with serving(noting([])) as server:
        with pytest.raises(BadRequestError):
            await transport.send(server.get(method=method))
        assert server.accepts == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"", b"v"),
        (b"x y", b"v"),
        (b"x:", b"v"),
        (b"x\r\ny", b"v"),
        (b"x\x00", b"v"),
        (b"\xc3\xa9", b"v"),
        (b"x", b"a\r\ny: b"),
        (b"x", b"a\ny: b"),
        (b"x", b"a\ry: b"),
        (b"x", b"a\r\n b"),
        (b"x", b"a\x00b"),
        (b"x", b"a\x01b"),
        (b"x", b"a\x7fb"),
        (b"x", b"a\r\n\r\nGET /admin HTTP/1.1\r\n"),
    ],
    ids=repr,
)
async def test_a_header_that_would_smuggle_is_refused_before_connecting(
    transport: Transport, name: bytes, value: bytes
) -> None:
    async with serving(noting([])) as server:
        with pytest.raises(BadRequestError) as caught:
            await transport.send(server.get(headers=[(b"a", b"b"), (name, value)]))
        assert value.decode("latin-1") not in str(caught.value), "a header may be a secret"
        with pytest.raises(BadRequestError):
            FixedHeaders([(name, value)])
        assert server.accepts == 0


async def test_the_head_holds_what_was_given_and_nothing_of_the_library(transport: Transport) -> None:
    asked: list[Asked] = []
    fixed = FixedHeaders([(b"Authorization", b"Bearer one"), (b"x-team", b"a")])
    headers: Headers = [
        (b"Content-Type", b"application/json"),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
        (b"x-empty", b""),
        (b"x-odd", b" \tcaf\xc3\xa9, \xff\t"),
    ]
    async with serving(noting(asked)) as server:
        await ask(transport, server.post(b'{"a": "\xc3\xa9"}', headers=headers, fixed=fixed))
        host = f"127.0.0.1:{server.port}".encode()
    assert asked[0].body == b'{"a": "\xc3\xa9"}'
    assert sorted(asked[0].headers) == [
        (b"accept-encoding", b"identity"),
        (b"authorization", b"Bearer one"),
        (b"content-length", b"11"),
        (b"content-type", b"application/json"),
        (b"host", host),
        (b"x-empty", b""),
        (b"x-odd", b"caf\xc3\xa9, \xff"),
        (b"x-team", b"a"),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
    ]
    assert asked[0].headers[0] == (b"host", host)
    assert asked[0].all(b"x-twice") == [b"1", b"2"]


async def test_hop_by_hop_headers_stay_on_their_side_both_ways(transport: Transport) -> None:
    asked: list[Asked] = []
    answer = (
        b"HTTP/1.1 200 OK\r\nConnection: X-Theirs , keep-alive\r\nconnection: x-also\r\nKeep-Alive: timeout=5\r\n"
        b"x-theirs: 1\r\nX-Also: 1\r\nProxy-Authenticate: basic\r\nProxy-Connection: x\r\nTrailer: x\r\nTE: x\r\n"
        b"Upgrade: h2c\r\nTransfer-Encoding: chunked\r\nX-End: a\r\nx-end: b\r\nWWW-Authenticate: c\r\n"
        b"Content-Encoding: gzip\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    headers: Headers = [
        (b"Connection", b"X-Mine, close"),
        (b"connection", b"x-also"),
        (b"x-mine", b"1"),
        (b"X-Also", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"te", b"trailers"),
        (b"trailer", b"x"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h2c"),
        (b"expect", b"100-continue"),
        (b"proxy-authorization", b"basic"),
        (b"proxy-connection", b"x"),
        (b"content-length", b"999"),
        (b"host", b"elsewhere"),
        (b"x-end", b"a"),
    ]
    async with serving(noting(asked, answer)) as server:
        status, got, body = await ask(transport, server.post(b"12", headers=headers))
        assert (status, body) == (200, b"hello"), "and no content coding is undone"
        assert got == [
            (b"x-end", b"a"),
            (b"x-end", b"b"),
            (b"www-authenticate", b"c"),
            (b"content-encoding", b"gzip"),
        ]
        assert sorted(name for name, _ in asked[0].headers) == [
            b"accept-encoding",
            b"content-length",
            b"host",
            b"x-end",
        ]
        assert asked[0].all(b"content-length") == [b"2"]
        assert asked[0].all(b"host") == [f"127.0.0.1:{server.port}".encode()]
        await ask(transport, server.get())
        assert server.accepts == 1, "`connection: close` of a client is not the upstream connection's"


async def test_no_cookie_of_one_request_appears_on_another(transport: Transport) -> None:
    asked: list[Asked] = []
    answer = (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=secret; Path=/\r\nset-cookie2: b=c\r\nx: y\r\n"
        b"content-length: 2\r\n\r\nok"
    )
    async with serving(noting(asked, answer)) as server:
        for headers in ([], [(b"Cookie", b"mine=1")], []):
            _, got, _ = await ask(transport, server.get(headers=headers))
            assert got == [(b"x", b"y"), (b"content-length", b"2")]
    assert len(asked) == 3
    assert not [a for a in asked if a.all(b"cookie")]


async def test_a_redirect_is_an_answer_like_any_other(transport: Transport) -> None:
    asked: list[Asked] = []
    async with serving(noting(asked, b"HTTP/1.1 307 Go\r\nlocation: /else\r\ncontent-length: 0\r\n\r\n")) as server:
        status, got, _ = await ask(transport, server.post())
    assert (status, dict(got)[b"location"], len(asked)) == (307, b"/else", 1)


async def test_the_environment_names_no_proxy_and_no_credential(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    netrc = tmp_path_factory.mktemp("netrc") / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    asked: list[Asked] = []
    async with serving(noting(asked)) as server:
        assert (await ask(transport, server.get()))[2] == b"hello"
    assert not asked[0].all(b"authorization")


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "POST", "PUT", "PATCH", "QUERY"])
@pytest.mark.parametrize("body", [b"", b"x"])
async def test_a_length_is_sent_where_a_body_is_or_is_expected(transport: Transport, method: str, body: bytes) -> None:
    asked: list[Asked] = []
    async with serving(noting(asked)) as server:
        answer = await transport.send(server.get(method=method, body=body))
        await drain(answer)
    assert asked[0].method == method.encode()
    assert asked[0].body == body
    is_expected = body or method in ("POST", "PUT", "PATCH")
    assert asked[0].all(b"content-length") == ([str(len(body)).encode()] if is_expected else [])


async def test_a_large_body_arrives_whole(transport: Transport) -> None:
    body = bytes(range(256)) * 160_000  # 40 MB
    asked: list[Asked] = []
    async with serving(noting(asked)) as server:
        for _ in range(2):
            assert (await ask(transport, server.post(body)))[2] == b"hello"
            assert asked.pop().body == body
        assert server.accepts == 1


async def test_an_ipv6_address_stands_in_brackets(transport: Transport) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    asked: list[Asked] = []
    async with serving(noting(asked), host="::1") as server:
        await ask(transport, server.get())
        assert asked[0].all(b"host") == [f"[::1]:{server.port}".encode()]


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "", "no-such-host.invalid"], ids=lambda h: h[:20])
async def test_a_host_that_is_none_is_a_connection_not_made(transport: Transport, host: str) -> None:
    async with serving(noting([])) as server:
        with pytest.raises(UpstreamConnectError) as caught:
            await transport.send(server.get(host=host))
        assert not caught.value.may_be_billed


async def test_every_one_of_many_at_once_gets_its_own_answer(transport: Transport) -> None:
    async def echo(peer: Peer) -> None:
        while True:
            body = (await peer.request()).body
            await asyncio.sleep(0)
            await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    async def one(server: Server, number: int) -> None:
        for turn in range(10):
            body = b"%d of %d" % (turn, number) * (number + 1)
            assert (await ask(transport, server.post(body)))[2] == body

    async with serving(echo) as server:
        await asyncio.gather(*(one(server, number) for number in range(40)))
        assert server.accepts <= 40
