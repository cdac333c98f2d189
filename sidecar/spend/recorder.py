"""Spend rows on their way: journal first, ledger soon after, sinks besides.

`middleware/spend.py` awaits `intent` and `record`, which wait for the journal alone; a background task ships closed
segments to the ledger in batches and deletes them. Rules: a dead database costs nothing but disk – rows are read back
from the segments, never kept in memory; a segment goes only when all its rows are in the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from sidecar.errors import UnavailableError
from sidecar.spend.journal import Journal
from sidecar.spend.rows import Row, encoded, record_of, row_of
from sidecar.spend.segments import Adopted, SegmentReader
from sidecar.spend.sinks.base import Outlet, Sink
from sidecar.types import SpendRecord

SHIP_ROWS = 1000
INSERT_TIMEOUT_S = 60.0
MAX_BACKOFF_S = 30.0
MAINTAIN_EVERY_S = 6 * 3600.0
_log = logging.getLogger(__name__)


class LedgerLike(Protocol):
    """What the recorder needs of `ledger.Ledger`."""

    async def insert_rows(self, rows: Sequence[Row]) -> list[Row]: ...

    async def rows_of(self, exchange_id: str) -> list[SpendRecord]: ...

    async def maintain(self) -> None: ...


class Recorder:
    """Journal, ledger and sinks as one. The background task starts with `start` or the first record; `interval_s` is
    how long a row may wait for the ledger, `adopt_s` how often dead processes' segments are looked for."""

    def __init__(
        self,
        journal: Journal,
        ledger: LedgerLike,
        sinks: Sequence[Sink] = (),
        *,
        interval_s: float = 1.0,
        adopt_s: float = 5.0,
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._outlets = tuple(Outlet(sink) for sink in sinks)
        self._interval_s = interval_s
        self._adopt_s = adopt_s
        self._shipping = asyncio.Lock()
        self._adopted: dict[str, Adopted] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_dirty = False
        self._maintained_at = -MAINTAIN_EVERY_S
        self.failures = 0
        """Shippings that failed in a row; 0 while the ledger takes rows."""

    def dropped_by_sink(self) -> dict[str, int]:
        """Records that sinks did not take, by place in the configuration and kind: `0:WebhookSink`."""
        return {f"{number}:{outlet.name}": outlet.dropped for number, outlet in enumerate(self._outlets)}

    def intent(self, record: SpendRecord) -> Coroutine[Any, Any, None]:
        """Await before dispatch. Raises `UnavailableError`: then do not dispatch."""
        return self._journal.intent(record)

    async def record(self, record: SpendRecord) -> None:
        """Await before the last byte. Raises `UnavailableError`: then the answer must not look whole."""
        if self._task is None:
            self._spawn()
        self._is_dirty = True
        await self._journal.record(record)
        for outlet in self._outlets:
            outlet.offer(record)

    async def silent(self, record: SpendRecord) -> None:
        """The row of a hold that was charged because its owner fell silent, so that counters and ledger agree. What
        the owner's journal knows comes first: if the exchange has rows already, only the difference is appended."""
        try:
            await self.flush()
            rows = await self._ledger.rows_of(record.exchange_id)
        except UnavailableError:
            rows = []
        if rows:
            last = rows[-1]
            missing = record.cost_nano - sum(row.cost_nano for row in rows)
            if not missing:
                return
            revision = 1 + max(row.revision for row in rows if row.attempt == last.attempt)
            record = replace(
                last, revision=revision, status="unknown", cost_nano=missing, usage=type(last.usage)(), at=record.at
            )
        await self.record(record)

    async def start(self) -> None:
        """Adopt what dead processes left and start the background task. A dead database does not fail it."""
        if self._task is None:
            self._spawn()

    async def flush(self) -> None:
        """When it returns, everything recorded or adoptable so far is in the ledger. Raises `UnavailableError`."""
        async with self._shipping:
            self._adopt()
            paths, is_complete = self._journal.take()
            for path in paths:
                await self._ship_segment(path)
            for adopted in list(self._adopted.values()):
                await self._ship_adopted(adopted)
            if not is_complete:
                raise UnavailableError("The spend journal is not writable.", code="journal_not_writable")

    async def aclose(self, *, timeout_s: float = 10.0) -> None:
        """Ship what can be shipped within the time; the rest stays in the journal for the next process."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        try:
            async with asyncio.timeout(timeout_s):
                await self.flush()
        except (UnavailableError, TimeoutError):
            _log.warning("the ledger did not take every row; the rest stays in the journal")
        for adopted in self._adopted.values():
            adopted.release()
        self._adopted.clear()
        await self._journal.aclose()
        for outlet in self._outlets:
            await outlet.aclose()

    # The background task

    def _spawn(self) -> None:
        self._is_dirty = True
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        adopt_at = time.monotonic()
        while True:
            now = time.monotonic()
            if self._is_dirty or now >= adopt_at:
                self._is_dirty = False
                try:
                    await self.flush()
                    await self._maintain(now)
                    self.failures = 0
                except UnavailableError as error:
                    self._failed(error)
                except Exception as error:  # noqa: BLE001 - the task must live; the next round tries again
                    self._failed(error)
                adopt_at = time.monotonic() + self._adopt_s
            delay = self._interval_s
            if self.failures:
                self._is_dirty = True
                delay = min(MAX_BACKOFF_S, max(delay, 0.5) * 2 ** min(self.failures, 10))
            await asyncio.sleep(delay)

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if self.failures in (1, 10, 100) or self.failures % 1000 == 0:
            cause = error.__cause__ or error
            _log.warning("spend rows wait in the journal (failure %d): %s", self.failures, type(cause).__name__)

    async def _maintain(self, now: float) -> None:
        if now - self._maintained_at >= MAINTAIN_EVERY_S:
            self._maintained_at = now
            await self._ledger.maintain()

    # Shipping

    def _adopt(self) -> None:
        try:
            for adopted in self._journal.adopt(set(self._adopted)):
                self._adopted[adopted.owner] = adopted
                _log.info("adopted %d journal segments of a process that ended", len(adopted.paths))
        except OSError as error:
            _log.warning("the journal folder cannot be read: %s", error.strerror)

    async def _ship_segment(self, path: Path) -> None:
        reader = SegmentReader(track_intents=False)
        for batch in reader.batches(path, SHIP_ROWS):
            await self._insert(batch)
        _keep_if_damaged(path, reader)
        self._journal.drop(path)

    async def _ship_adopted(self, adopted: Adopted) -> None:
        """The dead process's records, then a row at the held cost for each intent it left open."""
        reader = SegmentReader(track_intents=True)
        for path in adopted.paths:
            damaged = reader.damaged
            for batch in reader.batches(path, SHIP_ROWS):
                await self._insert(batch)
            if reader.damaged > damaged:
                _keep_if_damaged(path, reader)
        intents = [
            replace(record_of(intent), status="unknown", outcome="incomplete")
            for intent in reader.open_intents.values()
        ]
        for start in range(0, len(intents), SHIP_ROWS):
            await self._insert([row_of(intent) for intent in intents[start : start + SHIP_ROWS]])
        for record in intents:
            for outlet in self._outlets:
                outlet.offer(record)
        adopted.drop()
        del self._adopted[adopted.owner]

    async def _insert(self, batch: list[Row]) -> None:
        try:
            async with asyncio.timeout(INSERT_TIMEOUT_S):
                refused = await self._ledger.insert_rows(batch)
        except TimeoutError as error:
            raise UnavailableError("The ledger does not answer.", code="ledger_unavailable") from error
        if refused:
            path = self._journal.folder / "refused.jsonl"
            with path.open("ab") as file:
                file.write(b"".join(encoded(record_of(row)) + b"\n" for row in refused))
            _log.error("the ledger refused %d rows; they are kept in %s", len(refused), path.name)


def _keep_if_damaged(path: Path, reader: SegmentReader) -> None:
    """A damaged segment's good rows are shipped; its bytes stay beside, for a human."""
    if reader.damaged:
        path.with_suffix(".damaged").write_bytes(path.read_bytes())
