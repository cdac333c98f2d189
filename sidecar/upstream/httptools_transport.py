"""The hot path: a small HTTP/1.1 client on asyncio callbacks and httptools (h11 where that has no wheel).

Neighbours: `connection` (one connection), `base` (the seam). Pools are keyed by origin, never by credential; a
connection carries no state from one request to the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable

from sidecar.errors import UpstreamConnectError, UpstreamStaleError, UpstreamTimeoutError
from sidecar.upstream.base import HttpAnswer, HttpRequest, distrust, head_bytes
from sidecar.upstream.connection import Connection
from sidecar.upstream.parsers import H11Parser, HttptoolsParser, Parser

Origin = tuple[str, str, int]
CLOSED_EARLY = "The connection to the provider was closed before anything was sent."


def default_parser() -> type[HttptoolsParser] | type[H11Parser]:
    try:
        import httptools  # noqa: F401
    except ImportError:
        return H11Parser
    return HttptoolsParser


class HttptoolsTransport:
    """`ca_file` replaces the system's certificate store; `client_cert` is (certificate file, key file). `max_idle`
    connections are kept per origin, at most `idle_s` seconds each."""

    alpn: tuple[str, ...] = ("http/1.1",)

    def __init__(
        self,
        *,
        ca_file: str | None = None,
        client_cert: tuple[str, str] | None = None,
        max_idle: int = 128,
        idle_s: float = 30.0,
        parser: Callable[[Connection], Parser] | None = None,
    ) -> None:
        self._ca_file = ca_file
        self._client_cert = client_cert
        self._tls: ssl.SSLContext | None = None
        self._max_idle = max_idle
        self._idle_s = idle_s
        self._parser = parser if parser is not None else default_parser()
        self._idle: dict[Origin, deque[Connection]] = {}
        self._open: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False
        if client_cert is not None:
            self._context()  # a bad one is told now

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self._ca_file)
            if self._client_cert is not None:
                self._tls.load_cert_chain(*self._client_cert)
            self._tls.set_alpn_protocols(list(self.alpn))
        return self._tls

    async def send(self, request: HttpRequest) -> HttpAnswer:
        head = head_bytes(request)
        loop = asyncio.get_running_loop()
        origin = (request.scheme, request.host, request.port)
        started_at = loop.time()
        connection = self._reuse(origin, started_at)
        if connection is not None:
            try:
                return await self._ask(connection, request, head, started_at)
            except UpstreamStaleError:
                pass  # nothing was written whole: once more, on a fresh connection, is free
        connection = await self._connect(loop, origin, request)
        return await self._ask(connection, request, head, started_at)

    async def _ask(self, connection: Connection, request: HttpRequest, head: bytes, started_at: float) -> HttpAnswer:
        answer = connection.send(request, head, started_at)
        await answer.head()
        return answer

    def _reuse(self, origin: Origin, now: float) -> Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.is_usable and now - connection.idle_since < self._idle_s:
                return connection
            connection.close()
        return None

    def _give_back(self, connection: Connection) -> None:
        idle = self._idle.get(connection.origin)
        if idle is None:
            idle = self._idle[connection.origin] = deque()
        if len(idle) >= self._max_idle:
            connection.close()
            return
        connection.idle_since = connection.loop.time()
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = connection.loop.call_later(self._idle_s, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for origin, idle in list(self._idle.items()):
            while idle and now - idle[0].idle_since >= self._idle_s:
                idle.popleft().close()
            if not idle:
                del self._idle[origin]
        self._sweeper = loop.call_later(self._idle_s, self._sweep) if self._idle else None

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if idle := self._idle.get(connection.origin):
            with contextlib.suppress(ValueError):
                idle.remove(connection)

    async def _connect(self, loop: asyncio.AbstractEventLoop, origin: Origin, request: HttpRequest) -> Connection:
        connection = Connection(loop, self._parser)
        try:
            await self._dial(loop, origin, request, lambda: connection)
        except UpstreamTimeoutError:
            connection.close()
            raise
        if self._is_closed or connection.is_closed:
            connection.close()
            raise UpstreamConnectError(CLOSED_EARLY)
        return self._adopt(connection, origin)

    def _adopt(self, connection: Connection, origin: Origin) -> Connection:
        connection.origin = origin
        connection.on_free = self._give_back
        connection.on_closed = self._forget
        self._open.add(connection)
        return connection

    async def _dial(
        self,
        loop: asyncio.AbstractEventLoop,
        origin: Origin,
        request: HttpRequest,
        factory: Callable[[], asyncio.Protocol],
    ) -> None:
        scheme, host, port = origin
        tls = self._context() if scheme == "https" else None
        times = request.timeouts
        seconds = min(times.connect_s, times.total_s)
        try:
            async with asyncio.timeout(seconds):
                await loop.create_connection(
                    factory, host, port, ssl=tls, server_hostname=host if tls is not None else None
                )
        except TimeoutError:
            raise UpstreamTimeoutError(
                f"The gateway could not reach the provider within {seconds:g} s.",
                phase="connect" if times.connect_s <= times.total_s else "total",
                is_sent=False,
            ) from None
        except ssl.SSLCertVerificationError as error:
            raise UpstreamConnectError(
                f"The gateway does not trust the provider's certificate ({distrust(error)})."
            ) from None
        except OSError as error:
            raise UpstreamConnectError(
                f"The gateway could not connect to the provider ({type(error).__name__})."
            ) from None

    async def aclose(self) -> None:
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self._open):
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)
