"""`log:`: records as JSON lines on standard output, where containers' logs are collected."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import BinaryIO

from sidecar.spend.sinks.aside import aside
from sidecar.spend.sinks.payload import encoded_payload
from sidecar.types import SpendRecord


class LogSink:
    def __init__(self, out: BinaryIO | None = None) -> None:
        self._out = out

    async def write(self, records: Sequence[SpendRecord]) -> None:
        # In a thread: a pipe nobody reads stands still, and must not take the event loop with it.
        data = b"".join(encoded_payload(record) + b"\n" for record in records)
        await aside(lambda: self._print(data))

    def _print(self, data: bytes) -> None:
        out = self._out if self._out is not None else sys.stdout.buffer
        out.write(data)
        out.flush()

    async def aclose(self) -> None:
        pass
