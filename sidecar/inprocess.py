"""A streaming httpx2 transport over an ASGI app: your own SDK calls go through the stack in-process, without a socket.

    http = httpx2.AsyncClient(transport=InProcess(gateway))
    client = AsyncOpenAI(base_url="http://sidecar/v1", api_key=key, http_client=http)

Neighbours: any ASGI app. httpx's own ASGITransport buffers whole answers; this one gives every piece as it is sent,
waits for the reader, and tells the app when the reader leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from sidecar.asgi import ASGIApp, Message


class InProcess(httpx2.AsyncBaseTransport):
    """`app` is called with ASGI 3 HTTP scopes. An exception of the app before its answer started is raised here."""

    def __init__(self, app: ASGIApp, *, root_path: str = "") -> None:
        self.app = app
        self.root_path = root_path

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = b"".join([part async for part in request.stream])  # type: ignore[union-attr]
        raw_path, _, query = request.url.raw_path.partition(b"?")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.url.scheme,
            "path": self.root_path + request.url.path,
            "raw_path": self.root_path.encode() + raw_path,
            "query_string": query,
            "root_path": self.root_path,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "server": (request.url.host, request.url.port),
            "client": ("in-process", 0),
        }
        call = _Call(self.app, scope, body)
        try:
            await call.started()
        except BaseException:
            await call.aclose()
            raise
        return httpx2.Response(call.status, headers=call.headers, stream=call, request=request)


class _Call(httpx2.AsyncByteStream):
    """One request: a task runs the app; at most one piece waits between it and the reader."""

    def __init__(self, app: ASGIApp, scope: dict[str, Any], body: bytes) -> None:
        self._body: bytes | None = body
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
        self._start = asyncio.Event()
        self._left = asyncio.Event()
        self._is_ended = False
        self.status = 500
        self.headers: list[tuple[bytes, bytes]] = []
        self._task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._send)
        finally:
            self._start.set()
            if not self._is_ended and not self._left.is_set():
                await self._pieces.put(None)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._left.is_set():
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = list(message["headers"])
            self._start.set()
        elif message["type"] == "http.response.body":
            if message.get("body"):
                await self._pieces.put(message["body"])
            if not message.get("more_body", False):
                self._is_ended = True
                self._left.set()
                await self._pieces.put(None)

    async def started(self) -> None:
        await self._start.wait()
        if self._task.done() and not self.headers:
            await self._task
            raise httpx2.RemoteProtocolError("the application gave no answer")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            piece = await self._pieces.get()
            if piece is None:
                break
            yield piece
        await self._task
        if not self._is_ended:
            raise httpx2.RemoteProtocolError("the application cut its answer short")

    async def aclose(self) -> None:
        """The reader is done: tell the app, unblock it, and let it settle."""
        self._left.set()
        while not self._task.done():
            while not self._pieces.empty():
                self._pieces.get_nowait()
            await asyncio.wait({self._task}, timeout=0.05)
        if not self._task.cancelled():
            self._task.exception()
