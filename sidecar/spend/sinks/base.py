"""Where finished spend records go besides the ledger, and the bounded queue before each such place.

`recorder.py` makes one `Outlet` per sink. Rule: a slow or broken sink never delays a request nor grows memory; what it
does not take is dropped and counted. The ledger has every row anyway.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from sidecar.tasks import end
from sidecar.types import SpendRecord

QUEUE_RECORDS = 10_000
BATCH_RECORDS = 500
_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Receives records in batches, one call at a time. An exception drops the batch, or as many as its `lost` says."""

    async def write(self, records: Sequence[SpendRecord]) -> None: ...

    async def aclose(self) -> None: ...


class Outlet:
    """The queue before one sink. `dropped` counts what did not fit, could not be written, or was not when it
    closed."""

    def __init__(self, sink: Sink, *, size: int = QUEUE_RECORDS) -> None:
        self._sink = sink
        self._size = size
        self._queue: deque[SpendRecord] = deque()
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    @property
    def name(self) -> str:
        return type(self._sink).__name__

    def offer(self, record: SpendRecord) -> None:
        if len(self._queue) >= self._size:
            self.dropped += 1
            return
        self._queue.append(record)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH_RECORDS, len(self._queue)))]
                try:
                    await self._sink.write(batch)
                except asyncio.CancelledError:
                    self.dropped += len(batch)
                    raise
                except Exception as error:  # noqa: BLE001 - a sink may raise anything
                    # The gateway goes on; the operator sees it here and in the count.
                    some = getattr(error, "lost", None)
                    lost = len(batch) if some is None else min(some, len(batch))
                    self.dropped += lost
                    _log.exception("the sink %s did not take %d records", type(self._sink).__name__, lost)
        finally:
            self._task = None

    async def aclose(self, *, timeout_s: float = 5.0) -> None:
        """Let the sink take what waits, but not for ever."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout_s)
            await end([self._task])
        self.dropped += len(self._queue)
        self._queue.clear()
        await self._sink.aclose()
