"""Decode a big JSON body in pieces, for a worker thread: between two pieces the interpreter may turn to the event loop.

The decoders hold the interpreter while they run, and building many values takes most of that time (20 MB of short
messages: 60 to 150 ms), but skipping over them does not (5 to 40 ms). So a big value is cut by skipping, and built
piece by piece. Rule: the result is what one decode gives.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from sidecar.errors import BadRequestError

BIG_BYTES = 262_144
"""From here on a body is worth a worker thread; a smaller one is decoded faster than handed over."""
PIECE_BYTES = 65_536
MAX_VALUES = 500_000
"""Of a big body. 20 MB hold up to 7 million: nobody's messages, but gigabytes of memory and seconds of CPU."""

_decode = msgspec.json.Decoder().decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode

_WINDOW = 65_536
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_CLOSED = re.compile(rb'[^"]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^"]*)*', re.DOTALL)
_INSIDE = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


def decode_big(raw: bytes) -> Any:
    """Raises `BadRequestError` for more than `MAX_VALUES` values, `msgspec.DecodeError`, `RecursionError`."""
    if _marks(raw) > MAX_VALUES and _marks_outside_strings(raw) > MAX_VALUES:
        raise BadRequestError(
            f"The gateway refused the request: its body holds more than {MAX_VALUES} values.", code="too_many_values"
        )
    return _build(raw)


def _marks(raw: bytes) -> int:
    """At least as many as there are values: each but the first of its list or object has a comma before it."""
    found = 0
    for at in range(0, len(raw), _WINDOW):
        until = at + _WINDOW
        found += raw.count(b",", at, until) + raw.count(b"[", at, until) + raw.count(b"{", at, until)
    return found


def _marks_outside_strings(raw: bytes) -> int:
    """Counted by the window, because a search holds the interpreter too. Stops past `MAX_VALUES`."""
    found = at = 0
    while at < len(raw) and found <= MAX_VALUES:
        window = raw[at : at + _WINDOW]
        closed = _CLOSED.match(window)
        assert closed is not None
        end = closed.end()
        found += _marks(_STRING.sub(b"", window[:end]))
        at += end
        if end < len(window):  # a string that goes on behind the window
            at = _behind_string(raw, at + 1)
    return found


def _behind_string(raw: bytes, at: int) -> int:
    while at < len(raw):
        inside = _INSIDE.match(raw, at, at + _WINDOW)
        assert inside is not None
        at = inside.end()
        if raw[at : at + 1] == b'"':
            return at + 1
        if at + 1 >= len(raw):
            break
    return len(raw)


def _build(raw: bytes | msgspec.Raw) -> Any:
    if len(raw) < PIECE_BYTES:
        return _decode(raw)
    kind = bytes(memoryview(raw)[:64]).lstrip(b" \t\r\n")[:1]
    if kind == b"{":
        return {name: _build(value) for name, value in _fields(raw).items()}
    if kind == b"[":
        return _build_list(_items(raw))
    return _decode(raw)


def _build_list(items: list[msgspec.Raw]) -> list[Any]:
    built: list[Any] = []
    batch: list[msgspec.Raw] = []
    size = 0
    for item in items:
        length = len(item)
        if length >= PIECE_BYTES:
            built += _decode(_joined(batch))
            built.append(_build(item))
            batch, size = [], 0
            continue
        batch.append(item)
        size += length
        if size >= PIECE_BYTES or len(batch) >= 1000:
            built += _decode(_joined(batch))
            batch, size = [], 0
    built += _decode(_joined(batch))
    return built


def _joined(items: list[msgspec.Raw]) -> bytes:
    return b"[" + b",".join(items) + b"]"
