"""The journal: what is about to be dispatched and what it cost, on disk before anybody acts on it.

`recorder.py` puts it in front of the ledger, `segments.py` knows the files. Rules: all lines of one loop tick go out in
one `os.write`, and a caller returns when its line is written (`durability="disk"`: and synced, one sync for all who
wait). A failed or partial write is cut off again and its callers refused. Open intents are repeated at the head of the
next segment, so a shipped segment can be deleted. What a dead process left is adopted by any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from sidecar.errors import UnavailableError
from sidecar.spend.segments import (
    Adopted,
    Key,
    adopt,
    line_of,
    lock,
    lock_path,
    segment_path,
    withdrawal_of,
)
from sidecar.types import SpendRecord

Durability = Literal["process", "disk"]
MAX_SEGMENT_BYTES = 64 * 1024 * 1024

_Entry = tuple[bytes, "asyncio.Future[None]", Key | None]
"""A line, who waits for it, and whose intent it is (`None`: a record)."""


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
        self._entries: list[_Entry] = []
        self._owed: list[bytes] = []  # lines nobody waits for any more that still have to be written
        self._open: dict[Key, bytes] = {}
        self._is_scheduled = False
        self._unsynced: list[_Entry] = []
        self._syncing: asyncio.Task[None] | None = None

    @property
    def open_intents(self) -> int:
        return len(self._open)

    async def intent(self, record: SpendRecord) -> None:
        """Returns once `record` – the row to be if this process dies, at the held cost – is durable. Raises
        `UnavailableError` if it is not: then nothing may be dispatched. Cancelled: as if never asked."""
        key = (record.exchange_id, record.attempt)
        line = line_of(b"I", record)
        self._open[key] = line
        try:
            await self._append(line, key)
        except asyncio.CancelledError:
            if self._open.pop(key, None) is not None:
                self._owe(withdrawal_of(key))
            raise

    def record(self, record: SpendRecord) -> asyncio.Future[None]:
        """Await it: done once `record` is durable. Raises `UnavailableError` if it is not; it is kept and written with
        the next line that can be. Cancelled: it is written all the same."""
        self._open.pop((record.exchange_id, record.attempt), None)
        return self._append(line_of(b"R", record), None)

    def take(self) -> tuple[list[Path], bool]:
        """The closed segments, oldest first, and whether that is every record so far (not if the disk refuses)."""
        self._write()
        is_complete = True
        if self._has_records:
            try:
                self._rotate()
            except OSError:
                is_complete = False
        if self._owed:
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
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if self._open or self._has_records or self._owed:
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

    def _append(self, line: bytes, key: Key | None) -> asyncio.Future[None]:
        loop = self._loop
        if loop is None:  # asked once: it asks the system for the process id, which costs as much as the rest
            loop = self._loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._entries.append((line, waiter, key))
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._write)
        return waiter

    def _owe(self, line: bytes) -> None:
        self._owed.append(line)
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        """One write for everything that came since the last."""
        self._is_scheduled = False
        entries, self._entries = self._entries, []
        if not entries and not self._owed:
            return
        lines = [entry[0] for entry in entries]
        if self._owed:
            lines[:0] = self._owed
        try:
            if self._fd < 0:
                self._open_segment(b"")
            self._write_all(b"".join(lines))
        except OSError as error:
            self._refuse(entries, error)
            return
        if self._owed:
            self._owed.clear()
            self._needed.clear()
        if not self._has_records:
            self._has_records = any(line[:1] == b"R" for line in lines)
        if self.is_synced:
            self._unsynced += entries
            if self._syncing is None and self._unsynced:
                self._syncing = asyncio.get_running_loop().create_task(self._sync())
        else:
            for _, waiter, _ in entries:
                if not waiter.done():
                    waiter.set_result(None)
        if self._size >= self._max_segment_bytes:
            with contextlib.suppress(OSError):  # then the segment just grows; the next write says what is wrong
                self._rotate()

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
        self._owed[:0] = self._open.values()
        self._is_in_doubt = True
        if unsynced:
            self._refuse(unsynced, OSError("not synced"))
            self._is_in_doubt = True

    def _refuse(self, entries: list[_Entry], error: OSError) -> None:
        is_in_doubt, self._is_in_doubt = self._is_in_doubt, False
        for line, waiter, key in entries:
            if key is None:
                self._owed.append(line)
            elif self._open.get(key) is line:
                del self._open[key]
                if is_in_doubt:
                    self._owed.append(withdrawal_of(key))
            if not waiter.done():
                waiter.set_exception(_unwritable(error))

    async def _sync(self) -> None:
        """Group commit: whoever waits when a sync begins is done when it ends."""
        try:
            while self._unsynced:
                entries, self._unsynced = self._unsynced, []
                descriptor = os.dup(self._fd) if self._fd >= 0 else -1
                try:
                    if descriptor >= 0:
                        await asyncio.to_thread(_fdatasync, descriptor)
                except OSError as error:
                    # After a failed sync nothing written since the last good one may be believed.
                    if self._fd >= 0:
                        self._abandon()
                    self._is_in_doubt = True
                    self._refuse(entries, error)
                    continue
                for _, waiter, _ in entries:
                    if not waiter.done():
                        waiter.set_result(None)
        finally:
            self._syncing = None

    # Segments

    @property
    def _path(self) -> Path:
        return segment_path(self.folder, self._owner, self._number)

    def _rotate(self) -> None:
        """Close the segment and go on in a new one that begins with the open intents. Raises `OSError`; then the old
        one stays in use."""
        if self._fd < 0:
            return
        old_fd, old_path = self._fd, self._path
        if self.is_synced:
            os.fdatasync(old_fd)
        self._open_segment(b"".join([*self._open.values(), *self._owed]))
        self._has_records = any(line[:1] == b"R" for line in self._owed)
        self._owed.clear()
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
