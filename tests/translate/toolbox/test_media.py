"""Media from strangers' URLs: only public addresses, only the one that was checked, bounded in every way."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme

from sidecar.errors import BadRequestError
from sidecar.upstream.media import MediaFetcher, MediaLimits, is_public
from tests.upstream.support import PATIENCE_S, Peer, Script, Server, serving, until

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 100
LOOPBACK = ("127.0.0.0/8",)


def answer(body: bytes = PNG, status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def says(answers: dict[bytes, bytes], asked: list[Any] | None = None) -> Script:
    async def script(peer: Peer) -> None:
        request = await peer.request()
        if asked is not None:
            asked.append(request)
        await peer.say(answers[request.target])

    return script


@asynccontextmanager
async def fetching(**options: Any) -> AsyncIterator[MediaFetcher]:
    fetcher = MediaFetcher(**options)
    try:
        yield fetcher
    finally:
        await fetcher.aclose()


def resolving(*answers: list[str]) -> tuple[Any, list[str]]:
    """A resolver that gives these, one after another, and what it was asked."""
    asked: list[str] = []
    left = list(answers)

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve, asked


def url(server: Server, target: str = "/a.png") -> str:
    return f"http://127.0.0.1:{server.port}{target}"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.100.100.200", False),
        ("168.63.129.16", False),
        ("192.0.0.192", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("239.255.255.250", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("::127.0.0.1", False),
        ("fe80::1", False),
        ("fd00:ec2::254", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::1", False),
        ("2002:7f00:1::", False),
        ("2001::1", False),
        ("2001:db8::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


async def test_bytes_come_with_their_type_and_nothing_of_us_is_sent() -> None:
    asked: list[Any] = []
    answers = {
        b"/a.png?x=1%20&y": answer(content_type="image/jpeg; charset=x"),
        b"/b": answer(b"%PDF-1.7"),
        b"/c": answer(b"a,b", content_type="text/csv"),
    }
    async with serving(says(answers, asked)) as server, fetching(allowed=LOOPBACK) as fetcher:
        first, second, third = url(server, "/a.png?x=1%20&y"), url(server, "/b"), url(server, "/c")
        found = await fetcher.fetch([first, second, third, first])
    assert {one: media.content_type for one, media in found.items()} == {
        first: "image/png",
        second: "application/pdf",
        third: "text/csv",
    }
    assert found[first].data == PNG
    for request in asked:
        assert {name.lower() for name, _ in request.headers} == {b"host", b"accept", b"accept-encoding", b"connection"}


@pytest.mark.parametrize(
    "target",
    [
        "https://127.0.0.1:{port}/",
        "https://localhost:{port}/",
        "https://[::1]:{port}/",
        "https://[::ffff:127.0.0.1]:{port}/",
        "https://2130706433:{port}/",
        "https://0x7f.1:{port}/",
        "https://0:{port}/",
        "https://127.1/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[fe80::1%25lo]/",
        "https://8.8.8.8:{port}/",
        "http://8.8.8.8/",
        "http://127.0.0.1:{port}/",
        "ftp://8.8.8.8/",
        "file:///etc/passwd",
        "https://user:secret@8.8.8.8/",
        "https:///x",
        "https://",
        "https://\u2460.example:99999/",
        "https://x.example/" + "a" * 9000,
        "",
    ],
)
async def test_what_is_not_public_https_is_refused_without_a_connection(target: str) -> None:
    async with serving(says({})) as server, fetching() as fetcher:
        with pytest.raises(BadRequestError) as caught:
            await fetcher.fetch([target.replace("{port}", str(server.port))])
        assert server.accepts == 0
    assert caught.value.code == "media_not_fetched"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:10.0.0.1"], ["fe80::1%eth0"], []]
)
async def test_a_name_is_refused_if_any_of_its_addresses_is_not_public(addresses: list[str]) -> None:
    resolve, asked = resolving(addresses)
    async with fetching(resolve=resolve) as fetcher:
        with pytest.raises(
            BadRequestError, match=r"from files\.example: (its address is not|the name does not)"
        ) as caught:
            await fetcher.fetch(["https://files.example/a.png"])
    assert asked == ["files.example"]
    assert not any(address in caught.value.message for address in addresses)


@asynccontextmanager
async def secured(name: str, script: Script) -> AsyncIterator[tuple[Server, ssl.SSLContext]]:
    ca = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(theirs)
    ours = ssl.create_default_context()
    ca.configure_trust(ours)
    async with serving(script, tls=theirs) as server:
        yield server, ours


async def test_the_connection_goes_to_the_address_that_was_checked_under_the_urls_name() -> None:
    asked: list[Any] = []
    resolve, names = resolving(["127.0.0.1"], ["10.0.0.1"])  # a second look would be answered otherwise
    async with (
        secured("files.example", says({b"/a.png": answer()}, asked)) as (server, tls),
        fetching(allowed=LOOPBACK, tls=tls, resolve=resolve) as fetcher,
    ):
        await fetcher.fetch([f"https://files.example:{server.port}/a.png"])
    assert names == ["files.example"]
    assert asked[0].all(b"host") == [f"files.example:{server.port}".encode()]


async def test_a_certificate_of_another_name_is_refused() -> None:
    resolve, _ = resolving(["127.0.0.1"])
    async with (
        secured("other.example", says({b"/": answer()})) as (server, tls),
        fetching(allowed=LOOPBACK, tls=tls, resolve=resolve) as fetcher,
    ):
        with pytest.raises(BadRequestError, match=r"from files\.example: .*certificate"):
            await fetcher.fetch([f"https://files.example:{server.port}/"])


async def test_the_next_address_is_tried_if_one_does_not_answer() -> None:
    resolve, _ = resolving(["127.0.0.2", "127.0.0.1"])
    async with serving(says({b"/": answer()})) as server, fetching(allowed=LOOPBACK, resolve=resolve) as fetcher:
        assert len(await fetcher.fetch([f"http://files.example:{server.port}/"])) == 1


def moved(to: str) -> bytes:
    return answer(b"", "302 Found", location=to)


async def test_redirects_are_followed_a_few_times() -> None:
    answers = {b"/1": moved("/2"), b"/2": moved("2/../3"), b"/3": moved("?4"), b"/3?4": answer(), b"/0": moved("/1")}
    async with serving(says(answers)) as server, fetching(allowed=LOOPBACK) as fetcher:
        assert (await fetcher.fetch([url(server, "/1")]))[url(server, "/1")].data == PNG
        with pytest.raises(BadRequestError, match="more than 3 times"):
            await fetcher.fetch([url(server, "/0")])


@pytest.mark.parametrize(
    "to", ["http://10.0.0.1/", "https://169.254.169.254/", "file:///etc/passwd", "http://[::1]/", "https:///x"]
)
async def test_a_redirect_to_where_we_do_not_go_is_refused(to: str) -> None:
    async with serving(says({b"/": moved(to)})) as server, fetching(allowed=LOOPBACK) as fetcher:
        with pytest.raises(BadRequestError):
            await fetcher.fetch([url(server, "/")])
        assert server.accepts == 1


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (answer(b"x" * 2000), "larger than 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b"x" * 2000, "larger than 1000 bytes"),
        (answer(b"no", "404 Not Found"), "answered 404"),
        (answer(b""), "empty"),
        (answer(b"x", content_encoding="gzip"), "compressed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx", "broke off"),
        (b"what?\r\n\r\n", "properly"),
    ],
)
async def test_what_is_wrong_is_named_with_the_host(said: bytes, why: str) -> None:
    limits = MediaLimits(file_bytes=1000)
    async with serving(says({b"/": said})) as server, fetching(allowed=LOOPBACK, limits=limits) as fetcher:
        with pytest.raises(BadRequestError, match=rf"from 127\.0\.0\.1: .*{why}"):
            await fetcher.fetch([url(server, "/")])


async def test_an_endless_body_is_cut_off_at_the_limit() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await peer.say(b"x" * 65536)

    async with serving(script) as server, fetching(allowed=LOOPBACK) as fetcher:
        with pytest.raises(BadRequestError, match="larger than"):
            await fetcher.fetch([url(server)])
        await until(lambda: server.peers, "it was accepted")
        await server.peers[0].ended()


async def test_all_of_a_request_are_bounded_together() -> None:
    answers = {b"/%d" % n: answer(b"x" * 100) for n in range(4)}
    limits = MediaLimits(total_bytes=300, urls=4)
    async with serving(says(answers)) as server, fetching(allowed=LOOPBACK, limits=limits) as fetcher:
        assert len(await fetcher.fetch([url(server, f"/{n}") for n in range(3)])) == 3
        with pytest.raises(BadRequestError, match="together they are larger than 300"):
            await fetcher.fetch([url(server, f"/{n}") for n in range(4)])
        with pytest.raises(BadRequestError, match="at most 4"):
            await fetcher.fetch([url(server, f"/{n}") for n in range(5)])


async def test_a_silent_server_is_given_up_and_its_connection_closed() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async with serving(script) as server, fetching(allowed=LOOPBACK, limits=MediaLimits(total_s=0.2)) as fetcher:
        with pytest.raises(BadRequestError, match=r"longer than 0\.2 s"):
            await fetcher.fetch([url(server)])
        await until(lambda: server.peers, "it was accepted")
        await server.peers[0].ended()


async def test_a_caller_who_leaves_closes_all_connections() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async with serving(script) as server, fetching(allowed=LOOPBACK) as fetcher:
        task = asyncio.create_task(fetcher.fetch([url(server, "/1"), url(server, "/2")]))
        async with asyncio.timeout(PATIENCE_S):
            while server.accepts < 2:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for peer in server.peers:
            await peer.ended()


async def test_one_failure_ends_the_others() -> None:
    async def script(peer: Peer) -> None:
        if (await peer.request()).target == b"/bad":
            await peer.say(answer(b"no", "500 Oops"))
        else:
            await peer.gone()

    async with serving(script) as server, fetching(allowed=LOOPBACK) as fetcher:
        with pytest.raises(BadRequestError, match="answered 500"):
            await fetcher.fetch([url(server, "/slow"), url(server, "/bad")])
        for peer in server.peers:
            await peer.ended()


async def test_only_so_many_at_a_time() -> None:
    open_now, most = 0, 0

    async def script(peer: Peer) -> None:
        nonlocal open_now, most
        await peer.request()
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.02)
        open_now -= 1
        await peer.say(answer())

    limits = MediaLimits(concurrency=2)
    async with serving(script) as server, fetching(allowed=LOOPBACK, limits=limits) as fetcher:
        await asyncio.gather(*(fetcher.fetch([url(server, f"/{n}"), url(server, f"/{n}+")]) for n in range(4)))
        assert server.accepts == 8
    assert most == 2


async def test_what_was_fetched_is_kept_for_a_while_by_bytes() -> None:
    answers = {b"/%d" % n: answer(b"x" * 100) for n in range(9)}
    answers[b"/private"] = answer(cache_control="private, max-age=99")
    answers[b"/old"] = answer(cache_control="max-age=0")
    limits = MediaLimits(cache_bytes=700)
    async with serving(says(answers)) as server, fetching(allowed=LOOPBACK, limits=limits) as fetcher:
        for n in (0, 0, 1, 0, 1):
            await fetcher.fetch([url(server, f"/{n}")])
        assert server.accepts == 2
        for n in range(2, 9):
            await fetcher.fetch([url(server, f"/{n}")])
        assert fetcher._cached_bytes <= 700
        await fetcher.fetch([url(server, "/8"), url(server, "/0")])
        assert server.accepts == 2 + 7 + 1, "the oldest had to go, the newest is there"
        for target in ("/private", "/private", "/old", "/old"):
            await fetcher.fetch([url(server, target)])
        assert server.accepts == 10 + 4
