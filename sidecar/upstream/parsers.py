"""Two HTTP/1.1 answer parsers behind one seam: httptools, and h11 for platforms without its wheels.

A parser is fed bytes and calls its owner: `on_head(status, headers, length, is_close_delimited, keeps_alive)`,
`on_body(bytes)`, `on_done()`. It raises `ParseError` for anything that is not an HTTP answer. 1xx answers are skipped.
"""

from __future__ import annotations

from typing import Any, Protocol

from sidecar.types import Headers
from sidecar.upstream.base import is_kept_alive

MAX_HEAD_BYTES = 65_536
"""Of a head with the 1xx answers before it, and of what lies between two pieces of a body (extensions, trailers)."""


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


def ends_with_close(headers: Headers) -> bool:
    """Whether an answer with a body ends only when the connection does. Raises ParseError where two readers could
    disagree on its end (RFC 9112 §6.3), and for transfer codings besides chunked, which no one here undoes."""
    lengths: set[bytes] = set()
    is_chunked = False
    for name, value in headers:
        if name == b"content-length":
            lengths.add(value)
        elif name == b"transfer-encoding":
            if is_chunked or value.strip().lower() != b"chunked":
                raise ParseError("its transfer-encoding is not chunked")
            is_chunked = True
    if len(lengths) + is_chunked > 1:
        raise ParseError("it gives its length twice")
    return not lengths and not is_chunked


def _check_head(headers: Headers) -> None:
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        raise ParseError("the head is too long")


class HttptoolsParser:
    """httptools reports on_message_complete for 1xx too, parses unsolicited answers happily and does not know what
    was asked: all three are handled here."""

    __slots__ = ("_has_body", "_headers", "_is_over", "_owner", "_parser", "_size", "_skips")

    def __init__(self, owner: Owner) -> None:
        import httptools

        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self._size = 0  # bytes since the last head or piece of a body
        self._skips = False
        self._has_body = True
        self._is_over = False

    def expect(self, method: str) -> None:
        if not self._has_body:
            import httptools

            self._parser = httptools.HttpResponseParser(self)  # the old one waits for the body its head announced
        self._has_body = method != "HEAD"
        self._is_over = False
        self._size = 0

    def feed(self, data: bytes) -> None:
        import httptools

        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            raise ParseError(str(cause) if isinstance(cause, ParseError) else type(error).__name__) from error
        if self._size > MAX_HEAD_BYTES:
            raise ParseError("the head is too long")

    def on_message_begin(self) -> None:
        if self._is_over:
            raise ParseError("bytes after the answer")
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
        headers = self._headers
        if self._size > MAX_HEAD_BYTES:
            _check_head(headers)  # all in one read: part of it may be the body
        self._size = 0
        self._headers = []  # trailers go nowhere
        if self._has_body:
            is_close_delimited = status not in (204, 304) and ends_with_close(headers)
            keeps_alive = self._parser.should_keep_alive()
        else:
            is_close_delimited = False
            keeps_alive = is_kept_alive(self._parser.get_http_version() == "1.0", headers)
        self._owner.on_head(status, headers, is_close_delimited=is_close_delimited, keeps_alive=keeps_alive)
        if not self._has_body:
            self._is_over = True
            self._owner.on_done()

    def on_body(self, body: bytes) -> None:
        if self._is_over:
            raise ParseError("bytes after the answer")
        self._size = 0
        if not self._skips:
            self._owner.on_body(body)

    def on_message_complete(self) -> None:
        if not self._skips and self._has_body:
            self._is_over = True
            self._owner.on_done()


class H11Parser:
    """Pure Python, slower; the same behaviour."""

    __slots__ = ("_connection", "_has_body", "_owner", "_size")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._connection: Any = None
        self._has_body = True
        self._size = 0

    def expect(self, method: str) -> None:
        import h11

        self._has_body = method != "HEAD"
        self._size = 0
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._connection.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        self._connection.send(h11.EndOfMessage())

    def feed(self, data: bytes) -> None:
        import h11

        if self._connection is None:
            raise ParseError("an unsolicited answer")
        self._size += len(data)
        try:
            self._connection.receive_data(data)
            while (event := self._connection.next_event()) is not h11.NEED_DATA:
                if event is h11.PAUSED:
                    raise ParseError("bytes after the answer")
                self._on_event(event)
                if self._connection is None:
                    return
        except h11.RemoteProtocolError as error:
            raise ParseError(str(error)) from error
        if self._size > MAX_HEAD_BYTES:
            raise ParseError("the head is too long")

    def _on_event(self, event: object) -> None:
        import h11

        if isinstance(event, h11.Response):
            headers = [(bytes(n), bytes(v)) for n, v in event.headers]
            _check_head(headers)
            self._size = 0
            is_close_delimited = self._has_body and event.status_code not in (204, 304) and ends_with_close(headers)
            is_kept = is_kept_alive(event.http_version == b"1.0", headers)
            self._owner.on_head(
                event.status_code,
                headers,
                is_close_delimited=is_close_delimited,
                keeps_alive=is_kept and not is_close_delimited,
            )
        elif isinstance(event, h11.Data):
            self._size = 0
            self._owner.on_body(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            trailing, _ = self._connection.trailing_data
            self._connection = None
            self._owner.on_done()
            if trailing:
                raise ParseError("bytes after the answer")
