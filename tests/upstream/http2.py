"""An HTTP/2 server made of the h2 library, on a real TLS socket, and the fixtures of its tests."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trustme
from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame

from sidecar.upstream.base import HttpRequest
from sidecar.upstream.http2_transport import Http2Transport
from tests.upstream.support import QUICK, Peer, serving, settled


class Told:
    """A request as the server got it."""

    def __init__(self, stream: int, headers: dict[str, str]) -> None:
        self.stream = stream
        self.headers = headers
        self.body = b""
        self.is_whole = False
        self.reset: ErrorCodes | int | None = None


class H2Server:
    """One connection. `react` is called with each request once it is whole (or at its head, if `early`)."""

    def __init__(self, peer: Peer, react: Callable[[H2Server, Told], None], early: bool, settings: Any) -> None:
        self.peer = peer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="ascii"))
        self.told: dict[int, Told] = {}
        self.waiting: dict[int, tuple[bytes, bool]] = {}
        self.goaway: Any = None
        self.pings = 0
        self.gone = False
        self.hands_out_windows = True
        self._react = react
        self._early = early
        self.h2.initiate_connection()
        if settings:
            self.h2.update_settings(settings)

    async def run(self) -> None:
        self.flush()
        while data := await self.peer.reader.read(65536):
            for event in self.h2.receive_data(data):
                self._take(event)
            self.pump()
            self.flush()
        self.gone = True

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            told = self.told[event.stream_id] = Told(event.stream_id, dict(event.headers))  # type: ignore[arg-type]
            if self._early:
                self._react(self, told)
        elif isinstance(event, h2.events.DataReceived):
            self.told[event.stream_id].body += event.data
            if self.hands_out_windows:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.told[event.stream_id].is_whole = True
            if not self._early:
                self._react(self, self.told[event.stream_id])
        elif isinstance(event, h2.events.StreamReset):
            self.told[event.stream_id].reset = event.error_code
            self.waiting.pop(event.stream_id, None)
        elif isinstance(event, h2.events.PingAckReceived):
            self.pings += 1

    def head(self, stream: int, status: str = "200", *headers: tuple[str, str], end: bool = False) -> None:
        self.h2.send_headers(stream, [(":status", status), ("x-from", "h2"), *headers], end_stream=end)
        self.flush()

    def say(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """As the windows allow, the rest later."""
        self.waiting[stream] = (self.waiting.get(stream, (b"", False))[0] + data, end)
        self.pump()
        self.flush()

    def pump(self) -> None:
        for stream, (whole, end) in list(self.waiting.items()):
            data = memoryview(whole)
            while data:
                size = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(data))
                if size <= 0:
                    break
                self.h2.send_data(stream, data[:size].tobytes())
                data = data[size:]
            if data:
                self.waiting[stream] = (data.tobytes(), end)
            else:
                del self.waiting[stream]
                if end:
                    self.h2.end_stream(stream)

    def reset(self, stream: int, code: ErrorCodes) -> None:
        self.h2.reset_stream(stream, code)
        self.flush()

    def leave(self, last: int) -> None:
        """GOAWAY as a server sends it who goes on with what it has: h2's own would end all."""
        self.raw(GoAwayFrame(0, last_stream_id=last, error_code=0).serialize())

    def raw(self, data: bytes) -> None:
        self.flush()
        self.peer.writer.write(data)

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and not self.peer.writer.is_closing():
            self.peer.writer.write(data)


def hello(server: H2Server, told: Told) -> None:
    server.head(told.stream)
    server.say(told.stream, b"hello", end=True)


class Place:
    """The server: its connections, and what a client needs to get there."""

    def __init__(self) -> None:
        self.lines: list[H2Server] = []
        self.port = 0

    def get(self, target: bytes = b"/", **changes: Any) -> HttpRequest:
        changes = {"method": "GET", "host": "127.0.0.1", "timeouts": QUICK, **changes}
        return HttpRequest(scheme="https", port=self.port, target=target, **changes)

    def post(self, body: bytes = b"{}", **changes: Any) -> HttpRequest:
        return self.get(method="POST", body=body, **changes)

    @property
    def told(self) -> list[Told]:
        return [told for line in self.lines for told in line.told.values()]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, str]:
    file = str(tmp_path_factory.mktemp("ca") / "ca.pem")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(file)
    return ca, file


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
async def transport(authority: tuple[trustme.CA, str], anyio_backend: Any) -> AsyncIterator[Http2Transport]:
    transport = Http2Transport(ca_file=authority[1])
    yield transport
    await transport.aclose()
    await settled()
    left = [t for t in asyncio.all_tasks() if not t.get_coro().__qualname__.startswith("TestRunner.")]
    assert not left, f"tasks left: {left}"


@pytest.fixture
def place(authority: tuple[trustme.CA, str]) -> Callable[..., Any]:
    """`async with place(react) as server`."""

    @contextlib.asynccontextmanager
    async def build(
        react: Callable[[H2Server, Told], None] = hello, *, early: bool = False, settings: Any = None
    ) -> AsyncIterator[Place]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority[0].issue_cert("127.0.0.1").configure_cert(context)
        context.set_alpn_protocols(["h2", "http/1.1"])
        found = Place()

        async def script(peer: Peer) -> None:
            line = H2Server(peer, react, early, settings)
            found.lines.append(line)
            await line.run()

        async with serving(script, tls=context) as server:
            found.port = server.port
            yield found

    return build
