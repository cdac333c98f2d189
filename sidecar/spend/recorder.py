"""Spend rows on their way: journal first, ledger soon after, sinks besides.

`middleware/spend.py` awaits `intent` and `record`, which wait for the journal alone; a background task ships closed
segments to the ledger in batches and deletes them. Rules: a dead database costs nothing but disk – rows are read back
from the segments, never kept in memory; a segment goes only when all its rows are in the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from sidecar.errors import UnavailableError
from sidecar.spend.journal import Journal
from sidecar.spend.rows import Row, encoded, record_of, row_of
from sidecar.spend.segments import Adopted, SegmentReader
from sidecar.spend.sinks.base import QUEUE_RECORDS, Outlet, Sink
from sidecar.types import SpendRecord, Usage

SHIP_ROWS = 3000
READ_ROWS = 500
INSERT_TIMEOUT_S = 60.0
MAX_BACKOFF_S = 30.0
MAX_CANCELS = 5
MAINTAIN_EVERY_S = 6 * 3600.0
_log = logging.getLogger(__name__)


class LedgerLike(Protocol):
    """What the recorder needs of `ledger.Ledger`."""

    async def insert_rows(self, rows: Sequence[Row]) -> list[Row]: ...

    async def rows_of(self, exchange_id: str) -> list[SpendRecord]: ...

    async def costs_of(self, exchange_ids: Sequence[str]) -> dict[str, int]: ...

    async def maintain(self) -> None: ...


@dataclass(slots=True)
class Flushes:
    """How shipping to the ledger goes in this process. Instants are Unix seconds; `error` is the last one's."""

    runs: int = 0
    failures: int = 0
    ended_at: float | None = None
    ok_at: float | None = None
    error: str | None = None


class Recorder:
    """Journal, ledger and sinks as one. The background task starts with `start` or the first record; `interval_s` is
    how long a row may wait for the ledger, `adopt_s` how often dead processes' segments are looked for;
    `maintains=False`: somebody else calls `ledger.maintain`."""

    def __init__(
        self,
        journal: Journal,
        ledger: LedgerLike,
        sinks: Sequence[Sink] = (),
        *,
        interval_s: float = 1.0,
        adopt_s: float = 5.0,
        maintains: bool = True,
        sink_queue: int = QUEUE_RECORDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._outlets = tuple(Outlet(sink, size=sink_queue) for sink in sinks)
        self._interval_s = interval_s
        self._adopt_s = adopt_s
        self._maintains = maintains
        self._shipping = asyncio.Lock()
        self._adopted: dict[str, Adopted] = {}
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._is_dirty = False
        self._is_closed = False
        self._maintained_at = -MAINTAIN_EVERY_S
        self.settle_dead: Callable[[Mapping[str, int]], Awaitable[list[str] | None]] | None = None
        """Tells the counters what dead processes' exchanges cost by their rows; see `Admission.settle_dead`."""
        self.uncorrect: Callable[[SpendRecord, int], Awaitable[None]] | None = None
        """Tells the counters that a silent hold's row, which was corrected, counts no more; see `Unknown.uncorrect`."""
        self.failures = 0
        """Shippings that failed in a row; 0 while the ledger takes rows."""
        self.flushes = Flushes()
        self.flushed: Callable[[float, bool], None] | None = None
        """Told of each shipping of the background task: when it ended, whether it failed."""
        self._clock = clock

    def dropped_by_sink(self) -> dict[str, int]:
        """Records that sinks did not take, by place in the configuration and kind: `0:WebhookSink`."""
        return {f"{number}:{outlet.name}": outlet.dropped for number, outlet in enumerate(self._outlets)}

    @property
    def journal(self) -> Journal:
        return self._journal

    def intent(self, record: SpendRecord) -> Awaitable[None]:
        """Await before dispatch. Raises `UnavailableError`: then do not dispatch."""
        return self._journal.intent(record)

    async def record(self, record: SpendRecord) -> None:
        """Await before the last byte. Raises `UnavailableError`: then the answer must not look whole."""
        if self._task is None and not self._is_closed:
            self._spawn()
        self._is_dirty = True
        await self._journal.record(record)
        self.tell(record)

    def tell(self, record: SpendRecord) -> None:
        """Sinks alone: of a row that is in the ledger already."""
        for outlet in self._outlets:
            outlet.offer(record)

    async def silent(self, record: SpendRecord) -> None:
        """The row of a hold that was charged because its owner fell silent, so that counters and ledger agree: attempt
        0, at what the exchange's rows leave of the hold. Should the owner turn up, or its journal, `heard` takes it
        back. Raises `UnavailableError`: then call it again."""
        await self.flush()
        rows = await self._ledger.rows_of(record.exchange_id)
        missing = record.cost_nano - sum(row.cost_nano for row in rows if row.attempt)
        if missing > 0 and all(row.attempt for row in rows):
            await self.record(replace(record, attempt=0, cost_nano=missing))

    async def heard(self, record: SpendRecord) -> None:
        """The owner of a silent hold settled after all, so its rows are what counts and the row of `silent` is taken
        back by another; also if that row is still on its way: `record`, at no cost, is then in its place. Raises
        `UnavailableError`: then call it again."""
        rows = await self._silent_rows(record.exchange_id)
        if not rows:
            nothing = replace(record, attempt=0, status="unknown", outcome="incomplete", cost_nano=0, usage=Usage())
            await self._insert([row_of(nothing)])
            rows = await self._silent_rows(record.exchange_id)
            if not rows:
                return  # refused
        standing: dict[str, int] = {}
        for row in rows:
            standing[row.status] = standing.get(row.status, 0) + row.cost_nano
        left = sorted((status, nano) for status, nano in standing.items() if nano)
        backs = [
            replace(rows[0], revision=rows[-1].revision + 1 + place, status=status, cost_nano=-nano)
            for place, (status, nano) in enumerate(left)
        ]
        await self._insert([row_of(back) for back in backs])
        for back in backs:
            self.tell(back)
        # Taken back before or now: what it stood at, if somebody had found another cost than was held.
        stood = sum(standing.values()) if backs else -rows[-1].cost_nano
        if stood != rows[0].cost_nano and self.uncorrect is not None:
            await self.uncorrect(rows[0], rows[0].cost_nano - stood)

    async def _silent_rows(self, exchange_id: str) -> list[SpendRecord]:
        return [row for row in await self._ledger.rows_of(exchange_id) if not row.attempt]

    async def start(self) -> None:
        """Adopt what dead processes left and start the background task. A dead database does not fail it."""
        if self._task is None:
            self._journal.check()
            self._spawn()

    async def flush(self) -> None:
        """When it returns, everything recorded or adoptable so far is in the ledger. Raises `UnavailableError`."""
        async with self._shipping:
            self._adopt()
            paths, is_complete = self._journal.take()
            ships = [partial(self._ship_segment, path) for path in paths]
            ships += [partial(self._ship_adopted, adopted) for adopted in self._adopted.values()]
            unreadable: OSError | None = None
            for ship in ships:
                try:
                    await ship()
                except OSError as error:  # the others are not to wait for these
                    unreadable = error
            if unreadable is not None:
                raise UnavailableError(
                    f"A journal segment cannot be read ({unreadable.strerror or unreadable}).",
                    code="ledger_unavailable",
                ) from unreadable
            if not is_complete:
                raise UnavailableError("The spend journal is not writable.", code="journal_not_writable")

    async def aclose(self, *, timeout_s: float = 10.0) -> None:
        """Ship what can be shipped within the time; the rest stays in the journal for the next process."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        self._is_closed = True  # what is still recorded stays in the journal: nobody would end another task
        await self._stop(timeout_s)
        try:
            async with asyncio.timeout_at(deadline):
                await self.flush()
        except (UnavailableError, OSError):  # a timeout is one
            _log.warning("the ledger did not take every row; the rest stays in the journal")
        for adopted in self._adopted.values():
            adopted.release()
        self._adopted.clear()
        await self._journal.aclose()
        await asyncio.gather(*(outlet.aclose() for outlet in self._outlets))

    # The background task

    async def _stop(self, timeout_s: float) -> None:
        """A shipping under way ends by itself: cancelled amid a transaction, SQLite may stay locked for a while."""
        task, self._task = self._task, None
        self._stopping.set()
        if task is not None:
            await asyncio.wait({task}, timeout=timeout_s)
        for _ in range(MAX_CANCELS):
            if task is None or task.done():
                return
            task.cancel()  # and again: a driver may take one for its own trouble
            await asyncio.wait({task}, timeout=1.0)
        _log.warning("a shipping of spend rows does not end; its rows stay in the journal")

    def _spawn(self) -> None:
        self._is_dirty = True
        self._is_closed = False
        self._stopping.clear()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        adopt_at = time.monotonic()
        while not self._stopping.is_set():
            now = time.monotonic()
            if self._is_dirty or now >= adopt_at:
                self._is_dirty = False
                try:
                    await self.flush()
                    await self._maintain(now)
                    self.failures = 0
                    self._ended(None)
                except UnavailableError as error:
                    self._failed(error)
                except Exception as error:  # noqa: BLE001 - the task must live; the next round tries again
                    self._failed(error)
                adopt_at = time.monotonic() + self._adopt_s
            delay = self._interval_s
            if self.failures:
                self._is_dirty = True
                delay = min(MAX_BACKOFF_S, max(delay, 0.5) * 2 ** min(self.failures, 10))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if self.failures in (1, 10, 100) or self.failures % 1000 == 0:
            cause = error.__cause__ or error
            _log.warning("spend rows wait in the journal (failure %d): %s", self.failures, type(cause).__name__)
        self._ended(error)

    def _ended(self, error: Exception | None) -> None:
        told, at = self.flushes, self._clock()
        told.runs += 1
        told.ended_at = at
        told.error = (
            None if error is None else str(error) if isinstance(error, UnavailableError) else type(error).__name__
        )
        if error is None:
            told.ok_at = at
        else:
            told.failures += 1
        if self.flushed is not None:
            self.flushed(at, error is not None)

    async def _maintain(self, now: float) -> None:
        if self._maintains and now - self._maintained_at >= MAINTAIN_EVERY_S:
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
        await self._ship(reader, path)
        _keep_if_damaged(path, reader)
        self._journal.drop(path)

    async def _ship_adopted(self, adopted: Adopted) -> None:
        """The dead process's records, then a row at the held cost for each intent it left open."""
        if adopted.intents is None:
            adopted.intents = await self._ship_rows(adopted)
        if not await self._settle_dead(adopted, adopted.intents):
            return  # in the next round
        for record in adopted.intents:
            self.tell(record)
        adopted.drop()
        del self._adopted[adopted.owner]

    async def _ship_rows(self, adopted: Adopted) -> list[SpendRecord]:
        reader = SegmentReader(track_intents=True)
        for path in adopted.paths:
            damaged = reader.damaged
            await self._ship(reader, path)
            if reader.damaged > damaged:
                _keep_if_damaged(path, reader)
        intents = [
            replace(record_of(intent), status="unknown", outcome="incomplete")
            for intent in reader.open_intents.values()
        ]
        for start in range(0, len(intents), SHIP_ROWS):
            await self._insert([row_of(intent) for intent in intents[start : start + SHIP_ROWS]])
        return intents

    async def _ship(self, reader: SegmentReader, path: Path) -> None:
        rows: list[Row] = []
        for batch in reader.batches(path, READ_ROWS):
            rows += batch
            if len(rows) >= SHIP_ROWS:
                await self._insert(rows)
                rows = []
            else:
                await asyncio.sleep(0)  # requests go first
        if rows:
            await self._insert(rows)

    async def _settle_dead(self, adopted: Adopted, intents: list[SpendRecord]) -> bool:
        """The dead process's exchanges stand in the counters at what their rows say, not at their holds. False if the
        counters cannot be told now."""
        if self.settle_dead is None:
            return True
        batches = (b for path in adopted.paths for b in SegmentReader(track_intents=False).batches(path, SHIP_ROWS))
        for records in itertools.chain((map(record_of, batch) for batch in batches), [intents]):
            last = {record.exchange_id: record for record in records}
            late = await self.settle_dead(await self._ledger.costs_of(list(last))) if last else []
            if late is None:
                return False
            for exchange_id in late:
                await self.heard(last[exchange_id])
        return True

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
