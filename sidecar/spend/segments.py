"""The files of a journal: names, locks, lines, and reading them back.

`journal.py` writes segments, `recorder.py` ships them, `rows.py` says what a row is. A process holds `<owner>.lock`
under `flock` as long as it lives and appends to `<owner>-<number>.seg`. A line is a letter, a JSON array and a newline:
`I` intent, `R` record, `W` intent withdrawn (it was never dispatched). Rule: a line without its newline was never
acknowledged and does not count.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sidecar.spend.rows import Row, decoded, encoded
from sidecar.types import SpendRecord

Key = tuple[str, int]
"""(exchange_id, attempt): what an intent and its record share."""

_NAME = re.compile(r"([0-9a-f]{16,64})(?:-([0-9]{8,})\.seg|\.lock)")
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode_key = msgspec.json.Decoder(Key).decode


def segment_path(folder: Path, owner: str, number: int) -> Path:
    return folder / f"{owner}-{number:08d}.seg"


def lock_path(folder: Path, owner: str) -> Path:
    return folder / f"{owner}.lock"


def line_of(letter: bytes, record: SpendRecord) -> bytes:
    return letter + encoded(record) + b"\n"


def withdrawal_of(key: Key) -> bytes:
    return b"W" + _encode(key) + b"\n"


def lock(path: Path) -> int | None:
    """The descriptor of a lock file that is now ours; `None` if its process lives. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass  # held by its process, or removed by another adopter meanwhile
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@dataclass(slots=True)
class Adopted:
    """The segments of a dead process, under its lock, oldest first. `drop` once their rows are in the ledger.
    `intents`: those left open, once their rows are."""

    owner: str
    descriptor: int
    folder: Path
    paths: list[Path]
    intents: list[SpendRecord] | None = None

    def drop(self) -> None:
        for path in self.paths:
            path.unlink(missing_ok=True)
        lock_path(self.folder, self.owner).unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Let another process adopt them."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def adopt(folder: Path, *, known: set[str]) -> list[Adopted]:
    """Lock and return the segment sets of dead processes; `known` owners (ourselves, those adopted before) are left."""
    found: list[Adopted] = []
    for owner in sorted(_scan(folder).keys() - known):
        descriptor = lock(lock_path(folder, owner))
        if descriptor is None:
            continue
        # Listed again under the lock: its process may have gone on writing, or another adopter finished.
        adopted = Adopted(owner, descriptor, folder, _scan(folder).get(owner, []))
        if adopted.paths:
            found.append(adopted)
        else:
            adopted.drop()
    return found


def _scan(folder: Path) -> dict[str, list[Path]]:
    owners: dict[str, list[Path]] = {}
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return owners
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            paths = owners.setdefault(match[1], [])
            if match[2]:
                paths.append(folder / name)
    for paths in owners.values():
        paths.sort(key=lambda path: int(path.stem.rpartition("-")[2]))
    return owners


class SegmentReader:
    """Reads segments in order, a bounded batch of records at a time. After the end, `open_intents` are those without
    a record; `damaged` counts whole lines that could not be understood."""

    def __init__(self, *, track_intents: bool) -> None:
        self.open_intents: dict[Key, Row] = {}
        self.damaged = 0
        self._track_intents = track_intents

    def batches(self, path: Path, size: int) -> Iterator[list[Row]]:
        """The records' rows of one segment. Its intents are noted on the way."""
        batch: list[Row] = []
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # torn: written by a process that died in the middle
                record = self._take(line, path)
                if record is not None:
                    batch.append(record)
                    if len(batch) >= size:
                        yield batch
                        batch = []
        if batch:
            yield batch

    def _take(self, line: bytes, path: Path) -> Row | None:
        letter = line[:1]
        try:
            if letter == b"R":
                row: Row = decoded(line[1:])
                if self._track_intents:
                    self.open_intents.pop((row[0], row[1]), None)
                return row
            if letter == b"I":
                if self._track_intents:
                    intent = decoded(line[1:])
                    self.open_intents[intent[0], intent[1]] = intent
                return None
            if letter == b"W":
                self.open_intents.pop(_decode_key(line[1:]), None)
                return None
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            pass
        self.damaged += 1
        _log.error("a line of the journal segment %s is damaged and was skipped", path)
        return None
