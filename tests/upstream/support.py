"""A scripted server on a real socket, byte by byte, and the table of what a transport declines.

A script is `async def script(peer)`: it is called once for each accepted connection. What it raises fails the test,
except a connection the client closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from sidecar.errors import UpstreamTimeoutError
from sidecar.types import Headers, Timeouts
from sidecar.upstream.base import HttpAnswer, HttpRequest, Transport

PATIENCE_S = 60.0
"""How long a test waits for what must happen. Never reached when all is well."""

DECLINES: dict[tuple[str, str], str] = {
    (
        "httpx2",
        "test_1xx_answers_without_end_are_refused",
    ): "httpcore2 skips 1xx answers without a bound; the first-byte timeout ends it, and none is kept in memory",
    (
        "httpx2",
        "test_an_idle_connection_is_closed_without_another_request",
    ): "httpcore2 looks at idle connections only when a request comes; an expired one is never used again",
    (
        "httpx2",
        "test_a_connection_closed_while_idle_is_replaced_with_tls_too",
    ): "a TLS goodbye read together with the answer is not noticed; the next attempt fails and counts as maybe billed",
    (
        "httpx2",
        "test_a_request_half_written_on_a_kept_connection_goes_once_more_on_a_fresh_one",
    ): "it does not tell how much was written; the attempt counts as one that may be billed",
    (
        "httpx2",
        "test_an_answer_to_a_body_not_yet_read_is_given_and_the_connection_closed",
    ): "httpcore2 reads only when it has written all; the timeouts end it",
}
"""(transport, test) → why. Each stands in docs/decisions.md too."""

HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
QUICK = Timeouts(connect_s=PATIENCE_S, first_byte_s=PATIENCE_S, gap_s=PATIENCE_S, total_s=PATIENCE_S)


@dataclass
class Asked:
    """A request as it came in."""

    line: bytes
    headers: Headers
    body: bytes

    @property
    def method(self) -> bytes:
        return self.line.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.line.split(b" ")[1]

    def all(self, name: bytes) -> list[bytes]:
        return [v for n, v in self.headers if n.lower() == name]


class Peer:
    """The server's end of one connection. `number` counts from 1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number
        self.sent = 0
        self._ended = asyncio.Event()

    async def head(self) -> Asked:
        """The request's head; its body stays unread."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        line, *rows = raw[:-4].split(b"\r\n")
        headers = [(n, v.strip()) for n, _, v in (row.partition(b":") for row in rows)]
        return Asked(line, headers, b"")

    async def request(self) -> Asked:
        asked = await self.head()
        for length in asked.all(b"content-length"):
            asked.body = await self.reader.readexactly(int(length))
        return asked

    async def say(self, data: bytes) -> None:
        if self.writer.is_closing():
            raise ConnectionResetError  # uvloop would raise a RuntimeError
        self.writer.write(data)
        self.sent += len(data)
        await self.writer.drain()

    async def drip(self, data: bytes, step: int = 1) -> None:
        """One byte (or `step`) a write, each with time for the client to take it."""
        for i in range(0, len(data), step):
            await self.say(data[i : i + step])
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def ended(self) -> None:
        """For the test: returns once the script is over, as one is that reads when the client closes."""
        await asyncio.wait_for(self._ended.wait(), PATIENCE_S)

    @property
    def is_over(self) -> bool:
        return self._ended.is_set()

    def end(self) -> None:
        self._ended.set()

    async def gone(self) -> None:
        """For the script: reads on until the client closes or resets."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while await asyncio.wait_for(self.reader.read(1 << 20), PATIENCE_S):
                pass

    def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            await self.writer.wait_closed()


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class Server:
    host: str
    port: int
    scheme: str = "http"
    peers: list[Peer] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    @property
    def accepts(self) -> int:
        return len(self.peers)

    def get(self, target: bytes = b"/", **changes: Any) -> HttpRequest:
        changes = {"method": "GET", "host": self.host, "timeouts": QUICK, **changes}
        return HttpRequest(scheme=self.scheme, port=self.port, target=target, **changes)

    def post(self, body: bytes = b"{}", **changes: Any) -> HttpRequest:
        return self.get(method="POST", body=body, **changes)


@contextlib.asynccontextmanager
async def serving(
    script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", sndbuf: int = 0
) -> AsyncIterator[Server]:
    tasks: set[asyncio.Task[None]] = set()
    failures: list[BaseException] = []

    async def run(peer: Peer) -> None:
        try:
            await script(peer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        except Exception as error:
            failures.append(error)
        finally:
            peer.end()
            await peer.close()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, server.accepts + 1)
        server.peers.append(peer)
        task = asyncio.ensure_future(run(peer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones inherit it
    if sndbuf:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    listener.setblocking(False)
    server = Server(host, listener.getsockname()[1], "https" if tls is not None else "http")
    goodbye: dict[str, Any] = {"ssl_shutdown_timeout": 0.2} if tls is not None else {}
    handle = await asyncio.start_server(accepted, sock=listener, ssl=tls, limit=1 << 21, **goodbye)
    try:
        yield server
    finally:
        handle.close()
        running = list(tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for peer in server.peers:
            with contextlib.suppress(AttributeError):  # asyncio, of one that was closed with data to write and is gone
                peer.writer.transport.abort()
        await asyncio.sleep(0)
    if failures:
        raise failures[0]


def answering(answer: bytes | list[bytes], *, dripped: bool = False, step: int = 1, then: str = "") -> Script:
    """Every request on every connection gets `answer` (or the next of a list, per connection). `then`: what follows
    the first answer: `close`, `reset`, or nothing."""

    async def script(peer: Peer) -> None:
        rest = list(answer) if isinstance(answer, list) else None
        while True:
            await peer.request()
            data = rest.pop(0) if rest is not None else answer
            assert isinstance(data, bytes)
            await (peer.drip(data, step) if dripped else peer.say(data))
            if then == "close":
                return
            if then == "reset":
                peer.reset()
                return

    return script


async def ask(transport: Transport, request: HttpRequest) -> tuple[int, Headers, bytes]:
    """The whole answer, as the proxy would take it."""
    answer = await transport.send(request)
    return answer.status, answer.headers, await drain(answer)


async def drain(answer: HttpAnswer) -> bytes:
    return await answer.read_all(1 << 30)


def sockets_open() -> int:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


async def at_some_pace(attempt: Callable[[float], Awaitable[None]], *paces_s: float) -> None:
    """What has to succeed within a time is tried again with a longer one: a slow machine is no fault, what never
    succeeds is one."""
    for pace_s in paces_s[:-1]:
        with contextlib.suppress(UpstreamTimeoutError):
            await attempt(pace_s)
            return
    await attempt(paces_s[-1])


async def until(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(PATIENCE_S) as limit:
        while not condition():
            await asyncio.sleep(0.002)
    assert not limit.expired(), what


async def settled() -> None:
    """Callbacks of what was just closed have run."""
    for _ in range(10):
        await asyncio.sleep(0)
