"""The few protobuf field types that OTLP spans need. https://protobuf.dev/programming-guides/encoding/"""

from __future__ import annotations

import struct

_VARINT, _I64, _LEN = 0, 1, 2


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
