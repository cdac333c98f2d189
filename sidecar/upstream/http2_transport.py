"""The hot path with HTTP/2 where the provider offers it (ALPN), and HTTP/1.1 as ever where it does not.

Neighbours: `http2_connection`, `httptools_transport` (whose pool it extends). Over plain TCP it speaks HTTP/1.1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from sidecar.errors import UpstreamConnectError, UpstreamStaleError, UpstreamTimeoutError
from sidecar.types import Headers
from sidecar.upstream.base import HttpAnswer, HttpRequest, authority, head_bytes, sendable
from sidecar.upstream.connection import Connection
from sidecar.upstream.http2_connection import Http2Connection
from sidecar.upstream.httptools_transport import CLOSED_EARLY, HttptoolsTransport, Origin


class Http2Transport(HttptoolsTransport):
    """A connection takes many requests at once; another is opened when all are full. `max_idle` is for HTTP/1.1."""

    alpn = ("h2", "http/1.1")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._shared: dict[Origin, list[Http2Connection]] = {}

    async def send(self, request: HttpRequest) -> HttpAnswer:
        if request.scheme != "https":
            return await super().send(request)
        head = head_bytes(request)
        loop = asyncio.get_running_loop()
        origin = (request.scheme, request.host, request.port)
        started_at = loop.time()
        for connection in (self._with_room(origin) or self._reuse(origin, started_at), None):
            try:
                found = connection or await self._choose(loop, origin, request)
                if isinstance(found, Connection):
                    return await self._ask(found, request, head, started_at)
                answer = found.send(request, _headers(request), started_at)
                await answer.head()
                return answer
            except UpstreamStaleError:
                if connection is None:
                    raise
        raise AssertionError("a fresh connection answers or raises")

    def _with_room(self, origin: Origin) -> Http2Connection | None:
        return next((c for c in self._shared.get(origin, ()) if c.has_room), None)

    async def _choose(
        self, loop: asyncio.AbstractEventLoop, origin: Origin, request: HttpRequest
    ) -> Connection | Http2Connection:
        chooser = _Chooser(lambda: Http2Connection(loop, self._idle_s), lambda: Connection(loop, self._parser))
        try:
            await self._dial(loop, origin, request, lambda: chooser)
        except UpstreamTimeoutError:
            if chooser.chosen is not None:
                chooser.chosen.close()
            raise
        chosen = chooser.chosen
        if chosen is None or self._is_closed or chosen.is_closed:
            if chosen is not None:
                chosen.close()
            raise UpstreamConnectError(CLOSED_EARLY)
        if isinstance(chosen, Connection):
            return self._adopt(chosen, origin)
        shared = self._shared.setdefault(origin, [])
        shared.append(chosen)

        def forget(gone: Http2Connection) -> None:
            shared.remove(gone)
            if not shared and self._shared.get(origin) is shared:
                del self._shared[origin]

        chosen.on_closed = forget
        return chosen

    async def aclose(self) -> None:
        for shared in list(self._shared.values()):
            for connection in list(shared):
                connection.close()
        await super().aclose()


class _Chooser(asyncio.Protocol):
    """Looks what was agreed on, and hands the connection over before its first byte is read."""

    def __init__(self, http2: Callable[[], Http2Connection], http1: Callable[[], Connection]) -> None:
        self._http2 = http2
        self._http1 = http1
        self.chosen: Http2Connection | Connection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        agreed = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        self.chosen = self._http2() if agreed == "h2" else self._http1()
        cast(asyncio.Transport, transport).set_protocol(self.chosen)
        self.chosen.connection_made(transport)


def _headers(request: HttpRequest) -> Headers:
    """The head that `head_bytes` writes, as HTTP/2 says it."""
    headers: Headers = [
        (b":method", request.method.encode()),
        (b":authority", authority(request.scheme, request.host, request.port)),
        (b":scheme", request.scheme.encode()),
        (b":path", request.target),
    ]
    given = sendable(request.headers)
    if request.fixed is not None:
        given = request.fixed.headers + given
    headers += given
    if not any(name == b"accept-encoding" for name, _ in given):
        headers.append((b"accept-encoding", b"identity"))
    if request.body or request.method in ("POST", "PUT", "PATCH"):
        headers.append((b"content-length", b"%d" % len(request.body)))
    return headers
