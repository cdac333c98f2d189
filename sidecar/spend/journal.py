"""The journal: what is about to be dispatched and what it cost, on disk before anybody acts on it.

`recorder.py` puts it in front of the ledger, `segments.py` knows the files. Rules: all lines of one loop tick go out in
one `os.write`, and a caller returns when its line is written (`durability="disk"`: and synced, one sync for all who
wait). A failed or partial write is cut off again and its callers refused. Open intents are repeated at the head of the
next segment, so a shipped segment can be deleted. What a dead process left is adopted by any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import types
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from sidecar.errors import UnavailableError
from sidecar.spend.rows import head_of, row_of
from sidecar.spend.segments import Adopted, Columns, Key, Lines, adopt, lock, lock_path, segment_path, trouble_of
from sidecar.types import SpendRecord

Durability = Literal["process", "disk"]
MAX_SEGMENT_BYTES = 64 * 1024 * 1024
_log = logging.getLogger(__name__)


class _Tick(Lines):
    """The lines of one loop tick and what became of them. Who waited a turn and finds it not durable, waits on."""

    __slots__ = ("error", "is_durable", "is_over", "refused", "waiters")

    def __init__(self) -> None:
        super().__init__()
        self.is_durable = self.is_over = False
        self.error: OSError | None = None
        self.waiters: list[asyncio.Future[None]] = []
        self.refused: list[tuple[Columns, Exception]] = []

    def end(self, error: OSError | None = None) -> None:
        self.is_over = True
        self.error = error
        self.is_durable = error is None and not self.refused
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)

    def ended(self, row: Columns) -> Generator[Any, Any, None]:
        if not self.is_over:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiters.append(waiter)
            yield from waiter
        for refused, reason in self.refused:
            if refused is row:
                raise reason
        if self.error is not None:
            raise _unwritable(self.error)


class Journal:
    """Append-only segments in `folder`, opened with the first line. One event loop, one process: after a fork make
    another. `durability` "process" survives `kill -9`, "disk" a power failure. `owner` is a random name (hex)."""

    def __init__(
        self,
        folder: str | Path,
        *,
        durability: Durability = "process",
        max_segment_bytes: int = MAX_SEGMENT_BYTES,
        owner: Callable[[], str] = lambda: os.urandom(16).hex(),
    ) -> None:
        if durability not in ("process", "disk"):
            raise ValueError("the journal's durability is 'process' or 'disk'")
        self.folder = Path(folder)
        self.is_synced = durability == "disk"
        self._max_segment_bytes = max_segment_bytes
        self._new_owner = owner
        self._owner = ""
        self._lock = -1
        self._fd = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._number = 0
        self._size = 0
        self._has_records = False
        self._closed_segments: list[Path] = []
        self._needed: set[Path] = set()  # closed segments that hold intents not repeated anywhere yet
        self._is_in_doubt = False
        self._lost_syncs = 0
        self._tick: _Tick | None = None
        self._owed: Lines | None = None  # what nobody waits for any more and still has to be written
        self._open: dict[Key, Columns] = {}
        self._is_scheduled = False
        self._unsynced: list[_Tick] = []
        self._syncing: asyncio.Task[None] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self.failures = 0
        """Writes that failed in a row; 0 while the disk takes them."""
        self.refused = 0
        """Rows whose caller was told that they are not durable."""

    @property
    def open_intents(self) -> int:
        return len(self._open)

    def check(self) -> None:
        """Logs what stands in the way of writing, before the first request is refused for it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise OSError("no permission to write there")
        except OSError as error:
            self._failed(error)

    @types.coroutine
    def intent(self, record: SpendRecord) -> Generator[Any, Any, None]:
        """Returns once `record` – the row to be if this process dies, at the held cost – is durable. Raises
        `UnavailableError` if it is not: then nothing may be dispatched. Cancelled: as if never asked. Its usage is not
        written: there is none yet."""
        key = (record.exchange_id, record.attempt)
        self._open[key] = head = head_of(record)
        tick = self._tick or self._begin()
        tick.intents.append(head)
        try:
            yield  # to the end of the loop's queue, behind the write: half the cost of a future
            if not tick.is_durable:
                yield from tick.ended(head)
        except asyncio.CancelledError:
            if self._open.get(key) is head:
                del self._open[key]
                (self._tick or self._begin()).withdrawn.append(key)
            raise

    @types.coroutine
    def record(self, record: SpendRecord) -> Generator[Any, Any, None]:
        """Returns once `record` is durable. Raises `UnavailableError` if it is not; it is kept and written with the
        next line that can be. Cancelled: it is written all the same."""
        row = row_of(record)
        self._open.pop((record.exchange_id, record.attempt), None)
        tick = self._tick or self._begin()
        tick.records.append(row)
        yield
        if not tick.is_durable:
            yield from tick.ended(row)

    def take(self) -> tuple[list[Path], bool]:
        """The closed segments, oldest first, and whether that is every record so far (not if the disk refuses)."""
        self._write()
        is_complete = True
        if self._has_records:
            try:
                self._rotate()
            except OSError:
                is_complete = False
        if self._owed is not None:
            return [path for path in self._closed_segments if path not in self._needed], False
        return list(self._closed_segments), is_complete

    def drop(self, path: Path) -> None:
        """A segment of `take` whose rows are in the ledger."""
        path.unlink(missing_ok=True)
        self._closed_segments.remove(path)

    def adopt(self, known: set[str]) -> list[Adopted]:
        """The segments of dead processes that nobody adopted yet; `known` are the owners adopted before."""
        return adopt(self.folder, known=known | {self._owner})

    async def aclose(self) -> None:
        """Write and sync what is pending, then give up the segments: what is left in them is for adoption."""
        self._write()
        while self._syncing is not None:
            await asyncio.wait({self._syncing})
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if self._open or self._has_records or self._owed is not None:
                self._closed_segments.append(self._path)
            else:
                self._path.unlink(missing_ok=True)
        if self._lock >= 0:
            if not self._closed_segments:
                lock_path(self.folder, self._owner).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1
        self._owner = ""
        self._loop = None
        self._number = self._size = 0
        self._has_records = False
        self._open.clear()
        self._needed.clear()
        self._closed_segments.clear()

    # Writing

    def _begin(self) -> _Tick:
        tick = self._tick = _Tick()
        self._schedule()
        return tick

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            if self._loop is None:  # asked once: it asks the system for the process id
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._write)

    def _owing(self) -> Lines:
        if self._owed is None:
            self._owed = Lines()
        return self._owed

    def _write(self) -> None:
        """One write for everything that came since the last."""
        self._is_scheduled = False
        tick, self._tick = self._tick, None
        if tick is None:
            if self._owed is None:
                return
            tick = _Tick()
        data = self._encoded(tick)
        try:
            if self._fd < 0:
                self._open_segment(b"")
            self._write_all(data)
        except OSError as error:
            self._refuse([tick], error)
            return
        if self.failures:
            self.failures = 0
            _log.warning("the spend journal is written again; %d rows were refused so far", self.refused)
        if tick.records:
            self._has_records = True
        if self._owed is not None:
            self._has_records = self._has_records or bool(self._owed.records)
            self._owed = None
            self._needed.clear()
        if not self.is_synced:
            tick.end()
        elif tick.intents or tick.records:
            self._unsynced.append(tick)
            if self._syncing is None:
                self._syncing = asyncio.get_running_loop().create_task(self._sync())
        if self._size >= self._max_segment_bytes:
            with contextlib.suppress(OSError):  # then the segment just grows; the next write says what is wrong
                self._rotate()

    def _encoded(self, tick: _Tick) -> bytes:
        """What is owed and the tick's. A row nothing can encode is refused alone."""
        try:
            data = tick.encoded()
        except Exception:  # noqa: BLE001 - whatever it is, it is one caller's and the others are to be written
            for rows in (tick.intents, tick.records):
                for row in list(rows):
                    if (reason := trouble_of(row)) is not None:
                        rows.remove(row)
                        self._open.pop(row[:2], None)
                        tick.refused.append((row, reason))
            data = tick.encoded()
        return data if self._owed is None else self._owed.encoded() + data

    def _write_all(self, data: bytes) -> None:
        """All of it or, as far as the file goes, nothing. Raises `OSError`."""
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:] if written else data)
        except OSError:
            if written:
                try:
                    os.ftruncate(self._fd, self._size)
                except OSError:
                    self._abandon()
            raise
        self._size += written

    def _abandon(self) -> None:
        """The segment's tail is in doubt: end the segment here. Its open intents have to be repeated in the next one
        before it may go, and what was refused has to be withdrawn, should it be in the tail."""
        unsynced, self._unsynced = self._unsynced, []
        os.close(self._fd)
        self._fd = -1
        self._has_records = False
        self._closed_segments.append(self._path)
        self._needed.add(self._path)
        if self._open:
            self._owing().intents[:] = self._open.values()
        self._is_in_doubt = True
        if unsynced:
            self._refuse(unsynced, OSError("not synced"))
            self._is_in_doubt = True

    def _refuse(self, ticks: list[_Tick], error: OSError) -> None:
        is_in_doubt, self._is_in_doubt = self._is_in_doubt, False
        self._failed(error)
        for tick in ticks:
            self.refused += len(tick.intents) + len(tick.records)
            for head in tick.intents:
                if self._open.get(head[:2]) is head:
                    del self._open[head[:2]]
                    if is_in_doubt:
                        self._owing().withdrawn.append(head[:2])
            if tick.records or tick.withdrawn:
                owed = self._owing()
                owed.records += tick.records
                owed.withdrawn += tick.withdrawn
            tick.end(error)

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        if self.failures in (1, 10, 100) or self.failures % 1000 == 0:
            _log.error(
                "the spend journal in %s cannot be written (%s): requests are refused with 503 (failure %d)",
                self.folder, error.strerror or error, self.failures,
            )  # fmt: skip

    async def _sync(self) -> None:
        """Group commit: whoever waits when a sync begins is done when it ends."""
        try:
            while self._unsynced:
                ticks, self._unsynced = self._unsynced, []
                lost = self._lost_syncs
                try:
                    await asyncio.get_running_loop().run_in_executor(self._thread(), _fdatasync, os.dup(self._fd))
                    if self._lost_syncs > lost:
                        raise OSError("not synced")
                except OSError as error:
                    # After a failed sync nothing written since the last good one may be believed.
                    if self._fd >= 0:
                        self._abandon()
                    self._is_in_doubt = True
                    self._refuse(ticks, error)
                    continue
                for tick in ticks:
                    tick.end()
        finally:
            self._syncing = None

    def _thread(self) -> ThreadPoolExecutor:
        """Of its own: in the loop's, names are looked up, and those of a nameserver that is silent would keep every
        request of every provider waiting for its line."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "sidecar-journal")
        return self._executor

    # Segments

    @property
    def _path(self) -> Path:
        return segment_path(self.folder, self._owner, self._number)

    def _rotate(self) -> None:
        """Close the segment and go on in a new one that begins with the open intents. Raises `OSError`; then the old
        one stays in use, unless it could not be synced."""
        if self._fd < 0:
            return
        old_fd, old_path = self._fd, self._path
        if self.is_synced:
            try:
                os.fdatasync(old_fd)
            except OSError:
                # The system tells of it once: who waits for a sync of this file would hear that all is well.
                self._lost_syncs += 1
                self._abandon()
                raise
        head = Lines()
        if self._owed is not None:
            head.records, head.withdrawn = self._owed.records, self._owed.withdrawn
        head.intents = list(self._open.values())
        self._open_segment(head.encoded())
        self._has_records = bool(head.records)
        self._owed = None
        self._needed.clear()
        os.close(old_fd)
        self._closed_segments.append(old_path)

    def _open_segment(self, head: bytes) -> None:
        """All or nothing. Raises `OSError`."""
        if self._lock < 0:
            self._lock_owner()
        path = segment_path(self.folder, self._owner, self._number + 1)
        path.unlink(missing_ok=True)  # of an attempt that failed half-way
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            written = 0
            while written < len(head):
                written += os.write(descriptor, head[written:])
            if self.is_synced:
                os.fdatasync(descriptor)
                _sync_folder(self.folder)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        self._fd, self._size, self._has_records = descriptor, written, False
        self._number += 1

    def _lock_owner(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for _ in range(10):
            owner = self._new_owner()
            descriptor = lock(lock_path(self.folder, owner))
            if descriptor is not None:
                self._owner, self._lock = owner, descriptor
                return
        raise OSError("no lock file of the journal could be locked")


def _fdatasync(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(error: OSError) -> UnavailableError:
    return UnavailableError(
        f"The gateway cannot write its spend journal ({error.strerror or error}). Try again shortly.",
        code="journal_not_writable",
        retry_after_s=1.0,
    )
