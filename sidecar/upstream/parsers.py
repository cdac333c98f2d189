"""Two HTTP/1.1 answer parsers behind one seam: httptools, and h11 for platforms without its wheels.

A parser is fed bytes and calls its owner: `on_head(status, headers, length, is_close_delimited, keeps_alive)`,
`on_body(bytes)`, `on_done()`. It raises `ParseError` for anything that is not an HTTP answer. 1xx answers are skipped.
"""

from __future__ import annotations

from typing import Any, Protocol

from sidecar.types import Headers

MAX_HEAD_BYTES = 65_536


class ParseError(Exception):
    """Not an HTTP/1.1 answer, or a head past MAX_HEAD_BYTES."""


class Owner(Protocol):
    def on_head(self, status: int, headers: Headers, *, is_close_delimited: bool, keeps_alive: bool) -> None: ...

    def on_body(self, body: bytes) -> None: ...

    def on_done(self) -> None: ...


class Parser(Protocol):
    def feed(self, data: bytes) -> None: ...

    def expect(self, method: str) -> None:
        """A new answer, to a request of this method, is about to come."""


class HttptoolsParser:
    """httptools reports on_message_complete for 1xx too, parses unsolicited answers happily and does not know what
    was asked: all three are handled here."""

    __slots__ = ("_has_body", "_headers", "_owner", "_parser", "_size", "_skips")

    def __init__(self, owner: Owner) -> None:
        import httptools

        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self._size = 0
        self._skips = False
        self._has_body = True

    def expect(self, method: str) -> None:
        self._has_body = method != "HEAD"
        self._headers = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        import httptools

        if self._size >= 0:
            self._size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ParseError(type(error).__name__) from error
        if self._size > MAX_HEAD_BYTES:
            raise ParseError("the head is too long")

    def on_message_begin(self) -> None:
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._skips = 100 <= status < 200
        if self._skips:
            if status == 101:
                raise ParseError("the provider switched protocols")
            return
        self._size = -1
        delimited = status in (204, 304) or not self._has_body
        is_close_delimited = False
        if not delimited:
            lengths = {value for name, value in self._headers if name == b"content-length"}
            chunked = any(n == b"transfer-encoding" and b"chunked" in v.lower() for n, v in self._headers)
            is_close_delimited = not lengths and not chunked
        self._owner.on_head(
            status,
            self._headers,
            is_close_delimited=is_close_delimited,
            keeps_alive=self._parser.should_keep_alive() and not is_close_delimited,
        )
        if not self._has_body:
            self._owner.on_done()

    def on_body(self, body: bytes) -> None:
        if not self._skips:
            self._owner.on_body(body)

    def on_message_complete(self) -> None:
        if not self._skips and self._has_body:
            self._owner.on_done()


class H11Parser:
    """Pure Python, slower; the same behaviour."""

    __slots__ = ("_connection", "_owner")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._connection: Any = None

    def expect(self, method: str) -> None:
        import h11

        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._connection.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        self._connection.send(h11.EndOfMessage())

    def feed(self, data: bytes) -> None:
        import h11

        if self._connection is None:
            raise ParseError("an unsolicited answer")
        try:
            self._connection.receive_data(data)
            while True:
                event = self._connection.next_event()
                if event is h11.NEED_DATA:
                    return
                if event is h11.PAUSED:
                    # Bytes after the end of the answer: the connection is not to be used again.
                    raise ParseError("bytes after the answer")
                if isinstance(event, h11.Response):
                    headers = [(bytes(n), bytes(v)) for n, v in event.headers]
                    names = {n for n, _ in headers}
                    bodyless = event.status_code in (204, 304)
                    close = not names & {b"content-length", b"transfer-encoding"} and not bodyless
                    self._owner.on_head(
                        event.status_code,
                        headers,
                        is_close_delimited=close and self._connection.their_state is h11.SEND_BODY,
                        keeps_alive=self._connection.their_state is not h11.MUST_CLOSE and not close,
                    )
                elif isinstance(event, h11.Data):
                    self._owner.on_body(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self._owner.on_done()
                    trailing, _ = self._connection.trailing_data
                    if trailing:
                        raise ParseError("bytes after the answer")
                    return
        except h11.RemoteProtocolError as error:
            raise ParseError(str(error)) from error
