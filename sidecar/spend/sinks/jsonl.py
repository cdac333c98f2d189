"""`jsonl:///path`: records as JSON lines in a file, for whatever reads logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sidecar.spend.sinks.aside import aside
from sidecar.spend.sinks.payload import encoded_payload
from sidecar.types import SpendRecord


class JsonlSink:
    """Appends to `path`, which is opened for each batch, so that it may be rotated by renaming."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    async def write(self, records: Sequence[SpendRecord]) -> None:
        data = b"".join(encoded_payload(record) + b"\n" for record in records)
        await aside(lambda: self._append(data))

    def _append(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(data)

    async def aclose(self) -> None:
        pass
