"""Incremental splitter of JSON lines (`application/x-ndjson`), as Ollama streams them.

Neighbour: `framing.SSESplitter`, whose interface this has. Only LF ends a line (a CR before it goes too): U+2028 is
legal inside JSON. Bounded: a line that never ends is an error, not memory. https://jsonlines.org
"""

from __future__ import annotations

from sidecar.errors import UpstreamBrokenError
from sidecar.translate.framing import MAX_EVENT_BYTES, Event


class JSONLinesSplitter:
    """`feed(bytes)` gives `(b"", line, raw)` for every line completed by these bytes, `None` as line for a blank one;
    `flush()` the last line, if it has no end. Lines and their raw bytes do not depend on where the body is cut."""

    __slots__ = ("_buffer", "_limit", "_scanned")

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._limit = limit

    def feed(self, data: bytes) -> list[Event]:
        """Raises `UpstreamBrokenError` if a line grows past the limit."""
        buffer = self._buffer
        if not buffer and data.find(b"\n") == len(data) - 1 >= 0 and len(data) <= self._limit:
            return [_line(data)]  # the common case: one whole line
        buffer += data
        events: list[Event] = []
        start = 0
        end = buffer.find(b"\n", self._scanned)
        while end >= 0:
            if end - start > self._limit:
                raise self._too_long()
            events.append(_line(bytes(buffer[start : end + 1])))
            start = end + 1
            end = buffer.find(b"\n", start)
        if start:
            del buffer[:start]
        self._scanned = len(buffer)
        if len(buffer) > self._limit:
            raise self._too_long()
        return events

    def flush(self) -> Event | None:
        """The line at the end of the body that has no line end, or `None`."""
        raw = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        return _line(raw) if raw.strip() else None

    def _too_long(self) -> UpstreamBrokenError:
        self._buffer.clear()
        self._scanned = 0
        return UpstreamBrokenError(f"The provider sent a line longer than {self._limit} bytes.")


def _line(raw: bytes) -> Event:
    return b"", raw.strip(b" \t\r\n") or None, raw
