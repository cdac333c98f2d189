"""Spend records as JSON lines in a file, for whatever reads logs. Money is nano-dollars, instants Unix seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sidecar.spend.rows import storable
from sidecar.types import SpendRecord

_encode = msgspec.json.Encoder().encode


class JsonlSink:
    """Appends to `path`, which is opened for each batch, so that it may be rotated by renaming."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    async def write(self, records: Sequence[SpendRecord]) -> None:
        await asyncio.to_thread(self._append, b"".join(map(_line, records)))

    def _append(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(data)

    async def aclose(self) -> None:
        pass


def _line(record: SpendRecord) -> bytes:
    try:
        return _encode(record) + b"\n"
    except (UnicodeEncodeError, OverflowError):
        return _encode(storable(record)) + b"\n"
