"""`log:`: records as JSON lines on standard output, where containers' logs are collected."""

from __future__ import annotations

import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from sidecar.spend.sinks.aside import aside
from sidecar.spend.sinks.payload import encoded_payload
from sidecar.types import SpendRecord


class LogSink:
    def __init__(self, out: BinaryIO | None = None) -> None:
        self._out = out

    async def write(self, records: Sequence[SpendRecord]) -> None:
        # In a thread: a pipe nobody reads stands still, and must not take the event loop with it.
        pieces = list(_pieces(encoded_payload(record) + b"\n" for record in records))
        await aside(lambda: self._print(pieces))

    def _print(self, pieces: Sequence[bytes]) -> None:
        out = self._out if self._out is not None else sys.stdout.buffer
        for piece in pieces:
            out.write(piece)
            out.flush()

    async def aclose(self) -> None:
        pass


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, as many as a pipe takes in one go: more, and the lines of workers that share it mix.
    https://man7.org/linux/man-pages/man7/pipe.7.html (PIPE_BUF)"""
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > select.PIPE_BUF:
            yield piece
            piece = b""
        piece += line
    if piece:
        yield piece
