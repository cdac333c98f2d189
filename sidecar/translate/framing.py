"""Incremental server-sent-events splitter on bytes.

Used by every provider whose stream is SSE and by the usage sniffer. Lines end with CRLF, LF or CR only (never
`splitlines`: U+2028 is legal inside JSON). An event keeps its exact bytes, so a pass-through can forward it unchanged.
The buffer is bounded: a line that never ends is an error, not memory.
https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import re

from sidecar.errors import UpstreamBrokenError

Event = tuple[bytes, bytes | None, bytes]
"""`(name, data, raw)`: the event's name (`b""` if it has none), its data lines joined by LF (`None` if it has none,
such as a comment), and its bytes as they came, through the blank line."""

MAX_EVENT_BYTES = 16 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")


class SSESplitter:
    """`feed(bytes)` gives the events completed by these bytes; `flush()` gives what is left at the end of the body.

    The events and their concatenated raw bytes do not depend on where the body is cut.
    """

    __slots__ = ("_buffer", "_has_started", "_limit", "_scanned")

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._limit = limit
        self._has_started = False

    def feed(self, data: bytes) -> list[Event]:
        """Raises `UpstreamBrokenError` if an event grows past the limit."""
        if not self._buffer and self._has_started and data.find(b"\n\n") == len(data) - 2 >= 0 and b"\r" not in data:
            return [parse_event(data)]  # the common case: one whole event, LF line ends
        is_crlf = data.endswith(b"\r\n\r\n") and data.count(b"\n") == data.count(b"\r") == 2
        if is_crlf and not self._buffer and self._has_started and data.startswith(b"data: "):
            return [(b"", data[6:-4], data)]  # the same with CRLF line ends, as Google sends it
        buffer = self._buffer
        buffer += data
        events: list[Event] = []
        start = 0
        position = self._scanned
        while True:
            match = _BLANK_LINE.search(buffer, position)
            if match is None:
                break
            end = match.end()
            if end == len(buffer) and buffer[end - 1] == 13:
                break  # a LF may follow and belong to this line end
            raw = bytes(buffer[start:end])
            if not self._has_started:
                self._has_started = True
                name, content, _ = parse_event(raw.removeprefix(_BOM))
                events.append((name, content, raw))
            else:
                events.append(parse_event(raw))
            start = position = end
        if start:
            del buffer[:start]
        self._scanned = max(0, len(buffer) - 3)
        if len(buffer) > self._limit:
            buffer.clear()
            raise UpstreamBrokenError(f"The provider sent an event longer than {self._limit} bytes.")
        return events

    def flush(self) -> Event | None:
        """The unfinished event at the end of the body, or `None`. The specification says to ignore it; some servers
        leave out the last blank line, so the caller decides."""
        raw = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        if not raw.strip(b"\r\n"):
            return None
        name, content, _ = parse_event(raw if self._has_started else raw.removeprefix(_BOM))
        return name, content, raw


def parse_event(raw: bytes) -> Event:
    """Fields of one event. One space after the colon is dropped; unknown fields, ids and comments are ignored."""
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw:
        return b"", raw[6:-2], raw
    if raw.startswith(b"event: ") and b"\r" not in raw:
        end = raw.find(b"\n")
        if raw.startswith(b"data: ", end + 1) and raw.find(b"\n", end + 1) == len(raw) - 2:
            return raw[7:end], raw[end + 7 : -2], raw
    name = b""
    content: bytes | None = None
    for line in _LINE_END.split(raw):
        field, _, value = line.partition(b":")
        if field == b"data":
            value = value[1:] if value.startswith(b" ") else value
            content = value if content is None else content + b"\n" + value
        elif field == b"event":
            name = value[1:] if value.startswith(b" ") else value
    return name, content, raw
