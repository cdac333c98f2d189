"""Incremental splitter of AWS event streams (`application/vnd.amazon.eventstream`), as Bedrock sends them.

Neighbour: `framing.SSESplitter`, whose interface this has. A message is: total length, headers length, CRC-32 of these
eight bytes, headers, payload, CRC-32 of everything before it; all numbers big-endian. Rules: both checksums are
checked; lengths are bounded before anything is kept; a stream that ends within a message is an error; after an error
every call raises it again.
https://smithy.io/2.0/aws/amazon-eventstream.html
"""

from __future__ import annotations

import struct
from zlib import crc32

import msgspec

from sidecar.errors import UpstreamBrokenError
from sidecar.translate.framing import MAX_EVENT_BYTES, Event

MAX_HEADERS_BYTES = 128 * 1024

_PRELUDE = struct.Struct(">III")
_CRC = struct.Struct(">I")
_FIXED_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Header value type → its length: true, false, byte, short, int, long, timestamp, UUID. 6 and 7 (bytes, string) have
their length in two bytes."""


class AWSEventSplitter:
    """`feed(bytes)` gives `(name, payload, raw)` for every message completed by these bytes.

    `name` is the `:event-type`; `b"exception:TYPE"` for a modelled exception, and for an error (then the payload is
    `{"message": …}` if the message itself has none).
    """

    __slots__ = ("_buffer", "_error", "_limit", "_names")

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._buffer = bytearray()
        self._error: UpstreamBrokenError | None = None
        self._limit = limit
        self._names: dict[bytes, bytes] = {}  # header bytes of plain events, which repeat, → name

    def feed(self, data: bytes) -> list[Event]:
        """Raises `UpstreamBrokenError` for a message too long or not whole; if messages came before it, they are given
        first and the next call raises."""
        if self._error is not None:
            raise self._error
        events: list[Event] = []
        try:
            self._split(data, events)
        except UpstreamBrokenError as error:
            self._error = error
            self._buffer.clear()
            if not events:
                raise
        return events

    def _split(self, data: bytes, events: list[Event]) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        size = len(buffer)
        while size - start >= 12:
            total, headers_size, checksum = _PRELUDE.unpack_from(buffer, start)
            if crc32(buffer[start : start + 8]) != checksum:
                raise self._broken("with a wrong checksum")
            if headers_size > MAX_HEADERS_BYTES or total < headers_size + 16:
                raise self._broken("with impossible lengths")
            if total > self._limit:
                raise self._broken(f"longer than {self._limit} bytes")
            end = start + total
            if size < end:
                break
            raw = bytes(buffer[start:end])
            if crc32(raw[:-4]) != _CRC.unpack_from(raw, total - 4)[0]:
                raise self._broken("with a wrong checksum")
            events.append(self._event(raw, 12 + headers_size))
            start = end
        if start:
            del buffer[:start]

    def flush(self) -> None:
        """At the end of the body. Raises `UpstreamBrokenError` if it ends within a message."""
        if self._error is not None:
            raise self._error
        if self._buffer:
            self._error = self._broken("that was cut off")
            raise self._error

    def _event(self, raw: bytes, payload_start: int) -> Event:
        block = raw[12:payload_start]
        payload = raw[payload_start:-4]
        known = self._names.get(block)
        if known is not None:
            return known, payload, raw
        headers = self._headers(raw, payload_start)
        kind = headers.get(b":message-type", b"event")
        if kind == b"event":
            name = headers.get(b":event-type", b"")
            if len(self._names) < 32 and len(block) < 512:
                self._names[block] = name
            return name, payload, raw
        if kind == b"exception":
            return b"exception:" + headers.get(b":exception-type", b""), payload, raw
        if not payload:
            message = headers.get(b":error-message", b"").decode("utf-8", "replace")
            payload = msgspec.json.encode({"message": message})
        return b"exception:" + headers.get(b":error-code", b""), payload, raw

    def _headers(self, raw: bytes, end: int) -> dict[bytes, bytes]:
        """Name → value of the string and bytes headers; the others are stepped over."""
        found: dict[bytes, bytes] = {}
        names: set[bytes] = set()
        at = 12
        while at < end:
            value_at = at + 2 + raw[at]
            if value_at > end:
                raise self._broken("with broken headers")
            name, kind = raw[at + 1 : value_at - 1], raw[value_at - 1]
            if kind in (6, 7):
                if value_at + 2 > end:
                    raise self._broken("with broken headers")
                at = value_at + 2 + int.from_bytes(raw[value_at : value_at + 2], "big")
                found[name] = raw[value_at + 2 : at]
            elif kind in _FIXED_SIZES:
                at = value_at + _FIXED_SIZES[kind]
            else:
                raise self._broken("with broken headers")
            if at > end or name in names:
                raise self._broken("with broken headers")
            names.add(name)
        return found

    def _broken(self, how: str) -> UpstreamBrokenError:
        return UpstreamBrokenError(f"The provider sent a message {how}.")
