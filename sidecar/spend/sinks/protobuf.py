"""The few protobuf field types that OTLP's spans and answers need. https://protobuf.dev/programming-guides/encoding/"""

from __future__ import annotations

import struct

_VARINT, _I64, _LEN = 0, 1, 2
_FIXED = {_I64: 8, 5: 4}


def varint(value: int) -> bytes:
    """Negative numbers as 64-bit two's complement."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def int_field(number: int, value: int) -> bytes:
    return varint(number << 3 | _VARINT) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """Of text, bytes and messages."""
    return varint(number << 3 | _LEN) + varint(len(value)) + value


def fixed64_field(number: int, value: int) -> bytes:
    return varint(number << 3 | _I64) + struct.pack("<Q", value)


def double_field(number: int, value: float) -> bytes:
    return varint(number << 3 | _I64) + struct.pack("<d", value)


def fields_of(data: bytes) -> dict[int, int | bytes]:
    """A message's fields by number, the last of each; nothing if it is none. Fixed ones are left out."""
    found: dict[int, int | bytes] = {}
    at = 0
    try:
        while at < len(data):
            tag, at = _read_varint(data, at)
            if tag & 7 == _VARINT:
                found[tag >> 3], at = _read_varint(data, at)
            elif tag & 7 == _LEN:
                size, at = _read_varint(data, at)
                found[tag >> 3] = data[at : at + size]
                at += size
            elif tag & 7 in _FIXED:
                at += _FIXED[tag & 7]
            else:
                return {}
    except IndexError:
        return {}
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
        if shift > 63:
            raise IndexError
