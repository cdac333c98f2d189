"""An answer's framing: where it ends, what is skipped, what is refused. Every answer is given whole and dripped."""

from __future__ import annotations

import pytest

from sidecar.errors import UpstreamBrokenError
from sidecar.upstream.base import Transport
from tests.upstream.support import HELLO, answering, ask, drain, serving

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("dripped", [False, True], ids=["whole", "dripped"])]

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK + b"content-length: 5\r\n\r\nhello", b"hello"),
        (OK + b"content-length: 0\r\n\r\n", b""),
        (OK + b"Content-Length:5\r\n\r\nhello", b"hello"),
        (CHUNKED + b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!"),
        (CHUNKED + b'5;a=b;c="d"\r\nhello\r\n0;e\r\n\r\n', b"hello"),
        (CHUNKED + b"5\r\nhello\r\n0\r\nx-checksum: 1\r\nx-more: 2\r\n\r\n", b"hello"),
        (CHUNKED + b"00000A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (CHUNKED + b"0\r\n\r\n", b""),
        (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO, b"hello"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 3 + HELLO, b"hello"),
    ],
    ids=[
        "length",
        "length-zero",
        "no-space-after-the-colon",
        "chunked",
        "chunk-extensions",
        "trailers",
        "leading-zeros",
        "chunked-empty",
        "no-reason",
        "after-100",
        "after-103",
    ],
)
async def test_an_answer_is_read_to_its_end_and_the_connection_kept(
    transport: Transport, dripped: bool, answer: bytes, body: bytes
) -> None:
    async with serving(answering(answer, dripped=dripped)) as server:
        for _ in range(3):
            got = await transport.send(server.get())
            assert (got.status, await drain(got), got.is_complete) == (200, body, True)
            assert not got.is_close_delimited
            assert b"link" not in dict(got.headers), "a header of a 1xx answer"
            assert b"x-checksum" not in dict(got.headers)
        assert server.accepts == 1


@pytest.mark.parametrize(
    ("method", "answer", "status"),
    [
        ("HEAD", OK + b"content-length: 100\r\n\r\n", 200),
        ("HEAD", OK + b"transfer-encoding: chunked\r\n\r\n", 200),
        ("HEAD", OK + b"x: y\r\n\r\n", 200),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("GET", b"HTTP/1.1 304 Not Modified\r\netag: a\r\n\r\n", 304),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 100\r\n\r\n", 304),
    ],
    ids=["head-length", "head-chunked", "head-bare", "204", "304", "304-length"],
)
async def test_an_answer_without_a_body_ends_with_its_head(
    transport: Transport, dripped: bool, method: str, answer: bytes, status: int
) -> None:
    async with serving(answering([answer, HELLO, answer, HELLO], dripped=dripped)) as server:
        for _ in range(2):
            got = await transport.send(server.get(method=method))
            assert (got.status, await drain(got), got.is_complete) == (status, b"", True)
            assert not got.is_close_delimited
            assert (await ask(transport, server.get()))[2] == b"hello"
        assert server.accepts == 1


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_without_a_length_the_close_is_the_end(transport: Transport, dripped: bool, version: bytes) -> None:
    answer = b"HTTP/" + version + b" 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n"
    async with serving(answering(answer, dripped=dripped, then="close")) as server:
        for _ in range(2):
            got = await transport.send(server.get())
            assert got.is_close_delimited
            assert (await drain(got), got.is_complete) == (b"data: 1\n\n", True)
        assert server.accepts == 2


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 2",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        OK + b"content-len",
        OK + b"content-length: 5\r\n",
        OK + b"content-length: 5\r\n\r\n",
        OK + b"content-length: 5\r\n\r\nhell",
        CHUNKED + b"5",
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"5\r\nhello",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\nx-trailer: 1\r\n",
        CHUNKED + b"FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
    ],
    ids=[
        "nothing",
        "in-status-line",
        "after-100",
        "in-header",
        "before-blank-line",
        "before-body",
        "in-body",
        "in-chunk-size",
        "in-chunk",
        "before-chunk-end",
        "between-chunks",
        "before-last-blank-line",
        "in-trailers",
        "in-a-huge-chunk",
    ],
)
async def test_an_answer_cut_short_is_broken_and_maybe_billed(
    transport: Transport, dripped: bool, answer: bytes, then: str
) -> None:
    async with serving(answering(answer, dripped=dripped, then=then)) as server:
        with pytest.raises(UpstreamBrokenError) as caught:
            await ask(transport, server.post())
        assert caught.value.may_be_billed
        assert server.accepts == 1, "a billable request was sent twice"


async def test_a_reset_does_not_end_a_close_delimited_answer_well(transport: Transport, dripped: bool) -> None:
    async with serving(answering(OK + b"\r\ndata: 1\n\n", dripped=dripped, then="reset")) as server:
        with pytest.raises(UpstreamBrokenError):
            await ask(transport, server.get())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 abc OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/3.7x 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"ICY 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"<html>not http</html>\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        OK + b"no colon\r\ncontent-length: 0\r\n\r\n",
        OK + b"bad name: x\r\ncontent-length: 0\r\n\r\n",
        OK + b"x: a\x00b\r\ncontent-length: 0\r\n\r\n",
        OK + b"x: a\rset: b\r\ncontent-length: 0\r\n\r\n",
        OK + b"content-length: -5\r\n\r\nhello",
        OK + b"content-length: 0x5\r\n\r\nhello",
        OK + b"content-length: 5 5\r\n\r\nhello",
        OK + b"content-length: 99999999999999999999999\r\n\r\nhello",
        OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        OK + b"content-length: 5, 6\r\n\r\nhello!",
        OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        OK + b"transfer-encoding: gzip\r\n\r\nhello",
        OK + b"transfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"5\r\nhelloXX0\r\n\r\n",
    ],
    ids=[
        "status-letters",
        "status-two-digits",
        "status-four-digits",
        "version",
        "icy",
        "ssh",
        "html",
        "a-request",
        "tls-alert",
        "101",
        "no-colon",
        "space-in-name",
        "nul-in-value",
        "bare-cr-in-value",
        "length-negative",
        "length-hex",
        "length-two-numbers",
        "length-huge",
        "lengths-differ",
        "length-list",
        "length-then-chunked",
        "chunked-then-length",
        "encoding-not-chunked",
        "encoding-besides-chunked",
        "encoding-twice",
        "chunk-size-letters",
        "chunk-size-negative",
        "chunk-end",
    ],
)
async def test_what_is_not_proper_http_is_broken_and_the_connection_closed(
    transport: Transport, dripped: bool, answer: bytes
) -> None:
    async with serving(answering(answer, dripped=dripped)) as server:
        with pytest.raises(UpstreamBrokenError) as caught:
            await ask(transport, server.post(is_stream=True))
        assert caught.value.may_be_billed
        await server.peers[0].ended()
        assert server.accepts == 1


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"x: " + b"a" * 2_000_000,
        OK + b"x: y\r\n" * 300_000,
        b"HTTP/1.1 200 " + b"O" * 2_000_000,
        CHUNKED + b"1\r\nx\r\n0\r\n" + b"x: y\r\n" * 300_000,
        CHUNKED + b"1\r\nx\r\n0\r\nx: " + b"a" * 2_000_000,
        CHUNKED + b"1;a=" + b"b" * 2_000_000,
    ],
    ids=["value", "count", "reason", "trailers", "trailer-value", "chunk-extension"],
)
async def test_headers_without_end_are_refused_before_they_fill_the_memory(
    transport: Transport, dripped: bool, answer: bytes
) -> None:
    async with serving(answering(answer, dripped=dripped, step=1000)) as server:
        with pytest.raises(UpstreamBrokenError):
            await ask(transport, server.get())
        await server.peers[0].ended()


async def test_1xx_answers_without_end_are_refused(transport: Transport, dripped: bool) -> None:
    answer = b"HTTP/1.1 103 Hints\r\nlink: </a>\r\n\r\n" * 4_000
    async with serving(answering(answer, dripped=dripped, step=1000)) as server:
        with pytest.raises(UpstreamBrokenError):
            await ask(transport, server.get())
        await server.peers[0].ended()
